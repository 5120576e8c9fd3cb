package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/configfile"
	"github.com/weft-mesh/weft/pkg/resource"
)

const (
	filePrefix  = "last-good."
	generations = 3
)

// disk keeps the last generations of the configuration in a folder.
type disk struct{ dir string }

// save writes m as the newest generation: aside, synced, renamed, the folder
// synced. A crash leaves the generations before it.
func (d disk) save(m *memory, scope []string, nodeID string) error {
	lg := &discoveryv1.LastGood{Lineage: m.lineage, Revision: m.revision, Scope: scope, NodeId: nodeID, Withheld: m.withheld, View: m.view}
	for name, k := range m.resources {
		lg.Resources = append(lg.Resources, &discoveryv1.KeptResource{Name: name, OfferedVersion: k.offered,
			Version: k.good.Version, Resource: k.bytes, Rejection: k.rejection, OfferedDigest: k.digest.Bytes()})
	}
	slices.SortFunc(lg.Resources, func(a, b *discoveryv1.KeptResource) int { return strings.Compare(a.Name, b.Name) })
	file, err := configfile.EncodeKept(lg)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return err
	}
	names, err := d.list()
	if err != nil {
		return err
	}
	next := uint64(1)
	if len(names) > 0 {
		newest, _ := generation(names[0])
		next = newest + 1
	}
	aside := filepath.Join(d.dir, "writing")
	if err := writeSynced(aside, file); err != nil {
		return err
	}
	if err := os.Rename(aside, filepath.Join(d.dir, fmt.Sprintf("%s%016d", filePrefix, next))); err != nil {
		return err
	}
	if err := syncDir(d.dir); err != nil {
		return err
	}
	for _, old := range names[min(len(names), generations-1):] {
		if err := os.Remove(filepath.Join(d.dir, old)); err != nil {
			return err
		}
	}
	return nil
}

// clear removes all generations, durably.
func (d disk) clear() error {
	names, err := d.list()
	if err != nil {
		return err
	}
	slices.Reverse(names) // a crash leaves the newest
	for _, name := range names {
		if err := os.Remove(filepath.Join(d.dir, name)); err != nil {
			return err
		}
	}
	if err := syncDir(d.dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func writeSynced(name string, file []byte) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(file); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Sync(); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// generation is the number in a file's name; ok is false for other files.
func generation(name string) (n uint64, ok bool) {
	digits, ok := strings.CutPrefix(name, filePrefix)
	if !ok || len(digits) != 16 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, err == nil
}

// list gives the generations, newest first.
func (d disk) list() ([]string, error) {
	entries, err := os.ReadDir(d.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if _, ok := generation(e.Name()); ok {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	slices.Reverse(names)
	return names, nil
}

// load reads the newest generation that is whole; problems names those that are
// not. Without any m is nil.
func (d disk) load(scope []string, nodeID string, check func(*configv1.Resource) (string, error)) (m *memory, problems []error) {
	names, err := d.list()
	if err != nil {
		return nil, []error{err}
	}
	for i, name := range names {
		m, err := d.read(filepath.Join(d.dir, name), scope, nodeID, check)
		if err == nil {
			if i > 0 {
				m.replaced = d.written(names[i-1])
			}
			return m, problems
		}
		problems = append(problems, fmt.Errorf("%s: %w", name, err))
	}
	return nil, problems
}

func (d disk) read(name string, scope []string, nodeID string, check func(*configv1.Resource) (string, error)) (*memory, error) {
	b, err := configfile.Read(name)
	if err != nil {
		return nil, err
	}
	lg, err := configfile.DecodeKept(b)
	if err != nil {
		return nil, err
	}
	wildcards, names := configfile.Split(lg.Scope)
	if lg.NodeId != nodeID || !slices.Equal(wildcards, scope) && !enough(wildcards, scope) {
		return nil, fmt.Errorf("is of node %s and scope %v, not of this one", lg.NodeId, wildcards)
	}
	if !slices.Equal(wildcards, scope) {
		// It may be of more namespaces than are served now.
		own := configfile.Scope(governed(scope))
		other := func(name string) bool { return !configfile.Covers(own, name) }
		names = slices.DeleteFunc(names, other)
		lg.Resources = slices.DeleteFunc(lg.Resources, func(r *discoveryv1.KeptResource) bool { return other(r.Name) })
		lg.Withheld = slices.DeleteFunc(lg.Withheld, func(w *configv1.Withheld) bool { return other(w.Name) })
	}
	m := newMemory()
	m.lineage, m.revision, m.withheld, m.view, m.scope = lg.Lineage, lg.Revision, lg.Withheld, lg.View, wildcards
	for _, name := range names {
		m.names[name] = true
	}
	for _, r := range lg.Resources {
		digest, ok := resource.ParseDigest(r.OfferedDigest)
		if !ok {
			return nil, fmt.Errorf("has no digest of %s: it is of an older version", r.Name)
		}
		k := &kept{offered: r.OfferedVersion, digest: digest, rejection: r.Rejection}
		m.remove(r.Name)
		m.add(r.Name, k)
		if r.Version == "" {
			continue
		}
		res := &configv1.Resource{}
		if err := proto.Unmarshal(r.Resource, res); err != nil {
			return nil, err
		}
		// A program that was exchanged meanwhile may know less.
		if field, err := check(res); err != nil {
			k.rejection = &discoveryv1.Rejection{Name: r.Name, Version: r.Version, Field: field, Reason: err.Error()}
			continue
		}
		k.good, k.bytes = snapshot.Versioned{Resource: res, Version: r.Version}, r.Resource
	}
	return m, nil
}

// governed are the namespaces of a scope on demand.
func governed(scope []string) (namespaces []string) {
	for _, s := range scope {
		if ns, ok := resource.CutGoverning(s); ok {
			namespaces = append(namespaces, ns)
		}
	}
	return namespaces
}

// enough reports whether what was kept, of whole namespaces or of more of them, has what a client on
// demand begins with.
func enough(kept, scope []string) bool {
	return !slices.ContainsFunc(scope, func(s string) bool {
		_, governs := resource.CutGoverning(s)
		return !governs || !configfile.CoversScope(kept, s)
	})
}

// newest is when the newest generation was written.
func (d disk) newest() (at time.Time) {
	if list, err := d.list(); err == nil && len(list) > 0 {
		at = d.written(list[0])
	}
	return at
}

// written is when a generation was.
func (d disk) written(name string) (at time.Time) {
	if i, err := os.Stat(filepath.Join(d.dir, name)); err == nil {
		at = i.ModTime()
	}
	return at
}
