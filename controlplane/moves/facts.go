package moves

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/election"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/resource"
)

// move is one topic that moves, as the office sees it in one pass.
type move struct {
	snap      *configstore.Snapshot
	topic     *configv1.Resource
	migration *configv1.Resource // nil: it is gone
	entry     *configstore.Entry
	b         *configv1.TopicBinding
	phase     cutover.Phase
	// words are what proxies of the namespace's roster say, by node; read after the
	// snapshot.
	words map[string]*discoveryv1.Held
	nodes []string
	// left are words of those that are on it no more: they may have a lease all the same.
	left map[string]*discoveryv1.Held
	// fencing: a fence around the old place was begun.
	fencing bool
	seen    *sighting
	now     time.Duration
	term    election.Term

	// What is decided by, in Marking and on the way back.
	cut    []*configv1.Cut
	fence  *configv1.Fence
	marked bool // the markers are written
	held   bool // the move is withdrawn once there is no fence
}

// sighting is what this office has seen of a topic's move, in this term.
type sighting struct {
	version string
	phase   cutover.Phase
	// Since when it knows of this version, and of this phase; since boot.
	since, inPhase time.Duration
	// trouble is what markers failed for last.
	trouble string
	look    *look
	fence   fence
}

// sight keeps when something was seen first.
func (s *sighting) sight(version string, phase cutover.Phase, now time.Duration) {
	if s.version == "" || s.phase != phase {
		s.inPhase = now
	}
	if s.version != version {
		s.since = now
	}
	s.version, s.phase = version, phase
}

// last and old are the epochs that the topic moves to and from.
func (m *move) last() *configv1.Epoch { return m.b.Epochs[len(m.b.Epochs)-1] }
func (m *move) old() *configv1.Epoch  { return m.b.Epochs[len(m.b.Epochs)-2] }

// facts are what the next phase is decided by, and what is waited for.
func (o *Office) facts(ctx context.Context, m *move) (f cutover.Facts, waits []string) {
	f.Wish = wishOf(m.b.Move, m.migration)
	switch m.phase {
	case cutover.Preparing:
		waits = append(m.divided(), append(m.unready(), o.unmeasured(ctx, m)...)...)
		f.Ready = len(waits) == 0
	case cutover.Leasing:
		waits = append(m.divided(), m.unheard()...)
		f.Heard = len(waits) == 0
	case cutover.Stopping:
		f.Waited = m.now - m.seen.since
		waits = m.busy()
		f.Idle = len(waits) == 0
	case cutover.Marking:
		cut := cutOf(m.b.Move, m.entry.Version(), m.words)
		m.marked = len(cut) > 0 && len(lacking(m.b.Move, cut)) == 0
		f.Stuck = m.now-m.seen.inPhase >= cutover.StuckAfter
		waits = m.unmarked()
		if m.marked && f.Wish != cutover.Pause && f.Wish != cutover.Withdraw {
			var why string
			m.cut, m.fence, why = o.fenced(ctx, m, cut)
			f.Marked, waits = why == "", []string{why}
		}
	case cutover.Draining, cutover.Drained:
		waits = o.undrained(ctx, m)
		f.Drained = len(waits) == 0
		if f.Wish == cutover.Finish && f.Drained {
			if waits = append(m.unquiet(), m.unforwarded()...); len(waits) > 0 {
				f.Wish = cutover.Proceed
			}
		} else if f.Wish == cutover.Finish {
			f.Wish = cutover.Proceed // somebody reads there again
		}
	}
	if why := o.standing(ctx, m); why != "" {
		f.Heard = false
		if m.phase == cutover.Leasing {
			waits = append(waits, why)
		}
		if f.Wish == cutover.Withdraw {
			f.Wish, m.held = cutover.Pause, true
		}
	}
	return f, waits
}

