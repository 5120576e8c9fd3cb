package configstore

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/embedetcd"
)

// TestAuditRetention: audit records older than the retention go, younger ones and
// everything else stay.
func TestAuditRetention(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	e, err := embedetcd.Start(ctx, filepath.Join(t.TempDir(), "etcd"))
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	s := New(Config{Client: e.Client(), Log: slog.New(slog.DiscardHandler)})
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
