package delivery

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/dataplane/moves"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
)

// follower is a client that tails the topic, and comes again after what it has.
type follower struct {
	Tail
	from   store.Start
	tokens []position.Token // the newest of each epoch
	got    []string
	began  int // how much was published when it came first
}

func (o *moving) tail(from store.Start, after []position.Token) (Tail, error) {
	return o.m.Tail(o.ctx, local, TailRequest{Namespace: "demo", Topics: []string{"orders"}, From: from, After: after})
}

func (o *moving) follow(f *follower) {
	o.Helper()
	t, err := o.tail(f.from, f.tokens)
	o.must(err)
	f.Tail = t
}

// take has a client take what there is.
func (f *follower) take(o *moving, told bool, wait time.Duration) {
	ctx, cancel := context.WithTimeout(o.ctx, wait)
	defer cancel()
	var dst [16]Delivery
	n, _ := f.Next(ctx, dst[:])
	for _, d := range dst[:n] {
		if cutover.IsMarker(d.Event) {
			o.Error("a marker is delivered")
		}
		i := slices.IndexFunc(f.tokens, func(t position.Token) bool { return t.Epoch == d.Position.Epoch })
		if i < 0 {
			f.tokens = append(f.tokens, d.Position)
		} else {
			f.tokens[i] = d.Position
		}
		if !strings.HasPrefix(d.Event.ID, "late") {
			f.got = append(f.got, d.Event.ID)
		} else if told {
			o.Errorf("%s is delivered, and it is behind the cut", d.Event.ID)
		}
	}
}

// TestTailEpochs: clients tail a topic from its beginning or its end while it moves, are
// slow, go, and come again after what they have. Each gets everything once and in order,
// over both stores, and no marker.
func TestTailEpochs(t *testing.T) {
	runs := 24
	if os.Getenv("WEFT_TEST_SOAK") != "" {
		runs = 1000
	}
	for i := range runs {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			tailOver(newMoving(t, 1, nil), rand.New(rand.NewPCG(uint64(i), 2)))
		})
	}
}

func tailOver(o *moving, r *rand.Rand) {
	var all []string
	var clients []*follower
	epoch, told := 1, false
	step := func() {
		switch op := r.IntN(10); {
		case op < 4:
			for range 1 + r.IntN(4) {
				id := fmt.Sprintf("%d", len(all))
				o.put(epoch, keyed(id, "k"))
				all = append(all, id)
			}
		case op == 4 && len(clients) < 6:
			f := &follower{from: store.Start{End: r.IntN(2) == 0}}
			if f.from.End {
				f.began = len(all)
			}
			o.follow(f)
			clients = append(clients, f)
		case len(clients) == 0:
		case op == 5:
			if f := clients[r.IntN(len(clients))]; len(f.tokens) > 0 || !f.from.End {
				f.Close()
				o.follow(f)
			}
		default:
			clients[r.IntN(len(clients))].take(o, false, 2*time.Millisecond)
		}
	}
	for range 20 + r.IntN(60) {
		step()
	}
	o.seal(1)
	for range r.IntN(10) {
		step()
	}
	o.seal(2)
	for i := range r.IntN(3) {
		o.put(1, keyed(fmt.Sprintf("late%d", i), "k"))
	}
	epoch = 2
	for i := range 80 {
		if i == 10 {
			o.snaps.Store(o.config(cutover.Draining))
			told = true
		}
		if i > 10 || r.IntN(2) == 0 && i < 5 {
			step()
		}
	}
	last := &follower{}
	o.follow(last) // all of it, with the cut known
	last.take(o, told, patience)
	for _, f := range append(clients, last) {
		for end := time.Now().Add(patience); len(f.got) == 0 && f.began < len(all) || len(f.got) > 0 && f.got[len(f.got)-1] != all[len(all)-1]; {
			if f.take(o, f == last, 50*time.Millisecond); time.Now().After(end) {
				o.Fatalf("a client has %d events that end with %v, of %d", len(f.got), f.got[max(0, len(f.got)-3):], len(all))
			}
		}
		f.Close()
		if len(f.got) == 0 {
			continue
		}
		// One that begins at the end may get what was not read there yet.
		if first, _ := strconv.Atoi(f.got[0]); first > f.began || !slices.Equal(f.got, all[first:]) {
			o.Fatalf("a client that came when there were %d events has %v of %d", f.began, f.got, len(all))
		}
	}
}

// TestSlowTailOverEpochs: a tail that its topic overtakes while that moves misses
// nothing, and neither does one that keeps up.
func TestSlowTailOverEpochs(t *testing.T) {
	o := newMoving(t, 1, nil)
	slow, fast := &follower{from: store.Start{End: true}}, &follower{from: store.Start{End: true}}
	o.follow(slow)
	o.follow(fast)
	defer slow.Close()
	defer fast.Close()
	const each = ringEvents + 300
	publish := func(epoch, from int) {
		for i := range each {
			o.put(epoch, keyed(strconv.Itoa(from+i), "k"))
			if i%16 == 15 {
				fast.take(o, false, patience)
			}
		}
	}
	publish(1, 0)
	o.seal(1)
	o.snaps.Store(o.config(cutover.Draining))
	publish(2, each)
	for _, f := range []*follower{fast, slow} {
		for len(f.got) < 2*each && !o.Failed() {
			f.take(o, true, patience)
		}
		for i, id := range f.got {
			if id != strconv.Itoa(i) {
				t.Fatalf("event %d is %s", i, id)
			}
		}
	}
}

