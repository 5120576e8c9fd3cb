// Package kafka is the driver for Apache Kafka, 3.0 and later.
//
// Connections, metadata and groups are franz-go's. Publishing is not: its producer
// keeps what it has when the caller has gone, and fails events of other callers with
// those of one. Here one request in flight for each partition carries all that came
// meanwhile, so that batches grow with load; a batch that may have been kept goes
// again under its sequence number, which the broker keeps once.
//
// Consuming is by classic groups, so that every version of the server means the same:
// share groups of Kafka 4 archive an event after five deliveries, and have no dead
// letters by themselves. Single events are settled by a window for each partition;
// what is settled above the committed offset is in the commit's metadata, so a crash
// repeats only what was not settled 20 ms earlier.
package kafka

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/sendqueue"
)

// Kind of the driver.
const Kind = "kafka"

// commitInterval is how often settled messages are made durable, where no half of a window
// waits for it; tests lengthen it.
var commitInterval = 20 * time.Millisecond

// Limits and times.
const (
	// maxMessage is the largest event, with what surrounds it. Topics that are made
	// here take it; Kafka's own default is 1 MiB.
	maxMessage = 4<<20 - 64<<10
	// defaultWindow is the window of a partition.
	defaultWindow = 1024
)

// Driver opens Kafka clusters.
type Driver struct{}

// Kind is "kafka".
func (Driver) Kind() string { return Kind }

// Open makes a store. It does not connect: brokers may be down.
func (Driver) Open(_ context.Context, cfg store.Config) (store.Store, error) {
	o, _ := cfg.Options.(Options)
	if err := o.check(); err != nil {
		return nil, err
	}
	if cfg.Window == 0 {
		cfg.Window = defaultWindow
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{cfg: cfg, op: o, out: sendqueue.New[record]("kafka.publish", limits), topics: map[string]*topic{}, senders: map[senderKey]*sender{}, idle: idleFor}
	var err error
	if s.c, err = o.client(s.clientID()); err != nil {
		return nil, err
	}
	s.links = []*link{newLink(s.c)}
	s.adm = kadm.NewClient(s.c)
	s.adm.SetTimeoutMillis(int32(callTimeout.Milliseconds())) //nolint:gosec // it is 5,000
	s.life, s.end = context.WithCancel(context.Background())
	return s, nil
}

// Store is a Kafka cluster.
type Store struct {
	cfg  store.Config
	op   Options
	c    *kgo.Client
	adm  *kadm.Client
	life context.Context // ends when the store closes
	end  context.CancelFunc
	out  *sendqueue.Queues[record]

	mu      sync.Mutex // taken before the lock of out
	topics  map[string]*topic
	senders map[senderKey]*sender
	links   []*link       // never empty; the first is of c
	swept   time.Time     // when those that were not used for long were forgotten last
	idle    time.Duration // how long that is

	members atomic.Int64 // for client ids
}

// clientID is how brokers know a client of the store, in logs and quotas.
func (s *Store) clientID() string {
	id := s.producerID()
	if n := s.members.Add(1); n > 1 {
		id += "-" + strconv.FormatInt(n, 10)
	}
	return id
}

// producerID is how brokers know who sends for the store.
func (s *Store) producerID() string { return "weft-" + s.cfg.ClientID }

// Probe asks a broker what it is. What an acknowledged event survives follows from
// the settings that topics get by default: a broker acknowledges what its operating
// system has, unless it flushes every message.
func (s *Store) Probe(ctx context.Context) (store.Capabilities, error) {
	const op = "kafka.probe"
	caps := store.Capabilities{Product: "Kafka", Order: true, Tail: true, Replay: true, TopicRetention: true, MaxEventBytes: maxMessage, RedeliveryWindow: s.cfg.Window, CommitInterval: commitInterval}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	versions, err := s.adm.ApiVersions(ctx)
	if err == nil {
		for _, v := range versions {
			if v.Err == nil {
				caps.Version = strings.TrimPrefix(v.VersionGuess(), "v")
			} else {
				err = v.Err
			}
		}
	}
	if caps.Version == "" {
		return caps, unreachable(ctx, op, err)
	}
	meta, err := s.adm.BrokerMetadata(ctx)
	if err != nil {
		return caps, unreachable(ctx, op, err)
	}
	var configs kadm.ResourceConfigs
	for _, id := range meta.Brokers.NodeIDs() {
		if configs, err = s.adm.DescribeBrokerConfigs(ctx, id); err == nil {
			_, err = configs.On(strconv.Itoa(int(id)), nil)
		}
		if err == nil {
			break // one that is away is known for a while
		}
		if err = unreachable(ctx, op, err); store.Why(err) == "AccessDenied" {
			return caps, nil // not everyone may ask
		}
	}
	if err != nil {
		return caps, err
	}
	set := map[string]string{}
	for _, c := range configs {
		for _, k := range c.Configs {
			set[k.Key] = k.MaybeValue()
		}
	}
	caps.Durability = store.DurabilityProcess
	if set["log.flush.interval.messages"] == "1" {
		caps.Durability = store.DurabilityDisk
	}
	replicas := s.op.Replicas
	if replicas == 0 {
		replicas, _ = strconv.Atoi(set["default.replication.factor"])
	}
	if insync, _ := strconv.Atoi(set["min.insync.replicas"]); insync >= 2 && replicas >= 2 {
		caps.Durability = store.DurabilityReplicated
	}
	return caps, nil
}

// unreachable is classify where a time-out of the driver's own means that nobody
// has answered.
func unreachable(ctx context.Context, op string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() == context.DeadlineExceeded {
		return classify(context.WithoutCancel(ctx), op, err)
	}
	return classify(ctx, op, err)
}

// Check reaches a broker; see store.Checker. Whoever may come in may ask who else is
// there.
func (s *Store) Check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = []kmsg.MetadataRequestTopic{} // of none
	_, err := req.RequestWith(ctx, s.c)
	return unreachable(ctx, "kafka.check", err)
}

// Close refuses new calls and ends what the store runs.
func (s *Store) Close(ctx context.Context) error {
	if s.out.Close(ctx, s.end) {
		s.end()
		for _, l := range s.links {
			l.c.Close()
		}
	}
	return nil
}
