package push

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/pipeline"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/embedded"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const uidStore = "44444444-4444-4444-8444-444444444444"

// world is a store with topics, and subscriptions that are pushed, each of a
// topic of its own.
type world struct {
	*testing.T
	ctx   context.Context
	st    store.Store
	snaps *latest.Value[*snapshot.Snapshot]
	reg   *prometheus.Registry
	stop  func()
	// pusher is what is tested, in takes what it forwards and replies.
	pusher *Pusher
	in     *pipeline.Pipeline
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

func uidOf(name string) string { return fmt.Sprintf("%032x", []byte(name))[:32] }

func topicOf(name string) *snapshot.Topic {
	u := uidOf(name)
	return &snapshot.Topic{Key: snapshot.Key{Namespace: "demo", Name: name}, UID: u[:8] + "-" + u[8:12] + "-" + u[12:16] + "-" + u[16:20] + "-" + u[20:],
		Epochs: []snapshot.Epoch{{Number: 1, StoreUID: uidStore, Physical: name}}}
}

// sub is a subscription to the topic of its name.
func sub(name, url string, change func(*snapshot.Subscription)) *snapshot.Subscription {
	t := topicOf(name)
	s := &snapshot.Subscription{Key: t.Key, UID: "sub-" + name, Topics: []string{name},
		Sources:    []snapshot.Source{{Topic: t, Epoch: t.Epochs[0], Group: "g", RetryTopic: "retry-" + name, RetryGroup: "rg"}},
		AckTimeout: time.Minute, MaxInFlight: 1024, MaxAttempts: 3, MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond, DeadLetter: "dead",
		Push: &snapshot.Push{URL: url, Timeout: 10 * time.Second, Concurrency: 4}}
	if change != nil {
		change(s)
	}
	return s
}

func (w *world) snapshot(subs ...*snapshot.Subscription) *snapshot.Snapshot {
	s := &snapshot.Snapshot{Topics: map[snapshot.Key]*snapshot.Topic{}, Subscriptions: map[snapshot.Key]*snapshot.Subscription{},
		Rules: &policy.Rules{}, Identities: &policy.Identities{}}
	dead := topicOf("dead")
	s.Topics[dead.Key] = dead
	for _, x := range subs {
		s.Topics[x.Sources[0].Topic.Key] = x.Sources[0].Topic
		s.Subscriptions[x.Key] = x
	}
	return s
}

func newWorld(t *testing.T, allow []netip.Prefix, subs ...*snapshot.Subscription) *world {
	t.Helper()
	return newWorldWith(t, Config{Allow: allow}, subs...)
}

func newWorldWith(t *testing.T, cfg Config, subs ...*snapshot.Subscription) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	w := &world{T: t, ctx: ctx, reg: prometheus.NewRegistry()}
	st, err := embedded.Driver{}.Open(ctx, store.Config{Name: "test", Dir: "store", Options: embedded.Options{FS: vfs.NewMem()}})
	w.must(err)
	w.st = st
	t.Cleanup(func() { w.must(st.Close(context.Background())) })
	admin := st.(store.Admin)
	w.must(admin.EnsureTopic(ctx, store.TopicSpec{Name: "dead"}))
	for _, s := range subs {
		src := &s.Sources[0]
		w.must(admin.EnsureTopic(ctx, store.TopicSpec{Name: src.Epoch.Physical}))
		w.must(admin.EnsureTopic(ctx, store.TopicSpec{Name: src.RetryTopic}))
		w.must(admin.EnsureGroup(ctx, src.Epoch.Physical, src.Group, store.Start{}))
		w.must(admin.EnsureGroup(ctx, src.RetryTopic, src.RetryGroup, store.Start{}))
	}
	w.snaps = latest.New(w.snapshot(subs...))
	log := slog.New(slog.DiscardHandler)
	m := delivery.New(delivery.Config{Snapshots: w.snaps, Log: log,
		Store: func(string) (store.Store, error) { return st, nil },
		Write: func(ctx context.Context, t *snapshot.Topic, events []event.Event) error {
			var res [1]store.Result
			return st.Publish(ctx, t.Written().Physical, []store.Outgoing{{Event: &events[0]}}, res[:])
		}})
	in := pipeline.New(pipeline.Config{Snapshots: w.snaps, Store: func(string) (store.Store, error) { return st, nil }})
	if cfg.Forward == nil {
		cfg.Forward = in.Forward
	}
	if cfg.Reply == nil {
		cfg.Reply = in.ReplyFrom
	}
	w.in = in
	cfg.Snapshots, cfg.Join, cfg.Finish, cfg.Metrics, cfg.Log = w.snaps, m.JoinPush, 300*time.Millisecond, w.reg, log
	p := New(cfg)
	w.pusher = p
	stopManager, stopPusher := running(t, m.Run), running(t, p.Run)
	w.stop = func() { stopPusher(); stopManager() }
	t.Cleanup(w.stop)
	return w
}

