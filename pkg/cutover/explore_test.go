package cutover

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// The system that is explored: one administrator in office at a time, who may be
// replaced at any moment, and whose writes may arrive after that; proxies, which may
// stand still, die and start again at any moment; a publisher that publishes one event of
// a key after the other, waits for each, and goes to another proxy when it likes.
// Time passes whenever it likes, so that whoever does not move stands still.
const (
	proxies = 2
	ttl     = 1
	oldest  = 1 // the epoch that the topic leaves
)

var terms = Terms{TTL: ttl}

// limits bound what is explored.
type limits struct {
	time, events, tries, pauses, crashes int
}

// flaw is a rule that is not followed.
type flaw uint8

const (
	none              flaw = iota
	noSecondLook           // what the store acknowledged is acknowledged, whatever time it is
	markedEarly            // the marker is written as soon as no lease is granted
	copiedPhase            // leases are granted by a copy of the phase
	fromTheAnswer          // leases count from when the answer comes
	stoppingClock          // the clock stands while the process does
	heardTooEarly          // a proxy says that it has heard before that survives it
	oneIsForgotten         // nobody waits for the second proxy to hear
	firstLookOnly          // the second look takes the configuration of the first
	afterOffice            // who is in office counts from when Stopping was written by another, not seen
	staleMarker            // a marker of an earlier Marking is taken for one of this
	idleTooEarly           // a proxy says that it is idle while a write is on its way
	idleKept               // that a proxy was idle counts in a later Stopping too
	openWhileStopping      // writes begin under a lease in Stopping too, and proxies say that they are idle
)

// mark is a marker in a log; events are 1 and up.
const mark = -1

// step is how far a write is.
type step uint8

const (
	idle    step = iota
	looked       // it may begin, or is on its way
	written      // the store has acknowledged
)

type proxy struct {
	conf, disk uint8 // versions of the configuration
	lease      int8  // its end
	now        int8  // its clock, with stoppingClock
	asks       bool  // for a lease
	asked      int8
	granted    bool // the answer is on its way
	yes        bool
	step       step
	epoch      uint8 // that is written to
	event      int8
	began      uint8 // the configuration when the write began
	said       uint8 // the newest configuration in which it has said that it is idle
}

const (
	maxVersions = 9
	maxLog      = 6
)

// world is one state. It is comparable.
type world struct {
	time    int8
	phases  [maxVersions]Phase // by version
	version uint8
	pauses  uint8
	crashes uint8
	seen    int8 // since when who is in office knows of Stopping; -1: it does not
	wrote   int8 // when Stopping was written
	copied  uint8
	marking uint8 // the configuration of which a marker is on its way
	lies    int8  // where it was written; -1: it was not yet
	marked  int8  // where the one is that who is in office knows of; -1: of none
	marks   uint8
	cut     int8 // where readers leave the old place; -1: not yet
	p       [proxies]proxy
	logs    [2][maxLog]int8
	lens    [2]uint8
	waiting int8 // the event that is published
	at      int8 // the proxy that is asked; -1: none
	tries   uint8
	acked   uint8
}

func (w *world) phase() Phase { return w.phases[w.version] }

func (w *world) writing(version uint8) Writing { return w.phases[version].Writing(oldest) }

// clock is the time of a proxy.
func (w *world) clock(p *proxy, f flaw) time.Duration {
	if f == stoppingClock {
		return time.Duration(p.now)
	}
	return time.Duration(w.time)
}

func (w *world) append(epoch uint8, v int8) bool {
	i := epoch - oldest
	if int(w.lens[i]) == maxLog {
		return false
	}
	w.logs[i][w.lens[i]] = v
	w.lens[i]++
	return true
}

// heard reports whether every proxy has the newest configuration.
func (w *world) heard(f flaw) bool {
	for i := range w.p {
		if f == oneIsForgotten && i > 0 {
			continue
		}
		has := w.p[i].disk
		if f == heardTooEarly {
			has = w.p[i].conf
		}
		if has != w.version {
			return false
		}
	}
	return true
}

// idle reports whether every proxy has said that it is, in the newest configuration.
func (w *world) idle(f flaw) bool {
	for i := range w.p {
		if w.p[i].said != w.version && (f != idleKept || w.p[i].said == 0) {
			return false
		}
	}
	return true
}