// divided is why the epochs are not the same for all who write: an embedded store is
// inside a proxy, and others have one each.
func (m *move) divided() (waits []string) {
	for _, e := range []*configv1.Epoch{m.old(), m.last()} {
		name := resource.Name(resource.EventStore, m.topic.Metadata.Namespace, e.Store)
		if m.snap.Resource(name).GetEventStore().GetEmbedded() != nil && len(m.nodes) > 1 {
			waits = append(waits, fmt.Sprintf("EventStore %s is embedded, so each of %d proxies has one of its own, and a topic moves there or away where there is one proxy alone: %s", e.Store, len(m.nodes), some(m.nodes)))
		}
	}
	return waits
}

// unmeasured is why it is not known which partitions the old place has.
func (o *Office) unmeasured(ctx context.Context, m *move) []string {
	l := m.seen.look
	o.look(l, m.now, func() { o.measure(ctx, l, m.snap, m.topic.Metadata.Namespace, m.old(), m.last()) })
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.unmeasured != "" || l.measured != m.old().Number {
		return []string{strings.TrimSuffix("the partitions of EventStore "+m.old().Store+" are counted: "+l.unmeasured, ": ")}
	}
	return nil
}

// lacking are partitions that a cut does not have and should.
func lacking(m *configv1.Move, cut []*configv1.Cut) (without []string) {
	for _, p := range m.Partitions {
		if !slices.ContainsFunc(cut, func(c *configv1.Cut) bool { return c.Partition == p }) {
			without = append(without, p)
		}
	}
	return without
}

// unready is what is missing of the new place, as its provisioner says.
func (m *move) unready() (waits []string) {
	md, e := m.topic.Metadata, m.last()
	adm := m.snap.Resource(resource.Name(resource.TopicAdmission, md.Namespace, md.Name)).GetTopicAdmission()
	if adm.GetTopicUid() != md.Uid || !slices.Contains(adm.Epochs, e.Number) {
		waits = append(waits, strings.Join(append([]string{fmt.Sprintf("topic %s is made in EventStore %s", e.PhysicalName, e.Store)}, adm.GetReasons()...), ": "))
	}
	for _, sub := range readers(m.snap, m.topic) {
		if !slices.ContainsFunc(sources(m.snap, sub), func(s *configv1.SubscriptionSource) bool { return s.TopicUid == md.Uid && s.Epoch == e.Number }) {
			waits = append(waits, resource.NameOf(sub)+" gets its group there")
		}
	}
	return waits
}

// unheard is who may still write to the old place without a lease.
func (m *move) unheard() []string {
	version := m.entry.Version()
	var missing []string
	for _, node := range m.nodes {
		if m.words[node].GetVersion() != version {
			missing = append(missing, node)
		}
	}
	if len(missing) > 0 {
		return []string{fmt.Sprintf("%d of %d proxies have not heard of it: %s (of one that never comes back weft proxies declare-dead says so; one with configuration on demand asks what moves every 15s at least)", len(missing), len(m.nodes), some(missing))}
	}
	if len(able(m.words)) == 0 {
		return []string{"no proxy has EventStore " + m.old().Store + " open, to mark where it ends"}
	}
	if wait := cutover.RetryAfter - (m.now - m.seen.inPhase); m.b.Move.Attempt > 0 && wait > 0 {
		why := "the last attempt was given up"
		if m.seen.trouble != "" {
			why += ": " + m.seen.trouble
		}
		return []string{why + "; another one follows within " + cutover.RetryAfter.String()}
	}
	return nil
}

