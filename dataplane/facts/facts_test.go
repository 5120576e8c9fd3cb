package facts

import (
	"fmt"
	"strings"
	"sync"
	"testing"
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

// TestAddAllocatesNothing: on the way of an event.
func TestAddAllocatesNothing(t *testing.T) {
	r, e := New(nil), ev("a")
	f := Fact{Kind: Delivered, Namespace: "n", Topic: "t", Subscription: "s", Attempt: 1, Position: position.Token{TopicUID: "u", Pos: store.Position{Partition: "p"}}}
	r.Add(e, &f)
	if n := testing.AllocsPerRun(1000, func() { r.Add(e, &f) }); n != 0 {
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
