package delivery

import (
	"github.com/weft-mesh/weft/dataplane/facts"
	"github.com/weft-mesh/weft/dataplane/snapshot"
)

// prepare makes what the member gets of what it was given, by the Subscription as it
// was then, however long ago the events were fetched: what a newer filter leaves out
// is settled, the others are transformed, and what cannot be is dead-lettered at
// once, since no other attempt would end otherwise. It runs without locks. It keeps
// the deliveries that are left at the front, and tells how many.
func (m *member) prepare(sub *snapshot.Subscription, ds []Delivery) int {
	r, n := m.r, 0
	for _, d := range ds {
		if d.judged != sub.Filter && !sub.Filter.Match(d.Event, func(error) { r.metrics.filterErrors.Inc() }) {
			if it := m.withdraw(d.ID, outcomeFiltered); it != nil {
				r.metrics.filtered.Inc()
				r.remember(r.m.cfg.Facts.Now(), facts.Filtered, &it.msg, "")
				r.settle([]*item{it})
			}
			continue
		}
		e, err := sub.Transform.Apply(d.Event)
		if err != nil {
			if it := m.withdraw(d.ID, outcomeUntransformed); it != nil {
				r.metrics.untransformed.Inc()
				r.mu.Lock()
				r.failedLocked(it, "transform: "+err.Error(), -1, causeUntransformed)
				r.mu.Unlock()
			}
			continue
		}
		d.Event = e
		ds[n] = d
		n++
	}
	clear(ds[n:])
	return n
}

// withdraw takes a delivery back before the member has seen it; nil where it is not
// the member's any more.
func (m *member) withdraw(id uint64, outcome string) *item {
	m.r.mu.Lock()
	defer m.r.mu.Unlock()
	return m.r.landLocked(m, id, outcome)
}
