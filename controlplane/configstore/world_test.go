package configstore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/embedetcd"
	"github.com/weft-mesh/weft/pkg/resource"
)

// world is a real etcd and what a test needs around it.
type world struct {
	*testing.T
	ctx  context.Context
	etcd *clientv3.Client
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	e, err := embedetcd.Start(ctx, filepath.Join(t.TempDir(), "etcd"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return &world{t, ctx, e.Client()}
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// replica is a Store that follows etcd.
func (w *world) replica(client *clientv3.Client, log io.Writer) *Store {
	w.Helper()
	return w.run(Config{Client: client, ProbeEvery: 50 * time.Millisecond, MaxRetry: 50 * time.Millisecond, Log: slog.New(slog.NewTextHandler(log, nil))})
}

func (w *world) run(cfg Config) *Store {
	w.Helper()
	s := New(cfg)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	w.Cleanup(func() {
		stop()
		w.must(<-ended)
	})
	if _, err := s.WaitFor(w.ctx, 0); err != nil {
		w.Fatal(err)
	}
	return s
}

func (w *world) current(s *Store) *Snapshot {
	w.Helper()
	snap, err := s.Current()
	w.must(err)
	return snap
}

// res is an EventStore demo/name with a label.
func res(name, label string) *configv1.Resource {
	r := &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: name, Labels: map[string]string{"v": label}},
		Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}}}
	r.Name = resource.NameOf(r)
	return r
}

// write commits until no other write comes between.
func (w *world) write(s *Store, c Change) int64 {
	w.Helper()
	for {
		snap := w.current(s)
		rev, err := s.Commit(w.ctx, snap, c)
		if errors.Is(err, ErrConflict) {
			_, err = s.WaitFor(w.ctx, snap.Revision+1)
			w.must(err)
			continue
		}
		w.must(err)
		return rev
	}
}

// labels is a snapshot as a map.
func labels(s *Snapshot) map[string]string {
	out := map[string]string{}
	for e := range s.All("") {
		out[e.Name] = e.Resource.Metadata.Labels["v"]
	}
	return out
}

// waitFor waits until name is there.
func (w *world) waitFor(s *Store, name string) *Entry {
	w.Helper()
	for {
		snap, changed := s.Snapshot()
		if e := snap.Get(name); e != nil {
			return e
		}
		select {
		case <-changed:
		case <-w.ctx.Done():
			w.Fatalf("%s does not come", name)
		}
	}
}

// buffer is a log that may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// wire is a way to etcd that can be cut.
type wire struct {
	to  string
	mu  sync.Mutex
	cut bool
	all []net.Conn
}

func (x *wire) run(l net.Listener) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		x.mu.Lock()
		out, err := net.Dial("tcp", x.to)
		if err != nil || x.cut {
			_ = in.Close()
			if out != nil {
				_ = out.Close()
			}
			x.mu.Unlock()
			continue
		}
		x.all = append(x.all, in, out)
		x.mu.Unlock()
		go func() { _, _ = io.Copy(out, in); _ = out.Close() }()
		go func() { _, _ = io.Copy(in, out); _ = in.Close() }()
	}
}

func (x *wire) set(cut bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.cut = cut; cut {
		for _, c := range x.all {
			_ = c.Close()
		}
		x.all = nil
	}
}

// startWay gives a way to an etcd that can be cut, and its address.
func startWay(t *testing.T, to string) (*wire, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	way := &wire{to: to}
	go way.run(l)
	t.Cleanup(func() { way.set(true) })
	return way, l.Addr().String()
}

func clientOf(t *testing.T, addr string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://" + addr}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}
