package delivery

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/outage"
	"github.com/weft-mesh/weft/store"
)

// maxRead is how many events a reader of a topic takes from its store at once.
const maxRead = 64

// reader reads one topic without a group, over failures of its store and from one epoch
// to the next: an epoch that has a cut is read up to it in every partition, and then the
// next one from its beginning. What is behind the cut, and markers, it leaves out.
type reader struct {
	m     *Manager
	topic *snapshot.Topic
	// epoch is where it is, and later where it begins in those after it.
	epoch snapshot.Epoch
	later store.Start
	// begin is where a partition begins of which nothing was read yet, and last
	// the newest of the others.
	begin store.Start
	last  map[string]store.Position
	// up has begun already, in st; nil where run is to begin.
	st store.Store
	up store.Tail
	// passed reports whether up has given all that lies before the cut; nil where the
	// store was not asked yet.
	passed func() bool
	turn   readTurn
	own    bool // what it reads is kept for long
}

// run passes the topic's events to take until ctx ends, idle says that it is enough
// (it is asked before each read of an epoch that may get more) or take does. What take
// gets is its until it returns. Over failures of the store it goes on behind the last
// event.
func (r *reader) run(ctx context.Context, idle func() bool, take func([]store.Message) bool) {
	defer r.close(ctx)
	r.m.turns.add(r)
	defer r.m.turns.drop(r)
	log := outage.New(r.m.cfg.Log.With("topic", r.topic.Key), "a tail's topic cannot be read; trying again", "a tail's topic is read again")
	retry := minRetry
	var msgs []store.Message
	for ctx.Err() == nil {
		turn := r.turn.begin(ctx)
		t, err := r.now(), error(nil)
		cut := t.Cuts[r.epoch.Number]
		if !t.Has(r.epoch.Number) && r.next(ctx, t) {
			continue
		}
		if r.up == nil {
			err = r.open(ctx)
		}
		if err == nil && cut != nil {
			over, cerr := r.overTo(ctx, cut)
			if over && r.next(ctx, t) {
				continue
			}
			err = cerr
		}
		n := 0
		if err == nil {
			if cut == nil && idle != nil && idle() {
				return
			}
			if msgs == nil {
				msgs = make([]store.Message, maxRead)
			}
			if n, err = r.read(ctx, turn, cut != nil, msgs); err == nil && n == 0 {
				continue
			}
		}
		if n > 0 {
			some := r.counting(t, msgs[:n])
			more := len(some) == 0 || take(some)
			clear(msgs[:n])
			if !more {
				return
			}
		}
		if err == nil {
			if retry > minRetry {
				log.Is(nil)
				retry = minRetry
			}
			continue
		}
		if ctx.Err() != nil {
			return
		}
		log.Is(err)
		// A store that cannot be reached for a while goes on by itself; one
		// that was exchanged does not.
		if now, serr := r.m.cfg.Store(r.epoch.StoreUID); serr == nil && now != r.st || fault.ClassOf(err) != fault.Unavailable {
			r.close(ctx)
		}
		timer := time.NewTimer(retry/2 + rand.N(retry))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		retry = min(2*retry, maxRetry)
	}
}

// read waits for events, but no longer than until a configuration ends the turn, nor for
// long in an epoch that ends. 0 events and no error is that.
func (r *reader) read(ctx, turn context.Context, ends bool, msgs []store.Message) (int, error) {
	if ends {
		var cancel context.CancelFunc
		turn, cancel = context.WithTimeout(ctx, cutWait)
		defer cancel()
	}
	n, err := r.up.Next(turn, msgs)
	if turn.Err() != nil && ctx.Err() == nil {
		err = nil
	}
	return n, err
}

// cutWait is between two looks whether an epoch that ends was read.
const cutWait = 100 * time.Millisecond

// counting are the messages that count, and remembers where the reader is.
func (r *reader) counting(t *snapshot.Topic, msgs []store.Message) []store.Message {
	some := msgs[:0]
	for i := range msgs {
		at := msgs[i].Pos
		r.last[at.Partition] = at
		if !cutover.IsMarker(&msgs[i].Event) && !t.Past(r.epoch.Number, at) {
			some = append(some, msgs[i])
		}
	}
	return some
}

