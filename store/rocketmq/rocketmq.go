// Package rocketmq is the driver for Apache RocketMQ, 4.9 and 5.x.
//
// It speaks the remoting protocol itself, to publish and to consume. The Go
// client's push consumer loses messages that it gives back (it does not look at
// the answer), commits every 5 s, and cannot settle single messages; its
// producer answers one time-out by ending the process. Publishing, one request
// in flight for each queue carries all that came meanwhile, so that batches grow
// with load. Consuming is classic pull: queues are divided among the members of
// a group as RocketMQ's own clients divide them, and what is committed is the
// lowest unsettled offset, every 20 ms.
//
// A group commits one offset for each queue, so a crash repeats what was settled
// above the lowest unsettled message: at most the window.
package rocketmq

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/rocketmq/remoting"
	"github.com/weft-mesh/weft/store/sendqueue"
)

// Kind of the driver.
const Kind = "rocketmq"

// Options of the driver.
type Options struct {
	// NameServers, "host:port".
	NameServers []string
	// Cluster where topics are made; DefaultCluster when empty.
	Cluster string
	// Brokers are the names of the cluster's brokers: what needs a topic as a whole
	// waits while one of them is away, and for no others. When empty, for those that
	// were seen to have the topic.
	Brokers []string
	// Keys gives what requests are signed with; nil: they are not signed. It is
	// called by Open, which fails as it does, and again, at most once a second,
	// while servers refuse what it gave: so keys that were replaced are taken
	// while the store is open. It is called concurrently.
	Keys func() (Keys, error)
	// TLS gives the settings of a connection to a name server or broker; nil:
	// connections are in the clear. It is called by Open, which fails as it does, and
	// for each new connection, concurrently. Without a ServerName a server's certificate
	// must be for the host of its address.
	TLS func() (*tls.Config, error)
	// Clock dates what is sent.
	Clock clock.Clock
}

// commitInterval is how often settled messages are made durable, where no half of a window
// waits for it; tests lengthen it.
var commitInterval = 20 * time.Millisecond

// Limits and times.
const (
	// maxMessage is what brokers take by default, 4 MiB, less what surrounds
	// an event.
	maxMessage = 4<<20 - surround
	surround   = 64 << 10
	// timerPrecision is that of a broker's timer with its default settings.
	timerPrecision = time.Second
	// defaultWindow is the window of a queue.
	defaultWindow = 1024
	// maxDelay is the longest delay of a broker with its default settings.
	maxDelay = 3 * 24 * time.Hour
)

// Driver opens RocketMQ clusters.
type Driver struct{}

// Kind is "rocketmq".
func (Driver) Kind() string { return Kind }

