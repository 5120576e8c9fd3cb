package kafka

import (
	"context"
	"time"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/sendqueue"
)

// Limits of publishing.
const (
	// maxBatchBytes is below what brokers take by default, 1,048,588.
	maxBatchBytes  = 1_000_000
	maxBatchEvents = 4096
	// sameTurn is after how many bytes events without a key go to another partition, and
	// busyTurn after how many where the one they go to is busy: few large requests take
	// less than many small ones, and several at a time less long than one. What was
	// published at once goes together as long as a batch has room.
	sameTurn = 64 << 10
	busyTurn = 256 << 10
	// idleFor is how long what is known of a topic and its partitions is kept to which
	// nothing is sent. A sender that comes again is another producer, which is a question
	// to a broker.
	idleFor = 10 * time.Minute
)

var limits = sendqueue.Limits{Events: maxBatchEvents, Bytes: maxBatchBytes, Waiting: 32 << 20}

type senderKey struct {
	topic     string
	partition int32
}

// sender sends to one partition. It is a producer of its own for the brokers.
type sender struct {
	senderKey
	*sendqueue.Queue[record]

	// Of the run that sends.
	producer int64 // 0: none yet
	epoch    int16
	sequence int32 // of the next event

	used time.Time // when it had nothing more to send; guarded by Store.mu
}

// outgoing is one event on its way.
type outgoing = sendqueue.Item[record]

// Publish writes events; see store.Store.
func (s *Store) Publish(ctx context.Context, name string, events []store.Outgoing, res []store.Result) error {
	wait, err := s.Hand(ctx, name, events)
	if err != nil {
		for i := range res {
			res[i] = store.Result{Err: err}
		}
		return err
	}
	return wait(ctx, res)
}

// Hand is the first half of it; see store.Hander.
func (s *Store) Hand(ctx context.Context, name string, events []store.Outgoing) (wait func(context.Context, []store.Result) error, err error) {
	const op = "kafka.publish"
	if err := ctx.Err(); err != nil {
		return nil, fault.From(err)
	}
	t, err := s.topic(ctx, name, false)
	if err != nil {
		return nil, err
	}
	all := make([]outgoing, len(events))
	room := 0
	for i := range events {
		room += headerBytes(events[i].Event)
	}
	headers := make([]byte, 0, room)
	for i := range events {
		o := &all[i]
		o.Event, headers = encode(events[i], headers)
		if o.Size = o.Event.size(); o.Size > maxMessage {
			return nil, fault.New(fault.TooLarge, op, "event-too-large", "the event has %d bytes, the store takes %d", o.Size, maxMessage)
		}
	}
	if len(events) == 0 {
		return func(context.Context, []store.Result) error { return nil }, nil
	}
	c, err := s.hand(t, name, events, all)
	if err != nil {
		return nil, err
	}
	return c.Wait, nil
}

func noPartition(op string) error {
	return fault.New(fault.Unavailable, op, "store-unreachable", "the topic has no partition yet")
}

// hand chooses a partition for each event, and gives it to its sender.
func (s *Store) hand(t *topic, name string, events []store.Outgoing, all []outgoing) (*sendqueue.Call[record], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweepLocked()
	n := len(t.leaders)
	if n == 0 {
		return nil, noPartition("kafka.publish")
	}
	turn := turnOf(all)
	for i := range all {
		var partition int32
		if key := events[i].Key; key != "" {
			partition = partitionOf(key, n)
		} else {
			partition = s.keylessLocked(t, name, all[i].Size, turn)
		}
		all[i].To = s.senderLocked(name, partition).Queue
	}
	return s.out.Give(all)
}

// senderLocked is the sender of a partition.
func (s *Store) senderLocked(topic string, partition int32) *sender {
	key := senderKey{topic, partition}
	sn := s.senders[key]
	if sn == nil {
		sn = &sender{senderKey: key}
		sn.Queue = s.out.Queue(func() { s.send(sn) })
		s.senders[key] = sn
	}
	return sn
}

// sweepLocked forgets senders and topics that were not used for long, once in a while:
// topics come and go, and of those that go nobody tells. A sender to which something is
// about to be given must not be among them, or another one would overtake it: so it is
// called before any is chosen.
func (s *Store) sweepLocked() {
	if time.Since(s.swept) < s.idle {
		return
	}
	s.swept = time.Now()
	for key, sn := range s.senders {
		if _, busy := sn.Load(); !busy && time.Since(sn.used) >= s.idle {
			delete(s.senders, key)
		}
	}
	for name, t := range s.topics {
		if time.Since(t.at) >= s.idle {
			delete(s.topics, name) // one that is used is looked up more often
		}
	}
}

// turnOf is how many bytes of what is published at once go to one partition.
func turnOf(all []outgoing) int {
	n := 0
	for i := range all {
		n += all[i].Size
	}
	return min(max(n, sameTurn), maxBatchBytes)
}

// keylessLocked is where the next event without a key goes: some to one partition,
// then some to the next that has a leader, so that batches grow with load.
func (s *Store) keylessLocked(t *topic, name string, size, limit int) int32 {
	n := len(t.leaders)
	if _, busy := s.senderLocked(name, int32(t.turn%n)).Load(); busy { //nolint:gosec // topics have few partitions
		limit = max(limit, busyTurn)
	}
	if t.bytes += size; t.bytes > limit || t.leaders[t.turn%n] < 0 {
		t.bytes = size
		for range n {
			if t.turn++; t.leaders[t.turn%n] >= 0 {
				break
			}
		}
	}
	return int32(t.turn % n) //nolint:gosec // likewise
}

// partitionOf is the partition of a key: that which Kafka's own clients choose.
func partitionOf(key string, n int) int32 {
	return int32(murmur2(key)&0x7fffffff) % int32(n) //nolint:gosec // topics have few partitions
}

// murmur2 is the hash of keys that Kafka's own clients use.
func murmur2(b string) uint32 {
	const seed, m, r = 0x9747b28c, 0x5bd1e995, 24
	h := seed ^ uint32(len(b)) //nolint:gosec // keys are short
	for ; len(b) >= 4; b = b[4:] {
		k := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
		k *= m
		k ^= k >> r
		k *= m
		h *= m
		h ^= k
	}
	switch len(b) {
	case 3:
		h ^= uint32(b[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(b[1]) << 8
		fallthrough
	case 1:
		h ^= uint32(b[0])
		h *= m
	}
	h ^= h >> 13
	h *= m
	return h ^ h>>15
}

func ambiguous(err error) error { return sendqueue.Ambiguous("kafka.publish", err) }

// send sends what waits until nothing does.
func (s *Store) send(sn *sender) {
	for {
		batch := sn.Take()
		if batch == nil {
			s.mu.Lock()
			sn.used = time.Now()
			s.mu.Unlock()
			return
		}
		if err := s.deliver(sn, batch); err != nil {
			s.refuse(sn, err)
		}
	}
}

// refuse answers what waits for a sender, where err is not of the batch before alone: it
// would wait as long, for the same. It was not sent.
func (s *Store) refuse(sn *sender, err error) {
	if f := fault.From(err); f.Class == fault.Ambiguous {
		err = f.Err
	}
	err = classify(context.Background(), "kafka.publish", err)
	switch fault.ClassOf(err) {
	case fault.Unavailable, fault.NotFound:
		sn.Refuse(err)
	}
}
