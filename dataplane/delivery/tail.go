package delivery

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
)

// tailBuffer and tailBytes are how many events, and bytes of them, a tail holds
// for its client: a slow client stops being read for.
const (
	tailBuffer = 256
	tailBytes  = 1 << 20
)

// MaxTailTopics bounds the names and patterns of a tail.
const MaxTailTopics = 64

// tail implements Tail: a reader for each topic, and one channel to the client.
type tail struct {
	m      *Manager
	r      TailRequest
	events chan Delivery
	ended  chan struct{} // closed with err
	since  time.Time     // when it began

	mu      sync.Mutex
	who     *policy.Principal
	readers map[string]context.CancelFunc // by Topic uid
	after   map[string][]store.Position   // by Topic uid
	started bool                          // the first look at the topics is over
	held    int                           // bytes of what is in events
	room    chan struct{}                 // closed when held got less; nil while no reader waits
	err     error
}

// Tail begins to follow topics. Where it begins is fixed when it returns.
func (m *Manager) Tail(ctx context.Context, who *policy.Principal, r TailRequest) (Tail, error) {
	const op = "delivery.tail"
	if len(r.Topics) == 0 || len(r.Topics) > MaxTailTopics {
		return nil, fault.New(fault.Invalid, op, "bad-topics", "a tail has 1 to %d topics or patterns", MaxTailTopics)
	}
	if err := names.CheckNamespace(r.Namespace); err != nil {
		return nil, &fault.Error{Class: fault.Invalid, Op: op, Reason: "bad-name", Msg: err.Error()}
	}
	for _, t := range r.Topics {
		if err := names.CheckPattern("topic", t); err != nil {
			return nil, &fault.Error{Class: fault.Invalid, Op: op, Reason: "bad-name", Msg: err.Error()}
		}
	}
	t := &tail{m: m, r: r, who: who, since: time.Now(), events: make(chan Delivery, tailBuffer), ended: make(chan struct{}), readers: map[string]context.CancelFunc{}, after: map[string][]store.Position{}}
	for _, tok := range r.After {
		t.after[tok.TopicUID] = append(t.after[tok.TopicUID], tok.Pos)
	}
	snap := m.cfg.Snapshots.Get()
	if err := t.open(ctx, snap); err != nil {
		t.Close()
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.draining || len(m.tails) >= MaxTails {
		err := errDraining
		if !m.draining {
			err = fault.New(fault.Throttled, op, "too-many-tails", "the proxy has %d tails", MaxTails)
		}
		t.fail(err)
		return nil, err
	}
	m.tails[t] = struct{}{}
	m.metrics.tails.Inc()
	t.check(m.cfg.Snapshots.Get(), m.cfg.Clock.Now())
	return t, nil
}

// selected are the topics that the tail reads by a configuration.
func (t *tail) selected(snap *snapshot.Snapshot, who *policy.Principal) ([]*snapshot.Topic, error) {
	var out []*snapshot.Topic
	for _, p := range t.r.Topics {
		if names.IsPattern(p) {
			continue
		}
		if d := snap.Rules.Authorize(who, policy.Subscribe, t.r.Namespace, p); !d.Allowed {
			return nil, denied(d)
		}
		topic := snap.Topics[snapshot.Key{Namespace: t.r.Namespace, Name: p}]
		if topic == nil {
			return nil, fault.New(fault.NotFound, "delivery.tail", "unknown-topic", "there is no topic %s in namespace %s", p, t.r.Namespace)
		}
		out = append(out, topic)
	}
	var refused error
	for key, topic := range snap.Topics {
		if key.Namespace != t.r.Namespace || slices.Contains(out, topic) ||
			!slices.ContainsFunc(t.r.Topics, func(p string) bool { return names.IsPattern(p) && names.Match(p, key.Name) }) {
			continue
		}
		if d := snap.Rules.Authorize(who, policy.Subscribe, t.r.Namespace, key.Name); d.Allowed {
			out = append(out, topic)
		} else {
			refused = fault.New(fault.Denied, "authorise", "access-denied", "no topic that matches may be read: no AccessPolicy of namespace %s allows it to %s", t.r.Namespace, who)
		}
	}
	if err := snap.Refusal(t.r.Namespace); err != nil && len(out) > 0 {
		return nil, err
	}
	if len(out) == 0 {
		if refused == nil {
			// Whether there are topics is told only to those who may know.
			refused = fault.New(fault.Denied, "authorise", "access-denied", "no topic that matches may be read: no AccessPolicy of namespace %s allows it to %s", t.r.Namespace, who)
		}
		return nil, refused
	}
	return out, nil
}

// open starts a reader for each topic that is there; their starts are fixed.
func (t *tail) open(ctx context.Context, snap *snapshot.Snapshot) error {
	topics, err := t.selected(snap, t.who)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	uids := map[string]bool{}
	for _, topic := range topics {
		uids[topic.UID] = true
		for _, tok := range t.r.After {
			if tok.TopicUID == topic.UID && tok.Epoch != topic.Last().Number {
				return fault.New(fault.Precondition, "delivery.tail", "position-unknown", "a position is of epoch %d of topic %s, which is in epoch %d", tok.Epoch, topic.Name, topic.Last().Number)
			}
		}
		if topic.NotReady != "" {
			if slices.Contains(t.r.Topics, topic.Name) {
				return fault.New(fault.Unavailable, "delivery.tail", "topic-not-ready", "topic %s is not ready: %s", topic.Name, topic.NotReady)
			}
			continue
		}
		st, err := t.m.cfg.Store(topic.Last().StoreUID)
		if err != nil {
			return err
		}
		from := t.r.From
		from.After = t.after[topic.UID]
		up, err := st.Tail(ctx, store.TailRequest{Topic: topic.Last().Physical, From: from})
		if err != nil {
			return err
		}
		begin := t.r.From
		if begin.End {
			// Where a partition begins of which nothing was read yet, should the
			// reader have to begin again.
			begin = store.Start{At: t.since}
		}
		t.readLocked(topic, begin, up)
	}
	for uid := range t.after {
		if !uids[uid] {
			return fault.New(fault.Precondition, "delivery.tail", "position-unknown", "a position is of a topic that was deleted, or that this tail does not read")
		}
	}
	t.started = true
	return nil
}

// readLocked starts the reader of one topic, which begins where up does; if that
// is nil it opens the topic at begin itself.
func (t *tail) readLocked(topic *snapshot.Topic, begin store.Start, up store.Tail) {
	ctx, cancel := context.WithCancel(context.Background())
	t.readers[topic.UID] = cancel
	t.m.running.Go(func() { t.read(ctx, topic, begin, up) })
}

// read passes a topic's events on until ctx ends. Over failures of the store it
// goes on behind the last event that it passed on.
func (t *tail) read(ctx context.Context, topic *snapshot.Topic, begin store.Start, up store.Tail) {
	closeUp := func() {
		if up != nil {
			cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
			defer cancel()
			_ = up.Close(cctx)
			up = nil
		}
	}
	defer closeUp()
	last := map[string]store.Position{}
	for _, p := range t.after[topic.UID] {
		last[p.Partition] = p
	}
	token := position.Token{TopicUID: topic.UID, Epoch: topic.Last().Number}
	retry := minRetry
	st, _ := t.m.cfg.Store(topic.Last().StoreUID)
	for ctx.Err() == nil {
		var err error
		if up == nil {
			if st, err = t.m.cfg.Store(topic.Last().StoreUID); err == nil {
				up, err = again(ctx, st, topic, begin, last)
			}
		}
		n := 0
		msgs := make([]store.Message, 64)
		if err == nil {
			n, err = up.Next(ctx, msgs)
		}
		for i := range msgs[:n] {
			token.Pos = msgs[i].Pos
			if !t.reserve(ctx, msgs[i].Size()) {
				return
			}
			select {
			case t.events <- Delivery{Topic: topic.Name, Position: token, Attempt: 1, Event: &msgs[i].Event}:
				last[msgs[i].Pos.Partition] = msgs[i].Pos
			case <-ctx.Done():
				t.release([]Delivery{{Event: &msgs[i].Event}})
				return
			}
		}
		if err == nil {
			retry = minRetry
			continue
		}
		if ctx.Err() != nil {
			return
		}
		t.m.cfg.Log.Warn("a tail's topic cannot be read; trying again", "topic", topic.Key, "error", err)
		// A store that cannot be reached for a while goes on by itself; one
		// that was exchanged does not.
		if now, serr := t.m.cfg.Store(topic.Last().StoreUID); serr == nil && now != st || fault.ClassOf(err) != fault.Unavailable {
			closeUp()
		}
		timer := time.NewTimer(retry/2 + rand.N(retry))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		retry = min(2*retry, maxRetry)
	}
}

// reserve waits until n more bytes may be held; false when ctx has ended.
func (t *tail) reserve(ctx context.Context, n int) bool {
	for {
		t.mu.Lock()
		if t.held == 0 || t.held+n <= tailBytes {
			t.held += n
			t.mu.Unlock()
			return true
		}
		if t.room == nil {
			t.room = make(chan struct{})
		}
		room := t.room
		t.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return false
		}
	}
}

