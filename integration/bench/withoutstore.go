package main

import (
	"context"
	"flag"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/weft-mesh/weft/dataplane/proxy"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/binding"
	"github.com/weft-mesh/weft/store/embedded"
	"github.com/weft-mesh/weft/tools/proxycmd"
)

// withoutStoreCommand, as the first argument, makes this program a proxy with
// everything but a store: what it costs is the proxy's own.
const withoutStoreCommand = "proxy-without-store"

// serveWithoutStore runs the proxy. Its flags are those of weft-proxy that a
// mesh of this command sets.
func serveWithoutStore(ctx context.Context, args []string) error {
	var cfg proxy.Config
	var disco string
	var level slog.Level
	f := flag.NewFlagSet(withoutStoreCommand, flag.ContinueOnError)
	for name, to := range map[string]*string{"control-plane": &disco, "data": &cfg.DataDir, "node-id": &cfg.NodeID, "http": &cfg.HTTPAddr, "grpc": &cfg.GRPCAddr, "health": &cfg.HealthAddr, "ops": &cfg.OpsAddr} {
		f.StringVar(to, name, "", "as weft-proxy has it")
	}
	f.TextVar(&level, "log-level", slog.LevelWarn, "as weft-proxy has it")
	if err := f.Parse(args); err != nil {
		return err
	}
	defer proxycmd.Ballast()()
	cfg.ControlPlane = []string{disco}
	cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	cfg.Drivers = map[string]store.Driver{embedded.Kind: nothing{}}
	cfg.Options = binding.Options
	p, err := proxy.New(cfg)
	if err != nil {
		return err
	}
	return p.Run(ctx)
}

// nothing is a driver of stores that acknowledge what they are given and forget
// it, and that have one event to read, without end. It stands in for the embedded
// store.
type nothing struct{}

func (nothing) Kind() string { return embedded.Kind }

func (nothing) Open(context.Context, store.Config) (store.Store, error) { return &noStore{}, nil }

type noStore struct{ next atomic.Uint64 }

func (*noStore) Probe(context.Context) (store.Capabilities, error) {
	return store.Capabilities{Product: "nothing", Durability: store.DurabilityDisk, Delay: time.Hour, Order: true, Tail: true, Replay: true, TopicRetention: true, MaxEventBytes: 8 << 20, RedeliveryWindow: 4096, Local: true}, nil
}

func (s *noStore) Publish(_ context.Context, _ string, events []store.Outgoing, res []store.Result) error {
	last := s.next.Add(uint64(len(events)))
	for i := range res {
		res[i] = store.Result{Pos: store.Position{Offset: last - uint64(len(events)-i)}} //nolint:gosec // small
	}
	return nil
}

func (s *noStore) PublishDelayed(ctx context.Context, topic string, events []store.Outgoing, _ []time.Time, res []store.Result) error {
	return s.Publish(ctx, topic, events, res)
}

func (*noStore) Subscribe(context.Context, store.SubscribeRequest) (store.Subscription, error) {
	return &noReader{}, nil
}

func (*noStore) Tail(context.Context, store.TailRequest) (store.Tail, error) { return &noReader{}, nil }

func (*noStore) Close(context.Context) error { return nil }

func (*noStore) EnsureTopic(context.Context, store.TopicSpec) error { return nil }

func (*noStore) DeleteTopic(context.Context, string) error { return nil }

func (*noStore) TopicExists(context.Context, string) (bool, error) { return true, nil }

func (*noStore) EnsureGroup(context.Context, string, string, store.Start) error { return nil }

func (*noStore) DeleteGroup(context.Context, string, string) error { return nil }

func (*noStore) Lag(context.Context, string, string) ([]store.PartitionLag, error) { return nil, nil }

// noReader always has the next event. An event comes as a store would make it
// but for its bytes, which all events share.
type noReader struct{ next uint64 }

var stored = event.Event{ID: "p0-0", Source: source, Type: "bench", Data: make([]byte, 1024)}

func (r *noReader) Fetch(_ context.Context, dst []store.Message) (int, error) {
	for i := range dst {
		dst[i] = store.Message{Event: stored, Pos: store.Position{Offset: r.next}}
		r.next++
	}
	return len(dst), nil
}

func (r *noReader) Next(ctx context.Context, dst []store.Message) (int, error) {
	return r.Fetch(ctx, dst)
}

// AtEnd: there is none.
func (*noReader) AtEnd() bool { return false }

func (*noReader) Mark(context.Context) (passed func() bool, err error) {
	return func() bool { return false }, nil
}

// Holds: it has none.
func (*noReader) Holds(*store.Message) bool { return false }

func (*noReader) Settle([]*store.Message) (stale int) { return 0 }

func (*noReader) Close(context.Context) error { return nil }
