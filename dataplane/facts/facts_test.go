package facts

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
)

func ev(id string) *event.Event { return &event.Event{ID: id, Source: "/s"} }

// TestRing: facts come back as they were, in order, by source and id.
func TestRing(t *testing.T) {
	r := New(nil)
	pos := position.Token{TopicUID: "11111111-1111-4111-8111-111111111111", Epoch: 2, Pos: store.Position{Partition: "b/3", Offset: 7, Minor: 1}}
	in := []Fact{{At: 1, Kind: Stored, Namespace: "n", Topic: "t", Kept: "k", Position: pos},
		{At: 2, Kind: Nacked, Namespace: "n", Topic: "k", Subscription: "s", Position: pos, Attempt: 3, Detail: strings.Repeat("ü", 150)},
		{At: 3, Kind: Refused, Namespace: "n", Topic: "t", Detail: "no"}}
	for i := range in {
		r.Add(ev("a"), &in[i])
		r.Add(ev("b"), &Fact{Kind: Stored})
	}
	in[1].Detail = strings.Repeat("ü", 100)
	got, _ := r.Of("/s", "a")
	if fmt.Sprint(got) != fmt.Sprint(in) {
		t.Errorf("got  %+v\nwant %+v", got, in)
	}
	if got, _ := r.Of("/other", "a"); len(got) != 0 {
		t.Errorf("of another source: %v", got)
	}
	var none *Ring
	none.Add(ev("a"), &in[0])
	if got, _ := none.Of("/s", "a"); got != nil {
		t.Error("a nil ring remembers")
	}
}

// TestRingIsBounded: what is old is forgotten, and it says since when; names that come
// without end take no more memory than there is.
func TestRingIsBounded(t *testing.T) {
	if n := unsafe.Sizeof(record{}); n > 72 {
		t.Errorf("a record has %d bytes", n)
	}
	r := New(nil)
	r.Add(ev("old"), &Fact{At: 1, Kind: Stored})
	for i := range 2 * shards * perShard {
		r.Add(ev(fmt.Sprint(i)), &Fact{At: int64(i), Kind: Stored, Topic: fmt.Sprint("topic-", i)})
	}
	got, since := r.Of("/s", "old")
	if len(got) != 0 || since.UnixNano() <= 1 {
		t.Errorf("%v is remembered since %s", got, since)
	}
	last := fmt.Sprint(2*shards*perShard - 1)
	if got, _ := r.Of("/s", last); len(got) != 1 || got[0].Topic != "topic-"+last {
		t.Errorf("the last is %v", got)
	}
	for i := range r.shards {
		if n := len(r.shards[i].names); n > maxNames+8 {
			t.Errorf("%d names", n)
		}
	}
}