// TestTailWaits: while the store before cannot tell where it ends nothing of the next
// one is delivered, and nothing is missed.
func TestTailWaits(t *testing.T) {
	o := newMoving(t, 1, nil)
	f := &follower{}
	o.follow(f)
	defer f.Close()
	o.put(1, keyed("0", "k"))
	f.take(o, false, patience)
	o.st.(*counted).down.Store(true)
	o.seal(1)
	o.put(2, keyed("1", "k"))
	o.snaps.Store(o.config(cutover.Draining))
	f.take(o, true, 200*time.Millisecond)
	if len(f.got) != 1 {
		t.Errorf("got %v while the store is down", f.got)
	}
	o.st.(*counted).down.Store(false)
	if f.take(o, true, patience); len(f.got) != 2 {
		t.Errorf("got %v", f.got)
	}
}

// TestTailToTheEnd: a cut is where a store that a fence keeps others out of ends, with what they
// wrote behind the marker: no event is at it, and none will be. Tails go on from there.
func TestTailToTheEnd(t *testing.T) {
	o := newMoving(t, 1, nil)
	tails := []*follower{{}, {from: store.Start{End: true}}}
	for _, f := range tails {
		o.follow(f)
		defer f.Close()
	}
	o.put(1, keyed("0", "k"))
	o.seal(1)
	o.cut = o.put(1, keyed("native", "k"))
	o.cut.Offset++
	o.put(2, keyed("1", "k"))
	o.snaps.Store(o.config(cutover.Draining))
	for _, f := range tails {
		for n := -1; n < len(f.got) && len(f.got) < 3; f.take(o, true, patience) {
			n = len(f.got)
		}
		if want := []string{"0", "native", "1"}; !slices.Equal(f.got, want) {
			t.Errorf("from %+v: got %v, want %v", f.from, f.got, want)
		}
	}
}

// TestTokensOfEpochs: where a client begins that comes with tokens.
func TestTokensOfEpochs(t *testing.T) {
	o := newMoving(t, 1, nil)
	token := func(epoch uint32, at store.Position) position.Token {
		return position.Token{TopicUID: uidOrders, Epoch: epoch, Pos: at}
	}
	first := o.put(1, keyed("0", "k"))
	o.put(1, keyed("1", "k"))
	o.seal(1)
	o.put(1, keyed("late", "k"))
	second := o.put(2, keyed("2", "k"))
	o.put(2, keyed("3", "k"))
	for phase, tests := range map[cutover.Phase]map[string]struct {
		from  store.Start
		after []position.Token
		want  string // the first that it gets; "" is none
		class fault.Class
	}{
		cutover.Marking: {
			"of the epoch that it is in": {after: []position.Token{token(1, first)}, want: "1"},
			"of one not heard of yet":    {after: []position.Token{token(2, second)}, class: fault.Unavailable},
			"of none":                    {after: []position.Token{token(3, second)}, class: fault.Precondition},
			"of no store":                {after: []position.Token{token(1, store.Position{Offset: math.MaxInt64 + 1})}, class: fault.Precondition},
		},
		cutover.Drained: {
			"of the old one":        {from: store.Start{End: true}, after: []position.Token{token(1, first)}, want: "1"},
			"behind the cut":        {after: []position.Token{token(1, o.cut)}, want: "2"},
			"of both":               {after: []position.Token{token(1, first), token(2, second)}, want: "3"},
			"of the new one":        {after: []position.Token{token(2, second)}, want: "3"},
			"of none":               {after: []position.Token{token(3, second)}, class: fault.Precondition},
			"without an epoch":      {after: []position.Token{token(0, second)}, class: fault.Precondition},
			"no token":              {want: "0"},
			"a time before":         {from: store.Start{At: time.Unix(1, 0)}, want: "0"},
			"both, the rest at end": {from: store.Start{End: true}, after: []position.Token{token(1, first), token(2, store.Position{Partition: "other"})}, want: "2"},
		},
		cutover.Finished: {
			"of one that is given up": {from: store.Start{End: true}, after: []position.Token{token(1, first)}, want: "2"},
			"of that and of one kept": {after: []position.Token{token(1, first), token(2, second)}, want: "3"},
		},
	} {
		o.snaps.Store(o.config(phase))
		for name, tc := range tests {
			f := &follower{from: tc.from, tokens: tc.after}
			tl, err := o.tail(f.from, f.tokens)
			if err != nil {
				if tc.want != "" || fault.ClassOf(err) != tc.class {
					t.Errorf("%v, %s: %v", phase, name, err)
				}
				continue
			}
			f.Tail = tl
			if f.take(o, phase >= cutover.Draining, patience); len(f.got) == 0 || f.got[0] != tc.want {
				t.Errorf("%v, %s: got %v, want %q", phase, name, f.got, tc.want)
			}
			tl.Close()
		}
	}
}

