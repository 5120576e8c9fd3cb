package e2e

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/cutover"
)

// server is what the mesh stands on and may be killed.
type server struct {
	*servers.Process
	// store: topics are in it.
	store bool
	// forgets is from how long before a kill what was settled may be forgotten.
	forgets time.Duration
}

// rocketMQForgets is RocketMQ's, which writes offsets down every 5 s.
const rocketMQForgets = 6 * time.Second

// faults are what happens at the changes of a move's phase. In a short run it is one for
// each leg; in a soak there is one at every change, and they overlap.
type faults struct {
	running sync.WaitGroup
	name    string  // of the leg
	deck    []fault // those that are next
	// turns are the changes of this leg that had one.
	turns  map[[2]configv1.Move_Phase]bool
	before configv1.Move_Phase
	first  configv1.Move_Phase // of a short run: not before

	mu       sync.Mutex
	busy     map[any]bool
	happened []happened
}

// fault is done to something, and undone.
type fault struct {
	what string
	// to is what it is done to: one fault at a time.
	to []any
	do func() error
}

// happened is a fault that is over.
type happened struct {
	what, phase string
	from, to    time.Time
}

// network stands for the ways between proxies and control planes.
const network = "network"

// leg begins a leg.
func (f *faults) leg(m *migration, name string) {
	f.name, f.turns, f.before, f.happened = name, map[[2]configv1.Move_Phase]bool{}, configv1.Move_PHASE_UNSPECIFIED, nil
	f.first = configv1.Move_PHASE_PREPARING + configv1.Move_Phase(m.rnd.IntN(int(configv1.Move_PHASE_DRAINED))) //nolint:gosec // few
}

// at begins a fault as the move has come to a phase.
func (f *faults) at(m *migration, phase configv1.Move_Phase) {
	m.Helper()
	turn := [2]configv1.Move_Phase{f.before, phase}
	f.before = phase
	if f.turns[turn] || !soaking && (len(f.turns) > 0 || phase < f.first) {
		return
	}
	x, ok := f.draw(m)
	if !ok {
		return
	}
	f.turns[turn] = true
	m.Logf("%s: %s", time.Now().Format(time.TimeOnly+".000"), x.what)
	f.running.Go(func() {
		from := time.Now()
		if err := x.do(); err != nil && m.ctx.Err() == nil {
			m.Errorf("%s: %v", x.what, err)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, to := range x.to {
			delete(f.busy, to)
		}
		f.happened = append(f.happened, happened{x.what, phase.String(), from, time.Now()})
	})
}

// draw takes the next fault whose place is free.
func (f *faults) draw(m *migration) (fault, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for range 2 {
		for i, x := range f.deck {
			free := true
			for _, to := range x.to {
				free = free && !f.busy[to]
			}
			if !free {
				continue
			}
			for _, to := range x.to {
				f.busy[to] = true
			}
			f.deck = append(f.deck[:i:i], f.deck[i+1:]...)
			return x, true
		}
		f.deck = append(f.deck, m.all()...)
	}
	return fault{}, false
}

// told logs what has happened in a leg, and for how long publishers waited meanwhile.
func (f *faults) told(m *migration) {
	m.Helper()
	for _, h := range f.happened {
		m.Logf("%s, %s: %s for %s; the longest pause of a publisher meanwhile was %s", f.name, h.phase, h.what, h.to.Sub(h.from).Round(time.Millisecond), m.longest(h.from, h.to).Round(time.Millisecond))
	}
}

// all are the faults that may happen, shuffled.
func (m *migration) all() []fault {
	var out []fault
	for _, p := range m.entrances() {
		out = append(out, fault{p.name + " is killed", []any{p.Process}, func() error { return m.kill(p) }})
		if soaking {
			out = append(out,
				fault{p.name + " stands still", []any{p.Process}, func() error {
					defer m.disturb(0)()
					return m.hold(p.Process)
				}},
				fault{p.name + " is cut off from the control planes", []any{p.Process, network}, func() error { m.cut(p.control...); return nil }})
		}
	}
	for i, cp := range m.replicas {
		out = append(out, fault{cp.Name + " is killed", []any{cp.Process}, func() error { return m.startAgain(cp.Process) }})
		if soaking {
			var ways []*relay
			for _, p := range m.entrances() {
				ways = append(ways, p.control[i])
			}
			out = append(out,
				fault{cp.Name + " stands still", []any{cp.Process}, func() error { return m.hold(cp.Process) }},
				fault{cp.Name + " is cut off from the proxies", []any{cp.Process, network}, func() error { m.cut(ways...); return nil }})
		}
	}
	for _, s := range m.servers {
		disturb := func(back time.Duration) (end func()) {
			if !s.store {
				return func() {}
			}
			return m.disturb(back)
		}
		out = append(out,
			fault{s.Name + " is killed", []any{s.Process}, func() error {
				defer disturb(s.forgets)()
				return m.startAgain(s.Process)
			}},
			fault{s.Name + " stands still", []any{s.Process}, func() error {
				defer disturb(0)()
				return m.hold(s.Process)
			}})
		if soaking && s.store {
			out = append(out, fault{s.Name + " can write no more", []any{s.Process}, func() error {
				defer disturb(s.forgets)()
				return m.fill(s.Process)
			}})
		}
	}
	m.rnd.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// startAgain kills a process and starts it again.
func (m *migration) startAgain(p *servers.Process) error {
	if err := p.Kill(); err != nil {
		return err
	}
	return p.Start(m.mesh.ctx)
}

// fill has a process's files grow no more, as where its disk is full, for longer than a
// lease or until it ends of that, and starts it again with room.
func (m *migration) fill(p *servers.Process) error {
	var limit unix.Rlimit
	if err := unix.Prlimit(p.PID(), unix.RLIMIT_FSIZE, nil, &limit); err != nil {
		return err
	}
	limit.Cur = 4 << 10
	if err := unix.Prlimit(p.PID(), unix.RLIMIT_FSIZE, &limit, nil); err != nil {
		return err
	}
	m.beyondLease()
	return m.startAgain(p)
}

// hold lets a process stand still for longer than a lease.
func (m *migration) hold(p *servers.Process) error {
	if err := p.Pause(); err != nil {
		return err
	}
	m.beyondLease()
	return p.Resume()
}

// cut cuts ways for longer than a lease.
func (m *migration) cut(ways ...*relay) {
	for _, r := range ways {
		r.cut()
	}
	m.beyondLease()
	for _, r := range ways {
		r.mend()
	}
}

// beyondLease waits until every lease of now has ended.
func (m *migration) beyondLease() {
	select {
	case <-time.After(cutover.Default.TTL + cutover.Default.Margin + time.Second):
	case <-m.ctx.Done():
	}
}
