package weft

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestSilentProxies: proxies that do not answer cost one time-out in all; of those that work
// at an answer few do at a time.
func TestSilentProxies(t *testing.T) {
	addresses := make([]string, 10*maxAsked)
	for i := range addresses {
		addresses[i] = fmt.Sprint(i)
	}
	for what, tc := range map[string]struct {
		takes time.Duration
		most  int32
		all   time.Duration
	}{
		"silent":  {askTimeout, int32(len(addresses)), askTimeout + time.Second},
		"working": {askPatience / 2, maxAsked, askTimeout},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var now, most, asked atomic.Int32
				start := time.Now()
				askEach(addresses, func(string) {
					asked.Add(1)
					n := now.Add(1)
					for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
					}
					<-time.After(tc.takes)
					now.Add(-1)
				})
				if took := time.Since(start); took > tc.all || most.Load() > tc.most || asked.Load() != int32(len(addresses)) {
					t.Errorf("%d of %d were asked, %d at a time, in %s", asked.Load(), len(addresses), most.Load(), took)
				}
			})
		})
	}
}
