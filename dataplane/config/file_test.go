package config

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/configfile"
	"github.com/weft-mesh/weft/pkg/resource"
)

// keptOf is a resource as files have it.
func keptOf(t *testing.T, r *configv1.Resource, version string) *discoveryv1.KeptResource {
	t.Helper()
	b, err := resource.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return &discoveryv1.KeptResource{Name: r.Name, OfferedVersion: version, Version: version, Resource: b, OfferedDigest: resource.DigestOf(r.Name, version, b).Bytes()}
}

func inNamespace(r *configv1.Resource, ns string) *configv1.Resource {
	r.Metadata.Namespace = ns
	r.Name = resource.NameOf(r)
	return r
}

func snapshotFile(t *testing.T, lg *discoveryv1.LastGood) string {
	t.Helper()
	b, err := configfile.EncodeSnapshot(lg, nil)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "snapshot")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// starts loads what a client starts from.
func starts(t *testing.T, cfg Config) (State, error) {
	t.Helper()
	var s State
	cfg.NodeID, cfg.Check, cfg.Log = "n1", snapshot.Check, slog.New(slog.DiscardHandler)
	cfg.Apply = func(_ context.Context, applied State) { s = applied }
	err := New(cfg).load(context.Background())
	return s, err
}

// TestWhatToStartFrom: the newer of disk and snapshot file, by lineage and revision;
// the disk where they cannot be compared. What was started from is kept on disk.
func TestWhatToStartFrom(t *testing.T) {
	for _, tc := range []struct {
		lineage  string // of the file; the disk is at revision 5 of 1-x
		revision int64
		from     snapshot.Origin
	}{
		{"1-x", 4, snapshot.FromDisk},
		{"1-x", 5, snapshot.FromDisk},
		{"1-x", 6, snapshot.FromFile},
		{"2-y", 1, snapshot.FromFile},
		{"0-y", 9, snapshot.FromDisk},
		{"1-y", 9, snapshot.FromDisk},
	} {
		t.Run(fmt.Sprint(tc.lineage, " ", tc.revision), func(t *testing.T) {
			d := disk{t.TempDir()}
			saved(t, d, 5)
			v := fmt.Sprint(tc.revision)
			file := snapshotFile(t, &discoveryv1.LastGood{Lineage: tc.lineage, Revision: tc.revision, Scope: everything,
				Resources: []*discoveryv1.KeptResource{keptOf(t, storeRes("a", v, testUID), v)}})
			want := State{Lineage: "1-x", Revision: 5}
			if tc.from == snapshot.FromFile {
				want = State{Lineage: tc.lineage, Revision: tc.revision}
			}
			s, err := starts(t, Config{Dir: d.dir, SnapshotFile: file})
			if err != nil || s.Origin != tc.from || s.Lineage != want.Lineage || s.Revision != want.Revision || s.label(nameA) != fmt.Sprint(want.Revision) {
				t.Fatalf("%+v, %v", s, err)
			}
			if s, err := starts(t, Config{Dir: d.dir}); err != nil || s.Origin != snapshot.FromDisk || s.Lineage != want.Lineage || s.Revision != want.Revision {
				t.Errorf("without the file: %+v, %v", s, err)
			}
		})
	}
}

// TestOwnScope: of a bigger snapshot the own namespaces are taken; one that lacks
// any of them is refused as a whole.
func TestOwnScope(t *testing.T) {
	lg := &discoveryv1.LastGood{Lineage: "1-x", Revision: 5, Scope: configfile.Scope([]string{"demo", "shop"}),
		Resources: []*discoveryv1.KeptResource{keptOf(t, storeRes("a", "1", testUID), "1"), keptOf(t, inNamespace(storeRes("b", "1", testUID), "shop"), "2")},
		Withheld:  []*configv1.Withheld{{Name: "accesspolicy/demo/p"}, {Name: "accesspolicy/shop/p"}}}
	file := snapshotFile(t, lg)
	info := func(namespaces ...string) *discoveryv1.NodeInfo { return &discoveryv1.NodeInfo{Namespaces: namespaces} }
	s, err := starts(t, Config{SnapshotFile: file, Info: info("demo")})
	if err != nil || len(s.Set) != 1 || s.label(nameA) != "1" || !slices.Equal(s.Withheld, []string{"accesspolicy/demo/p"}) {
		t.Errorf("one namespace: %+v, %v", s, err)
	}
	if s, err = starts(t, Config{SnapshotFile: file, Info: info("shop", "demo")}); err != nil || len(s.Set) != 2 || len(s.Withheld) != 2 {
		t.Errorf("both: %+v, %v", s, err)
	}
	for what, namespaces := range map[string][]string{"*": nil, "*/other/*": {"demo", "other"}} {
		if s, err = starts(t, Config{SnapshotFile: file, Info: info(namespaces...)}); err == nil || !strings.Contains(err.Error(), "does not have "+what) || s.Lineage != "" {
			t.Errorf("%v: %+v, %v", namespaces, s, err)
		}
	}
}