// successors adds every state that may follow.
func (x *exploration) successors(w *world) {
	l, f := x.limits, x.flaw
	if int(w.time) < l.time {
		n := *w
		n.time++
		for i := range n.p {
			if n.p[i].step == idle {
				n.p[i].now = n.time // only who stands still amid a write has a wrong clock
			}
		}
		x.add(&n, "time passes")
		if f == stoppingClock {
			for i := range n.p {
				n.p[i].now = n.time
			}
			x.add(&n, "time passes, and nobody stands still")
		}
	}
	x.office(w)
	if w.at < 0 && int(w.waiting) <= l.events && int(w.tries) < l.events+l.tries {
		for i := range w.p {
			p := &w.p[i]
			at := w.writing(p.conf)
			if f == openWhileStopping {
				at.Closed = false
			}
			if p.step == idle && at.MayBegin(Lease{Epoch: oldest, Until: time.Duration(p.lease)}, w.clock(p, f)) {
				n := *w
				q := &n.p[i]
				q.step, q.epoch, q.event, q.began, n.at = looked, uint8(at.Epoch), w.waiting, p.conf, int8(i)
				n.tries++
				x.add(&n, "proxy %d may write %d to epoch %d", i, int(w.waiting), int(at.Epoch))
			}
		}
	}
	if w.at >= 0 {
		n := *w
		n.at = -1
		x.add(&n, "the publisher gives up on the proxy")
	}
	for i := range w.p {
		x.proxy(w, i)
	}
}

// office is what the administrator does.
func (x *exploration) office(w *world) {
	l, f := x.limits, x.flaw
	if w.phase() == Stopping && w.seen < 0 {
		n := *w
		n.seen = w.time
		if f == afterOffice {
			n.seen = w.wrote - 1
		}
		x.add(&n, "the administrator sees Stopping")
	}
	if int(w.crashes) < l.crashes {
		n := *w
		n.crashes++
		n.seen, n.marked = -1, -1
		x.add(&n, "another administrator takes office")
	}
	if w.phase() == Marking && w.marking == 0 && w.marked < 0 && w.marks < 2 {
		n := *w
		n.marking, n.lies = w.version, -1
		n.marks++
		x.add(&n, "a marker is sent")
	}
	if w.marking != 0 && w.lies < 0 {
		n := *w
		n.lies = int8(w.lens[0]) //nolint:gosec // at most maxLog
		if n.append(oldest, mark) {
			x.add(&n, "a marker is written")
		}
	}
	if w.marking != 0 && w.lies >= 0 {
		n := *w
		n.marking, n.lies = 0, -1
		if w.phase() == Marking && (w.marking == w.version || f == staleMarker) {
			n.marked = w.lies
		}
		x.add(&n, "the administrator hears of a marker")
	}
	facts := Facts{Ready: true, Heard: w.heard(f), Idle: w.idle(f), Marked: w.marked >= 0}
	if w.seen >= 0 {
		facts.Waited = time.Duration(w.time - w.seen)
	}
	if f == markedEarly {
		facts.Waited = ttl
	}
	for _, back := range []Facts{{}, {Wish: Pause}, {Stuck: true}} {
		facts.Wish, facts.Stuck = back.Wish, back.Stuck
		next := terms.Next(w.phase(), facts)
		paused := back.Wish == Pause || next < w.phase()
		if next == w.phase() || int(w.version) == maxVersions-1 || paused && int(w.pauses) == l.pauses {
			continue
		}
		n := *w
		if paused {
			n.pauses++
		}
		if next == Draining {
			n.cut = max(w.marked, 0)
		}
		n.version++
		n.phases[n.version] = next
		n.seen, n.marked = -1, -1
		if next == Stopping {
			n.wrote = w.time
		}
		x.add(&n, "the phase is %d", int(next))
	}
	if f == copiedPhase && w.copied != w.version {
		n := *w
		n.copied = w.version
		x.add(&n, "the copy of the phase is renewed")
	}
}

