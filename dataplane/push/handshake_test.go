package push

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/snapshot"
)

// asks makes a subscription ask for consent.
func asks(s *snapshot.Subscription) {
	s.Push.Origin, s.Push.Rate, s.Push.Scheme, s.Push.Secret = "mesh.example", 6000, "Bearer", ""
}

// TestHandshake: nothing is delivered before the target has consented; it is asked
// again where it has not, and where it becomes another one.
func TestHandshake(t *testing.T) {
	consenting := func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodOptions {
			w.Header().Set("WebHook-Allowed-Origin", r.Header.Get("WebHook-Request-Origin"))
			w.Header().Set("WebHook-Allowed-Rate", "*")
		}
	}
	first := newHook(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if n > 1 { // the first time it says 200, and nothing of the origin
			consenting(w, r)
		}
	})
	w := newWorld(t, loopback, sub("orders", first.URL+"/in", asks))
	w.publish("orders", ev("1"), ev("2"))
	method := func(h *hook, want string) {
		t.Helper()
		r, _ := h.next(w)
		if r.Method != want || want == http.MethodOptions && (r.Header.Get("WebHook-Request-Origin") != "mesh.example" || r.Header.Get("WebHook-Request-Rate") != "6000" || r.URL.Path != "/in" || r.Header.Get("Ce-Id") != "") {
			t.Fatalf("%s %s %v, want %s", r.Method, r.URL, r.Header, want)
		}
	}
	for _, want := range []string{http.MethodOptions, http.MethodOptions, http.MethodPost, http.MethodPost} {
		method(first, want)
	}
	w.settled("orders")
	// What does not change the target does not ask again.
	w.snaps.Store(w.snapshot(sub("orders", first.URL+"/in", func(s *snapshot.Subscription) { asks(s); s.Push.Version, s.Push.Concurrency = "2", 1 })))
	w.publish("orders", ev("3"))
	method(first, http.MethodPost)
	w.settled("orders")
	// Another target, and then another origin, do.
	second := newHook(t, func(_ int, w http.ResponseWriter, r *http.Request) { consenting(w, r) })
	w.snaps.Store(w.snapshot(sub("orders", second.URL+"/in", func(s *snapshot.Subscription) { asks(s); s.Push.Version = "3" })))
	method(second, http.MethodOptions)
	w.publish("orders", ev("4"))
	method(second, http.MethodPost)
	w.settled("orders")
	w.snaps.Store(w.snapshot(sub("orders", second.URL+"/in", func(s *snapshot.Subscription) {
		asks(s)
		s.Push.Version, s.Push.Origin = "4", "other.example"
	})))
	if r, _ := second.next(w); r.Method != http.MethodOptions || r.Header.Get("WebHook-Request-Origin") != "other.example" {
		t.Errorf("%s %v", r.Method, r.Header)
	}
	if len(first.got) > 0 {
		t.Error("the first target is called though it is none any more")
	}
}

// TestNoConsent: a target that refuses gets nothing, and shows as one that fails.
func TestNoConsent(t *testing.T) {
	h := newHook(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WebHook-Allowed-Origin", "somebody.else")
		w.Header().Set("Location", "/elsewhere")
		if r.URL.Path == "/in" {
			w.WriteHeader(http.StatusTemporaryRedirect)
		}
	})
	w := newWorld(t, loopback, sub("orders", h.URL+"/in", asks))
	w.publish("orders", ev("1"))
	w.until("the target fails", func() bool { f := w.pusher.Failing(); return len(f) == 1 && f[0].Outcome == NoConsent })
	for range len(h.got) {
		if r, _ := h.next(w); r.Method != http.MethodOptions || r.URL.Path != "/in" {
			t.Errorf("%s %s before any consent", r.Method, r.URL)
		}
	}
	w.stop()
}