// busy is who could have a write on its way.
func (m *move) busy() []string {
	version := m.entry.Version()
	var missing []string
	for _, node := range m.nodes {
		if w := m.words[node]; w.GetVersion() != version || !w.GetIdle() {
			missing = append(missing, node)
		}
	}
	for node, w := range m.left {
		if w.Version != version || !w.Idle {
			missing = append(missing, node)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	return []string{fmt.Sprintf("%d of %d proxies have not said that nothing is on its way: %s; at the latest their leases end", len(missing), len(m.nodes)+len(m.left), some(missing))}
}

// unmarked is who is to write the markers.
func (m *move) unmarked() []string {
	marker := m.b.Move.Marker
	if marker == "" {
		return []string{"no proxy has EventStore " + m.old().Store + " open, to mark where it ends"}
	}
	what := "proxy " + marker + " marks where EventStore " + m.old().Store + " ends"
	if without := lacking(m.b.Move, cutOf(m.b.Move, m.entry.Version(), m.words)); len(m.words[marker].GetCut()) > 0 && len(without) > 0 {
		m.seen.trouble = fmt.Sprintf("proxy %s found no partition %s, which was there when the move was prepared", marker, some(without))
		what += ": " + m.seen.trouble
	}
	if w := m.words[marker]; w.GetVersion() == m.entry.Version() && w.Trouble != "" {
		m.seen.trouble = "proxy " + marker + ": " + w.Trouble
		what += ": " + w.Trouble
	}
	return []string{what}
}

// remarkAfter is how long a proxy has at least to write markers before another one is
// asked.
const remarkAfter = 2 * time.Second

// remark is who is to write the markers instead; "" for nobody else.
func (m *move) remark() string {
	marker, list := m.b.Move.Marker, able(m.words)
	w := m.words[marker]
	failed := !w.GetAble() || w.GetVersion() == m.entry.Version() && w.Trouble != ""
	if len(list) == 0 || marker != "" && (!failed || m.now-m.seen.since < remarkAfter) {
		return ""
	}
	return markerOf(list, m.b.Move.Attempt+1)
}

// undrained is what has not been read of the epochs before the last.
func (o *Office) undrained(ctx context.Context, m *move) []string {
	all, unknown := items(m.snap, m.topic, m.b)
	var waits []string
	for _, name := range unknown {
		waits = append(waits, name+" has no start yet")
	}
	l := m.seen.look
	finish := wishOf(m.b.Move, m.migration) == cutover.Finish
	o.look(l, m.now, func() {
		o.drain(ctx, l, m.snap, m.b, all)
		o.follow(ctx, l, m.snap, m.topic.Metadata.Namespace, m.b, finish)
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range all {
		if at.local {
			if left := m.unsettled(at); len(left) > 0 {
				waits = append(waits, at.subscription+" has not read all of EventStore "+storeName(at)+", with what waits there for another attempt, at "+some(left))
			}
			continue
		}
		why, looked := l.behind[at]
		if !looked {
			why = "is looked at"
		}
		if why != "" {
			waits = append(waits, at.subscription+" in EventStore "+storeName(at)+": "+why)
		}
	}
	return waits
}

func storeName(at item) string {
	_, _, name, _ := resource.Split(at.store)
	return name
}

// unsettled are the proxies that do not say that they have all of an epoch, of which each has
// a part inside it, behind them: one that came later says so of its own, which is empty.
func (m *move) unsettled(at item) (nodes []string) {
	for _, node := range m.nodes {
		if !slices.ContainsFunc(m.words[node].GetSettled(), func(s *discoveryv1.Settled) bool { return s.Epoch == at.epoch && s.Group == at.group }) {
			nodes = append(nodes, node)
		}
	}
	if len(m.nodes) == 0 {
		nodes = []string{"a proxy that is to come"}
	}
	return nodes
}

// unquiet is what may still come again in the places that are given up: an event that is
// held back until its next attempt is nowhere to be seen.
func (m *move) unquiet() []string {
	all, _ := items(m.snap, m.topic, m.b)
	l := m.seen.look
	l.mu.Lock()
	defer l.mu.Unlock()
	var waits []string
	for _, at := range all {
		if !at.retry {
			continue
		}
		q, ok := l.quiet[at]
		if !ok {
			q.since = m.now
		}
		if why := q.lasts(at, m.now); why != "" {
			waits = append(waits, why)
		}
	}
	return waits
}
