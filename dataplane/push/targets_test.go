package push

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store"
)

var targets = flag.Int("targets", 100, "targets of TestTargets, a multiple of 100")

// bad are ways in which a target is bad. Of the targets every tenth is, in each way as
// many.
var bad = []struct {
	name string
	// answer is what it does; nil where it cannot be connected to.
	answer http.HandlerFunc
	// every is the time between attempts that it asks for; 0 is the schedule.
	every time.Duration
	// takes is how long one of its requests lasts.
	takes time.Duration
	// reason is what dead letters say; "" where there are none.
	reason string
}{
	{name: "refuses connections", reason: "no connection to the target, or it broke"},
	{name: "never answers", answer: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, takes: targetTimeout, reason: "no answer in time"},
	{name: "hangs up", answer: func(w http.ResponseWriter, _ *http.Request) {
		if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
			_ = c.Close()
		}
	}, reason: "no connection to the target, or it broke"},
	{name: "500", answer: status(http.StatusInternalServerError), reason: "http 500"},
	{name: "503, not said when", answer: status(http.StatusServiceUnavailable), reason: "http 503"},
	{name: "redirects", answer: func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://t1.example/redirected", http.StatusTemporaryRedirect)
	}, reason: "http 307"},
	{name: "429, seconds", answer: func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "90")
		w.WriteHeader(http.StatusTooManyRequests)
	}, every: 90 * time.Second, reason: "http 429"},
	{name: "429, a date", answer: func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", time.Now().Add(45*time.Second).UTC().Format(http.TimeFormat))
		w.WriteHeader(http.StatusTooManyRequests)
	}, every: 45 * time.Second, reason: "http 429"},
	{name: "410", answer: status(http.StatusGone)},
	{name: "its body never ends", answer: func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}, takes: targetTimeout}, // it has answered: that settles
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// Of TestTargets: how many events there are, one every eventEvery, and how they are tried.
const (
	targetEvents   = 10
	eventEvery     = time.Second
	targetTimeout  = 10 * time.Second
	targetAttempts = 6
	targetBackoff  = 250 * time.Millisecond // half of the delays are waited for in memory
)

// call is one request to a target.
type call struct {
	id      string
	attempt int
	at      time.Time
}

// network is one of memory, in which the target number n is tN.example.
type network struct {
	pipes
	mu    sync.Mutex
	calls [][]call
	dials []int
	wrong []string
}

func newNetwork(n int) *network {
	return &network{pipes: make(pipes), calls: make([][]call, n), dials: make([]int, n)}
}

// pipes are connections of memory, and the listener that takes them.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

// Close does nothing: who dials closes the channel.
func (p pipes) Close() error { return nil }

func (p pipes) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	p <- server
	return client, nil
}

func (n *network) dial(ctx context.Context, network, address string) (net.Conn, error) {
	i := numberOf(address)
	n.mu.Lock()
	n.dials[i]++
	n.mu.Unlock()
	if how := badness(i); how >= 0 && bad[how].answer == nil {
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	}
	return n.pipes.dial(ctx, network, address)
}

func (n *network) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i := numberOf(r.Host)
	attempt, err := strconv.Atoi(r.Header.Get("Weft-Attempt"))
	n.mu.Lock()
	if err != nil || r.URL.Path != "/in" || r.Header.Get("Weft-Subscription") != fmt.Sprintf("demo/t%d", i) {
		n.wrong = append(n.wrong, fmt.Sprintf("%s%s %v", r.Host, r.URL, r.Header))
	}
	n.calls[i] = append(n.calls[i], call{r.Header.Get("Ce-Id"), attempt, time.Now()})
	n.mu.Unlock()
	// That a connection ends is noticed once the body is read.
	_, _ = io.Copy(io.Discard, r.Body)
	if how := badness(i); how >= 0 {
		bad[how].answer(w, r)
	}
}

// numberOf is the target of an address.
func numberOf(address string) int {
	host, _, _ := strings.Cut(address, ".")
	i, _ := strconv.Atoi(strings.TrimPrefix(host, "t"))
	return i
}

// badness is how a target is bad, -1 where it is good.
func badness(i int) int {
	if i%10 != 0 {
		return -1
	}
	return i / 10 % len(bad)
}

// TestTargets: many targets get the events of one topic, a tenth of them is bad, in ten
// ways. The good ones get every event once and before any time has passed. The bad ones
// are called on the schedule, or when they asked to be; one that is gone is called once;
// and what they did not take in all its attempts is a dead letter, each once, with the
// reason, and nothing else is. Time is that of a bubble, the store a real one.
func TestTargets(t *testing.T) { synctest.Test(t, testTargets) }

