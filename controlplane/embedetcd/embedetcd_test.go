package embedetcd

import (
	"context"
	"path/filepath"
	"testing"
	"time"
)

// TestKeepsItsData: what was written is there after a restart.
func TestKeepsItsData(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	s, err := Start(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Client().Put(ctx, "k", "v"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if s, err = Start(ctx, dir); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	resp, err := s.Client().Get(ctx, "k")
	if err != nil || len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != "v" {
		t.Errorf("%v %v", resp, err)
	}
}
