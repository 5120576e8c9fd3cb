package quota

import (
	"sync"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/pkg/fault"
)

// sessions are the tails, members, publish streams and requests that are open: all of them,
// since a Quota that comes later counts them too.
type sessions struct {
	mu     sync.Mutex
	open   map[*Session]struct{}
	counts map[key]int
	by     *Rules // that the counts are by
}

func newSessions() sessions {
	return sessions{open: map[*Session]struct{}{}, counts: map[key]int{}, by: &Rules{}}
}

// Session is one tail, member, publish stream or request that waits.
type Session struct {
	l         *Limiter
	who       *policy.Principal
	namespace string
	topics    []string
	keys      []key // that it counts for; guarded by sessions.mu
	closed    bool
}

// Open counts a session on topics of a namespace, where rules let it. The error is
// Throttled. Else Close follows. It takes topics.
func (l *Limiter) Open(rules *Rules, who *policy.Principal, namespace string, topics []string) (*Session, error) {
	s := &Session{l: l, who: who, namespace: namespace, topics: topics}
	o := &l.open
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.by != rules {
		o.by = rules
		clear(o.counts)
		for other := range o.open {
			other.keys = other.keys[:0]
			for _, r := range rules.namespaces[other.namespace] {
				other.count(r)
			}
		}
	}
	for _, r := range rules.namespaces[namespace] {
		for _, k := range r.sessionKeys(s) {
			if o.counts[k] < r.connections {
				continue
			}
			l.metrics.over(r, limitConnections)
			if !r.shadow {
				return nil, &fault.Error{Class: fault.Throttled, Op: "quota", Reason: Exceeded, RetryAfter: time.Second,
					Msg: "Quota " + r.name + " allows no more connections (tails, members, publish streams and requests) for " + r.whose()}
			}
			break
		}
	}
	for _, r := range rules.namespaces[namespace] {
		s.count(r)
	}
	o.open[s] = struct{}{}
	return s, nil
}

// count adds the session to what a rule counts; sessions.mu is held.
func (s *Session) count(r *Rule) {
	for _, k := range r.sessionKeys(s) {
		s.keys = append(s.keys, k)
		s.l.open.counts[k]++
	}
}

// sessionKeys are what a session counts for.
func (r *Rule) sessionKeys(s *Session) []key {
	if r.connections == 0 || !r.selects(s.who) {
		return nil
	}
	var keys []key
	for _, t := range s.topics {
		if !r.about(t) {
			continue
		}
		if keys = append(keys, r.key(s.who, t)); r.per != configv1.QuotaPer_QUOTA_PER_TOPIC {
			break // one of them is enough
		}
	}
	return keys
}

// Close ends a session. It may be called again, and on nil.
func (s *Session) Close() {
	if s == nil {
		return
	}
	o := &s.l.open
	o.mu.Lock()
	defer o.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	for _, k := range s.keys {
		if o.counts[k]--; o.counts[k] <= 0 {
			delete(o.counts, k)
		}
	}
	delete(o.open, s)
}
