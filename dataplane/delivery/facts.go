package delivery

import (
	"github.com/weft-mesh/weft/dataplane/facts"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store/position"
)

// remember keeps what happened to an event of the Subscription at a time of
// Facts.Now.
func (r *runtime) remember(at int64, kind facts.Kind, m *message, detail string) facts.Ref {
	return r.m.remember(at, kind, r.key.Namespace, r.key.Name, m.topic, m.token, m.attempt, &m.stored.Event, detail)
}

func (m *Manager) remember(at int64, kind facts.Kind, namespace, subscription, topic string, pos position.Token, attempt int, e *event.Event, detail string) facts.Ref {
	if m.cfg.Facts == nil {
		return 0
	}
	return m.cfg.Facts.Add(e, &facts.Fact{At: at, Kind: kind, Namespace: namespace, Topic: topic, Subscription: subscription, Position: pos, Attempt: attempt, Detail: detail})
}

// Members is how many members a Subscription has on this proxy, and how many of its
// events are unsettled here.
func (m *Manager) Members(uid string) (members, unsettled int) {
	m.mu.Lock()
	r := m.runtimes[uid]
	m.mu.Unlock()
	if r == nil {
		return 0, 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.members), r.held
}