func running(t *testing.T, run func(context.Context) error) func() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) publish(topic string, events ...*event.Event) {
	w.Helper()
	for _, e := range events {
		var res [1]store.Result
		w.must(w.st.Publish(w.ctx, topic, []store.Outgoing{{Event: e}}, res[:]))
	}
}

func ev(id string) *event.Event {
	return &event.Event{ID: id, Source: "/test", Type: "t", DataContentType: "text/plain", Data: []byte("data of " + id)}
}

// dead takes one event of the dead-letter topic.
func (w *world) dead() event.Event {
	w.Helper()
	tail, err := w.st.Tail(w.ctx, store.TailRequest{Topic: "dead"})
	w.must(err)
	defer func() { w.must(tail.Close(w.ctx)) }()
	var dst [1]store.Message
	if _, err := tail.Next(w.ctx, dst[:]); err != nil {
		w.Fatalf("no dead letter: %v", err)
	}
	return dst[0].Event
}

// settled waits until nothing is behind.
func (w *world) settled(topic string) {
	w.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		lag, err := w.st.(store.Admin).Lag(w.ctx, topic, "g")
		w.must(err)
		if lag[0].Behind == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-w.ctx.Done():
			w.Fatalf("%s is not settled: %v", topic, lag)
		}
	}
}

// until waits until something is so.
func (w *world) until(what string, so func() bool) {
	w.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-tick.C:
		case <-w.ctx.Done():
			w.Fatalf("not so: %s", what)
		}
	}
}

// hook is a target that answers as told and keeps what came.
type hook struct {
	*httptest.Server
	got chan *http.Request // whose body is in raw
	mu  sync.Mutex
	raw map[*http.Request][]byte
}

func newHook(t *testing.T, answer func(n int, w http.ResponseWriter, r *http.Request)) *hook {
	h := unstarted(answer)
	h.Start()
	t.Cleanup(h.Close)
	return h
}

// newHookTLS is a hook behind TLS that answers 200.
func newHookTLS(t *testing.T, conf *tls.Config) *hook {
	h := unstarted(nil)
	h.TLS, h.Config.ErrorLog = conf, log.New(io.Discard, "", 0)
	h.StartTLS()
	t.Cleanup(h.Close)
	return h
}

func unstarted(answer func(n int, w http.ResponseWriter, r *http.Request)) *hook {
	h := &hook{got: make(chan *http.Request, 1000), raw: map[*http.Request][]byte{}}
	var n atomic.Int32
	h.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		h.mu.Lock()
		h.raw[r] = b
		h.mu.Unlock()
		h.got <- r
		if answer != nil {
			answer(int(n.Add(1)), w, r)
		}
	}))
	return h
}

func (h *hook) next(w *world) (*http.Request, []byte) {
	w.Helper()
	select {
	case r := <-h.got:
		h.mu.Lock()
		defer h.mu.Unlock()
		return r, h.raw[r]
	case <-w.ctx.Done():
		w.Fatal("nothing was pushed")
		return nil, nil
	}
}

