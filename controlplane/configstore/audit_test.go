package configstore

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/embedetcd"
)

// TestAuditRetention: audit records older than the retention go, younger ones and
// everything else stay, also those that a clock ahead or behind by a day wrote.
func TestAuditRetention(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	e, err := embedetcd.Start(ctx, filepath.Join(t.TempDir(), "etcd"))
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	var jump atomic.Int64
	s := New(Config{Client: e.Client(), Clock: func() time.Time { return time.Now().Add(time.Duration(jump.Load())) }, Log: slog.New(slog.DiscardHandler)})
	followed := make(chan error, 1)
	rctx, stop := context.WithCancel(ctx)
	go func() { followed <- s.Run(rctx) }()
	defer func() { stop(); <-followed }()
	snap, err := s.WaitFor(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	rev, err := s.Commit(ctx, snap, Change{Put: []*configv1.Resource{{Name: "eventstore/demo/main", Metadata: &configv1.Metadata{Namespace: "demo", Name: "main"},
		Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Embedded{}}}}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, j := range []time.Duration{-24 * time.Hour, -time.Hour, time.Hour, 24 * time.Hour} {
		jump.Store(int64(j))
		if removed, err := s.TrimAudit(ctx, s.clock.Now().Add(-AuditRetention)); err != nil || removed != 0 {
			t.Errorf("the clock jumped by %v: %d records are removed, %v", j, removed, err)
		}
	}
	jump.Store(0)
	now := time.Now()
	old, young := s.auditKey(now.Add(-AuditRetention-time.Minute))+"-old", s.auditKey(now.Add(-AuditRetention+time.Hour))+"-young"
	for _, key := range []string{old, young} {
		if _, err := e.Client().Put(ctx, key, ""); err != nil {
			t.Fatal(err)
		}
	}
	tctx, enough := context.WithCancel(ctx)
	trimmed := make(chan error, 1)
	go func() { trimmed <- s.RunAudit(tctx) }()
	for {
		resp, err := e.Client().Get(ctx, s.prefix+dirAudit, clientv3.WithPrefix(), clientv3.WithKeysOnly())
		if err != nil {
			t.Fatal(err)
		}
		var kept []string
		for _, kv := range resp.Kvs {
			kept = append(kept, string(kv.Key))
		}
		if len(kept) > 0 && kept[0] == old {
			continue
		}
		if len(kept) != 2 || kept[0] != young {
			t.Errorf("there are %v", kept)
		}
		break
	}
	enough()
	if err := <-trimmed; err != nil {
		t.Error(err)
	}
	if snap, err = s.WaitFor(ctx, rev); err != nil || snap.Get("eventstore/demo/main") == nil {
		t.Errorf("the configuration: %v, %v", snap, err)
	}
}