// Open makes a store. It does not connect: servers may be down.
func (Driver) Open(_ context.Context, cfg store.Config) (store.Store, error) {
	o, _ := cfg.Options.(Options)
	if len(o.NameServers) == 0 {
		return nil, fault.New(fault.Invalid, "rocketmq.open", "no-name-server", "a RocketMQ store needs name servers")
	}
	if o.Cluster == "" {
		o.Cluster = "DefaultCluster"
	}
	if cfg.Window == 0 {
		cfg.Window = defaultWindow
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	sign, err := newSigner(o.Keys)
	if err != nil {
		return nil, err
	}
	if o.TLS != nil {
		if _, err := o.TLS(); err != nil {
			return nil, err
		}
	}
	s := &Store{cfg: cfg, op: o, c: newCluster(o, sign, nil), out: sendqueue.New[encoded]("rocketmq.publish", limits), senders: map[senderKey]*sender{}}
	s.life, s.end = context.WithCancel(context.Background())
	return s, nil
}

// Store is a RocketMQ cluster.
type Store struct {
	cfg  store.Config
	op   Options
	c    *cluster
	life context.Context // ends when the store closes
	end  context.CancelFunc
	out  *sendqueue.Queues[encoded]

	mu      sync.Mutex // taken before the lock of out
	senders map[senderKey]*sender
	members int // for client ids
	turn    int // of events without a key
}

// Probe asks a broker what it is.
func (s *Store) Probe(ctx context.Context) (store.Capabilities, error) {
	brokers, err := s.c.masters(ctx)
	if err != nil {
		return store.Capabilities{}, err
	}
	caps := store.Capabilities{Product: "RocketMQ", Durability: store.DurabilityReplicated, Delay: maxDelay, Order: true, Tail: true, Replay: true, MaxEventBytes: maxMessage,
		RedeliveryWindow: s.cfg.Window, CommitInterval: commitInterval}
	for name, addr := range brokers {
		cmd, err := s.c.ask(ctx, addr, reqConfig, nil, nil)
		if err != nil {
			return caps, err
		}
		set := properties(cmd.Body)
		durability := store.DurabilityProcess
		if set["flushDiskType"] == "SYNC_FLUSH" {
			durability = store.DurabilityDisk
		}
		if set["brokerRole"] == "SYNC_MASTER" {
			durability = store.DurabilityReplicated
		}
		caps.Durability = min(caps.Durability, durability)
		if set["timerWheelEnable"] != "true" {
			caps.Delay = 0
		} else if sec, err := strconv.Atoi(set["timerMaxDelaySec"]); err == nil {
			caps.Delay = min(caps.Delay, time.Duration(sec)*time.Second)
		}
		precision := timerPrecision
		if ms, err := strconv.Atoi(set["timerPrecisionMs"]); err == nil {
			precision = time.Duration(ms) * time.Millisecond
		}
		caps.DelayPrecision = max(caps.DelayPrecision, precision)
		if most, err := strconv.Atoi(set["maxMessageSize"]); err == nil && most > 0 {
			caps.MaxEventBytes = min(caps.MaxEventBytes, max(most-surround, 0))
		}
		run, err := s.runtime(ctx, addr)
		if err != nil {
			return caps, err
		}
		var info struct{ Table map[string]string }
		if err := decodeJSON(run.Body, &info); err != nil {
			return caps, unavailable(err)
		}
		caps.Version = strings.ReplaceAll(strings.TrimPrefix(info.Table["brokerVersionDesc"], "V"), "_", ".")
		if err := newEnough(name, caps.Version); err != nil {
			return caps, err
		}
	}
	return caps, nil
}

// newEnough refuses a broker that takes the property of an event that is to be held back,
// and delivers it at once: retries would all be made in a moment.
func newEnough(broker, version string) error {
	if strings.HasPrefix(version, "4.") {
		return fault.New(fault.Precondition, "rocketmq.probe", "store-too-old", "broker %s has version %s, which holds no event back: retries and delays need RocketMQ 5.0 or later", broker, version)
	}
	return nil
}

// Check reaches every broker of the cluster; see store.Checker. A heartbeat of
// nobody asks for no right but that of a user.
func (s *Store) Check(ctx context.Context) error {
	brokers, err := s.c.masters(ctx)
	if err != nil {
		return err
	}
	beat, err := json.Marshal(map[string]any{"clientID": s.cfg.ClientID + "-check", "producerDataSet": []any{}, "consumerDataSet": []any{}})
	if err != nil {
		return err
	}
	for _, name := range sortedKeys(brokers) {
		if _, err := s.c.ask(ctx, brokers[name], reqHeartbeat, nil, beat); err != nil {
			if s.op.Keys != nil && fault.From(err).Reason == "store-access-denied" {
				if _, missing := s.op.Keys(); missing != nil {
					return missing
				}
			}
			return err
		}
	}
	return nil
}

// runtime asks a broker how it does. In the second after its start it cannot tell.
func (s *Store) runtime(ctx context.Context, addr string) (*remoting.Command, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	retry := minRetry
	for {
		cmd, err := s.c.ask(ctx, addr, reqRuntime, nil, nil)
		if err == nil || cmd == nil || ctx.Err() != nil {
			return cmd, err
		}
		pause(ctx, &retry)
	}
}

// properties reads Java properties.
func properties(b []byte) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			out[k] = v
		}
	}
	return out
}

// Close refuses new calls and ends what the store runs.
func (s *Store) Close(ctx context.Context) error {
	if s.out.Close(ctx, s.end) {
		s.end()
		s.c.close()
	}
	return nil
}

