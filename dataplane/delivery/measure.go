package delivery

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/labels"
)

// sampleEvery is how often is measured what no event measures by itself.
const sampleEvery = 15 * time.Second

const (
	// lagPause is between two questions to stores, so that however many
	// Subscriptions there are a store is asked at most fifty times a second.
	lagPause = 20 * time.Millisecond
	// lagTimeout bounds one.
	lagTimeout = 5 * time.Second
)

// sample measures until ctx ends. What stores are asked for holds up nothing else.
func (m *Manager) sample(ctx context.Context) {
	var lag sync.WaitGroup
	defer lag.Wait()
	lag.Go(func() { each(ctx, func() { m.sampleLag(ctx) }) })
	each(ctx, func() {
		m.mu.Lock()
		rs := slices.Collect(maps.Values(m.runtimes))
		m.mu.Unlock()
		for _, r := range rs {
			r.sample()
		}
	})
}

// each measures every sampleEvery, until ctx ends.
func each(ctx context.Context, measure func()) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		measure()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// lagKey is what a lag is measured of.
type lagKey struct {
	sub   snapshot.Key
	topic string
}

// sampleLag asks the stores how far behind Subscriptions are, of this proxy's members
// or not: what nobody reads lags most. What cannot be told now has no series. A store that
// does not answer is not asked again, so that it holds up no other.
func (m *Manager) sampleLag(ctx context.Context) {
	seen, silent := map[lagKey]bool{}, map[string]bool{} // by the store's uid
	pause := time.NewTicker(lagPause)
	defer pause.Stop()
	for _, sub := range m.cfg.Snapshots.Get().Subscriptions {
		behind, unknown := map[string]int64{}, map[string]bool{} // by topic, over its epochs
		for i := range sub.Sources {
			src := &sub.Sources[i]
			n, ok := int64(0), false
			if !silent[src.Epoch.StoreUID] {
				began := time.Now()
				n, ok = m.lag(ctx, sub, src)
				silent[src.Epoch.StoreUID] = !ok && time.Since(began) >= lagTimeout
			}
			behind[src.Topic.Name] += n
			unknown[src.Topic.Name] = unknown[src.Topic.Name] || !ok
			select {
			case <-pause.C:
			case <-ctx.Done():
				return
			}
		}
		for topic, n := range behind {
			if k := (lagKey{sub.Key, topic}); !unknown[topic] && m.mayLag(k, len(seen)) {
				seen[k] = true
				m.metrics.lag.WithLabelValues(k.sub.Namespace, k.sub.Name, k.topic).Set(float64(n))
			}
		}
	}
	for k := range m.lagging {
		if !seen[k] {
			m.metrics.lag.DeleteLabelValues(k.sub.Namespace, k.sub.Name, k.topic)
		}
	}
	m.lagging = seen
}

// mayLag reports whether there is room for a series, after others.
func (m *Manager) mayLag(k lagKey, others int) bool {
	if others >= labels.Max {
		return false
	}
	m.mu.Lock()
	m.counted[k.sub] = struct{}{}
	m.mu.Unlock()
	_, name := m.metrics.names.Of(k.sub.Namespace, k.sub.Name)
	return name == k.sub.Name
}

// lag is how many events of a source's topic are not settled, over its partitions. What
// is behind the cut does not count.
func (m *Manager) lag(ctx context.Context, sub *snapshot.Subscription, src *snapshot.Source) (behind int64, ok bool) {
	cut := src.Topic.Cuts[src.Epoch.Number]
	if cut != nil && m.drains.has(drainOf(sub.UID, src)) {
		return 0, true
	}
	parts, err := m.lagOf(ctx, src)
	for _, p := range parts {
		at, counts := cut[p.Partition]
		switch {
		case cut == nil:
			behind += p.Behind
		case counts && p.Committed < at.Offset:
			behind += min(p.Behind, int64(at.Offset-p.Committed)) //nolint:gosec // offsets are of events
		}
	}
	return behind, err == nil
}

// sample measures a Subscription's events on this proxy.
func (r *runtime) sample() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over != nil {
		return
	}
	oldest := time.Time{}
	see := func(it *item) {
		if t := it.storedAt(); !t.IsZero() && (oldest.IsZero() || t.Before(oldest)) {
			oldest = t
		}
	}
	for _, it := range r.buffer {
		see(it)
	}
	for it := range r.flights.all() {
		see(it)
	}
	for _, it := range r.timers.others {
		see(it)
	}
	age := time.Duration(0)
	if !oldest.IsZero() {
		age = max(0, r.m.cfg.Clock.Now().Sub(oldest))
	}
	r.metrics.oldest.Set(age.Seconds())
	for _, s := range r.sources {
		s.stallLocked(s.stalled)
	}
}

// storedAt is when the store got the event; of one that comes from the retry topic,
// when it was delivered first. Zero where nobody knows.
func (it *item) storedAt() time.Time {
	if !it.src.retry {
		return it.msg.stored.Stored
	}
	t, err := time.Parse(time.RFC3339, it.msg.since)
	if err != nil {
		return time.Time{}
	}
	return t
}

// age is how old the event is at now, by the clock on the wall; ok is false where
// nobody knows.
func (it *item) age(now time.Time) (seconds float64, ok bool) {
	at := it.storedAt()
	return max(0, now.Sub(at).Seconds()), !at.IsZero()
}

// Why a source is not read.
type stall uint8

const (
	reading     stall = iota // it is
	stallCredit              // no member waits with credit left
	stallWindow              // as many events are unsettled as may be
	stallRate                // the Subscription's rate holds back what was read
	stallEpoch               // what the topic's store before has is not settled yet
	stalls
)

var stallNames = [stalls]string{stallCredit: "credit", stallWindow: "window", stallRate: "rate", stallEpoch: "epoch"}

// whyLocked is why wantedLocked is 0.
func (r *runtime) whyLocked() stall {
	room := 0
	for _, w := range r.waiters {
		room += w.roomLocked()
	}
	switch {
	case r.held-r.behind.events >= r.sub.MaxInFlight, r.crowdedLocked():
		return stallWindow
	case r.paced || room > r.offeredLocked():
		return stallRate
	}
	return stallCredit
}

// stallLocked counts the time since it was called last, and begins to count for next.
func (s *source) stallLocked(next stall) {
	now := time.Now()
	if s.stalled != reading && !s.retry {
		s.r.metrics.stalled[s.stalled].Add(now.Sub(s.since).Seconds())
	}
	s.stalled, s.since = next, now
}
