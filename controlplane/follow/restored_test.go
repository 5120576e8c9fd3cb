package follow_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/weft-mesh/weft/controlplane/embedetcd/etcdtest"
	"github.com/weft-mesh/weft/controlplane/jointoken"
	"github.com/weft-mesh/weft/controlplane/roster"
	"github.com/weft-mesh/weft/pkg/fault"
)

func clientOf(t *testing.T, addr string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{addr}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestWentBack: etcd went back, as it does where it is restored without later revisions:
// a join token that is revoked then is no good, a node that starts again joins, one that
// joined after the backup is on the roster, and one that is declared dead is refused.
func TestWentBack(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 80*time.Second)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for !ok() {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				t.Fatal(what)
			}
		}
	}
	first, end := etcdtest.Start(t)
	second, _ := etcdtest.Start(t)
	etcd, old, backup := clientOf(t, first), clientOf(t, first), clientOf(t, second)
	log := slog.New(slog.DiscardHandler)
	tokens := jointoken.New(jointoken.Config{Etcd: etcd, Prefix: "/weft/join/", Lineage: "/weft/lineage", Log: log})
	nodes := roster.New(roster.Config{Etcd: etcd, Prefix: "/weft/node/", Lineage: "/weft/lineage", Log: log, Head: func(ctx context.Context) (string, int64, error) {
		resp, err := etcd.Get(ctx, "x")
		if err != nil {
			return "", 0, err
		}
		return "1-a", resp.Header.Revision, nil
	}})
	var running sync.WaitGroup
	defer running.Wait()
	rctx, stop := context.WithCancel(ctx)
	defer stop()
	running.Go(func() { _ = tokens.Run(rctx) })
	running.Go(func() { _ = nodes.Run(rctx) })

	text, tok, err := tokens.Create(ctx, "before", nil, time.Time{})
	must(err)
	for range 100 {
		_, err := old.Put(ctx, "x", "")
		must(err)
	}
	_, err = nodes.Join(ctx, roster.Joining{Node: "before", Incarnation: "1"})
	must(err)
	there, err := old.Get(ctx, "/weft/", clientv3.WithPrefix())
	must(err)
	for _, kv := range there.Kvs {
		_, err := backup.Put(ctx, string(kv.Key), string(kv.Value))
		must(err)
	}
	_, err = nodes.Join(ctx, roster.Joining{Node: "after"})
	must(err)

	etcd.SetEndpoints(second)
	end()
	until("a node that joined after the backup is not on the roster", func() bool {
		all, err := nodes.All(ctx)
		return err == nil && len(all) == 2
	})
	must(tokens.Revoke(ctx, []string{tok.ID}))
	until("a join token that was revoked is good", func() bool {
		_, _, err := tokens.Check(text)
		return fault.ClassOf(err) == fault.Unauthenticated
	})
	_, err = nodes.Join(ctx, roster.Joining{Node: "before", Fresh: true, Incarnation: "2"})
	must(err)
	must(nodes.DeclareDead(ctx, "before", "ops"))
	if nodes.Refusal("before") == nil {
		t.Error("a node that was declared dead is not refused")
	}
}
