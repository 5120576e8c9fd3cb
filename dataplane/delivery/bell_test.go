package delivery

import (
	"errors"
	"testing"
	"time"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// taker takes what there is, as a client without a goroutine of its own.
type taker struct {
	*testing.T
	from interface {
		Take(dst []Delivery, wake func()) (int, error)
	}
	woken chan struct{} // has room for one call more than is right
}

// nothing takes nothing, and listens.
func (k *taker) nothing() {
	k.Helper()
	if n, err := k.from.Take(make([]Delivery, 8), func() { k.woken <- struct{}{} }); n != 0 || err != nil {
		k.Fatalf("%d deliveries, %v", n, err)
	}
}

// called waits until wake was called; more calls are too many.
func (k *taker) called(when string) {
	k.Helper()
	select {
	case <-k.woken:
	case <-time.After(patience):
		k.Fatalf("%s nobody is woken", when)
	}
	if len(k.woken) > 0 {
		k.Fatalf("%s there was more than one call", when)
	}
}

// comes takes the delivery that comes next: the store may give it a little later.
func (k *taker) comes(when string) Delivery {
	k.Helper()
	for {
		k.called(when)
		var dst [8]Delivery
		n, err := k.from.Take(dst[:], func() { k.woken <- struct{}{} })
		if n > 1 || err != nil {
			k.Fatalf("%s %d deliveries, %v", when, n, err)
		}
		if n == 1 {
			return dst[0]
		}
	}
}

// TestTake: who takes without waiting is woken, once, by what comes, by credit, by a
// settlement that makes room and by the end; what came while nobody listened is not
// waited for.
func TestTake(t *testing.T) {
	w := newWorld(t, nil)
	tl, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{"orders"}, From: store.Start{End: true}, Credit: true})
	w.must(err)
	m := w.join(1)
	tail, member := &taker{t, tl, make(chan struct{}, 2)}, &taker{t, m, make(chan struct{}, 2)}
	tail.nothing()
	member.nothing()
	tl.Credit(1)
	tail.called("with credit")
	tail.nothing()
	w.publish("1")
	tail.comes("with an event")
	first := member.comes("with an event")
	w.publish("2")
	tail.nothing()   // there is no credit
	member.nothing() // there is no room
	tl.Credit(1)
	m.Ack(first.ID)
	for _, k := range []*taker{tail, member} {
		if d := k.comes("with room"); d.Event.ID != "2" {
			t.Errorf("%s comes", d.Event.ID)
		}
	}
	tl.Credit(1) // while nobody listens
	tail.nothing()
	member.nothing()
	tl.Close()
	m.Close()
	for _, k := range []*taker{tail, member} {
		k.called("at the end")
		if _, err := k.from.Take(make([]Delivery, 1), func() {}); fault.ClassOf(err) != fault.Canceled {
			t.Errorf("at the end: %v", err)
		}
	}
	var b bell
	b.ring()
	if b.listen(func() { err = errors.New("called") }) || !b.listen(func() {}) || err != nil {
		t.Error("what rang before is not known, or not forgotten")
	}
}
