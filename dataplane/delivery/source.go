package delivery

import (
	"context"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

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
	// name and token are of the Topic; a retry topic's events bring their own.
	name       string
	token      position.Token
	retryTopic string
	cancel     context.CancelFunc

	// upstream is what run has opened, for settle and moved.
	upstream atomic.Pointer[upstream]
}

type upstream struct {
	st  store.Store
	sub store.Subscription
}

type sourceKey struct{ storeUID, topic, group string }

func (s *source) key() sourceKey { return sourceKey{s.storeUID, s.topic, s.group} }

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
	for ctx.Err() == nil {
		err := s.follow(ctx, func() { retry = minRetry; log.Is(nil) })
		if ctx.Err() != nil {
			return
		}
		s.r.metrics.storeErrors.Inc()
		log.Is(err)
		timer := time.NewTimer(retry/2 + rand.N(retry))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		retry = min(2*retry, maxRetry)
	}
}

// follow joins the group and fetches until something fails.
func (s *source) follow(ctx context.Context, good func()) error {
	st, err := s.r.m.cfg.Store(s.storeUID)
	if err != nil {
		return err
	}
	sub, err := st.Subscribe(ctx, store.SubscribeRequest{Topic: s.topic, Group: s.group})
	if err != nil {
		return err
	}
	s.upstream.Store(&upstream{st, sub})
	defer func() {
		// First nobody counts on it any more, then it goes.
		s.r.mu.Lock()
		s.upstream.Store(nil)
		s.r.forgetLocked(s)
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
		r.mu.Unlock()
		if n > 0 {
			return n, nil
		}
		select {
		case <-demand:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// take filters what was fetched and offers the rest.
func (s *source) take(sub store.Subscription, fetched []store.Message) {
	r := s.r
	r.mu.Lock()
	filter := r.sub.Filter
	r.mu.Unlock()
	out := make([]message, 0, len(fetched))
	var done []*store.Message
	for i := range fetched {
		m := &fetched[i]
		if !filter.Match(&m.Event) {
			done = append(done, m)
			continue
		}
		out = append(out, s.message(m))
	}
	if len(done) > 0 {
		r.metrics.filtered.Add(float64(len(done)))
		sub.Settle(done)
	}
	if len(out) > 0 {
		r.offer(s, out)
	}
}

// Mesh headers of an event that waits for another attempt.
const (
	headerAttempt  = "retry-attempt"  // attempts so far
	headerReason   = "retry-reason"   // why the last one failed
	headerTopic    = "retry-topic"    // the Topic's name
	headerPosition = "retry-position" // the position token in that topic
	headerSince    = "retry-since"    // when the first attempt was, RFC 3339
)

// message makes what is delivered of what is stored.
func (s *source) message(m *store.Message) message {
	out := message{stored: *m, topic: s.name, token: s.token, attempt: 1}
	out.token.Pos = m.Pos
	if !s.retry {
		return out
	}
	if v, ok := event.Lookup(m.Mesh, headerAttempt); ok {
		if n, err := strconv.Atoi(v); err == nil && n > 0 {
			out.attempt = n + 1
		}
	}
	out.topic, _ = event.Lookup(m.Mesh, headerTopic)
	out.since, _ = event.Lookup(m.Mesh, headerSince)
	if v, ok := event.Lookup(m.Mesh, headerPosition); ok {
		if t, err := position.Parse(v); err == nil {
			out.token = t
		}
	}
	return out
}

// settle settles items in the store. Where the upstream is gone they come
// again.
func (s *source) settle(items []*item) {
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
	errNoDeadLetter = fault.New(fault.Unavailable, "delivery.dead-letter", "topic-not-ready", "the dead-letter topic is not ready")
)
