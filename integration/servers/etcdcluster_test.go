package servers

import (
	"context"
	"path/filepath"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestEtcdCluster: three members outlive one; a backup brings back what was
// there, at an older revision or above all others.
func TestEtcdCluster(t *testing.T) {
	NeedServers(t)
	ctx, cancel := context.WithTimeout(context.Background(), StartTimeout)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	c, err := StartEtcdCluster(ctx, EtcdClusterOptions{})
	must(err)
	defer func() { must(c.Stop()) }()
	client, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints()})
	must(err)
	defer client.Close()
	_, err = client.Put(ctx, "k", "kept")
	must(err)
	backup := filepath.Join(t.TempDir(), "backup")
	must(c.Save(ctx, backup))
	must(c.Members[0].Kill())
	// The one that is gone may have led: until another does, writes fail.
	last, err := client.Put(ctx, "k", "lost")
	for err != nil && ctx.Err() == nil {
		last, err = client.Put(ctx, "k", "lost")
	}
	must(err)
	for _, bump := range []bool{false, true} {
		must(c.Restore(ctx, backup, bump))
		now, err := client.Get(ctx, "k")
		must(err)
		if string(now.Kvs[0].Value) != "kept" || bump != (now.Header.Revision > last.Header.Revision) {
			t.Errorf("restored, bump %v: %q at %d, after %d", bump, now.Kvs[0].Value, now.Header.Revision, last.Header.Revision)
		}
	}
}