// TestTailOfGivenUp: a client that is in an epoch which is given up gets the next one from
// its beginning.
func TestTailOfGivenUp(t *testing.T) {
	o := newMoving(t, 1, nil)
	f := &follower{}
	o.follow(f)
	defer f.Close()
	o.put(2, keyed("2", "k"))
	o.snaps.Store(o.config(cutover.Finished))
	if f.take(o, true, patience); len(f.got) != 1 || f.got[0] != "2" {
		t.Errorf("got %v", f.got)
	}
}

// TestScanEpochs: what is listed of a topic that moves is what counts in all its stores,
// and its end is where it is written to. What is given back goes there too.
func TestScanEpochs(t *testing.T) {
	o := newMoving(t, 1, nil)
	o.put(1, keyed("0", "k"))
	o.seal(1)
	o.put(1, keyed("late", "k"))
	o.put(2, keyed("1", "k"))
	for phase, want := range map[cutover.Phase][]string{
		cutover.Marking:  {"0 of 1", "late of 1", "end of 1"},
		cutover.Draining: {"0 of 1", "1 of 2", "end of 2"},
		cutover.Finished: {"1 of 2", "end of 2"},
	} {
		snap := o.config(phase)
		sub := snap.Subscriptions[snapshot.Key{Namespace: "demo", Name: "billing"}]
		topic := sub.Sources[0].Topic
		var got []string
		o.must(o.m.scan(o.ctx, topic, func(msg *store.Message, at position.Token) (bool, error) {
			id := "end"
			if msg != nil {
				id = msg.ID
			}
			got = append(got, fmt.Sprintf("%s of %d", id, at.Epoch))
			return true, nil
		}))
		if !slices.Equal(got, want) {
			t.Errorf("%v: got %v, want %v", phase, got, want)
		}
		if src, why := sourceFor(sub, &DeadLetter{Topic: "orders"}); why != "" || src.Epoch.Number != topic.Written().Number {
			t.Errorf("%v: it goes back to epoch %d; %s", phase, src.Epoch.Number, why)
		}
	}
}

// TestRedriveWhileItMoves: dead letters are given back where their topic may be written to
// alone. A proxy that has no lease does not know whether the topic has left the store, which
// nobody reads any more then.
func TestRedriveWhileItMoves(t *testing.T) {
	o := newMoving(t, 1, func(s *snapshot.Subscription) { s.DeadLetter = "dead" })
	o.stop()
	o.moves = moves.New(moves.Config{Snapshots: o.snaps, Patience: time.Millisecond})
	o.start()
	o.dead("a")
	before := func(st store.Store) uint64 {
		lag, err := st.(store.Admin).Lag(o.ctx, names.RetryTopic(uidSub), "rg")
		o.must(err)
		return lag[0].End
	}
	first, second := before(o.st), before(o.second)
	req := Redrive{Query: DeadLetterQuery{Namespace: "demo", Subscription: "billing"}, Rate: 1000}
	for _, phase := range []cutover.Phase{cutover.Leasing, cutover.Stopping, cutover.Marking} {
		o.snaps.Store(o.config(phase))
		out, err := o.m.Redrive(o.ctx, local, req, func(Redriven) {})
		if fault.From(err).Reason != "topic-moving" || out.Redriven != 0 || before(o.st) != first {
			t.Errorf("%v: %+v, %v; the store that it leaves has %d more", phase, out, err, before(o.st)-first)
		}
	}
	o.seal(1)
	o.snaps.Store(o.config(cutover.Draining))
	if out := o.redrive(Redrive{}); out.Redriven != 1 || before(o.st) != first || before(o.second) != second+1 {
		t.Errorf("%+v; the store that it has left has %d more", out, before(o.st)-first)
	}
}

// TestRedriveOfMoving: a redrive ends where the dead-letter topic moves meanwhile, and its
// markers are in the next store.
func TestRedriveOfMoving(t *testing.T) {
	w := deadWorld(t)
	w.dead("a", "b")
	w.stop()
	wrote := 0
	w.wrote = func(_ *snapshot.Topic, events []event.Event) {
		wrote += len(events)
		snap := w.snapshot(func(s *snapshot.Subscription) { s.DeadLetter = "dead" })
		dead := snap.Topics[snapshot.Key{Namespace: "demo", Name: "dead"}]
		dead.Epochs = append(dead.Epochs, snapshot.Epoch{Number: 2, StoreUID: uidNext, Physical: nextTopic})
		w.snaps.Store(snap)
	}
	w.start()
	ctx, cancel := context.WithTimeout(w.ctx, 20*time.Second)
	defer cancel()
	out, err := w.m.Redrive(ctx, local, Redrive{Query: DeadLetterQuery{Namespace: "demo", Subscription: "billing"}, Rate: 1000}, func(Redriven) {})
	if w.must(err); out.Redriven != 2 || wrote != 1 {
		t.Errorf("%+v, and %d markers", out, wrote)
	}
}
