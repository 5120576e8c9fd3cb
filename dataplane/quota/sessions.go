package quota

import (
	"slices"
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
	topics    []string // guarded by sessions.mu
	keys      []key    // that it counts for; likewise
	closed    bool
}

// Open counts a session on topics of a namespace, where rules let it. The error is
// Throttled. Else Close follows.
func (l *Limiter) Open(rules *Rules, who *policy.Principal, namespace string, topics []string) (*Session, error) {
	s := &Session{l: l, who: who, namespace: namespace}
	o := &l.open
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := s.takeLocked(rules, topics); err != nil {
		return nil, err
	}
	o.open[s] = struct{}{}
	return s, nil
}

// Also counts a session on one more topic, where rules let it. The error is Throttled;
// then it counts as before.
func (s *Session) Also(rules *Rules, topic string) error {
	s.l.open.mu.Lock()
	defer s.l.open.mu.Unlock()
	return s.takeLocked(rules, []string{topic})
}

// takeLocked counts a session on topics, for what it does not count for yet.
func (s *Session) takeLocked(rules *Rules, topics []string) error {
	o := &s.l.open
	if o.by != rules {
		o.by = rules
		clear(o.counts)
		for other := range o.open {
			other.keys = other.keys[:0]
			for _, r := range rules.namespaces[other.namespace] {
				other.count(r.sessionKeys(other.who, other.topics))
			}
		}
	}
	var more []key
	for _, r := range rules.namespaces[s.namespace] {
		over := false
		for _, k := range r.sessionKeys(s.who, topics) {
			if slices.Contains(s.keys, k) {
				continue
			}
			more = append(more, k)
			if over || o.counts[k] < r.connections {
				continue
			}
			over = true
			s.l.metrics.over(r, limitConnections)
			if !r.shadow {
				return &fault.Error{Class: fault.Throttled, Op: "quota", Reason: Exceeded, RetryAfter: time.Second,
					Msg: "Quota " + r.name + " allows no more connections (tails, members, publish streams and requests) for " + r.whose()}
			}
		}
	}
	s.topics = append(s.topics, topics...)
	s.count(more)
	return nil
}

// count adds the session to what it counts for; sessions.mu is held.
func (s *Session) count(keys []key) {
	for _, k := range keys {
		s.keys = append(s.keys, k)
		s.l.open.counts[k]++
	}
}

// sessionKeys are what a session on topics counts for.
func (r *Rule) sessionKeys(who *policy.Principal, topics []string) []key {
	if r.connections == 0 || !r.selects(who) {
		return nil
	}
	var keys []key
	for _, t := range topics {
		if !r.about(t) {
			continue
		}
		if keys = append(keys, r.key(who, t)); r.per != configv1.QuotaPer_QUOTA_PER_TOPIC {
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
