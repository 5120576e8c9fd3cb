package push

import (
	"context"
	"errors"
	"io"
	"iter"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	dto "github.com/prometheus/client_model/go"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
)

// registry gives sets of endpoints, and errors, as it is told.
type registry struct {
	looks chan look
	asked chan string
}

type look struct {
	set []Endpoint
	err error
}

func newRegistry() *registry { return &registry{make(chan look), make(chan string, 10)} }

func (r *registry) Endpoints(ctx context.Context, group, name string, clusters []string) iter.Seq2[[]Endpoint, error] {
	return func(yield func([]Endpoint, error) bool) {
		r.asked <- group + "/" + name + "/" + strings.Join(clusters, ",")
		for {
			select {
			case l := <-r.looks:
				if !yield(l.set, l.err) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

// tell gives a look, and waits until it was taken.
func (r *registry) tell(set []Endpoint, err error) {
	r.looks <- look{set, err}
	r.looks <- look{set, err}
}

func toService(path string) func(*snapshot.Subscription) {
	return func(s *snapshot.Subscription) {
		s.Push.URL = ""
		s.Push.Service = &snapshot.Service{Group: "G", Name: "billing", Clusters: []string{"a", "b"}, Scheme: "http", Path: path}
		s.MaxAttempts = 1000
	}
}

// instanceOf is an instance of a service, and counts what it is asked.
func instanceOf(t *testing.T) (*httptest.Server, Endpoint, *atomic.Int64) {
	t.Helper()
	n := &atomic.Int64{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RequestURI() != "/in?x=1" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		n.Add(1)
	}))
	t.Cleanup(s.Close)
	return s, Endpoint{strings.TrimPrefix(s.URL, "http://"), 1}, n
}

// TestService: deliveries to a service wait for its instances, are shared among them,
// follow them, pass over one that does not answer, and go on with the last known ones
// while the registry is away.
func TestService(t *testing.T) {
	found := newRegistry()
	w := newWorldWith(t, Config{Allow: loopback, Services: found}, sub("orders", "", toService("/in?x=1")))
	one, a, toOne := instanceOf(t)
	_, b, toTwo := instanceOf(t)
	if asked := <-found.asked; asked != "G/billing/a,b" {
		t.Errorf("asked for %s", asked)
	}
	found.tell(nil, nil) // nobody is there yet
	failed := func() float64 {
		var m dto.Metric
		w.must(w.pusher.metrics.requests.WithLabelValues("demo", "orders", Failed).Write(&m))
		return m.GetCounter().GetValue()
	}
	publish := func(n int) {
		for range n {
			w.publish("orders", ev(uuid.NewString()))
		}
	}
	publish(1)
	w.until("an attempt fails", func() bool { return failed() > 0 })
	found.tell([]Endpoint{a}, nil)
	w.until("it comes to the first instance", func() bool { return toOne.Load() == 1 })
	found.tell([]Endpoint{a, b}, nil)
	publish(10)
	w.until("both share the work", func() bool { return toOne.Load()+toTwo.Load() == 11 && toTwo.Load() == 5 })
	found.tell(nil, errors.New("away"))
	found.tell(nil, nil) // it is back, and has lost everything
	one.Close()
	before, failures := toTwo.Load(), failed()
	publish(10)
	w.until("the other one has all", func() bool { return toTwo.Load() == before+10 })
	if n := failed() - failures; n > 4 { // its four requests at a time
		t.Errorf("%v attempts failed: an instance that does not answer is asked again and again", n)
	}
}

// TestWithoutRegistry: a proxy that was told of none says so.
func TestWithoutRegistry(t *testing.T) {
	w := newWorld(t, loopback, sub("orders", "", func(s *snapshot.Subscription) { toService("")(s); s.MaxAttempts = 1 }))
	w.publish("orders", ev("1"))
	d := w.dead()
	if reason, _ := event.Lookup(d.Ext, "deadletterreason"); !strings.Contains(reason, "no instance of service billing is known") {
		t.Errorf("the reason is %q", reason)
	}
}

// TestBalancer: requests are shared by weight; who does not answer is passed over for
// a time that doubles, unless nobody else is there.
func TestBalancer(t *testing.T) {
	b := newBalancer(nil, &snapshot.Service{}, nil)
	now := time.Now()
	if at := b.pick(now); at != "" {
		t.Errorf("nobody is %q", at)
	}
	b.set([]Endpoint{{"a:1", 3}, {"b:1", 1}})
	shares := func(n int) map[string]int {
		got := map[string]int{}
		for range n {
			got[b.pick(now)]++
		}
		return got
	}
	if got := shares(400); got["a:1"] != 300 || got["b:1"] != 100 {
		t.Errorf("by weights of 3 and 1 they get %v", got)
	}
	for i, avoided := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 30 * time.Second, 30 * time.Second} {
		b.judge("a:1", false, now)
		now = now.Add(avoided - time.Millisecond)
		if got := shares(8); got["b:1"] != 8 {
			t.Errorf("after %d failures: %v", i+1, got)
		}
		now = now.Add(time.Millisecond)
		if got := shares(8); got["a:1"] == 0 {
			t.Errorf("after %d failures it is never asked again", i+1)
		}
	}
	b.judge("a:1", true, now)
	b.judge("a:1", false, now)
	b.judge("b:1", false, now)
	if got := shares(8); got[""] != 0 {
		t.Errorf("where all are avoided none is asked: %v", got)
	}
	b.judge("b:1", true, now)
	for range 16 { // requests that were under way together
		b.judge("b:1", false, now)
	}
	now = now.Add(time.Second)
	if got := shares(8); got["b:1"] == 0 {
		t.Errorf("what broke at once counts as failure after failure: %v", got)
	}
	b.judge("a:1", false, now)
	b.set([]Endpoint{{"a:1", 3}, {"c:1", 1}})
	if got := shares(8); got["c:1"] != 8 {
		t.Errorf("a newer set forgets who does not answer: %v", got)
	}
}

// waiting is a Member for whom there is nothing yet.
type waiting struct {
	untouched
	members *atomic.Int64
}

func (waiting) Credit(int) {}
func (w waiting) Close()   { w.members.Add(-1) }
func (waiting) Next(ctx context.Context, _ []delivery.Delivery) (int, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}

// TestServiceUnheard: as long as the registry has not said which instances a service has, its
// events wait where they are, which costs no attempt, and that is told.
func TestServiceUnheard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		found, members := newRegistry(), atomic.Int64{}
		p := New(Config{Services: found, Log: slog.New(slog.DiscardHandler), Join: func(snapshot.Key) (delivery.Member, error) {
			members.Add(1)
			return waiting{members: &members}, nil
		}})
		tg := p.newTarget(sub("orders", "", toService("/in")))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); tg.run(ctx) }()
		is := func(when string, joined int64, failing bool) {
			t.Helper()
			<-time.After(time.Minute)
			if n, f := members.Load(), p.Failing(); n != joined || (len(f) > 0) != failing || failing && !strings.Contains(f[0].Why, "has not said yet") {
				t.Errorf("%s: %d members, failing: %v", when, n, f)
			}
		}
		<-found.asked
		found.tell(nil, errors.New("away"))
		is("before the registry answers", 0, true)
		found.tell([]Endpoint{{"10.0.0.1:80", 1}}, nil)
		is("once it has", 1, false)
		tg.follow(sub("orders", "", func(s *snapshot.Subscription) { toService("/in")(s); s.Push.Service.Name = "shipping" }).Push)
		<-found.asked
		tg.deliver(t.Context(), t.Context(), untouched{}, delivery.Delivery{ID: 1, Attempt: 1, Event: ev("1")})
		is("of another service", 0, true)
		found.tell(nil, nil)
		is("that has none", 1, false)
		cancel()
		<-ended
	})
}

