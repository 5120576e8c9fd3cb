package config

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// TestKept: what could not be written to disk is in force, is not said to be kept, and
// is kept later without news.
func TestKept(t *testing.T) {
	at := t.TempDir()
	dir := filepath.Join(at, "config")
	srv := startDelta(t, "127.0.0.1:0")
	f := follow(t, dir, srv.addr)
	st := srv.accept(t)
	st.send([]*discoveryv3.Resource{wire(storeRes("a", "old", testUID), "5"), closing("1-x", 5, true, map[string]string{nameA: "5"})})
	kept, changed := f.Kept()
	if kept != (Kept{"1-x", 5}) || !kept.Covers("1-x", 5) || !kept.Covers("1-x", 4) || kept.Covers("1-x", 6) || kept.Covers("2-y", 5) {
		t.Fatalf("%+v is kept", kept)
	}

	// A folder that is a file takes nothing, whoever writes.
	aside := filepath.Join(at, "aside")
	if err := os.Rename(dir, aside); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	answer := st.send([]*discoveryv3.Resource{wire(storeRes("a", "new", testUID), "6"), closing("1-x", 6, false, map[string]string{nameA: "6"})})
	if answer.ErrorDetail != nil || f.states.Get().label(nameA) != "new" || f.metric("weft_proxy_config_disk_errors_total") != 1 {
		t.Errorf("what cannot be kept is not in force: %v, %+v", answer.ErrorDetail, f.states.Get())
	}
	if kept, _ := f.Kept(); kept.Revision != 5 {
		t.Errorf("%+v is kept of a disk that takes nothing", kept)
	}

	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(aside, dir); err != nil {
		t.Fatal(err)
	}
	st.send([]*discoveryv3.Resource{closing("1-x", 6, false, map[string]string{nameA: "6"})})
	if kept, _ := f.Kept(); kept.Revision != 6 {
		t.Errorf("%+v is kept once the disk takes it", kept)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody is told that more is kept")
	}
	f.stop()
	srv.stop()
	again := follow(t, dir, "127.0.0.1:1")
	again.await("the newest configuration", func(s State) bool { return s.label(nameA) == "new" })
	if kept, _ := again.Kept(); kept != (Kept{"1-x", 6}) {
		t.Errorf("%+v is kept at the start", kept)
	}
}

// TestKeptAgain: it is tried again with no answer of a control plane too.
func TestKeptAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := New(Config{Dir: dir, NodeID: "n1", Log: slog.New(slog.DiscardHandler), Check: tasteful})
	c.mem.lineage, c.mem.revision = "1-x", 7
	c.keep()
	c.keepAgain()
	if kept, _ := c.Kept(); kept != (Kept{}) || !c.unkept {
		t.Fatalf("%+v is kept of a disk that takes nothing", kept)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	c.keepAgain()
	if kept, _ := c.Kept(); !kept.Covers("1-x", 7) || c.unkept {
		t.Errorf("%+v is kept", kept)
	}
}

// TestKeptNowhere: with no folder a restart begins with nothing, or with an older file.
func TestKeptNowhere(t *testing.T) {
	for _, file := range []string{"", "snapshot"} {
		c := New(Config{SnapshotFile: file, NodeID: "n1", Log: slog.New(slog.DiscardHandler), Check: tasteful})
		c.mem.lineage, c.mem.revision = "1-x", 7
		c.keep()
		if kept, _ := c.Kept(); kept.Covers("1-x", 7) != (file == "") {
			t.Errorf("with the snapshot file %q %+v is kept", file, kept)
		}
	}
}