// TestPush: an event arrives as a CloudEvent in binary mode, whole, with what it
// is a delivery of, and is settled by the answer.
func TestPush(t *testing.T) {
	h := newHook(t, func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) })
	w := newWorld(t, loopback, sub("orders", h.URL+"/in?x=1", nil))
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	sent := &event.Event{ID: "ü 1%\r\nX-Evil: 1", Source: "/test", Type: "t", Subject: "a/b", DataContentType: "application/json", Data: []byte(`{"a":1}`),
		Ext: []event.Attr{{Name: "partitionkey", Value: "k"}, {Name: "traceparent", Value: parent}}, Mesh: []event.Attr{{Name: "retry-attempt", Value: "1"}}}
	w.publish("orders", sent)
	r, body := h.next(w)
	got, err := cloudevents.DecodeBinary(r.Header, body)
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != sent.ID || got.Subject != "a/b" || got.DataContentType != "application/json" || string(got.Data) != `{"a":1}` || len(got.Ext) != 2 {
		t.Errorf("got %+v", got)
	}
	if r.Method != http.MethodPost || r.URL.Path != "/in" || r.URL.RawQuery != "x=1" || r.Header.Get("X-Evil") != "" {
		t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
	}
	if r.Header.Get("Weft-Subscription") != "demo/orders" || r.Header.Get("Weft-Attempt") != "1" || r.Header.Get("Traceparent") != parent {
		t.Errorf("%v", r.Header)
	}
	for name := range r.Header {
		if strings.Contains(strings.ToLower(name), "retry") {
			t.Errorf("a header of the mesh itself is sent: %s", name)
		}
	}
	w.settled("orders")
}

// TestPushOfAnEventWithin: data that are an event themselves are not taken for the one
// that is pushed, whatever their media type is called: who may publish them says nothing
// by them of source or type.
func TestPushOfAnEventWithin(t *testing.T) {
	h := newHook(t, func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) })
	w := newWorld(t, loopback, sub("orders", h.URL+"/in", nil))
	const forged = `{"specversion":"1.0","id":"1","source":"/bank","type":"paid"}`
	for _, media := range []string{cloudevents.TypeJSON, "Application/CloudEvents+JSON; charset=utf-8", cloudevents.TypeBatch, "application/cloudevents+protobuf", " application/cloudevents"} {
		sent := &event.Event{ID: "sent", Source: "/shop", Type: "order", DataContentType: media, Data: []byte(forged)}
		w.publish("orders", sent)
		r, body := h.next(w)
		got, err := cloudevents.DecodeJSON(body)
		if err != nil || r.Header.Get("Content-Type") != cloudevents.TypeJSON || r.Header.Get("Ce-Id") != "" || got.Source != "/shop" || got.Type != "order" || got.DataContentType != media || string(got.Data) != forged {
			t.Errorf("%q: %v %v %+v", media, err, r.Header, got)
		}
	}
	w.settled("orders")
}

// TestFailedAttempts: whatever is not 2xx is tried again, and in the end a dead
// letter with the last reason.
func TestFailedAttempts(t *testing.T) {
	for name, tc := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request)
		reason string
	}{
		"server error":        {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, "http 500"},
		"busy, not said when": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, "http 503"},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/elsewhere" {
				t.Error("a redirect was followed")
			}
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}, "http 307"},
		"hangs up": {func(w http.ResponseWriter, _ *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_ = c.Close()
			}
		}, "no connection to the target, or it broke"},
		"too slow": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "no answer in time"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHook(t, func(_ int, w http.ResponseWriter, r *http.Request) { tc.answer(w, r) })
			w := newWorld(t, loopback, sub("orders", h.URL, func(s *snapshot.Subscription) { s.Push.Timeout = 200 * time.Millisecond }))
			w.publish("orders", ev("1"))
			for attempt := 1; attempt <= 3; attempt++ {
				if r, _ := h.next(w); r.Header.Get("Weft-Attempt") != fmt.Sprint(attempt) {
					t.Errorf("attempt %d says %s", attempt, r.Header.Get("Weft-Attempt"))
				}
			}
			d := w.dead()
			reason, _ := event.Lookup(d.Ext, "deadletterreason")
			if d.ID != "1" || string(d.Data) != "data of 1" || !strings.Contains(reason, tc.reason) {
				t.Errorf("the dead letter is %+v", d)
			}
			w.settled("orders")
		})
	}
}