// TestAcked: that a delivery was acknowledged is told with it, at its time among other
// facts about the event, and of none but that one.
func TestAcked(t *testing.T) {
	r := New(nil)
	const ms = int64(time.Millisecond)
	mine := r.Add(ev("a"), &Fact{At: 10 * ms, Kind: Delivered, Subscription: "mine", Attempt: 2})
	theirs := r.Add(ev("a"), &Fact{At: 11 * ms, Kind: Delivered, Subscription: "theirs", Attempt: 1})
	r.Add(ev("a"), &Fact{At: 14 * ms, Kind: Nacked, Subscription: "theirs", Attempt: 1, Detail: "no"})
	other := r.Add(ev("b"), &Fact{At: 12 * ms, Kind: Delivered, Subscription: "mine", Attempt: 1})
	if !r.Acked(mine, 13*ms) || !r.Acked(other, 12*ms) {
		t.Fatal("they are not remembered")
	}
	got, _ := r.Of("/s", "a")
	want := []Fact{{At: 10 * ms, Kind: Delivered, Subscription: "mine", Attempt: 2}, {At: 11 * ms, Kind: Delivered, Subscription: "theirs", Attempt: 1},
		{At: 13 * ms, Kind: Acked, Subscription: "mine", Attempt: 2}, {At: 14 * ms, Kind: Nacked, Subscription: "theirs", Attempt: 1, Detail: "no"}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got, _ := r.Of("/s", "b"); len(got) != 2 || got[1].Kind != Acked || got[1].At != 12*ms {
		t.Errorf("of the other: %+v", got)
	}
	if r.Acked(theirs, 11*ms+int64(24*time.Hour)) || r.Acked(0, 0) {
		t.Error("more is remembered than there is room for")
	}
	// A clock that was set back.
	if !r.Acked(theirs, 0) {
		t.Error("that it was acknowledged is not remembered")
	}
	var none *Ring
	if !none.Acked(mine, 0) || none.Add(ev("a"), &Fact{}) != 0 {
		t.Error("a nil ring remembers")
	}
}

// TestAckedTooLate: of a delivery that was forgotten nothing is remembered, least of all
// with the one that stands in its place.
func TestAckedTooLate(t *testing.T) {
	r := New(nil)
	old := r.Add(ev("a"), &Fact{At: 1, Kind: Delivered})
	for range perShard - 1 {
		r.Add(ev("a"), &Fact{At: 2, Kind: Delivered})
	}
	if !r.Acked(old, 3) {
		t.Error("it is forgotten early")
	}
	r.Add(ev("a"), &Fact{At: 4, Kind: Delivered})
	if r.Acked(old, 5) {
		t.Error("it is not forgotten")
	}
	got, since := r.Of("/s", "a")
	if len(got) != perShard || since.UnixNano() != 2 {
		t.Errorf("%d facts since %d", len(got), since.UnixNano())
	}
	for _, f := range got {
		if f.Kind != Delivered {
			t.Fatalf("%+v", f)
		}
	}
	// Names that come without end are forgotten, and the facts with them.
	var last Ref
	for i := range maxNames {
		last = r.Add(ev("a"), &Fact{At: 6, Kind: Delivered, Topic: fmt.Sprint(i)})
	}
	if !r.Acked(last, 7) {
		t.Error("it is forgotten early")
	}
	r.Add(ev("a"), &Fact{At: 8, Kind: Delivered, Topic: "one more"})
	if r.Acked(last, 9) {
		t.Error("it is not forgotten with the names")
	}
	if got, since := r.Of("/s", "a"); len(got) != 1 || since.UnixNano() != 8 {
		t.Errorf("%v since %d", got, since.UnixNano())
	}
}

// TestAddAllocatesNothing: on the way of an event.
func TestAddAllocatesNothing(t *testing.T) {
	r, e := New(nil), ev("a")
	f := Fact{Kind: Delivered, Namespace: "n", Topic: "t", Subscription: "s", Attempt: 1, Position: position.Token{TopicUID: "u", Pos: store.Position{Partition: "p"}}}
	r.Add(e, &f)
	if n := testing.AllocsPerRun(1000, func() { r.Acked(r.Add(e, &f), 1) }); n != 0 {
		t.Errorf("%v allocations a fact", n)
	}
}

func TestRingConcurrently(t *testing.T) {
	r := New(nil)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 2000 {
				id := fmt.Sprint(w, "-", i)
				r.Add(ev(id), &Fact{Kind: Stored, Topic: "t", Detail: id})
				if got, _ := r.Of("/s", id); len(got) != 1 || got[0].Detail != id {
					t.Errorf("%s: %v", id, got)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkAdd(b *testing.B) {
	r := New(nil)
	es := make([]*event.Event, 1024)
	for i := range es {
		es[i] = &event.Event{ID: fmt.Sprintf("0b8c4a46-6bb4-4b4e-8d12-%012d", i), Source: "/shop/orders"}
	}
	f := Fact{Kind: Delivered, Namespace: "demo", Topic: "orders", Subscription: "billing", Attempt: 1, Position: position.Token{TopicUID: "11111111-1111-4111-8111-111111111111", Pos: store.Position{Partition: "broker-a/3"}}}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		f.Position.Pos.Offset = uint64(i)
		r.Add(es[i%len(es)], &f)
		i++
	}
}