// EnsureTopic creates the topic or grows its queues. What may be done with one that is
// there stays as it is.
func (s *Store) EnsureTopic(ctx context.Context, t store.TopicSpec) error {
	const op = "rocketmq.ensure-topic"
	if t.MaxAge != 0 || t.MaxBytes != 0 {
		return fault.New(fault.Invalid, op, "no-topic-retention", "RocketMQ keeps messages by one setting of the broker, not by topic")
	}
	n := t.Partitions
	if n == 0 {
		n = 8
	}
	var have, perms map[string]int
	if r, err := s.c.route(ctx, t.Name, true); err == nil {
		if have, perms = r.queues, r.perms; enough(have, n) {
			return nil
		}
	} else if fault.ClassOf(err) != fault.NotFound {
		return err
	}
	brokers, err := s.c.masters(ctx)
	if err != nil {
		return err
	}
	for name, addr := range brokers {
		if have[name] >= n {
			continue // fewer queues would hide what is in the last ones
		}
		perm, there := perms[name]
		if !there {
			perm = permRead | permWrite
		}
		made := topicConfig{ReadQueueNums: n, WriteQueueNums: n, Perm: perm, TopicFilterType: "SINGLE_TAG"}
		if _, err := s.c.ask(ctx, addr, reqCreateTopic, made.fields(t.Name), nil); err != nil {
			return err
		}
	}
	// Brokers tell the name servers; read back what they know.
	for {
		if r, err := s.c.route(ctx, t.Name, true); err == nil && enough(r.queues, n) {
			return nil
		}
		timer := time.NewTimer(50 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fault.Wrap(fault.Unavailable, op, "not-seen", fmt.Errorf("the topic was created, but the name servers do not know it: %w", ctx.Err()))
		}
	}
}

// enough reports whether the topic is somewhere, and each broker that has it has
// at least n queues of it.
func enough(have map[string]int, n int) bool {
	for _, k := range have {
		if k < n {
			return false
		}
	}
	return len(have) > 0
}

// TopicExists reports whether the topic is there.
func (s *Store) TopicExists(ctx context.Context, name string) (bool, error) {
	_, err := s.c.route(ctx, name, true)
	if err != nil && fault.ClassOf(err) == fault.NotFound {
		return false, nil
	}
	return err == nil, err
}

// DeleteTopic deletes the topic.
func (s *Store) DeleteTopic(ctx context.Context, name string) error {
	brokers, err := s.c.masters(ctx)
	if err != nil {
		return err
	}
	for _, addr := range brokers {
		if _, err := s.c.ask(ctx, addr, reqDeleteTopic, map[string]string{"topic": name}, nil); err != nil && fault.ClassOf(err) != fault.NotFound {
			return err
		}
	}
	for _, addr := range s.op.NameServers {
		if _, err := s.c.ask(ctx, addr, reqDeleteRoute, map[string]string{"topic": name}, nil); err != nil && fault.ClassOf(err) != fault.NotFound {
			return err
		}
	}
	s.c.forget(name)
	return nil
}

// EnsureGroup creates a group, and commits its start in every queue where it has
// none: brokers would choose another one.
func (s *Store) EnsureGroup(ctx context.Context, topic, group string, from store.Start) error {
	r, err := s.c.route(ctx, topic, true)
	if err != nil {
		return err
	}
	body, err := json.Marshal(map[string]any{"groupName": group, "consumeEnable": true, "consumeFromMinEnable": true, "consumeBroadcastEnable": true,
		"retryQueueNums": 1, "retryMaxTimes": 16, "brokerId": 0, "whichBrokerWhenConsumeSlowly": 1, "notifyConsumerIdsChangedEnable": true})
	if err != nil {
		return err
	}
	for _, addr := range r.brokers {
		if _, err := s.c.ask(ctx, addr, reqGroup, nil, body); err != nil {
			return err
		}
	}
	starts := map[queue]int64{}
	for _, q := range r.read {
		if _, ok, err := s.c.committed(ctx, r.brokers[q.broker], topic, group, q); err != nil {
			return err
		} else if ok {
			continue
		}
		if starts[q], err = s.groupStart(ctx, r.brokers[q.broker], topic, q, from); err != nil {
			return err
		}
	}
	for _, p := range from.After {
		if len(starts) > 0 && !slices.ContainsFunc(r.read, func(q queue) bool { return q.name() == p.Partition }) {
			return store.Refused(topic, p)
		}
	}
	for q, at := range starts {
		addr := r.brokers[q.broker]
		if err := s.c.commit(ctx, addr, topic, group, q, at); err != nil {
			return err
		}
		// What is further is of a member that reads already, or has not seen yet that the
		// topic is another one (startOver).
		if got, ok, err := s.c.committed(ctx, addr, topic, group, q); err != nil || !ok || got < at {
			return unavailable(fmt.Errorf("the start %d of group %s in %s was not kept: %d, %v, %w", at, group, q.name(), got, ok, err))
		}
	}
	return nil
}

