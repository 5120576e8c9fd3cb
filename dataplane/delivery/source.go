package delivery

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/weft-mesh/weft/dataplane/denied"
	"github.com/weft-mesh/weft/dataplane/facts"
	"github.com/weft-mesh/weft/dataplane/route"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/outage"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
)

// source is one topic of a subscription, or its retry topic, as a member of the
// group in the store.
type source struct {
	r        *runtime
	storeUID string
	topic    string // physical
	group    string
	retry    bool
	ordered  bool
	// name and token are of the Topic; a retry topic's events bring their own.
	name  string
	token position.Token
	// of is the Topic, which has the cut; nil of a retry topic. Guarded by the
	// runtime's mu, as drained: the group has settled all up to the cut, and what is
	// still out here does not come again.
	of         *snapshot.Topic
	drained    bool
	retryTopic string
	cancel     context.CancelFunc

	// stalled is why it is not read, since when; guarded by the runtime's mu.
	stalled stall
	since   time.Time

	// upstream is what run has opened, for settle and moved.
	upstream atomic.Pointer[upstream]
}

type upstream struct {
	st  store.Store
	sub store.Subscription
}

type sourceKey struct {
	storeUID, topic, group string
	ordered                bool
}

func (s *source) key() sourceKey { return sourceKey{s.storeUID, s.topic, s.group, s.ordered} }

// lost reports whether an item came from this source, which is not read any more. What
// is out of one that is drained stays with its member.
func (s *source) lost(it *item) bool {
	return it.src == s && (!s.drained || it.owner == nil)
}

// holds reports whether an item is still this proxy's to deliver.
func (s *source) holds(it *item) bool {
	if !s.ordered {
		return true
	}
	up := s.upstream.Load()
	return up != nil && up.sub.Holds(&it.msg.stored)
}

// revoked drops what came of a partition that the source has lost.
func (s *source) revoked(partition string) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if s.r.over == nil {
		s.r.forgetLocked(func(it *item) bool { return it.src == s && it.msg.stored.Pos.Partition == partition })
	}
}

// moved reports whether the store was exchanged for another one.
func (s *source) moved() bool {
	up := s.upstream.Load()
	if up == nil {
		return false
	}
	st, err := s.r.m.cfg.Store(s.storeUID)
	return err == nil && st != up.st
}

// message is an event as it is delivered.
type message struct {
	stored  store.Message
	topic   string
	token   position.Token
	attempt int
	// since is when it was delivered first, if that is known.
	since string
	// suspect is that a member that had it was lost.
	suspect bool
	// judged is the filter that let it through.
	judged *route.Filter
}

// Retry times while a store cannot be reached, and the bound on closing.
const (
	minRetry     = 50 * time.Millisecond
	maxRetry     = 2 * time.Second
	closeTimeout = 5 * time.Second
	// maxFetch is how many events are fetched at once.
	maxFetch = 256
)

// run fetches until ctx ends. What it fetched and nobody settled goes back.
func (s *source) run(ctx context.Context) {
	log := outage.New(s.r.m.cfg.Log.With("subscription", s.r.key, "topic", s.topic), "a subscription's topic cannot be read; trying again", "a subscription's topic is read again")
	retry := minRetry
	if !s.turn(ctx, log) {
		return
	}
	for ctx.Err() == nil {
		err := s.follow(ctx, func() { retry = minRetry; log.Is(nil); s.denied(nil) })
		if ctx.Err() != nil {
			return
		}
		s.r.metrics.storeErrors.Inc()
		log.Is(err)
		s.denied(err)
		timer := time.NewTimer(retry/2 + rand.N(retry))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		retry = min(2*retry, maxRetry)
	}
}

// denied tells whether the store denies the Topic; a retry topic is not the Topic.
func (s *source) denied(err error) {
	if !s.retry {
		s.r.m.cfg.Denied.Is(s.token.TopicUID, s.storeUID, denied.Consume, err)
	}
}

// follow joins the group and fetches until something fails.
func (s *source) follow(ctx context.Context, good func()) error {
	st, err := s.r.m.cfg.Store(s.storeUID)
	if err != nil {
		return err
	}
	sub, err := st.Subscribe(ctx, store.SubscribeRequest{Topic: s.topic, Group: s.group, Ordered: s.ordered, Revoked: s.revoked})
	if err != nil {
		return err
	}
	s.upstream.Store(&upstream{st, sub})
	defer func() {
		// First nobody counts on it any more, then it goes.
		s.r.mu.Lock()
		s.upstream.Store(nil)
		s.r.forgetLocked(s.lost)
		s.r.mu.Unlock()
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		if err := sub.Close(cctx); err != nil {
			s.r.m.cfg.Log.Warn("a group could not be left cleanly; some settled events may come again", "subscription", s.r.key, "topic", s.topic, "error", err)
		}
	}()
	for {
		n, err := s.wait(ctx)
		if err != nil {
			return err
		}
		dst := make([]store.Message, min(n, maxFetch))
		got, err := sub.Fetch(ctx, dst)
		if err != nil {
			return err
		}
		good()
		s.take(sub, dst[:got])
	}
}

