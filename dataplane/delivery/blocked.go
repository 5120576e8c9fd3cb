package delivery

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/store/position"
)

// Blocked is an ordered Subscription of which keys are held up on this proxy, each by an
// event whose attempts are over and which is repeated until somebody settles it.
type Blocked struct {
	Subscription snapshot.Key
	Keys         int
	// Topic and Position are of the event among them that failed first, at Since. Keys
	// themselves may be private.
	Topic    string
	Position position.Token
	Since    time.Time
}

// Blocked tells of the Subscriptions that have such keys.
func (m *Manager) Blocked() []Blocked {
	m.mu.Lock()
	rs := slices.Collect(maps.Values(m.runtimes))
	m.mu.Unlock()
	var out []Blocked
	for _, r := range rs {
		if b := r.blocked(); b.Keys > 0 {
			out = append(out, b)
		}
	}
	slices.SortFunc(out, func(a, b Blocked) int {
		return cmp.Compare(a.Subscription.String(), b.Subscription.String())
	})
	return out
}

// blocked is that of one Subscription; without keys where there are none.
func (r *runtime) blocked() Blocked {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := Blocked{Subscription: r.key, Keys: len(r.stuck)}
	for it := range r.stuck {
		since, err := time.Parse(time.RFC3339, it.msg.since)
		earlier := since.Compare(b.Since)
		if err != nil || !b.Since.IsZero() && (earlier > 0 || earlier == 0 && it.msg.token.String() > b.Position.String()) {
			continue
		}
		b.Topic, b.Position, b.Since = it.msg.topic, it.msg.token, since
	}
	return b
}
