package kafka

import (
	"context"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/sendqueue"
)

// tail reads every partition of a topic by a client of its own.
type tail struct {
	s     *Store
	c     *kgo.Client
	topic string
	own   bool                 // events have memory of their own
	rest  []kgo.FetchPartition // what was fetched and not given; Next's
	life  context.Context
	end   context.CancelFunc
	work  sync.WaitGroup

	mu    sync.Mutex
	parts map[int32]*tailPartition
}

// tailPartition is where a tail is in a partition.
type tailPartition struct {
	given  int64 // all before it was given
	stable int64 // what came last said that there is more before it; also what waits here
}

// Tail reads a topic without a group. Where it begins in each partition is fixed when
// it returns.
func (s *Store) Tail(ctx context.Context, r store.TailRequest) (store.Tail, error) {
	const op = "kafka.tail"
	if _, err := s.topic(ctx, r.Topic, true); err != nil {
		return nil, err
	}
	at, err := s.starts(ctx, op, r.Topic, r.From)
	if err != nil {
		return nil, err
	}
	if s.out.Closed() {
		return nil, sendqueue.Closed(op)
	}
	t := &tail{s: s, topic: r.Topic, own: r.Own, parts: map[int32]*tailPartition{}}
	from := map[int32]kgo.Offset{}
	for p, offset := range at {
		from[p] = kgo.NewOffset().At(offset)
		t.parts[p] = &tailPartition{given: offset}
	}
	t.c, err = s.op.client(s.clientID(), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{r.Topic: from}),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.FetchMaxBytes(tailFetch), kgo.FetchMaxPartitionBytes(fetchBytes))
	if err != nil {
		return nil, err
	}
	t.life, t.end = context.WithCancel(s.life)
	t.work.Go(t.follow)
	return t, nil
}

// follow looks for partitions that come later; they are read from their beginning.
func (t *tail) follow() {
	tick := time.NewTicker(metadataAge)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-t.life.Done():
			return
		}
		now, err := t.s.topic(t.life, t.topic, false)
		if err != nil {
			continue
		}
		for p := range int32(len(now.leaders)) { //nolint:gosec // topics have few partitions
			t.mu.Lock()
			_, have := t.parts[p]
			if !have {
				t.parts[p] = &tailPartition{}
			}
			t.mu.Unlock()
			if !have {
				t.c.AddConsumePartitions(map[string]map[int32]kgo.Offset{t.topic: {p: kgo.NewOffset().AtStart()}})
			}
		}
	}
}

// tailFetch is how much of a broker is fetched at once, in bytes. As much waits here to be
// given, while the client fetches what follows.
const tailFetch = 4 << 20

// Next waits for messages.
func (t *tail) Next(ctx context.Context, dst []store.Message) (int, error) {
	const op = "kafka.tail"
	for {
		if n := t.give(dst); n > 0 {
			return n, nil
		}
		fetches := t.c.PollFetches(ctx)
		var failed error
		t.mu.Lock()
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			t.s.skip(t.c, &p)
			if p.Err != nil {
				failed = p.Err
			}
			if at := t.parts[p.Partition]; at != nil && p.Topic == t.topic {
				at.stable = p.LastStableOffset
				if len(p.Records) > 0 {
					t.rest = append(t.rest, p.FetchPartition)
				}
			}
		})
		t.mu.Unlock()
		switch {
		case len(t.rest) > 0:
		case ctx.Err() != nil:
			return 0, fault.From(ctx.Err())
		case fetches.IsClientClosed():
			return 0, sendqueue.Closed(op)
		case failed != nil:
			return 0, classify(ctx, op, failed)
		}
	}
}

// give fills dst with what was fetched.
func (t *tail) give(dst []store.Message) (n int) {
	if len(t.rest) == 0 {
		return 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.rest) > 0 && n < len(dst) {
		p := &t.rest[0]
		at := t.parts[p.Partition]
		for ; len(p.Records) > 0 && n < len(dst); p.Records = p.Records[1:] {
			r := p.Records[0]
			at.given = r.Offset + 1
			if r.Attrs.IsControl() {
				continue
			}
			if t.own {
				dst[n] = message(r)
			} else {
				e := decode(r)
				dst[n] = store.Message{Event: e, Pos: position(r), Stored: r.Timestamp, StoredKey: storedKey(&e, r)}
			}
			n++
		}
		if len(p.Records) == 0 {
			*p = kgo.FetchPartition{}
			t.rest = t.rest[1:]
		}
	}
	return n
}

// AtEnd reports whether nothing is here that Next has not given, and no broker has
// said that there is more.
func (t *tail) AtEnd() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.parts {
		if p.given < p.stable {
			return false
		}
	}
	return t.c.BufferedFetchRecords() == 0
}

// Mark asks the brokers where the partitions end now.
func (t *tail) Mark(ctx context.Context) (passed func() bool, err error) {
	const op = "kafka.tail"
	begins, err := t.s.offsets(ctx, op, t.topic, t.s.adm.ListStartOffsets)
	if err != nil {
		return nil, err
	}
	ends, err := t.s.offsets(ctx, op, t.topic, t.s.adm.ListCommittedOffsets)
	if err != nil {
		return nil, err
	}
	return func() bool {
		t.mu.Lock()
		defer t.mu.Unlock()
		for p, end := range ends {
			at := t.parts[p]
			if begins[p] < end && (at == nil || at.given < end) {
				return false
			}
		}
		return true
	}, nil
}

// Close ends the tail.
func (t *tail) Close(context.Context) error {
	t.end()
	t.work.Wait()
	t.c.Close()
	return nil
}