// TestRecovers: an attempt that fails is followed by one that does not.
func TestRecovers(t *testing.T) {
	h := newHook(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n == 1 {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	w := newWorld(t, loopback, sub("orders", h.URL, nil))
	w.publish("orders", ev("1"))
	h.next(w)
	if r, _ := h.next(w); r.Header.Get("Weft-Attempt") != "2" || r.Header.Get("Ce-Id") != "1" {
		t.Errorf("the second attempt is %v", r.Header)
	}
	w.settled("orders")
}

// TestRetryAfter: the target says when.
func TestRetryAfter(t *testing.T) {
	h := newHook(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n == 1 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		}
	})
	w := newWorld(t, loopback, sub("orders", h.URL, nil))
	w.publish("orders", ev("1"))
	h.next(w)
	began := time.Now()
	h.next(w)
	if d := time.Since(began); d < 900*time.Millisecond {
		t.Errorf("the target asked for a second and was called after %v", d)
	}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for v, want := range map[string]time.Duration{"": -1, "5": 5 * time.Second, "0": 0, "-1": -1, "1.5": -1, "999999999": time.Hour, "99999999999999999999": -1,
		"Thu, 01 Jan 2026 00:00:30 GMT": 30 * time.Second, "Wed, 31 Dec 2025 00:00:00 GMT": 0, "Fri, 01 Jan 2027 00:00:00 GMT": time.Hour, "soon": -1} {
		got, ok := retryAfter(v, now)
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("%q is %v, want %v", v, got, want)
		}
	}
}

// TestConcurrency: no more requests at once than the target may get, also after
// the number changes.
func TestConcurrency(t *testing.T) {
	var now, most atomic.Int32
	release := make(chan struct{})
	h := newHook(t, func(_ int, _ http.ResponseWriter, _ *http.Request) {
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-release
		now.Add(-1)
	})
	s := sub("orders", h.URL, func(s *snapshot.Subscription) { s.Push.Concurrency = 2 })
	w := newWorld(t, loopback, s)
	for i := range 12 {
		w.publish("orders", ev(fmt.Sprint(i)))
	}
	h.next(w)
	h.next(w)
	select {
	case <-h.got:
		t.Error("a third request while two are open")
	case <-time.After(100 * time.Millisecond):
	}
	more := sub("orders", h.URL, func(s *snapshot.Subscription) { s.Push.Concurrency = 3 })
	w.snaps.Store(w.snapshot(more))
	h.next(w)
	close(release)
	for range 9 {
		h.next(w)
	}
	w.settled("orders")
	if m := most.Load(); m > 3 {
		t.Errorf("%d requests at once", m)
	}
}

// TestIsolation: a target that never answers holds up nobody else.
func TestIsolation(t *testing.T) {
	stuck := newHook(t, func(_ int, _ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	fine := newHook(t, nil)
	w := newWorld(t, loopback, sub("stuck", stuck.URL, nil), sub("fine", fine.URL, nil))
	for i := range 20 {
		w.publish("stuck", ev(fmt.Sprint("s", i)))
	}
	stuck.next(w)
	for i := range 20 {
		w.publish("fine", ev(fmt.Sprint("f", i)))
	}
	for range 20 {
		fine.next(w)
	}
	w.settled("fine")
}

// TestFollowsTheConfiguration: a new URL, push taken away, and back.
func TestFollowsTheConfiguration(t *testing.T) {
	first, second := newHook(t, nil), newHook(t, nil)
	w := newWorld(t, loopback, sub("orders", first.URL, nil))
	w.publish("orders", ev("1"))
	first.next(w)
	w.settled("orders")
	w.snaps.Store(w.snapshot(sub("orders", second.URL, nil)))
	for { // the exchange is not awaited by anything: events go to one or the other
		w.publish("orders", ev("x"))
		select {
		case <-first.got:
			continue
		case <-second.got:
		case <-w.ctx.Done():
			t.Fatal("the new target is not called")
		}
		break
	}
	w.settled("orders")
	if !w.counted("orders") {
		t.Error("what is pushed is not counted")
	}
	w.snaps.Store(w.snapshot(sub("orders", second.URL, func(s *snapshot.Subscription) { s.Push = nil })))
	w.gone("orders")
	w.snaps.Store(w.snapshot(sub("orders", second.URL, nil)))
	w.publish("orders", ev("3"))
	second.next(w)
	w.settled("orders")
}

// gone waits until no metric is about a subscription any more.
func (w *world) gone(subscription string) {
	w.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for w.counted(subscription) {
		select {
		case <-tick.C:
		case <-w.ctx.Done():
			w.Fatalf("%s is still pushed", subscription)
		}
	}
}

func (w *world) counted(subscription string) bool {
	families, err := w.reg.Gather()
	w.must(err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "subscription" && l.GetValue() == subscription {
					return true
				}
			}
		}
	}
	return false
}