// groupStart is start, within what the queue has: what a broker answers to a time may
// be before it, or -1, and a position may be of what the broker has lost.
func (s *Store) groupStart(ctx context.Context, addr, topic string, q queue, from store.Start) (int64, error) {
	i := slices.IndexFunc(from.After, func(p store.Position) bool { return p.Partition == q.name() })
	if i < 0 && (from.End || from.At.IsZero()) {
		return s.start(ctx, addr, topic, q, from)
	}
	begin, err := s.c.offset(ctx, addr, reqMinOffset, topic, q, nil)
	if err != nil {
		return 0, err
	}
	end, err := s.c.offset(ctx, addr, reqMaxOffset, topic, q, nil)
	if err != nil {
		return 0, err
	}
	if i >= 0 && from.After[i].Offset >= uint64(end) { //nolint:gosec // offsets are not negative
		return 0, store.Refused(topic, from.After[i])
	}
	at, err := s.start(ctx, addr, topic, q, from)
	if err != nil {
		return 0, err
	}
	if at < 0 {
		at = end // so the RocksDB store says that all is older
	}
	return min(max(at, begin), end), nil
}

// start is the offset in a queue where from begins.
func (s *Store) start(ctx context.Context, addr, topic string, q queue, from store.Start) (int64, error) {
	for _, p := range from.After {
		if p.Partition == q.name() {
			return int64(p.Offset) + 1, nil //nolint:gosec // offsets are below 2^63
		}
	}
	switch {
	case from.End:
		return s.c.offset(ctx, addr, reqMaxOffset, topic, q, nil)
	case !from.At.IsZero():
		// The broker knows times to the millisecond.
		return s.c.offset(ctx, addr, reqOffsetAt, topic, q, map[string]string{"timestamp": strconv.FormatInt(from.At.UnixMilli(), 10)})
	}
	return s.c.offset(ctx, addr, reqMinOffset, topic, q, nil)
}

// DeleteGroup deletes a group with its offsets.
func (s *Store) DeleteGroup(ctx context.Context, topic, group string) error {
	r, err := s.c.route(ctx, topic, true)
	if err != nil {
		if fault.ClassOf(err) == fault.NotFound {
			return nil
		}
		return err
	}
	for _, addr := range r.brokers {
		if _, err := s.c.ask(ctx, addr, reqDeleteGroup, map[string]string{"groupName": group, "cleanOffset": "true"}, nil); err != nil {
			return err
		}
	}
	return nil
}

// Extents tells where each queue of a topic begins and ends; see store.Measurer.
func (s *Store) Extents(ctx context.Context, topic string) ([]store.Extent, error) {
	r, err := s.c.whole(ctx, topic, removedAfter)
	if err != nil {
		return nil, err
	}
	out := make([]store.Extent, len(r.read))
	for i, q := range r.read {
		begin, err := s.c.offset(ctx, r.brokers[q.broker], reqMinOffset, topic, q, nil)
		if err != nil {
			return nil, err
		}
		end, err := s.c.offset(ctx, r.brokers[q.broker], reqMaxOffset, topic, q, nil)
		if err != nil {
			return nil, err
		}
		out[i] = store.Extent{Partition: q.name(), Begin: uint64(begin), End: uint64(end)} //nolint:gosec // offsets are not negative
	}
	return out, nil
}

// Lag tells how far a group is behind.
func (s *Store) Lag(ctx context.Context, topic, group string) ([]store.PartitionLag, error) {
	r, err := s.c.whole(ctx, topic, removedAfter)
	if err != nil {
		return nil, err
	}
	var out []store.PartitionLag
	known := false
	for _, q := range r.read {
		addr := r.brokers[q.broker]
		at, end, ok, err := s.c.place(ctx, addr, topic, group, q)
		if err != nil {
			return nil, err
		}
		known = known || ok
		out = append(out, store.PartitionLag{Partition: q.name(), Committed: uint64(at), End: uint64(end), Behind: max(end-at, 0)}) //nolint:gosec // offsets are not negative
	}
	if !known {
		return nil, fault.New(fault.NotFound, "rocketmq.lag", "unknown-group", "group %s has no offset in %s", group, topic)
	}
	return out, nil
}