// proxy is what proxy i does.
func (x *exploration) proxy(w *world, i int) {
	l, f := x.limits, x.flaw
	p := &w.p[i]
	if p.conf != w.version {
		n := *w
		q := &n.p[i]
		q.conf = w.version
		if f != heardTooEarly {
			q.disk = q.conf
		}
		x.add(&n, "proxy %d hears of phase %d", i, int(w.phase()))
	}
	if p.disk != p.conf {
		n := *w
		n.p[i].disk = p.conf
		x.add(&n, "proxy %d has it on disk", i)
	}
	if int(w.crashes) < l.crashes {
		n := *w
		n.crashes++
		n.p[i] = proxy{conf: p.disk, disk: p.disk, now: w.time, said: p.said}
		if int(w.at) == i {
			n.at = -1
		}
		x.add(&n, "proxy %d starts again", i)
	}
	if w.phases[p.conf] == Stopping && p.disk == p.conf && p.said != p.conf && (p.step == idle || f == idleTooEarly) {
		n := *w
		n.p[i].said = p.conf
		x.add(&n, "proxy %d says that it is idle", i)
	}
	if w.phases[p.conf] == Leasing && !p.asks {
		n := *w
		n.p[i].asks, n.p[i].asked, n.p[i].granted = true, w.time, false
		x.add(&n, "proxy %d asks for a lease", i)
	}
	if p.asks && !p.granted {
		n := *w
		phase := w.phase()
		if f == copiedPhase {
			phase = w.phases[w.copied]
		}
		n.p[i].granted, n.p[i].yes = true, Grants(phase)
		answer := "proxy %d is granted no lease"
		if n.p[i].yes {
			answer = "proxy %d is granted a lease"
		}
		x.add(&n, answer, i)
	}
	if p.asks && p.granted {
		n := *w
		q := &n.p[i]
		q.asks = false
		if q.yes {
			asked := time.Duration(q.asked)
			if f == fromTheAnswer {
				asked = time.Duration(w.time)
			}
			q.lease = max(q.lease, int8(terms.Lease(oldest, asked).Until))
		}
		x.add(&n, "proxy %d has its answer", i)
	}
	switch p.step {
	case looked:
		n := *w
		n.p[i].step = written
		if n.append(p.epoch, p.event) {
			x.add(&n, "%d is written to epoch %d", int(p.event), int(p.epoch))
		}
	case written:
		conf := p.conf
		if f == firstLookOnly {
			conf = p.began
		}
		n := *w
		q := &n.p[i]
		q.step = idle
		asked := int(w.at) == i && w.waiting == p.event
		if asked {
			n.at = -1
		}
		may := w.writing(conf).MayAcknowledge(uint32(p.epoch), Lease{Epoch: oldest, Until: time.Duration(p.lease)}, w.clock(p, f))
		if f == noSecondLook || may {
			if asked {
				n.acked |= 1 << p.event
				n.waiting++
			}
			x.add(&n, "proxy %d acknowledges %d", i, int(p.event))
			return
		}
		x.add(&n, "proxy %d says that %d is ambiguous", i, int(p.event))
	}
}

// wrong is what a reader would miss or see in another order; "" is right. It reads
// the old log to the cut, then the new one.
func (w *world) wrong() string {
	var read []int8
	cut := w.cut >= 0
	for i, v := range w.logs[0][:w.lens[0]] {
		if cut && i >= int(w.cut) {
			break
		}
		if v != mark {
			read = append(read, v)
		}
	}
	if cut {
		read = append(read, w.logs[1][:w.lens[1]]...)
	}
	first := map[int8]bool{}
	highest := int8(0)
	for _, v := range read {
		if !first[v] && v < highest {
			return fmt.Sprintf("%d is read after %d", v, highest)
		}
		first[v] = true
		highest = max(highest, v)
	}
	if !cut { // the new one is not read yet
		for _, v := range w.logs[1][:w.lens[1]] {
			first[v] = true
		}
	}
	for v := int8(1); v < maxLog; v++ {
		if w.acked&(1<<v) != 0 && !first[v] {
			return fmt.Sprintf("%d was acknowledged and is not read", v)
		}
	}
	return ""
}

// plain forgets what makes no difference any more.
func (w *world) plain(f flaw) {
	for i := range w.p {
		p := &w.p[i]
		if f != stoppingClock {
			p.now = 0
			if p.lease <= w.time {
				p.lease = 0
			}
		}
		if f != fromTheAnswer && p.asks && p.asked+ttl <= w.time {
			p.asks = false
		}
		if !p.asks {
			p.asked, p.granted, p.yes = 0, false, false
		}
		if p.step == idle {
			p.epoch, p.event, p.began = 0, 0, 0
		}
	}
	if f != afterOffice {
		w.wrote = 0
	}
}

