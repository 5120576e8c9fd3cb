package latest

import (
	"sync"
	"testing"
)

// TestFollow: a reader that follows sees values rise and ends at the last one.
func TestFollow(t *testing.T) {
	const last = 10000
	v := New(0)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for seen := -1; seen != last; {
				now, replaced := v.Load()
				if now < seen {
					t.Errorf("went from %d back to %d", seen, now)
					return
				}
				seen = now
				if seen != last {
					<-replaced
				}
			}
		})
	}
	for i := 1; i <= last; i++ {
		v.Store(i)
	}
	wg.Wait()
	if v.Get() != last {
		t.Errorf("Get() = %d", v.Get())
	}
}
