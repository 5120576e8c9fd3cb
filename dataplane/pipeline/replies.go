package pipeline

import (
	"crypto/rand"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
)

// Bounds of the requests of one proxy.
const (
	// MaxRequests that wait for a reply.
	MaxRequests = 10000
	// maxReplies bounds the bytes of replies that have come and are not taken yet.
	maxReplies = 64 << 20
	// maxReplied bounds the requests that are known to have had their reply, so that
	// another one counts as a duplicate.
	maxReplied = 10000
)

// Outcomes of replies, as the metric has them.
const (
	replyDelivered = "delivered" // to a request that waits here
	replySent      = "sent"      // to another proxy, over the store
	replyLate      = "late"      // the request's deadline has passed
	replyDuplicate = "duplicate" // it had one
	replyUnknown   = "unknown"   // nobody waits for it: forged, or the client has gone
	replyOverflow  = "overflow"  // there is no room for it
	replyFailed    = "failed"    // of a push target: no event, refused, or not passed on
)

// replies has the requests that wait at this proxy, and gives them their replies.
type replies struct {
	cfg         *Config
	incarnation uuid.UUID
	metrics     replyMetrics

	mu      sync.Mutex
	waiting map[string]*waiter // by token
	replied map[string]bool    // by token; those in last
	last    []string           // of which the oldest is at oldest, once there are maxReplied
	oldest  int
	held    int64 // bytes of replies in waiters
	over    chan struct{}
	ended   bool

	tails replyTails
}

// waiter is one request. It gets one reply at most.
type waiter struct {
	token string
	topic string
	got   chan event.Event // capacity 1
	size  int64
}

type replyMetrics struct {
	seconds  prometheus.Histogram
	replies  *prometheus.CounterVec
	received prometheus.Counter
}

func newReplies(cfg *Config) *replies {
	r := &replies{cfg: cfg, waiting: map[string]*waiter{}, replied: map[string]bool{}, over: make(chan struct{})}
	var err error
	if r.incarnation, err = uuid.Parse(cfg.Incarnation); err != nil {
		r.incarnation = uuid.New()
	}
	r.metrics = replyMetrics{
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "weft_proxy_request_duration_seconds", Help: "Time from a request to its reply.", Buckets: prometheus.ExponentialBuckets(0.001, 3, 12)}),
		replies: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_replies_total",
			Help: "Replies, by outcome: delivered (to a request that waits here), sent (to another proxy, over the store), and those that are dropped: late, duplicate, unknown (nobody waits for it), overflow (no room), failed (of a push target: it is no event, is refused, or could not be passed on)."}, []string{"outcome"}),
		received: prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_proxy_replies_received_total",
			Help: "Replies to requests of this proxy that came from others over the store. Of all proxies together, those that were sent and not received were for a proxy that has stopped."}),
	}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(r.metrics.seconds, r.metrics.replies, r.metrics.received,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_proxy_requests_waiting", Help: "Requests that wait for their reply."}, func() float64 {
				r.mu.Lock()
				defer r.mu.Unlock()
				return float64(len(r.waiting))
			}))
	}
	r.tails.init(r)
	return r
}

// begin makes a request wait, from before it is published.
func (r *replies) begin(storeUID, topic string, deadline time.Time) (*waiter, error) {
	t := replyToken{Incarnation: r.incarnation, Deadline: deadline, Topic: topic}
	var err error
	if t.Store, err = uuid.Parse(storeUID); err != nil {
		return nil, fault.Wrap(fault.Internal, "request", "internal", err)
	}
	_, _ = rand.Read(t.Random[:]) // never fails
	w := &waiter{token: t.String(), topic: topic, got: make(chan event.Event, 1)}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.ended:
		return nil, fault.New(fault.Unavailable, "request", "draining", "the proxy is shutting down; connect again")
	case len(r.waiting) >= MaxRequests:
		return nil, &fault.Error{Class: fault.Throttled, Op: "request", Reason: "too-many-requests", RetryAfter: time.Second, Msg: "as many requests as may wait for replies on this proxy; nothing was published"}
	}
	r.waiting[w.token] = w
	return w, nil
}

// end is of a request that does not wait any more, or has taken its reply.
func (r *replies) end(w *waiter) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.waiting, w.token)
	r.held -= w.size
	w.size = 0
}

// take gives a reply, which it keeps, to its request. The first one wins. It tells
// what became of it, and counts that.
func (r *replies) take(token string, t *replyToken, e event.Event) (outcome string) {
	w, outcome := r.claim(token, t, int64(e.Size()))
	r.metrics.replies.WithLabelValues(outcome).Inc()
	if w != nil {
		w.got <- e
	}
	return outcome
}

// claim gives the request that a reply of size bytes is for, which waits no more; nil
// where there is none, or no room.
func (r *replies) claim(token string, t *replyToken, size int64) (*waiter, string) {
	now := r.cfg.Clock.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.waiting[token]
	replied := r.replied[token]
	switch {
	case w == nil && replied:
		return nil, replyDuplicate
	case w == nil && !now.Before(t.Deadline):
		return nil, replyLate
	case w == nil:
		return nil, replyUnknown
	case r.held+size > maxReplies && r.held > 0:
		return nil, replyOverflow
	}
	delete(r.waiting, token)
	w.size = size
	r.held += size
	r.rememberLocked(token)
	return w, replyDelivered
}

// rememberLocked keeps that a request had its reply, instead of the oldest that is kept.
func (r *replies) rememberLocked(token string) {
	r.replied[token] = true
	if len(r.last) < maxReplied {
		r.last = append(r.last, token)
		return
	}
	delete(r.replied, r.last[r.oldest])
	r.last[r.oldest] = token
	r.oldest = (r.oldest + 1) % maxReplied
}

// endAll ends all requests that wait, and refuses new ones.
func (r *replies) endAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ended {
		r.ended = true
		close(r.over)
	}
}
