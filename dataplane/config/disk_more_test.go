package config

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/resource"
)

// memoryAt holds one store at a revision.
func memoryAt(t testing.TB, revision int64) *memory {
	t.Helper()
	r := storeRes("a", fmt.Sprint(revision), testUID)
	b, err := resource.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	v := fmt.Sprint(revision)
	m := newMemory()
	m.lineage, m.revision = "1-x", revision
	m.add(nameA, &kept{offered: v, digest: resource.DigestOf(nameA, v, b), good: snapshot.Versioned{Resource: r, Version: v}, bytes: b})
	return m
}

var everything = []string{"*"}

func saved(t *testing.T, d disk, revisions ...int64) {
	t.Helper()
	for _, r := range revisions {
		if err := d.save(memoryAt(t, r), everything, "n1"); err != nil {
			t.Fatal(err)
		}
	}
}

// loads checks what is loaded: revision 0 is nothing.
func loads(t *testing.T, d disk, what string, revision int64, problems int) {
	t.Helper()
	m, found := d.load(everything, "n1", snapshot.Check)
	if len(found) != problems {
		t.Fatalf("%s: the problems are %v, want %d", what, found, problems)
	}
	switch {
	case revision == 0 && m != nil:
		t.Fatalf("%s: revision %d is loaded", what, m.revision)
	case revision == 0:
	case m == nil || m.revision != revision || m.lineage != "1-x" || len(m.resources) != 1:
		t.Fatalf("%s: loaded %+v, want revision %d", what, m, revision)
	case m.resources[nameA].good.Resource.GetMetadata().GetLabels()["v"] != fmt.Sprint(revision):
		t.Fatalf("%s: loaded %v", what, m.resources[nameA].good)
	}
}

