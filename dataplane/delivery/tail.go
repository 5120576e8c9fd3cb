package delivery

import (
	"context"
	"maps"
	"math"
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

// MaxTailTopics bounds the names and patterns of a tail.
const MaxTailTopics = 64

// tail implements Tail: a cursor for each topic. What comes is taken by the client's
// own goroutine, so that who is slow holds up nobody.
type tail struct {
	m         *Manager
	namespace string
	topics    []string // names and patterns
	bounded   bool     // by credit
	bell      bell
	ear       *ear // of Next

	mu      sync.Mutex
	who     *policy.Principal
	grants  map[string]*policy.Grant // by topic, where rules look at each event; replaced, not changed
	cursors []*cursor                // one for each topic; the client gets from each in turn
	unread  map[string]beginning     // of topics that a pattern matches and that were not ready, by uid
	turn    int
	started bool // the first look at the topics is over
	credit  int  // of who is bounded by it
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
	t := &tail{m: m, namespace: r.Namespace, topics: r.Topics, bounded: r.Credit, who: who}
	if err := t.open(ctx, m.cfg.Snapshots.Get(), r); err != nil {
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

// selected are the topics that the tail reads by a configuration: maybe none yet, where it
// has patterns and a rule allows some name that they match.
func (t *tail) selected(snap *snapshot.Snapshot, who *policy.Principal) ([]*snapshot.Topic, map[string]*policy.Grant, error) {
	var out []*snapshot.Topic
	var grants map[string]*policy.Grant
	allowed := func(topic string) (*policy.Grant, bool) {
		g := snap.Rules.Grant(who, policy.Subscribe, t.namespace, topic)
		if g.PerEvent() {
			if grants == nil {
				grants = map[string]*policy.Grant{}
			}
			grants[topic] = &g
		}
		return &g, g.Ever() && (g.PerEvent() || g.Always().Allowed)
	}
	for _, p := range t.topics {
		if names.IsPattern(p) {
			continue
		}
		if g, ok := allowed(p); !ok {
			return nil, nil, g.Refuse(g.Always())
		}
		topic := snap.Topics[snapshot.Key{Namespace: t.namespace, Name: p}]
		if topic == nil {
			return nil, nil, fault.New(fault.NotFound, "delivery.tail", "unknown-topic", "there is no topic %s in namespace %s", p, t.namespace)
		}
		out = append(out, topic)
	}
	for _, topic := range snap.Matching(t.namespace, t.topics) {
		if slices.Contains(t.topics, topic.Name) {
			continue
		}
		if _, ok := allowed(topic.Name); ok {
			out = append(out, topic)
		}
	}
	// Who may read none that matches is told nothing of which there are: whether to wait for
	// one goes by the rules alone.
	if len(out) == 0 && !slices.ContainsFunc(t.topics, func(p string) bool { return snap.Rules.Prospect(who, policy.Subscribe, t.namespace, p) }) {
		return nil, nil, fault.New(fault.Denied, "authorise", "access-denied", "no topic that matches may be read: no AccessPolicy of namespace %s allows it to %s", t.namespace, who)
	}
	if err := snap.Refusal(t.namespace); err != nil {
		return nil, nil, err
	}
	return out, grants, nil
}

// open starts a reader for each topic that is there; their starts are fixed.
func (t *tail) open(ctx context.Context, snap *snapshot.Snapshot, r TailRequest) error {
	since := now()
	after := map[string][]position.Token{} // by Topic uid
	for _, tok := range r.After {
		after[tok.TopicUID] = append(after[tok.TopicUID], tok)
	}
	topics, grants, err := t.selected(snap, t.who)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.grants = grants
	uids := map[string]bool{}
	for _, topic := range topics {
		uids[topic.UID] = true
		b := beginning{r.From, after[topic.UID], since}
		if topic.NotReady != "" {
			if slices.Contains(t.topics, topic.Name) {
				return fault.New(fault.Unavailable, "delivery.tail", "topic-not-ready", "topic %s is not ready: %s", topic.Name, topic.NotReady)
			}
			if t.unread == nil {
				t.unread = map[string]beginning{}
			}
			t.unread[topic.UID] = b
			continue
		}
		if err := t.beginLocked(ctx, topic, b); err != nil {
			return err
		}
	}
	maps.DeleteFunc(after, func(uid string, _ []position.Token) bool { return uids[uid] })
	if len(after) > 0 && !(r.Resumes && t.mayHaveRead(snap, after)) {
		return fault.New(fault.Precondition, "delivery.tail", "position-unknown", "a position is of a topic that was deleted, or that this tail does not read")
	}
	t.started = true
	return nil
}

// mayHaveRead reports whether the tail may have read topics before, by uid, that it does not
// read now: a pattern matches them still, or they are gone, and one may have matched them.
func (t *tail) mayHaveRead(snap *snapshot.Snapshot, topics map[string][]position.Token) bool {
	if !slices.ContainsFunc(t.topics, names.IsPattern) {
		return false
	}
	for _, topic := range snap.Topics {
		if topics[topic.UID] != nil && (topic.Namespace != t.namespace || !slices.ContainsFunc(t.topics, func(p string) bool { return names.Match(p, topic.Name) })) {
			return false
		}
	}
	return true
}

// beginning is where a client begins in a topic who came at since.
type beginning struct {
	from  store.Start
	after []position.Token
	since time.Time
}

// beginLocked begins with a topic where the client wants it; that is fixed when it returns.
func (t *tail) beginLocked(ctx context.Context, topic *snapshot.Topic, b beginning) error {
	if b.from.End && len(b.after) == 0 {
		f, err := t.m.feed(ctx, topic)
		if err != nil {
			return err
		}
		t.addLocked(topic).joinLocked(f)
		return nil
	}
	r, err := begins(topic, b.from, b.after)
	if err != nil {
		return err
	}
	r.m = t.m
	if r.st, err = t.m.cfg.Store(r.epoch.StoreUID); err != nil {
		return err
	}
	if r.up, err = r.st.Tail(ctx, store.TailRequest{Topic: r.epoch.Physical, From: r.begin}); err != nil {
		return err
	}
	r.begun(b.since)
	t.addLocked(topic).readLocked(r)
	return nil
}

// comeLocked begins with a topic that has come, at its beginning, or was not ready when
// the client came. It does not wait for the store.
func (t *tail) comeLocked(topic *snapshot.Topic) error {
	r := &reader{topic: topic, epoch: topic.Epochs[0], last: map[string]store.Position{}}
	if b, was := t.unread[topic.UID]; was {
		if b.from.End {
			b.from = store.Start{At: b.since}
		}
		var err error
		if r, err = begins(topic, b.from, b.after); err != nil {
			return err
		}
		delete(t.unread, topic.UID)
		r.begun(b.since)
	}
	r.m = t.m
	t.addLocked(topic).readLocked(r)
	return nil
}

// begins is where a client begins in a topic that wants it from a place or after tokens.
// Without tokens that is its oldest epoch, and in each later one the same place. With
// tokens it is the newest epoch that they are of, since an epoch is read once the one before
// is; and if that is given up, the beginning of the oldest that is later, as if what is
// between had been removed by its retention. A partition without a token begins where
// the client says, or at its beginning where the client has read an epoch before.
func begins(topic *snapshot.Topic, from store.Start, after []position.Token) (*reader, error) {
	r := &reader{topic: topic, epoch: topic.Epochs[0], begin: from, later: from, last: map[string]store.Position{}}
	if len(after) == 0 {
		return r, nil
	}
	r.later = store.Start{}
	oldest, newest := after[0].Epoch, after[0].Epoch
	for _, tok := range after {
		oldest, newest = min(oldest, tok.Epoch), max(newest, tok.Epoch)
	}
	const op = "delivery.tail"
	switch written := topic.Written().Number; {
	case slices.ContainsFunc(after, func(tok position.Token) bool { return tok.Pos.Offset > math.MaxInt64 }):
		return nil, fault.New(fault.Precondition, op, "position-unknown", "a position has an offset that no store has")
	case oldest == 0 || newest > written && !topic.Has(newest):
		return nil, fault.New(fault.Precondition, op, "position-unknown", "a position is of epoch %d of topic %s, which is in epoch %d", max(newest, oldest), topic.Name, written)
	case newest > written:
		return nil, &fault.Error{Class: fault.Unavailable, Op: op, Reason: "topic-not-ready", RetryAfter: time.Second,
			Msg: "topic " + topic.Name + " has moved, which this proxy has not heard of yet"}
	}
	for _, e := range topic.Epochs {
		if r.epoch = e; e.Number >= newest {
			break
		}
	}
	if r.epoch.Number > newest || oldest < newest {
		r.begin = store.Start{}
	}
	for _, tok := range after {
		if tok.Epoch == r.epoch.Number {
			r.begin.After = append(r.begin.After, tok.Pos)
		}
	}
	return r, nil
}

func (t *tail) addLocked(topic *snapshot.Topic) *cursor {
	c := &cursor{t: t, topic: topic}
	t.cursors = append(t.cursors, c)
	return c
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
	var grants map[string]*policy.Grant
	if err == nil {
		topics, grants, err = t.selected(snap, who)
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
	t.who, t.grants = who, grants
	had := make(map[string]bool, len(t.cursors))
	for _, c := range t.cursors {
		had[c.topic.UID] = true
	}
	keep := make(map[string]bool, len(topics))
	for _, topic := range topics {
		keep[topic.UID] = true
		if had[topic.UID] || topic.NotReady != "" {
			continue
		}
		if err := t.comeLocked(topic); err != nil {
			t.failLocked(err)
			return
		}
	}
	maps.DeleteFunc(t.unread, func(uid string, _ beginning) bool { return !keep[uid] })
	t.cursors = slices.DeleteFunc(t.cursors, func(c *cursor) bool {
		gone := !keep[c.topic.UID]
		if gone {
			c.dropLocked()
		}
		return gone
	})
}

// fail ends the tail with err. It does not wait.
func (t *tail) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failLocked(err)
}

func (t *tail) failLocked(err error) {
	if t.err != nil {
		return
	}
	t.err = err
	t.bell.ring()
	for _, c := range t.cursors {
		c.dropLocked()
	}
	t.cursors = nil
}

// Next waits for events.
func (t *tail) Next(ctx context.Context, dst []Delivery) (int, error) {
	if t.ear == nil {
		t.ear = newEar()
	}
	for {
		if n, err := t.Take(dst, t.ear.wake); n > 0 || err != nil {
			return n, err
		}
		select {
		case <-t.ear.heard:
		case <-ctx.Done():
			return 0, fault.From(ctx.Err())
		}
	}
}

// Take gives events that the client may read: rules that look at each event are
// asked here, so that those in force now decide also about what waits.
func (t *tail) Take(dst []Delivery, wake func()) (int, error) {
	for {
		n, grants, err := t.take(dst)
		if err != nil {
			return 0, err // a tail that may not read any more reads nothing more
		}
		if n > 0 {
			if n = t.readable(dst[:n], grants); n == 0 {
				continue
			}
			t.m.metrics.tailed.Add(float64(n))
			return n, nil
		}
		if t.bell.listen(wake) {
			return 0, nil
		}
	}
}

// Topics are those that are read now, with those that will be once they are ready.
func (t *tail) Topics() map[string]struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make(map[string]struct{}, len(t.cursors)+len(t.unread))
	for _, c := range t.cursors {
		out[c.topic.UID] = struct{}{}
	}
	for uid := range t.unread {
		out[uid] = struct{}{}
	}
	return out
}

// Credit grants n more deliveries.
func (t *tail) Credit(n int) {
	t.mu.Lock()
	t.credit = min(t.credit+n, maxCredit)
	t.mu.Unlock()
	t.bell.ring()
}

// readable moves what the client may read, by the grants that it was taken with, to the
// front, and tells how many. Newer ones may have none of a topic that it reads no more.
func (t *tail) readable(ds []Delivery, grants map[string]*policy.Grant) int {
	n := 0
	for _, d := range ds {
		if g := grants[d.Topic]; g != nil {
			if decision := g.For(d.Event); !decision.Allowed {
				_ = g.Refuse(decision)
				continue
			}
		}
		ds[n] = d
		n++
	}
	if not := len(ds) - n; not > 0 {
		t.mu.Lock()
		t.credit += not
		t.mu.Unlock()
	}
	return n
}

// take gives what there is, and the grants of then.
func (t *tail) take(dst []Delivery) (n int, grants map[string]*policy.Grant, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return 0, nil, t.err
	}
	if t.bounded {
		dst = dst[:min(len(dst), t.credit)]
	}
	// Once around, beginning with another topic each time.
	size := 0
	for i := range t.cursors {
		if n == len(dst) || size >= tailBytes {
			break
		}
		got, bytes := t.cursors[(t.turn+i)%len(t.cursors)].takeLocked(dst[n:], tailBytes-size)
		n, size = n+got, size+bytes
	}
	t.turn++
	t.credit -= n
	return n, t.grants, nil
}

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
