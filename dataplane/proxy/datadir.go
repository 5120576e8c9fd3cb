package proxy

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/weft-mesh/weft/pkg/names"
)

// dataDir is the proxy's folder, locked while the process has it.
type dataDir struct {
	path string
	lock *os.File
}

// openDataDir makes the folder, if need be, and locks it: two proxies in one
// folder would take each other's node id and configuration.
func openDataDir(path string) (*dataDir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(path, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	if err := lockFile(f); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("data folder %s is in use by another proxy: %w", path, err)
	}
	return &dataDir{path, f}, nil
}

func (d *dataDir) close() error { return d.lock.Close() }

// nodeID is the node id that is kept in the folder; it is drawn the first time.
func (d *dataDir) nodeID() (string, error) {
	name := filepath.Join(d.path, "node-id")
	b, err := os.ReadFile(name)
	if err == nil {
		id := strings.TrimSpace(string(b))
		if !names.ValidNodeID(id) {
			return "", fmt.Errorf("%s does not hold a node id; remove it and a new one is drawn", name)
		}
		return id, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	host, err := os.Hostname()
	if err != nil {
		return "", err
	}
	id := drawNodeID(host)
	return id, writeDurably(name, []byte(id+"\n"))
}

// maxHost is how much of a host's name is in a node id that is drawn.
const maxHost = 64

// drawNodeID draws a node id that people recognise: the host's name, and what keeps apart
// the proxies of hosts of one name.
func drawNodeID(host string) string {
	host = strings.Trim(strings.Map(func(r rune) rune {
		if r < utf8.RuneSelf && names.ValidNodeID(string(r)) {
			return r
		}
		return '-'
	}, host[:min(len(host), maxHost)]), "-.")
	id := uuid.New()
	return cmp.Or(host, "proxy") + "-" + hex.EncodeToString(id[:6])
}

// writeDurably writes a file so that after a crash it is whole or not there.
func writeDurably(name string, b []byte) error {
	aside := name + ".new"
	f, err := os.OpenFile(aside, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(aside, name)
	}
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
