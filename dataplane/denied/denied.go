// Package denied remembers which topics the stores deny to a proxy whose credentials they
// take otherwise: an access rule of one topic is in no store's status.
package denied

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/store"
)

// Use is what is denied.
type Use string

// Uses of a topic.
const (
	Publish Use = "publish"
	Consume Use = "consume"
)

const (
	// maxTopics bounds what is remembered.
	maxTopics = 200
	// forgetAfter is after how long a denial is no news any more: nobody tries.
	forgetAfter = 2 * time.Minute
)

// Denial is one use of one topic, while the store denies it.
type Denial struct {
	TopicUID, StoreUID string
	Use                Use
	// Why is what the store said last.
	Why string
	// Since is when it was denied first.
	Since time.Time
}

// Log remembers. Its methods are safe for concurrent use; nil remembers nothing.
type Log struct {
	clock clock.Clock
	n     atomic.Int64 // of by: what goes well costs nothing where nothing is denied
	mu    sync.Mutex
	by    map[use]*entry
}

type use struct {
	topic string
	use   Use
}

type entry struct {
	Denial
	last time.Time
}

// New makes an empty Log.
func New(c clock.Clock) *Log { return &Log{clock: c, by: map[use]*entry{}} }

// Is tells how a use of a topic went. What fails otherwise is no news.
func (l *Log) Is(topicUID, storeUID string, u Use, err error) {
	if l == nil || err == nil && l.n.Load() == 0 {
		return
	}
	denied := err != nil && store.Why(err) == "AccessDenied"
	if err != nil && !denied {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	k := use{topicUID, u}
	e := l.by[k]
	switch {
	case !denied:
		delete(l.by, k)
	case e == nil && len(l.by) >= maxTopics:
	case e == nil || e.StoreUID != storeUID:
		l.by[k] = &entry{Denial{topicUID, storeUID, u, err.Error(), l.clock.Now()}, time.Now()}
	default:
		e.Why, e.last = err.Error(), time.Now()
	}
	l.n.Store(int64(len(l.by)))
}

// All are the denials, the oldest first.
func (l *Log) All() (all []Denial) {
	if l == nil || l.n.Load() == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, e := range l.by {
		if time.Since(e.last) > forgetAfter {
			delete(l.by, k)
			continue
		}
		all = append(all, e.Denial)
	}
	l.n.Store(int64(len(l.by)))
	slices.SortFunc(all, func(a, b Denial) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.TopicUID, b.TopicUID), cmp.Compare(a.Use, b.Use))
	})
	return all
}
