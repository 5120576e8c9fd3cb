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

// Ahead is the event of a key that those behind it wait for, in an ordered Subscription.
type Ahead struct {
	Source, ID string
	Position   position.Token
	// Failed is how many attempts have failed. With Blocked they are over, and it is repeated
	// until somebody settles it.
	Failed  int
	Blocked bool
	// Out: a member has it. Otherwise Again is when it is given out again, if it waits for a time.
	Out   bool
	Again time.Time
}

// Ahead tells what a key of a topic waits for in a Subscription, by its uid; false where
// nothing of the key is on this proxy.
func (m *Manager) Ahead(uid, topic, key string) (Ahead, bool) {
	m.mu.Lock()
	r := m.runtimes[uid]
	m.mu.Unlock()
	if r == nil {
		return Ahead{}, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.lanes[laneKey{topic, key}]
	if l == nil {
		return Ahead{}, false
	}
	it := l.items[0]
	_, stuck := r.stuck[it]
	a := Ahead{Source: it.msg.stored.Source, ID: it.msg.stored.ID, Position: it.msg.token, Failed: it.msg.attempt - 1, Blocked: stuck, Out: it.owner != nil}
	if !a.Out && it.slot != 0 {
		a.Again = it.due
	}
	return a, true
}