func testTargets(t *testing.T) {
	n := newNetwork(*targets)
	server := &http.Server{Handler: n, ReadHeaderTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- server.Serve(n) }()
	topic := topicOf("orders")
	subs := make([]*snapshot.Subscription, *targets)
	for i := range subs {
		subs[i] = sub(fmt.Sprint("t", i), fmt.Sprintf("http://t%d.example/in", i), func(s *snapshot.Subscription) {
			s.Topics = []string{"orders"}
			s.Sources[0].Topic, s.Sources[0].Epoch, s.Sources[0].Group = topic, topic.Epochs[0], s.Name
			s.MaxAttempts, s.MinBackoff, s.MaxBackoff = targetAttempts, targetBackoff, time.Minute
			s.Push.Timeout, s.Push.Concurrency = targetTimeout, 2*targetEvents
		})
	}
	w := newWorldWith(t, Config{dial: n.dial}, subs...)
	w.ctx = t.Context()
	for k := range targetEvents {
		w.publish("orders", ev(fmt.Sprint(k)))
		<-time.After(eventEvery)
		n.mu.Lock()
		for i := range n.calls {
			if badness(i) >= 0 {
				continue
			}
			if got := n.calls[i]; len(got) != k+1 || got[k].id != fmt.Sprint(k) || got[k].attempt != 1 {
				t.Errorf("after event %d the good target %d has got %+v", k, i, got)
			}
		}
		n.mu.Unlock()
	}
	<-time.After(targetAttempts * (2*time.Minute + targetTimeout)) // longer than all attempts take
	w.checkCalls(n)
	w.checkDead()
	w.stop()
	close(n.pipes)
	_ = server.Close()
	<-served
}

// checkCalls checks the requests that each target got.
func (w *world) checkCalls(n *network) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.wrong {
		w.Errorf("a request that nobody should make: %s", s)
	}
	stopped := 0
	for i, calls := range n.calls {
		how := badness(i)
		want := targetEvents
		switch {
		case how < 0:
		case bad[how].answer == nil:
			if want = 0; n.dials[i] != targetEvents*targetAttempts {
				w.Errorf("target %d, which %s, was dialled %d times, want %d", i, bad[how].name, n.dials[i], targetEvents*targetAttempts)
			}
		case bad[how].name == "410":
			want = 1
			stopped++
			var m dto.Metric
			w.must(w.pusher.metrics.stopped.WithLabelValues("demo", fmt.Sprint("t", i)).Write(&m))
			if m.GetGauge().GetValue() != 1 {
				w.Errorf("target %d is gone and is not shown so", i)
			}
		case bad[how].reason != "":
			want = targetEvents * targetAttempts
			w.checkSchedule(i, calls)
		}
		if len(calls) != want {
			w.Errorf("target %d got %d requests, want %d", i, len(calls), want)
		}
		lag, err := w.st.(store.Admin).Lag(w.ctx, "orders", fmt.Sprint("t", i))
		w.must(err)
		behind := int64(0)
		if want == 1 {
			behind = targetEvents // they wait for the target's return
		}
		if lag[0].Behind != behind {
			w.Errorf("of target %d %d events are not settled, want %d", i, lag[0].Behind, behind)
		}
	}
	if stopped != len(n.calls)/100 {
		w.Errorf("%d targets were gone", stopped)
	}
}

// checkSchedule checks when a bad target was called.
func (w *world) checkSchedule(i int, calls []call) {
	how := bad[badness(i)]
	of, waits := map[string][]call{}, map[time.Duration]bool{}
	for _, c := range calls {
		of[c.id] = append(of[c.id], c)
	}
	for id, calls := range of {
		for k, c := range calls {
			if c.attempt != k+1 {
				w.Errorf("target %d: request %d with event %s says it is attempt %d", i, k+1, id, c.attempt)
			}
			if k == 0 {
				continue
			}
			wait := c.at.Sub(calls[k-1].at) - how.takes
			waits[wait] = true
			least, most := how.every-time.Second, how.every // a date has no parts of a second
			if how.every == 0 {
				delay := min(targetBackoff<<(k-1), time.Minute)
				least, most = delay*9/10, delay*11/10
			}
			if wait < least || wait > most+lateness {
				w.Errorf("target %d, which %s: attempt %d of event %s came %s after the one before, want %s to %s", i, how.name, k+1, id, wait, least, most)
			}
		}
	}
	if how.every == 0 && len(waits) <= targetAttempts {
		w.Errorf("target %d, which %s, is called without jitter: after %v", i, how.name, waits)
	}
}

// lateness is what a delayed event may be late.
const lateness = 20 * time.Millisecond

// checkDead checks that the dead letters are what was exhausted.
func (w *world) checkDead() {
	want := map[string]string{}
	for i := range *targets {
		if how := badness(i); how >= 0 && bad[how].reason != "" {
			for k := range targetEvents {
				want[fmt.Sprintf("t%d/%d", i, k)] = bad[how].reason
			}
		}
	}
	tail, err := w.st.Tail(w.ctx, store.TailRequest{Topic: "dead"})
	w.must(err)
	defer func() { w.must(tail.Close(w.ctx)) }()
	seen := 0
	for !tail.AtEnd() {
		var dst [64]store.Message
		m, err := tail.Next(w.ctx, dst[:])
		w.must(err)
		for _, msg := range dst[:m] {
			seen++
			get := func(name string) string { v, _ := event.Lookup(msg.Event.Ext, name); return v }
			key := get("deadlettersub") + "/" + msg.Event.ID
			reason, ok := want[key]
			delete(want, key)
			if !ok || get("deadletterreason") != reason || get("deadletterattempts") != fmt.Sprint(targetAttempts) || string(msg.Event.Data) != "data of "+msg.Event.ID {
				w.Errorf("dead letter %s after %s attempts: %q, want %q", key, get("deadletterattempts"), get("deadletterreason"), reason)
			}
		}
	}
	if seen == 0 || len(want) != 0 {
		w.Errorf("of %d dead letters %d are missing", seen+len(want), len(want))
	}
}