// TestAllowed: what answers allow.
func TestAllowed(t *testing.T) {
	const origin = "WebHook-Allowed-Origin"
	for name, tc := range map[string]struct {
		header http.Header
		asked  uint32
		every  time.Duration
		ok     bool
	}{
		"nothing":           {http.Header{}, 0, 0, false},
		"the origin":        {http.Header{origin: {"Mesh.example"}}, 0, 0, true},
		"all":               {http.Header{origin: {"*"}}, 60, time.Second, true},
		"another":           {http.Header{origin: {"mesh.example.evil"}}, 0, 0, false},
		"two":               {http.Header{origin: {"mesh.example", "*"}}, 0, 0, false},
		"a list":            {http.Header{origin: {"other, mesh.example"}}, 0, 0, false},
		"a rate unasked":    {http.Header{origin: {"*"}, "WebHook-Allowed-Rate": {"120"}}, 0, 500 * time.Millisecond, true},
		"less":              {http.Header{origin: {"*"}, "WebHook-Allowed-Rate": {"1"}}, 60, time.Minute, true},
		"any rate":          {http.Header{origin: {"*"}, "WebHook-Allowed-Rate": {"*"}}, 60, 0, true},
		"none":              {http.Header{origin: {"*"}, "WebHook-Allowed-Rate": {"0"}}, 60, 0, false},
		"no number":         {http.Header{origin: {"*"}, "WebHook-Allowed-Rate": {"-5"}}, 60, 0, false},
		"two rates":         {http.Header{origin: {"*"}, "WebHook-Allowed-Rate": {"1", "2"}}, 60, 0, false},
		"more than a clock": {http.Header{origin: {"*"}, "WebHook-Allowed-Rate": {"18446744073709551615"}}, 60, 0, true},
	} {
		h := http.Header{}
		for k, values := range tc.header {
			for _, v := range values {
				h.Add(k, v)
			}
		}
		every, err := allowed(&snapshot.Push{Origin: "mesh.example", Rate: tc.asked}, h)
		if (err == nil) != tc.ok || every != tc.every {
			t.Errorf("%s: %s, %v", name, every, err)
		}
	}
}

// TestAllowedRate: requests come at the rate that was allowed, and what waits goes
// back where the session ends.
func TestAllowedRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		push := &snapshot.Push{URL: "u", Origin: "o", Concurrency: 64}
		tg := &target{consent: consent{url: "u", origin: "o", every: interval(120)}}
		if n := tg.consent.most(256); n != 120 {
			t.Errorf("%d deliveries wait", n)
		}
		began := time.Now()
		var all sync.WaitGroup
		for range 121 {
			all.Go(func() {
				if !tg.turn(t.Context(), push) {
					t.Error("no turn")
				}
			})
		}
		all.Wait()
		if took := time.Since(began); took != time.Minute {
			t.Errorf("121 requests at 120 a minute took %s", took)
		}
		ended := false
		tg.end = func() { ended = true }
		if tg.turn(t.Context(), &snapshot.Push{URL: "v", Origin: "o"}) || !ended {
			t.Error("a target that was not asked has a turn")
		}
	})
}

// TestTurnOfAnotherConsent: what a target allows begins when it does, not after the turns
// of what was allowed before.
func TestTurnOfAnotherConsent(t *testing.T) {
	h := newHook(t, func(_ int, w http.ResponseWriter, _ *http.Request) { w.Header().Set("WebHook-Allowed-Origin", "*") })
	p := New(Config{Allow: loopback, Log: slog.New(slog.DiscardHandler)})
	tg := p.newTarget(sub("orders", h.URL, asks))
	defer tg.client.close()
	tg.consent, tg.next = consent{url: "http://before.example", origin: "mesh.example", every: time.Minute}, time.Now().Add(time.Minute)
	if !tg.consented(t.Context()) || tg.next.After(time.Now()) {
		t.Errorf("the first turn is at %s", tg.next)
	}
}

// TestTurnGivenBack: turns that nobody took, since their session ended, are there for the
// next one: what it has waits no longer than its deliveries may be under way.
func TestTurnGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		push := &snapshot.Push{URL: "u", Origin: "o", Concurrency: 64}
		tg := &target{consent: consent{url: "u", origin: "o", every: interval(60)}}
		turns := func(ctx context.Context) (taken int64) {
			var all sync.WaitGroup
			var n atomic.Int64
			for range 60 {
				all.Go(func() {
					if tg.turn(ctx, push) {
						n.Add(1)
					}
				})
			}
			all.Wait()
			return n.Load()
		}
		for range 10 {
			session, end := context.WithTimeout(t.Context(), 1500*time.Millisecond)
			if n := turns(session); n == 0 || n > 2 {
				t.Errorf("%d turns in a second and a half, at one a second", n)
			}
			end()
		}
		began := time.Now()
		if n := turns(t.Context()); n != 60 || time.Since(began) > time.Minute {
			t.Errorf("%d turns took %s after sessions that had ended", n, time.Since(began))
		}
	})
}

