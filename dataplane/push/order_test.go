package push

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
)

// TestOrder: of a Subscription with order the target is called with one event of a key
// at a time, those of others beside it, and with the next when it has taken the one
// before, however often that fails, for longer than a delay that is waited for in memory.
func TestOrder(t *testing.T) {
	const keys, each = 3, 5
	var mu sync.Mutex
	calls, taken, open := map[string]int{}, map[string]int{}, map[string]bool{}
	h := newHook(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		id, key := r.Header.Get("Ce-Id"), r.Header.Get("Ce-Partitionkey")
		mu.Lock()
		defer mu.Unlock()
		if want := fmt.Sprintf("%s-%d", key, taken[key]+1); id != want || open[key] {
			t.Errorf("the target is called with %s, the next is %s; one is open: %v", id, want, open[key])
		}
		open[key] = true
		mu.Unlock()
		<-time.After(time.Millisecond)
		mu.Lock()
		open[key] = false
		if calls[id]++; calls[id] == 1 && taken[key] == 1 {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		taken[key]++
	})
	w := newWorld(t, loopback, sub("orders", h.URL, func(s *snapshot.Subscription) {
		s.Ordered, s.MinBackoff, s.MaxBackoff = true, 1100*time.Millisecond, 1100*time.Millisecond
	}))
	for i := range each {
		for k := range keys {
			key := fmt.Sprintf("k%d", k)
			e := ev(fmt.Sprintf("%s-%d", key, i+1))
			e.Ext = event.With(e.Ext, event.AttrPartitionKey, key)
			w.publish("orders", e)
		}
	}
	for range keys * (each + 1) {
		h.next(w)
	}
	w.settled("orders")
}