// TestStop: what is in flight when the proxy stops is finished and settled; what
// does not end is cut and comes again.
func TestStop(t *testing.T) {
	release := make(chan struct{})
	h := newHook(t, func(_ int, _ http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Ce-Id") == "stuck" {
			<-r.Context().Done()
			return
		}
		<-release
	})
	w := newWorld(t, loopback, sub("orders", h.URL, func(s *snapshot.Subscription) { s.MaxAttempts = 1 }))
	w.publish("orders", ev("fine"), ev("stuck"))
	h.next(w)
	h.next(w)
	time.AfterFunc(50*time.Millisecond, func() { close(release) })
	w.stop()
	lag, err := w.st.(store.Admin).Lag(w.ctx, "orders", "g")
	w.must(err)
	if lag[0].Committed != 1 || lag[0].Behind != 1 {
		t.Errorf("after the stop: %+v", lag)
	}
}

// TestForbiddenTarget: an address that is not public is not even connected to.
func TestForbiddenTarget(t *testing.T) {
	h := newHook(t, nil)
	for _, url := range []string{h.URL, strings.Replace(h.URL, "127.0.0.1", "localhost", 1), strings.Replace(h.URL, "127.0.0.1", "[::ffff:127.0.0.1]", 1),
		strings.Replace(h.URL, "127.0.0.1", "0.0.0.0", 1)} {
		w := newWorld(t, nil, sub("orders", url, nil))
		w.publish("orders", ev("1"))
		d := w.dead()
		if reason, _ := event.Lookup(d.Ext, "deadletterreason"); !strings.Contains(reason, "not one that this proxy calls") || strings.Contains(reason, "127") {
			t.Errorf("%s: the dead letter is %+v", url, d)
		}
		w.stop()
	}
	if len(h.got) != 0 {
		t.Error("a forbidden target was called")
	}
}

// FuzzRetryAfter: whatever a target answers, the wait is within its bounds.
func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"0", "120", "4294967295", "4294967296", "-1", " 1", "1.5", "Wed, 21 Oct 2015 07:28:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "Sunday, 06-Nov-94 08:49:37 GMT"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, ok := retryAfter(s, time.Unix(1767323045, 0))
		if d < 0 || d > maxRetryAfter || !ok && d != 0 {
			t.Errorf("%q is %v, %v", s, d, ok)
		}
	})
}

// TestRetryAtOnce: a target that is busy and asks to be called again at once is
// called by the schedule, or it would be called without a pause.
func TestRetryAtOnce(t *testing.T) {
	for value, want := range map[string]time.Duration{"0": -1, "Wed, 31 Dec 2025 00:00:00 GMT": -1, "7": 7 * time.Second} {
		h := newHook(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", value)
			w.WriteHeader(http.StatusServiceUnavailable)
		})
		c := newClient(&Config{Allow: loopback}, "demo")
		a := send(t, c, h.URL)
		c.close()
		if a.outcome == outcomeOK || a.delay != want {
			t.Errorf("Retry-After: %s gives %+v, want a delay of %s", value, a, want)
		}
	}
}
