// Package nodestream keeps the streams on which nodes say something of themselves: the
// newest of each, so many in all, and each so often.
package nodestream

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Config is what the streams of a service are like.
type Config struct {
	// Verb is what a node does on its stream, for errors: "report".
	Verb string
	// Max bounds open streams.
	Max int
	// Every is how often something may be said on a stream, and Burst so many times
	// ahead of it.
	Every time.Duration
	Burst int
	// Open counts streams.
	Open prometheus.Gauge
	// Come, when a node opens a stream, and Gone, when it has none any more, may be
	// nil. They are called one at a time, as Set.Do is.
	Come, Gone func(node string)
}

// Set are the open streams of a service, with something of its own beside each. Its
// methods are safe for concurrent use.
type Set[T any] struct {
	cfg Config

	mu    sync.Mutex
	open  int
	nodes map[string]*Stream[T] // the newest of each node
}

// New makes a set without streams.
func New[T any](cfg Config) *Set[T] { return &Set[T]{cfg: cfg, nodes: map[string]*Stream[T]{}} }

// Stream is one of them.
type Stream[T any] struct {
	Node string
	// Own is the service's.
	Own T

	set      *Set[T]
	replaced chan struct{}
	began    time.Time
	due      time.Duration // when the next word may come, if they come evenly
}

// Admit takes a stream in; it ends the node's last one. Errors are gRPC's, here and in
// what follows. Leave must be called.
func (s *Set[T]) Admit(node string, own T) (*Stream[T], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open >= s.cfg.Max {
		return nil, status.Errorf(codes.ResourceExhausted, "%d proxies %s here already", s.cfg.Max, s.cfg.Verb)
	}
	me := &Stream[T]{Node: node, Own: own, set: s, replaced: make(chan struct{}), began: time.Now()}
	if old := s.nodes[node]; old != nil {
		close(old.replaced)
	}
	s.nodes[node] = me
	s.open++
	s.cfg.Open.Inc()
	if s.cfg.Come != nil {
		s.cfg.Come(node)
	}
	return me, nil
}

// Leave takes a stream out that has ended.
func (st *Stream[T]) Leave() {
	s := st.set
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
	s.cfg.Open.Dec()
	if s.nodes[st.Node] == st {
		delete(s.nodes, st.Node)
		if s.cfg.Gone != nil {
			s.cfg.Gone(st.Node)
		}
	}
}

// Replaced is closed when the node has a newer stream: this one is to end with
// ErrReplaced.
func (st *Stream[T]) Replaced() <-chan struct{} { return st.replaced }

// ErrReplaced is how a stream ends for a newer one.
func (st *Stream[T]) ErrReplaced() error {
	return status.Errorf(codes.Aborted, "node %s has a newer stream to %s on", st.Node, st.set.cfg.Verb)
}

// Said is called for each word after the first, by one goroutine: an error where it
// comes too soon, or says that it is of another node; node may be "".
func (st *Stream[T]) Said(node string) error {
	cfg := &st.set.cfg
	now := time.Since(st.began)
	if st.due = max(st.due, now) + cfg.Every; st.due > now+time.Duration(cfg.Burst)*cfg.Every {
		return status.Errorf(codes.ResourceExhausted, "node %s may %s every %v, not more often", st.Node, cfg.Verb, cfg.Every)
	}
	if node != "" && node != st.Node {
		return status.Errorf(codes.PermissionDenied, "the stream is of node %s, not of %s", st.Node, node)
	}
	return nil
}

// Do calls f, while no stream comes or goes, unless the node has a newer one.
func (st *Stream[T]) Do(f func()) error {
	st.set.mu.Lock()
	defer st.set.mu.Unlock()
	if st.set.nodes[st.Node] != st {
		return st.ErrReplaced()
	}
	f()
	return nil
}

// View calls f with the newest stream of each node, while none comes or goes. It may
// use what Do changes, and must not keep the map.
func (s *Set[T]) View(f func(nodes map[string]*Stream[T])) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.nodes)
}
