package election

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/weft-mesh/weft/controlplane/embedetcd"
)

// TestFence: a holder that was out of sight, so that another was elected, does
// not write any more, though it may believe to be in office.
func TestFence(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	e, err := embedetcd.Start(ctx, filepath.Join(t.TempDir(), "etcd"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	terms := make(chan Term)
	stand := func() {
		cfg := Config{Client: e.Client(), Key: "/elect/office", TTL: time.Second, Log: slog.New(slog.DiscardHandler)}
		go Run(ctx, cfg, func(ctx context.Context, term Term) error {
			terms <- term
			<-ctx.Done()
			return nil
		})
	}
	stand()
	first := <-terms
	if err := first.Write(ctx, e.Client(), clientv3.OpPut("/by", "first")); err != nil {
		t.Fatal(err)
	}
	stand()
	// etcd loses sight of the first: its candidacy goes with its lease.
	queue, err := e.Client().Get(ctx, "/elect/office/", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend))
	if err != nil || len(queue.Kvs) == 0 {
		t.Fatalf("%v %v", queue, err)
	}
	if _, err := e.Client().Revoke(ctx, clientv3.LeaseID(queue.Kvs[0].Lease)); err != nil {
		t.Fatal(err)
	}
	second := <-terms
	if err := first.Write(ctx, e.Client(), clientv3.OpPut("/by", "the stale one")); !errors.Is(err, ErrOver) {
		t.Errorf("a stale holder's write: %v", err)
	}
	if err := second.Write(ctx, e.Client(), clientv3.OpPut("/by", "second")); err != nil {
		t.Error(err)
	}
	got, err := e.Client().Get(ctx, "/by")
	if err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "second" {
		t.Errorf("%v %v", got, err)
	}
}

// TestTermEnds: work hears that its term is over.
func TestTermEnds(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	e, err := embedetcd.Start(ctx, filepath.Join(t.TempDir(), "etcd"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	began, ended := make(chan struct{}), make(chan error)
	go Run(ctx, Config{Client: e.Client(), Key: "/elect/office", TTL: time.Second, Log: slog.New(slog.DiscardHandler)}, func(ctx context.Context, _ Term) error {
		began <- struct{}{}
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return nil
	})
	<-began
	leases, err := e.Client().Leases(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range leases.Leases {
		if _, err := e.Client().Revoke(ctx, l.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-ended; !errors.Is(err, ErrOver) {
		t.Errorf("%v", err)
	}
	<-began // it stands again
}

// TestWithoutEtcd: while etcd is away for minutes, one line is logged of it.
func TestWithoutEtcd(t *testing.T) {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"127.0.0.1:1"}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Close(); err != nil { // whatever is asked fails at once
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		var log bytes.Buffer
		Run(ctx, Config{Client: client, Key: "/elect/office", Log: slog.New(slog.NewTextHandler(&log, nil))}, func(context.Context, Term) error {
			t.Error("somebody was elected")
			return nil
		})
		if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "office=/elect/office") {
			t.Errorf("%d lines are logged: %.1000s", n, &log)
		}
	})
}