// overTo reports whether all that lies before the cut was given. A store may show what
// it has acknowledged a moment later: it is asked where the topic ends until that is
// not before the cut: at the cut there may be nothing. One that is inside this proxy knows at once.
func (r *reader) overTo(ctx context.Context, cut map[string]store.Position) (bool, error) {
	if r.passed == nil {
		if me, ok := r.st.(store.Measurer); ok && !r.epoch.Local {
			extents, err := me.Extents(ctx, r.epoch.Physical)
			if err != nil {
				return false, err
			}
			shown := 0
			for _, x := range extents {
				if at, ok := cut[x.Partition]; ok && !(store.Position{Offset: x.End}).Less(at) {
					shown++
				}
			}
			if shown < len(cut) {
				return false, nil
			}
		}
		passed, err := r.up.Mark(ctx)
		if err != nil {
			return false, err
		}
		r.passed = passed
	}
	return r.passed(), nil
}

// next goes on to the epoch after the one that was read, or is given up. It is false
// where there is none.
func (r *reader) next(ctx context.Context, t *snapshot.Topic) bool {
	for _, e := range t.Epochs {
		if e.Number > r.epoch.Number {
			r.close(ctx)
			r.turn.to(e.Number)
			r.epoch, r.begin, r.last = e, r.later, map[string]store.Position{}
			return true
		}
	}
	return false
}

// now is the topic by the newest configuration.
func (r *reader) now() *snapshot.Topic { return r.m.newest(r.topic, r.epoch.Number) }

// newest is a topic by the newest configuration; as it was where that does not have it,
// or is older than an epoch of it.
func (m *Manager) newest(was *snapshot.Topic, epoch uint32) *snapshot.Topic {
	t := m.cfg.Snapshots.Get().Topics[was.Key]
	if t == nil || t.UID != was.UID || len(t.Epochs) == 0 || t.Epochs[len(t.Epochs)-1].Number < epoch {
		return was
	}
	return t
}

// open begins behind the last events.
func (r *reader) open(ctx context.Context) (err error) {
	if r.st, err = r.m.cfg.Store(r.epoch.StoreUID); err != nil {
		return err
	}
	from := r.begin
	for _, p := range r.last {
		from.After = append(from.After, p)
	}
	r.up, err = r.st.Tail(ctx, store.TailRequest{Topic: r.epoch.Physical, From: from, Own: r.own})
	return err
}

// begun has what is read from now on go on from where the reader has begun, who came at
// since: should it have to begin again, a partition of which nothing was read begins there.
func (r *reader) begun(since time.Time) {
	for _, p := range r.begin.After {
		r.last[p.Partition] = p
	}
	r.begin.After = nil
	if r.begin.End {
		r.begin = store.Start{At: since}
	}
}

func (r *reader) close(ctx context.Context) {
	if r.up == nil {
		return
	}
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	_ = r.up.Close(cctx)
	r.up, r.passed = nil, nil
}

// readTurn is what ends a reader's wait for events when a configuration ends its epoch.
type readTurn struct {
	mu    sync.Mutex
	epoch uint32
	ctx   context.Context
	end   context.CancelFunc
}

// begin gives the context of what is waited for until then. It comes before the look at
// the configuration.
func (u *readTurn) begin(ctx context.Context) context.Context {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ctx == nil || u.ctx.Err() != nil {
		u.ctx, u.end = context.WithCancel(ctx)
	}
	return u.ctx
}

func (u *readTurn) to(epoch uint32) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.epoch = epoch
}

// readers are those that may wait for events. The zero value is ready; its mutex is
// taken last but for those of turns.
type readers struct {
	mu  sync.Mutex
	all map[*reader]struct{}
}

func (x *readers) add(r *reader) {
	r.turn.to(r.epoch.Number)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.all == nil {
		x.all = map[*reader]struct{}{}
	}
	x.all[r] = struct{}{}
}

func (x *readers) drop(r *reader) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.all, r)
	r.turn.mu.Lock()
	defer r.turn.mu.Unlock()
	if r.turn.end != nil {
		r.turn.end()
	}
}

// follow ends the turns of those whose epoch a configuration ends.
func (x *readers) follow(snap *snapshot.Snapshot) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for r := range x.all {
		t := snap.Topics[r.topic.Key]
		if t == nil || t.UID != r.topic.UID {
			continue
		}
		r.turn.mu.Lock()
		if r.turn.end != nil && (t.Cuts[r.turn.epoch] != nil || !t.Has(r.turn.epoch)) {
			r.turn.end()
		}
		r.turn.mu.Unlock()
	}
}
