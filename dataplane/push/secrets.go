package push

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/secretfile"
	"github.com/weft-mesh/weft/pkg/tlsconf"
)

const (
	// reread is how long a secret is used before its file is read again.
	reread = time.Second
	// maxSecret is the longest secret, in bytes.
	maxSecret = 8 << 10
)

// secrets are those of one target: files in the folder of its namespace, so that
// nobody names those of others, nor any other file of this machine.
type secrets struct {
	folder, namespace string

	mu    sync.Mutex
	known map[string]secret
}

type secret struct {
	value string
	err   error
	read  time.Time
}

// path is the file of a name, below the folder.
func (s *secrets) path(name string) (string, error) {
	switch {
	case s.folder == "":
		return "", errNoSecrets
	case name == ".." || strings.ContainsAny(name, `/\`):
		return "", errors.New("secret " + name + ": is not the name of a file in the namespace's folder")
	}
	return s.namespace + "/" + name, nil
}

// tls are the TLS files that push names.
func (s *secrets) tls(push *snapshot.Push) (f tlsconf.Files, err error) {
	for _, n := range []struct {
		field, name string
		to          *string
	}{{"ca", push.CA, &f.CA}, {"certificate", push.Cert, &f.Cert}, {"key", push.Key, &f.Key}} {
		if n.name == "" {
			continue
		}
		if *n.to, err = s.path(n.name); err != nil {
			return tlsconf.Files{}, fmt.Errorf("push.tls.%s: %w", n.field, err)
		}
		f.Folder = s.folder
	}
	return f, nil
}

var errNoSecrets = errors.New("this proxy has no folder of secrets (--push-secrets)")

// get gives a secret. Its error has neither the secret nor where it would be.
func (s *secrets) get(name string) (string, error) {
	path, err := s.path(name)
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if k, ok := s.known[name]; ok && time.Since(k.read) < reread {
		return k.value, k.err
	}
	k := secret{read: time.Now()}
	b, err := secretfile.ReadIn(s.folder, path)
	if err == nil {
		k.value, err = secretfile.Text(b, maxSecret)
	}
	if err != nil {
		k.err = errors.New("secret " + name + ": " + err.Error())
	}
	if s.known == nil {
		s.known = map[string]secret{}
	}
	s.known[name] = k
	return k.value, k.err
}

// forget drops what was read, when other names may be asked for from now on.
func (s *secrets) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known = nil
}