// release gives back what the client has taken.
func (t *tail) release(ds []Delivery) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range ds {
		t.held -= ds[i].Event.Size()
	}
	if t.room != nil {
		close(t.room)
		t.room = nil
	}
}

// again opens a reader behind the last events. A partition of which nothing was
// read yet begins at begin.
func again(ctx context.Context, st store.Store, topic *snapshot.Topic, begin store.Start, last map[string]store.Position) (store.Tail, error) {
	from := begin
	for _, p := range last {
		from.After = append(from.After, p)
	}
	return st.Tail(ctx, store.TailRequest{Topic: topic.Last().Physical, From: from})
}

func (t *tail) expired(now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.who.Expired(now)
}

// check judges the tail by a newer configuration: who may read what, and which
// topics there are. New topics are read from their beginning. It does not wait
// for stores: their readers do.
func (t *tail) check(snap *snapshot.Snapshot, now time.Time) {
	t.mu.Lock()
	who := t.who
	t.mu.Unlock()
	who, err := refreshed(snap, who, now)
	var topics []*snapshot.Topic
	if err == nil {
		topics, err = t.selected(snap, who)
	}
	if err != nil {
		t.fail(err)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil || !t.started {
		return
	}
	t.who = who
	keep := map[string]bool{}
	for _, topic := range topics {
		keep[topic.UID] = true
		if t.readers[topic.UID] == nil && topic.NotReady == "" {
			t.readLocked(topic, store.Start{}, nil)
		}
	}
	for uid, cancel := range t.readers {
		if !keep[uid] {
			cancel()
			delete(t.readers, uid)
		}
	}
}

// fail ends the tail with err. It does not wait.
func (t *tail) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return
	}
	t.err = err
	close(t.ended)
	for _, cancel := range t.readers {
		cancel()
	}
	clear(t.readers)
}

// Next waits for events.
func (t *tail) Next(ctx context.Context, dst []Delivery) (int, error) {
	select {
	case <-t.ended: // a tail that may not read any more reads nothing more
		return 0, t.err
	default:
	}
	select {
	case d := <-t.events:
		dst[0] = d
	case <-t.ended:
		return 0, t.err
	case <-ctx.Done():
		return 0, fault.From(ctx.Err())
	}
	n := 1
	for n < len(dst) {
		select {
		case d := <-t.events:
			dst[n] = d
			n++
			continue
		default:
		}
		break
	}
	t.release(dst[:n])
	t.m.metrics.tailed.Add(float64(n))
	return n, nil
}

// Ended is closed when the tail has ended.
func (t *tail) Ended() <-chan struct{} { return t.ended }

// Close ends the tail.
func (t *tail) Close() {
	t.fail(fault.New(fault.Canceled, "delivery", "closed", "the tail is closed"))
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	if _, open := t.m.tails[t]; open {
		delete(t.m.tails, t)
		t.m.metrics.tails.Dec()
	}
}
