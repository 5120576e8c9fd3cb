package delivery

import (
	"sync"

	"github.com/weft-mesh/weft/store"
)

// maxTried bounds the events of which attempts are remembered.
const maxTried = 10000

// tried remembers attempts of events that were to be repeated from memory when the last
// member of their Subscription left: they come from the store again, to whoever joins
// next, as if nobody had had them.
type tried struct {
	mu   sync.Mutex
	of   map[triedKey]attempts
	last []triedKey // in the order in which they came, those that were recalled too
}

// triedKey is an event of a Subscription, by the physical topic that it is in.
type triedKey struct {
	sub, topic string
	pos        store.Position
}

type attempts struct {
	attempt int
	since   string
	suspect bool
}

func (t *tried) key(uid string, it *item) triedKey {
	return triedKey{uid, it.src.topic, it.msg.stored.Pos}
}

// remember keeps the attempts of items, instead of the oldest that are kept.
func (t *tried) remember(uid string, items []*item) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, it := range items {
		if it.msg.attempt == 1 && !it.msg.suspect {
			continue
		}
		if t.of == nil {
			t.of = map[triedKey]attempts{}
		}
		k := t.key(uid, it)
		t.of[k] = attempts{it.msg.attempt, it.msg.since, it.msg.suspect}
		t.last = append(t.last, k)
	}
	for len(t.last) > maxTried {
		delete(t.of, t.last[0])
		t.last = t.last[1:]
	}
}

// recall gives items that were fetched the attempts that are remembered of them.
func (t *tried) recall(uid string, items []*item) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.of) == 0 {
		t.last = nil
		return
	}
	for _, it := range items {
		k := t.key(uid, it)
		if a, ok := t.of[k]; ok {
			it.msg.attempt, it.msg.since, it.msg.suspect = a.attempt, a.since, a.suspect
			delete(t.of, k)
		}
	}
}