// exploration is what was seen of the states within limits.
type exploration struct {
	limits limits
	flaw   flaw
	all    []world // nearest first
	came   []came  // to each of all
	known  map[world]struct{}
	at     int // of all, whose successors are added
}

// came is how a state came about first; it is put in words only where they are read.
type came struct {
	prev int
	what string
	of   [3]int8
	args uint8
}

// add adds a state that follows the one at hand.
func (x *exploration) add(next *world, what string, of ...int) {
	next.plain(x.flaw)
	n := len(x.known)
	if x.known[*next] = struct{}{}; len(x.known) == n {
		return
	}
	c := came{prev: x.at, what: what, args: uint8(len(of))} //nolint:gosec // at most 3
	for i, v := range of {
		c.of[i] = int8(v) //nolint:gosec // proxies, phases, events and epochs are few
	}
	x.all, x.came = append(x.all, *next), append(x.came, c)
}

// way tells how it came to a state.
func (x *exploration) way(i int) (way []string) {
	for ; i > 0; i = x.came[i].prev {
		c, of := x.came[i], []any{}
		for _, v := range c.of[:c.args] {
			of = append(of, v)
		}
		way = append(way, fmt.Sprintf(c.what, of...))
	}
	slices.Reverse(way)
	return way
}

// explore visits every state within the limits, nearest first, and tells how it came
// to the first that is wrong.
func explore(l limits, f flaw) (states int, wrong string, way []string, finished bool) {
	x := exploration{limits: l, flaw: f, known: map[world]struct{}{}, came: []came{{}}}
	x.all = []world{{seen: -1, at: -1, waiting: 1, marked: -1, cut: -1, lies: -1}}
	x.known[x.all[0]] = struct{}{}
	for ; x.at < len(x.all); x.at++ {
		w := x.all[x.at]
		if w.phase() == Draining && w.lens[1] > 0 {
			finished = true
		}
		if wrong = w.wrong(); wrong != "" {
			return len(x.all), wrong, x.way(x.at), finished
		}
		x.successors(&w)
	}
	return len(x.all), "", nil, finished
}

// TestExplore: nothing that is acknowledged is lost, and the order of a key holds,
// whatever happens in which order.
func TestExplore(t *testing.T) {
	all := []limits{
		{time: 2, events: 1, tries: 1},
		{time: 2, events: 2},
		{time: 2, events: 1, crashes: 1},
		{time: 2, events: 1, pauses: 1},
	}
	if os.Getenv("WEFT_TEST_SOAK") != "" {
		all = append(all, limits{time: 2, events: 2, tries: 1, crashes: 1}, limits{time: 2, events: 2, pauses: 1})
	}
	for _, l := range all {
		states, wrong, way, finished := explore(l, none)
		t.Logf("%+v: %d states", l, states)
		if wrong != "" {
			t.Errorf("%+v: %s:\n%s", l, wrong, strings.Join(way, "\n"))
		}
		if !finished {
			t.Errorf("%+v: no move has come to its end", l)
		}
	}
}

// TestFlaws: the exploration finds what goes wrong where a rule is not followed.
func TestFlaws(t *testing.T) {
	for f, l := range map[flaw]limits{
		noSecondLook:      {time: 3, events: 1},
		markedEarly:       {time: 2, events: 1},
		copiedPhase:       {time: 4, events: 1},
		fromTheAnswer:     {time: 4, events: 1},
		stoppingClock:     {time: 3, events: 1},
		heardTooEarly:     {time: 3, events: 1, crashes: 1},
		oneIsForgotten:    {time: 3, events: 1},
		firstLookOnly:     {time: 3, events: 1},
		afterOffice:       {time: 4, events: 1},
		staleMarker:       {time: 2, events: 1, pauses: 1},
		idleTooEarly:      {time: 2, events: 1},
		idleKept:          {time: 2, events: 1, pauses: 1},
		openWhileStopping: {time: 2, events: 1},
	} {
		states, wrong, way, _ := explore(l, f)
		if wrong == "" {
			t.Errorf("flaw %d: nothing is wrong in %d states", f, states)
			continue
		}
		t.Logf("flaw %d, %d states: %s:\n  %s", f, states, wrong, strings.Join(way, "\n  "))
	}
}