// settling is a Member whose deliveries may be settled, however.
type settling struct{ untouched }

func (settling) Ack(...uint64) int                         { return 0 }
func (settling) Nack(string, time.Duration, ...uint64) int { return 0 }

// TestSecretStaysWithItsTarget: what is under way while the target is changed is called as
// it was: the secret of an address over https goes to no instance over http.
func TestSecretStaysWithItsTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, n, found := t.TempDir(), make(pipes), newRegistry()
		put(t, filepath.Join(dir, "demo", "token"), "of-the-address")
		shown := make(chan string, 10)
		server := &http.Server{ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			shown <- r.Header.Get("Authorization")
		})}
		served := make(chan error, 1)
		go func() { served <- server.Serve(n) }()
		p := New(Config{Secrets: dir, Services: found, Log: slog.New(slog.DiscardHandler), dial: n.dial})
		before := sub("orders", "https://target.example", func(s *snapshot.Subscription) {
			s.Push.Origin, s.Push.Scheme, s.Push.Secret = "mesh.example", "Bearer", "token"
		})
		tg := p.newTarget(before)
		tg.consent = consent{url: before.Push.URL, origin: before.Push.Origin}
		tg.next = time.Now().Add(time.Minute)
		go tg.deliver(t.Context(), t.Context(), settling{}, delivery.Delivery{ID: 1, Attempt: 1, Event: ev("1")})
		synctest.Wait() // it waits for its turn
		tg.follow(sub("orders", "", toService("/in")).Push)
		<-found.asked
		found.tell([]Endpoint{{"10.0.0.1:80", 1}}, nil)
		<-time.After(2 * time.Minute)
		select {
		case secret := <-shown:
			t.Errorf("the instance was shown %q", secret)
		default:
		}
		tg.deliver(t.Context(), t.Context(), settling{}, delivery.Delivery{ID: 2, Attempt: 1, Event: ev("2")})
		if secret := <-shown; secret != "" {
			t.Errorf("the instance was shown %q", secret)
		}
		tg.close()
		close(n)
		_ = server.Close()
		<-served
	})
}

// TestServiceInsteadOfConsent: a target that is asked for its consent may become a service
// that the registry has not told of: its events wait, too.
func TestServiceInsteadOfConsent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		found, members := newRegistry(), atomic.Int64{}
		p := New(Config{Services: found, Log: slog.New(slog.DiscardHandler), dial: func(context.Context, string, string) (net.Conn, error) { return nil, syscall.ECONNREFUSED },
			Join: func(snapshot.Key) (delivery.Member, error) {
				members.Add(1)
				return waiting{members: &members}, nil
			}})
		tg := p.newTarget(sub("orders", "http://target.example", asks))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); tg.run(ctx) }()
		<-time.After(time.Hour)
		tg.follow(sub("orders", "", func(s *snapshot.Subscription) { toService("/in")(s); s.Push.Version = "2" }).Push)
		<-found.asked
		<-time.After(time.Minute)
		if f := p.Failing(); members.Load() != 0 || len(f) != 1 || !strings.Contains(f[0].Why, "has not said yet") {
			t.Errorf("%d members, failing: %v", members.Load(), f)
		}
		found.tell([]Endpoint{{"10.0.0.1:80", 1}}, nil)
		<-time.After(time.Minute)
		if members.Load() != 1 {
			t.Errorf("%d members once the instances are known", members.Load())
		}
		cancel()
		<-ended
	})
}