// wait waits until events are wanted, and tells how many.
func (s *source) wait(ctx context.Context) (int, error) {
	r := s.r
	for {
		r.mu.Lock()
		n, demand := r.wantedLocked(), r.demand
		why := reading
		if n <= 0 {
			why = r.whyLocked()
		}
		if why != s.stalled {
			s.stallLocked(why)
		}
		r.mu.Unlock()
		if n > 0 {
			return n, nil
		}
		select {
		case <-demand:
		case <-ctx.Done():
			r.mu.Lock()
			s.stallLocked(reading)
			r.mu.Unlock()
			return 0, ctx.Err()
		}
	}
}

// take settles what does not count, filters the rest of what was fetched and offers it.
func (s *source) take(sub store.Subscription, fetched []store.Message) {
	r := s.r
	r.mu.Lock()
	filter, of := r.sub.Filter, s.of
	r.mu.Unlock()
	out := make([]*item, 0, len(fetched))
	var done []*store.Message
	filtered := 0
	var early map[*item]time.Time
	at, unjudged := r.m.cfg.Facts.Now(), func(error) { r.metrics.filterErrors.Inc() }
	for i := range fetched {
		m, it := &fetched[i], &item{src: s}
		if cutover.IsMarker(&m.Event) || of != nil && of.Past(s.token.Epoch, m.Pos) {
			done = append(done, m)
			continue
		}
		s.message(m, &it.msg)
		if !filter.Match(&m.Event, unjudged) {
			done = append(done, m)
			filtered++
			r.remember(at, facts.Filtered, &it.msg, "")
			continue
		}
		it.msg.judged = filter
		if s.retry {
			if due := dueOf(m); due.After(r.m.cfg.Clock.Now()) {
				if early == nil {
					early = map[*item]time.Time{}
				}
				early[it] = due
				continue
			}
		}
		out = append(out, it)
	}
	if len(done) > 0 {
		r.metrics.filtered.Add(float64(filtered))
		sub.Settle(done)
	}
	if len(early) > 0 {
		r.notYet(s, early)
	}
	if len(out) > 0 {
		r.m.tried.recall(r.uid, out)
		r.offer(s, out)
	}
}

// dueOf is when an event is due that shows before; zero of others.
func dueOf(m *store.Message) time.Time {
	v, ok := event.Lookup(m.Mesh, headerDue)
	if !ok {
		return time.Time{}
	}
	ns, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

// Mesh headers of an event that waits for another attempt.
const (
	headerAttempt  = "retry-attempt"  // attempts so far
	headerReason   = "retry-reason"   // why the last one failed
	headerTopic    = "retry-topic"    // the Topic's name
	headerPosition = "retry-position" // the position token in that topic
	headerSince    = "retry-since"    // when the first attempt was, RFC 3339
	headerSuspect  = "retry-suspect"  // there where a member that had it was lost
	headerDue      = "retry-due"      // of one that shows before it is due: when, in nanoseconds since 1970
)

// message makes what is delivered of what is stored.
func (s *source) message(m *store.Message, out *message) {
	out.stored, out.topic, out.token, out.attempt = *m, s.name, s.token, 1
	out.token.Pos = m.Pos
	if !s.retry {
		return
	}
	if v, ok := event.Lookup(m.Mesh, headerAttempt); ok {
		if n, err := strconv.Atoi(v); err == nil && n > 0 {
			out.attempt = n + 1
		}
	}
	_, out.suspect = event.Lookup(m.Mesh, headerSuspect)
	out.topic, _ = event.Lookup(m.Mesh, headerTopic)
	out.since, _ = event.Lookup(m.Mesh, headerSince)
	if v, ok := event.Lookup(m.Mesh, headerPosition); ok {
		if t, err := position.Parse(v); err == nil {
			out.token = t
		}
	}
}

// settle settles items in the store. Where the upstream is gone they come
// again.
func (s *source) settle(items []*item) {
	defer func() {
		for _, it := range items {
			it.settled()
		}
	}()
	up := s.upstream.Load()
	if up == nil {
		return
	}
	msgs := make([]*store.Message, len(items))
	for i, it := range items {
		msgs[i] = &it.msg.stored
	}
	if stale := up.sub.Settle(msgs); stale > 0 {
		s.r.metrics.stale.Add(float64(stale))
	}
}

// Reasons why an event that failed cannot be written away.
var (
	errNoDelay      = fault.New(fault.Precondition, "delivery.park", "no-delay", "the store cannot hold events back")
	errNobody       = fault.New(fault.Precondition, "delivery.dead-letter", "no-dead-letter-topic", "no Subscription that this proxy has, with a dead_letter_topic, is retried in it")
	errNoDeadLetter = fault.New(fault.Unavailable, "delivery.dead-letter", "topic-not-ready", "the dead-letter topic is not ready")
	errNoneAnyMore  = errors.New("the Subscription has no dead_letter_topic any more") // tells nobody but retry.go
)
