package follow

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weft-mesh/weft/controlplane/embedetcd"
)

// TestOther: an etcd that has not the revision any more up to which it was read, or not
// yet again, or is of another lineage, cannot tell what became of the keys; one that has
// all that came since can.
func TestOther(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	e, err := embedetcd.Start(ctx, filepath.Join(t.TempDir(), "etcd"))
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	put := func(key, value string) int64 {
		resp, err := e.Client().Put(ctx, key, value)
		if err != nil {
			t.Fatal(err)
		}
		return resp.Header.Revision
	}
	before := put("/m/lineage", "1-a")
	put("/n/a", "")
	read := put("/n/b", "")
	if _, err := e.Client().Compact(ctx, read); err != nil {
		t.Fatal(err)
	}
	now := put("/n/c", "")
	for name, c := range map[string]struct {
		seen    int64
		lineage string
		want    bool
	}{
		"never read":      {0, "", false},
		"the same":        {now, "1-a", false},
		"one that has it": {read, "1-a", false},
		"dropped":         {before, "1-a", true},
		"went back":       {now + 1, "1-a", true},
		"another lineage": {now, "2-b", true},
		"none yet":        {now, "", false},
	} {
		k := &Keys{Etcd: e.Client(), Prefix: "/n/", Lineage: "/m/lineage", seen: c.seen, lineage: c.lineage}
		failed := errors.New("not this time")
		for range 2 { // whoever has failed is told again
			err := k.Run(ctx, func(resp *clientv3.GetResponse, other bool) error {
				if other != c.want || len(resp.Kvs) != 3 || resp.Header.Revision != now {
					t.Errorf("%s: %v, with %d keys of revision %d", name, other, len(resp.Kvs), resp.Header.Revision)
				}
				return failed
			}, nil)
			if !errors.Is(err, failed) {
				t.Errorf("%s: it ends with %v", name, err)
			}
		}
		if c.seen == 0 {
			continue
		}
		if got := k.look(ctx); got != c.want || !got && (k.seen != now || k.lineage != "1-a") || got && k.seen != c.seen {
			t.Errorf("%s: a look says %v, and has seen %d of %s", name, got, k.seen, k.lineage)
		}
	}
}

// TestLineage: a restore that is declared has everything read again.
func TestLineage(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	e, err := embedetcd.Start(ctx, filepath.Join(t.TempDir(), "etcd"))
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, err := e.Client().Put(ctx, "/m/lineage", "1-a"); err != nil {
		t.Fatal(err)
	}
	k := &Keys{Etcd: e.Client(), Prefix: "/n/", Lineage: "/m/lineage", every: 10 * time.Millisecond}
	err = k.Run(ctx, func(*clientv3.GetResponse, bool) error {
		go func() { _, _ = e.Client().Put(ctx, "/n/a", "") }()
		return nil
	}, func([]*clientv3.Event) { _, _ = e.Client().Put(ctx, "/m/lineage", "2-b") })
	if !errors.Is(err, errOther) {
		t.Errorf("it ends with %v", err)
	}
}
