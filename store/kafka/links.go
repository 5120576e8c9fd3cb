package kafka

import (
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// maxLinks is how many links a store has at most. Four were quicker than two, and these
	// than one; each is a connection more to every broker.
	maxLinks = 4
	// linkMetadataAge is how soon a link looks by itself where brokers are. One that fails
	// is not used again, and topics are looked up elsewhere.
	linkMetadataAge = 5 * time.Minute
)

// link is a client over which batches go. A broker answers what comes over a connection
// one by one, and with acks=all only once the replicas have it: so a partition whose
// batch takes long would hold up all others behind it, and leave the broker's other
// threads without work. The first link is the store's own client; others are made when
// all there are have something under way to a broker, and have no connection when they
// have nothing to do.
type link struct {
	c    *kgo.Client
	busy map[int32]int // requests under way, by broker
	// quota is until when a broker has the client wait, which it does before each request.
	quota map[int32]time.Time
}

func newLink(c *kgo.Client) *link {
	return &link{c: c, busy: map[int32]int{}, quota: map[int32]time.Time{}}
}

// take gives a link for a request to a broker: the first that has none under way there,
// else a new one, else that with fewest. Whoever takes it gives it back.
func (s *Store) take(broker int32) (*link, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var best *link
	for _, l := range s.links {
		if best == nil || l.busy[broker] < best.busy[broker] {
			best = l
		}
	}
	if best.busy[broker] > 0 && len(s.links) < maxLinks {
		c, err := s.op.client(s.producerID(), kgo.MetadataMaxAge(linkMetadataAge))
		if err != nil {
			return nil, err
		}
		best = newLink(c)
		s.links = append(s.links, best)
	}
	best.busy[broker]++
	return best, nil
}

// giveBack ends a request over a link, and tells it how that went. A link over which one was
// not answered is not taken again: the broker may be somewhere else by now, which only the
// store's own client learns at once. It is closed when nothing is under way on it. It
// reports whether the request, which began then, had to wait for a quota.
func (s *Store) giveBack(l *link, broker int32, began time.Time, answer *kmsg.ProduceResponse, err error) (waited bool) {
	s.mu.Lock()
	waited = l.quota[broker].After(began)
	if answer != nil {
		l.quota[broker] = time.Now().Add(time.Duration(answer.ThrottleMillis) * time.Millisecond)
	}
	if l.busy[broker]--; l.busy[broker] == 0 {
		delete(l.busy, broker)
	}
	if err != nil && l != s.links[0] {
		s.links = slices.DeleteFunc(s.links, func(o *link) bool { return o == l })
	}
	idle := len(l.busy) == 0 && !slices.Contains(s.links, l)
	s.mu.Unlock()
	if idle {
		l.c.Close()
	}
	return waited
}