// TestEveryDamage: whatever bit of the newest generation is wrong, and wherever
// it is cut, the one before it is used, never a part of it.
func TestEveryDamage(t *testing.T) {
	d := disk{t.TempDir()}
	saved(t, d, 1, 2)
	names, err := d.list()
	if err != nil || len(names) != 2 {
		t.Fatal(names, err)
	}
	newest := filepath.Join(d.dir, names[0])
	whole, err := os.ReadFile(newest)
	if err != nil {
		t.Fatal(err)
	}
	put := func(b []byte) {
		if err := os.WriteFile(newest, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i := range whole {
		for bit := range 8 {
			b := slices.Clone(whole)
			b[i] ^= 1 << bit
			put(b)
			loads(t, d, fmt.Sprintf("bit %d of byte %d flipped", bit, i), 1, 1)
		}
		put(whole[:i])
		loads(t, d, fmt.Sprintf("cut to %d bytes", i), 1, 1)
	}
	put(append(slices.Clone(whole), 0))
	loads(t, d, "one byte more", 1, 1)
	put(append(make([]byte, 4096), whole...))
	loads(t, d, "a page of zeros before it", 1, 1)
	put(whole)
	loads(t, d, "whole again", 2, 0)
}

// TestAnyDamage: whatever happens to any of the generations (bits, cuts, blocks that
// were lost, written twice or are another file's, a folder in its place), the newest
// that is whole is used, as a whole, each that is not is named, and what is saved
// next is used next.
func TestAnyDamage(t *testing.T) {
	dir := t.TempDir()
	saved(t, disk{dir}, 1, 2, 3)
	names, err := disk{dir}.list() // newest first
	if err != nil || len(names) != generations {
		t.Fatal(names, err)
	}
	var whole [][]byte
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		whole = append(whole, b)
	}
	const block = 16
	damages := map[string]func(rnd *rand.Rand, b, other []byte) []byte{
		"flip": func(rnd *rand.Rand, b, _ []byte) []byte { b[rnd.IntN(len(b))] ^= 1 << rnd.IntN(8); return b },
		"cut":  func(rnd *rand.Rand, b, _ []byte) []byte { return b[:rnd.IntN(len(b))] },
		"longer": func(rnd *rand.Rand, b, other []byte) []byte {
			return append(b, other[:1+rnd.IntN(len(other))]...)
		},
		"zeros": func(rnd *rand.Rand, b, _ []byte) []byte {
			at := rnd.IntN(len(b))
			clear(b[at:min(len(b), at+block)])
			return b
		},
		"lost": func(rnd *rand.Rand, b, _ []byte) []byte {
			at := rnd.IntN(len(b) - block)
			return slices.Delete(b, at, at+block)
		},
		"twice": func(rnd *rand.Rand, b, _ []byte) []byte {
			at := rnd.IntN(len(b) - block)
			return slices.Insert(b, at, b[at:at+block]...)
		},
		"end of another": func(rnd *rand.Rand, b, other []byte) []byte {
			at := len("WEFTCFG1") + sha256.Size // an earlier one could be all of the other
			at += rnd.IntN(len(b) - at)
			return append(b[:at], other[min(at, len(other)):]...)
		},
		"folder": nil,
	}
	kinds := slices.Sorted(maps.Keys(damages))
	for seed := range uint64(500) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		d := disk{filepath.Join(t.TempDir(), "config")}
		if err := os.Mkdir(d.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		want, problems := int64(0), 0
		what := fmt.Sprint("seed ", seed)
		for i, name := range names {
			file := filepath.Join(d.dir, name)
			b, kind := slices.Clone(whole[i]), ""
			if rnd.IntN(2) == 0 {
				kind = kinds[rnd.IntN(len(kinds))]
				what += fmt.Sprintf(", %s: %s", name, kind)
			}
			if kind == "folder" {
				if err := os.Mkdir(file, 0o700); err != nil {
					t.Fatal(err)
				}
			} else {
				if kind != "" {
					b = damages[kind](rnd, b, whole[(i+1)%generations])
				}
				if err := os.WriteFile(file, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			switch {
			case want > 0: // older ones are not looked at
			case bytes.Equal(b, whole[i]) && kind != "folder":
				want = int64(generations - i)
			default:
				problems++
			}
		}
		loads(t, d, what, want, problems)
		saved(t, d, 4)
		loads(t, d, what+"; saved again", 4, 0)
	}
}

// TestGenerations: three are kept, private to the user; what a crash left aside
// is no generation, and is written over.
func TestGenerations(t *testing.T) {
	d := disk{filepath.Join(t.TempDir(), "sub", "config")}
	loads(t, d, "before the first", 0, 0)
	saved(t, d, 1, 2, 3, 4, 5)
	if err := os.WriteFile(filepath.Join(d.dir, "writing"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, foreign := range []string{"last-good.bak", "last-good.0000000000000009.bak", "last-good.-000000000000007", "zzz"} {
		if err := os.WriteFile(filepath.Join(d.dir, foreign), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	loads(t, d, "with half a file aside", 5, 0)
	saved(t, d, 6)
	loads(t, d, "after it", 6, 0)
	names, err := d.list()
	if err != nil || len(names) != generations {
		t.Fatal(names, err)
	}
	for _, n := range names {
		info, err := os.Stat(filepath.Join(d.dir, n))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", n, info.Mode(), err)
		}
	}
	if info, err := os.Stat(d.dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder: %v %v", info.Mode(), err)
	}
	for range generations {
		names, err := d.list()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(d.dir, names[0])); err != nil {
			t.Fatal(err)
		}
	}
	loads(t, d, "without any", 0, 0)
}

// TestNotOurs: the configuration of another node or scope is not used.
func TestNotOurs(t *testing.T) {
	d := disk{t.TempDir()}
	saved(t, d, 1)
	for what, got := range map[string]func() (*memory, []error){
		"node":  func() (*memory, []error) { return d.load(everything, "n2", snapshot.Check) },
		"scope": func() (*memory, []error) { return d.load([]string{"*/demo/*"}, "n1", snapshot.Check) },
	} {
		if m, problems := got(); m != nil || len(problems) != 1 {
			t.Errorf("of another %s: %v %v", what, m, problems)
		}
	}
}

// TestAgeOfOlder: a generation that is used in place of a newer one is as old as that: what a
// control plane confirmed since was another.
func TestAgeOfOlder(t *testing.T) {
	dir := t.TempDir()
	d := disk{dir}
	saved(t, d, 1, 2)
	names, err := d.list()
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range names { // newest first
		name = filepath.Join(dir, name)
		if i == 0 {
			if err := os.Truncate(name, 100); err != nil {
				t.Fatal(err)
			}
		}
		at := time.Now().Add(-time.Duration(i+1) * 100 * time.Hour)
		if err := os.Chtimes(name, at, at); err != nil {
			t.Fatal(err)
		}
	}
	newAge(dir, nil).follows()
	c := New(Config{Dir: dir, NodeID: "n1", Check: snapshot.Check, Apply: func(context.Context, State) {}, Log: slog.New(slog.DiscardHandler)})
	if err := c.load(t.Context()); err != nil || c.mem.revision != 1 {
		t.Fatalf("revision %d is loaded: %v", c.mem.revision, err)
	}
	if got := c.Age().Round(time.Hour); got != 100*time.Hour {
		t.Errorf("it is %v old", got)
	}
}

// TestSaveFails: a folder that cannot be written is an error, and the
// generations that are there stay.
func TestSaveFails(t *testing.T) {
	dir := t.TempDir()
	d := disk{dir}
	saved(t, d, 1)
	if err := os.Mkdir(filepath.Join(dir, "writing"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.save(memoryAt(t, 2), everything, "n1"); err == nil {
		t.Error("saving where nothing can be written succeeds")
	}
	loads(t, d, "after it", 1, 0)
}

// FuzzRead: whatever a file says, reading it ends with a configuration or an
// error, and what is read is written back the same.
func FuzzRead(f *testing.F) {
	dir := f.TempDir()
	seed := disk{dir}
	if err := seed.save(memoryAt(f, 3), everything, "n1"); err != nil {
		f.Fatal(err)
	}
	names, err := seed.list()
	if err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, names[0]))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[len("WEFTCFG1")+sha256.Size:])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		d := disk{t.TempDir()}
		name := filepath.Join(d.dir, filePrefix+"0000000000000001")
		sum := sha256.Sum256(body)
		if err := writeSynced(name, slices.Concat(b[:len("WEFTCFG1")], sum[:], body)); err != nil {
			t.Fatal(err)
		}
		m, err := d.read(name, everything, "n1", snapshot.Check)
		if err != nil {
			return
		}
		if err := d.save(m, everything, "n1"); err != nil {
			t.Fatalf("what was read cannot be kept: %v", err)
		}
		again, problems := d.load(everything, "n1", snapshot.Check)
		if len(problems) != 0 || again.revision != m.revision || len(again.resources) != len(m.resources) {
			t.Fatalf("read %+v, then %+v: %v", m, again, problems)
		}
		for name, k := range m.resources {
			if g := again.resources[name]; g.good.Version != k.good.Version || (g.good.Resource == nil) != (k.good.Resource == nil) {
				t.Fatalf("%s: read %+v, then %+v", name, k, g)
			}
		}
	})
}
