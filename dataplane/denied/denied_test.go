package denied

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/pkg/fault"
)

// TestLog: a denial is told until the use goes well, or nobody tries any more; since when
// stays, and what fails otherwise says nothing.
func TestLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		no := func(text string) error {
			return fault.New(fault.Unavailable, "op", "store-access-denied", "%s", text)
		}
		l := New(nil)
		told := func(want ...string) {
			t.Helper()
			var got []string
			for _, d := range l.All() {
				got = append(got, fmt.Sprintf("%s of %s in %s, %v ago", d.Use, d.TopicUID, d.StoreUID, time.Since(d.Since)))
			}
			if !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		l.Is("t", "s", Publish, nil)
		l.Is("t", "s", Publish, fault.New(fault.Unavailable, "op", "store-unreachable", "away"))
		told()
		l.Is("t", "s", Publish, no("a"))
		<-time.After(time.Minute)
		l.Is("t", "s", Publish, no("b"))
		l.Is("t", "s", Consume, no("c"))
		l.Is("t", "s", Publish, fault.New(fault.Unavailable, "op", "store-unreachable", "away"))
		l.Is("other", "s", Publish, nil)
		told("publish of t in s, 1m0s ago", "consume of t in s, 0s ago")
		l.Is("t", "s", Consume, nil)
		told("publish of t in s, 1m0s ago")
		<-time.After(forgetAfter + time.Second)
		told()
		for i := range 2 * maxTopics {
			l.Is(fmt.Sprint(i), "s", Publish, no("d"))
		}
		if n := len(l.All()); n != maxTopics {
			t.Errorf("%d are remembered", n)
		}
		var none *Log
		none.Is("t", "s", Publish, no("e"))
		if none.All() != nil {
			t.Error("nothing remembers")
		}
	})
}
