package delivery

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestTimers: whatever is put in, moved and taken out, the item that is due first
// comes first, each once.
func TestTimers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var (
			timers timers
			items  [8]item
			in     = map[*item]time.Time{}
			begin  = time.Unix(0, 0)
			now    time.Duration
		)
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				it := &items[rapid.IntRange(0, len(items)-1).Draw(t, "item")]
				if _, there := in[it]; there {
					return
				}
				now += time.Duration(rapid.IntRange(0, 3).Draw(t, "passed"))
				in[it] = begin.Add(now + time.Duration(rapid.SampledFrom([]int{10, 10, 10, 5}).Draw(t, "timeout")))
				timers.add(it, in[it])
			},
			"set": func(t *rapid.T) {
				it := &items[rapid.IntRange(0, len(items)-1).Draw(t, "item")]
				in[it] = begin.Add(now + time.Duration(rapid.IntRange(0, 20).Draw(t, "delay")))
				timers.set(it, in[it])
			},
			"drop": func(t *rapid.T) {
				it := &items[rapid.IntRange(0, len(items)-1).Draw(t, "item")]
				delete(in, it)
				timers.drop(it)
			},
			"": func(t *rapid.T) {
				first := timers.first()
				if (first == nil) != (len(in) == 0) {
					t.Fatalf("first is %v of %d", first, len(in))
				}
				for it, due := range in {
					if !it.due.Equal(due) || due.Before(first.due) {
						t.Fatalf("the first is due at %v, another one at %v, wanted %v", first.due, it.due, due)
					}
				}
				n := len(timers.others)
				for it := timers.head; it != nil; it = it.next {
					n++
				}
				if n != len(in) {
					t.Fatalf("%d items are in, wanted are %d", n, len(in))
				}
			},
		})
	})
}