// TestOwnScopeFromDisk: a client on demand takes of what was kept, of more namespaces,
// whole or on demand, nothing but of its own.
func TestOwnScopeFromDisk(t *testing.T) {
	for what, scope := range map[string][]string{"everything": everything, "whole namespaces": configfile.Scope([]string{"demo", "shop"}),
		"on demand": slices.Concat(configfile.Governing([]string{"demo", "shop"}), []string{"topic/demo/t", "topic/shop/t"})} {
		b, err := configfile.EncodeKept(&discoveryv1.LastGood{NodeId: "n1", Lineage: "1-x", Revision: 5, Scope: scope,
			Resources: []*discoveryv1.KeptResource{keptOf(t, storeRes("a", "1", testUID), "1"), keptOf(t, inNamespace(storeRes("b", "1", testUID), "shop"), "2")},
			Withheld:  []*configv1.Withheld{{Name: "topic/demo/t"}, {Name: "topic/shop/t"}}})
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s%016d", filePrefix, 1)), b, 0o600); err != nil {
			t.Fatal(err)
		}
		var s State
		c := New(Config{Dir: dir, NodeID: "n1", Info: &discoveryv1.NodeInfo{Namespaces: []string{"demo"}}, Demand: &Demand{}, Check: snapshot.Check,
			Log: slog.New(slog.DiscardHandler), Apply: func(_ context.Context, applied State) { s = applied }})
		if err := c.load(t.Context()); err != nil || len(s.Set) != 1 || s.label(nameA) != "1" || !slices.Equal(s.Withheld, []string{"topic/demo/t"}) || strings.Contains(fmt.Sprint(c.wanted()), "shop") {
			t.Errorf("%s: %+v, asks for %v, %v", what, s, c.wanted(), err)
		}
	}
}

// TestNotEnforceable: what this proxy cannot enforce of a snapshot is withheld; of a
// kind that it does not know the namespace is denied.
func TestNotEnforceable(t *testing.T) {
	unknown := &discoveryv1.KeptResource{Name: "tariff/shop/q", OfferedVersion: "3", Version: "3", OfferedDigest: resource.DigestOf("tariff/shop/q", "3", nil).Bytes()}
	bad := storeRes("b", "1", testUID)
	bad.Spec = &configv1.Resource_EventStore{EventStore: &configv1.EventStore{}}
	file := snapshotFile(t, &discoveryv1.LastGood{Lineage: "1-x", Revision: 5, Scope: everything,
		Resources: []*discoveryv1.KeptResource{keptOf(t, storeRes("a", "1", testUID), "1"), keptOf(t, bad, "2"), unknown}})
	s, err := starts(t, Config{SnapshotFile: file})
	if err != nil || len(s.Set) != 1 || s.label(nameA) != "1" || !slices.Equal(s.Withheld, []string{nameB, "tariff/shop/q"}) || len(s.Denied) != 1 || s.Denied["shop"] != "tariff/shop/q" {
		t.Errorf("%+v, %v", s, err)
	}
	can := slices.DeleteFunc(resource.AllFeatures(), func(f string) bool { return f == "eventstore.embedded" })
	if s, err = starts(t, Config{SnapshotFile: file, Info: &discoveryv1.NodeInfo{Capabilities: can}}); err != nil || len(s.Set) != 0 || !slices.Contains(s.Withheld, nameA) {
		t.Errorf("without the driver: %+v, %v", s, err)
	}
}

// TestUnusableFile: a file that cannot be used is an error and no part of it is in
// force; with a configuration on disk the proxy starts from that.
func TestUnusableFile(t *testing.T) {
	good := snapshotFile(t, &discoveryv1.LastGood{Lineage: "1-x", Revision: 9, Scope: everything,
		Resources: []*discoveryv1.KeptResource{keptOf(t, storeRes("a", "9", testUID), "9")}})
	b, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, b[:len(b)-1], 0o600); err != nil {
		t.Fatal(err)
	}
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	for says, cfg := range map[string]Config{
		short + " is damaged":   {SnapshotFile: short},
		good + " is not signed": {SnapshotFile: good, SnapshotKey: public},
		"no such file":          {SnapshotFile: good + "x"},
	} {
		if s, err := starts(t, cfg); err == nil || !strings.Contains(err.Error(), says) || s.Lineage != "" {
			t.Errorf("%+v, %v; want %q", s, err, says)
		}
		d := disk{t.TempDir()}
		saved(t, d, 5)
		cfg.Dir = d.dir
		if s, err := starts(t, cfg); err != nil || s.Revision != 5 || s.Origin != snapshot.FromDisk {
			t.Errorf("with a disk: %+v, %v", s, err)
		}
	}
}
