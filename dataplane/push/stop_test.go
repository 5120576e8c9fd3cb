package push

import (
	"context"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
)

// untouched is a Member whose deliveries may not be settled: what is not here panics.
type untouched struct{ delivery.Member }

func (untouched) AckTimeout() time.Duration           { return time.Hour }
func (untouched) Extend(time.Duration, ...uint64) int { return 0 }

// TestStopIsNoAttempt: what is cut, since the proxy stops, has not failed: it is neither
// given back for another attempt nor, after the last one, a dead letter.
func TestStopIsNoAttempt(t *testing.T) {
	for name, of := range map[string]func(url string) *snapshot.Subscription{
		"a request": func(url string) *snapshot.Subscription { return sub("orders", url, nil) },
		"a forward": func(string) *snapshot.Subscription { return forwarding("orders", "others", nil) },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			h := newHook(t, func(_ int, _ http.ResponseWriter, r *http.Request) { stop(); <-r.Context().Done() })
			p := New(Config{Allow: loopback, Log: slog.New(slog.DiscardHandler), Forward: func(ctx context.Context, _ snapshot.Key, _ string, _ *event.Event) error {
				stop()
				return fault.From(ctx.Err())
			}})
			tg := p.newTarget(of(h.URL))
			defer tg.client.close()
			e := ev("1")
			tg.deliver(t.Context(), ctx, untouched{}, delivery.Delivery{ID: 1, Attempt: 1, Event: e})
			if tg.failures != 0 {
				t.Errorf("%d failures of the target are counted", tg.failures)
			}
		})
	}
}
