package http

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/pkg/event"
)

// response remembers when something was written.
type response struct {
	http.ResponseWriter
	begun time.Time

	mu     sync.Mutex
	broken bool
	wrote  []string // seconds and what
}

func (r *response) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken {
		return 0, errors.New("the client is gone")
	}
	what := "event"
	if strings.HasPrefix(string(b), ": ") {
		what = "heartbeat"
	}
	r.wrote = append(r.wrote, time.Since(r.begun).String()+" "+what)
	return len(b), nil
}

func (r *response) SetWriteDeadline(time.Time) error { return nil }
func (r *response) SetReadDeadline(time.Time) error  { return nil }
func (r *response) FlushError() error                { return nil }

// told is a tail of the events that a test says.
type told struct {
	delivery.Tail
	events chan string
}

func (t told) Next(ctx context.Context, dst []delivery.Delivery) (int, error) {
	select {
	case id := <-t.events:
		dst[0] = delivery.Delivery{Topic: "orders", Event: &event.Event{ID: id, Source: "/s", Type: "t"}}
		return 1, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// TestHeartbeats: a stream says that it is there when nothing was written for 15 s, not
// after its end, and one that cannot say so ends.
func TestHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &response{begun: time.Now()}
		s := New(Config{})
		defer s.stop()
		tail := told{events: make(chan string)}
		run := func() (stop func(), ended chan struct{}) {
			ctx, cancel := context.WithCancel(t.Context())
			out := &stream{rc: http.NewResponseController(w), w: w, stall: time.Second}
			ended = make(chan struct{})
			out.beats(cancel)
			go func() {
				defer close(ended)
				defer out.end()
				s.pump(ctx, tail, out, &places{})
			}()
			return cancel, ended
		}
		stop, ended := run()
		<-time.After(20 * time.Second) // of the bubble
		tail.events <- "1"
		<-time.After(40 * time.Second)
		stop()
		<-ended
		<-time.After(time.Hour)
		if want := []string{"15s heartbeat", "20s event", "35s heartbeat", "50s heartbeat"}; !slices.Equal(w.wrote, want) {
			t.Errorf("it wrote %q, want %q", w.wrote, want)
		}
		w.broken = true
		_, ended = run()
		<-ended // because of its first heartbeat
	})
}