// TestAskedAtItsPace: a target that does not consent is asked less and less often, whatever
// else of the configuration changes, and is called at once when it need not be asked any more.
func TestAskedAtItsPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, asked, members := make(pipes), atomic.Int64{}, atomic.Int64{}
		server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			asked.Add(1)
			w.WriteHeader(http.StatusForbidden)
		})}
		served := make(chan error, 1)
		go func() { served <- server.Serve(n) }()
		p := New(Config{Log: slog.New(slog.DiscardHandler), dial: n.dial, Join: func(snapshot.Key) (delivery.Member, error) {
			members.Add(1)
			return waiting{members: &members}, nil
		}})
		of := func(version string, change func(*snapshot.Subscription)) *snapshot.Subscription {
			return sub("orders", "http://target.example/in", func(s *snapshot.Subscription) { change(s); s.Push.Version = version })
		}
		tg := p.newTarget(of("1", asks))
		tg.follow(of("1", asks).Push)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); tg.run(ctx) }()
		for range 100 {
			<-time.After(100 * time.Millisecond)
			tg.follow(of("1", asks).Push)
		}
		if n := asked.Load(); n < 3 || n > 5 {
			t.Errorf("it was asked %d times in 10 s", n)
		}
		before := asked.Load()
		tg.follow(of("2", func(s *snapshot.Subscription) { asks(s); s.Push.Rate = 60 }).Push)
		synctest.Wait()
		if n := asked.Load() - before; n != 1 {
			t.Errorf("it was asked %d times for another rate", n)
		}
		tg.follow(of("3", func(*snapshot.Subscription) {}).Push)
		synctest.Wait()
		if members.Load() != 1 {
			t.Error("it waits for the consent of a target that is not asked any more")
		}
		cancel()
		<-ended
		close(n)
		_ = server.Close()
		<-served
	})
}

// crediting is a Member that counts its credit.
type crediting struct {
	untouched
	credit int
}

func (c *crediting) Credit(n int) { c.credit += n }

// TestNoLongerAsked: of what a target allowed nothing is left once it is not asked any more,
// and if it is to be asked after that it is.
func TestNoLongerAsked(t *testing.T) {
	p := New(Config{Log: slog.New(slog.DiscardHandler)})
	asked := sub("orders", "http://target.example", asks).Push
	tg, m, ended := p.newTarget(sub("orders", asked.URL, asks)), &crediting{}, 0
	tg.consent = consent{url: asked.URL, origin: asked.Origin, rate: asked.Rate, every: time.Minute}
	tg.member, tg.end = m, func() { ended++ }
	tg.follow(asked)
	if m.credit != 1 || ended != 0 {
		t.Fatalf("at one request a minute it has a credit of %d, ended %d", m.credit, ended)
	}
	tg.follow(sub("orders", asked.URL, nil).Push)
	if m.credit != asked.Concurrency {
		t.Errorf("its credit is %d of %d", m.credit, asked.Concurrency)
	}
	if ended == 0 {
		t.Error("what waited for its turn still does")
	}
	tg.follow(asked)
	if tg.consent.covers(asked) || m.credit != asked.Concurrency {
		t.Error("what it allowed once is not asked for")
	}
}

// elsewhere is a Member whose deliveries have gone to another proxy.
type elsewhere struct{ settling }

func (elsewhere) Extend(time.Duration, ...uint64) int { return 1 }

// TestTurnOfAnothersEvent: what has gone to another proxy while it waited for its turn is not
// sent from here: it may be that one's events of the same key have followed it.
func TestTurnOfAnothersEvent(t *testing.T) {
	calls := 0
	p := New(Config{Log: slog.New(slog.DiscardHandler), dial: func(context.Context, string, string) (net.Conn, error) {
		calls++
		return nil, syscall.ECONNREFUSED
	}})
	tg := p.newTarget(sub("orders", "http://target.example", asks))
	tg.consent = consent{url: "http://target.example", origin: "mesh.example", rate: 6000}
	for m, want := range map[delivery.Member]int{elsewhere{}: 0, settling{}: 1} {
		calls = 0
		if tg.deliver(t.Context(), t.Context(), m, delivery.Delivery{ID: 1, Attempt: 1, Event: ev("1")}); calls != want {
			t.Errorf("%T: the target is called %d times", m, calls)
		}
	}
}
