package config

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/resource"
)

// demanding is a client that does not run, on demand.
func demanding(d Demand) *Client {
	return New(Config{Info: &discoveryv1.NodeInfo{Namespaces: []string{"demo"}}, Demand: &d, Log: slog.New(slog.DiscardHandler)})
}

func topicName(name string) Name { return Name{resource.Topic, "demo", name} }

// said marks names as known.
func (c *Client) said(absent bool, list ...string) {
	c.demand.mu.Lock()
	defer c.demand.mu.Unlock()
	for _, name := range list {
		u := c.demand.uses[topicName(name)]
		u.absent = absent
		u.end(nil)
	}
	c.demand.settled()
}

func (c *Client) used() string {
	var out []string
	for _, n := range c.demand.list() {
		out = append(out, n.Name)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func reasonOf(err error) string {
	if err == nil {
		return ""
	}
	return fault.From(err).Class.String() + " " + fault.From(err).Reason
}

// TestHeldCalls: a call waits for a name until it is known, for a bounded time, and no
// more of them than are allowed; without a control plane it does not wait when that has
// been gone for as long. Names of other namespaces are nobody's to ask for.
func TestHeldCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := demanding(Demand{Wait: 5 * time.Second, MaxWaiting: 2})
		c.follows()
		var wg sync.WaitGroup
		use := func(name, want string, after time.Duration) {
			wg.Go(func() {
				began := time.Now()
				if got := reasonOf(c.Use(t.Context(), topicName(name), false)); got != want || time.Since(began) != after {
					t.Errorf("%s: %q after %v, want %q after %v", name, got, time.Since(began), want, after)
				}
			})
			synctest.Wait()
		}
		use("a", "", time.Second)
		use("slow", "unavailable configuration-pending", 5*time.Second)
		use("c", "unavailable too-many-waiting", 0)
		<-time.After(time.Second)
		c.said(false, "a")
		synctest.Wait()
		use("a", "", 0)
		use("c", "unavailable configuration-pending", 5*time.Second)
		wg.Wait()
		if err := c.Use(t.Context(), Name{resource.Topic, "other", "x"}, false); err != nil {
			t.Errorf("of a namespace that is not served: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := c.Use(ctx, topicName("d"), false); err == nil {
			t.Error("a call that has ended waits")
		}
		c.said(true, "d", "c", "slow")

		// The control plane is lost: first calls wait for it to come back.
		c.lose()
		use("e", "unavailable control-plane-unreachable", 5*time.Second)
		wg.Wait()
		<-time.After(time.Second)
		use("e", "unavailable control-plane-unreachable", 0)
		use("a", "", 0)
		use("d", "", 0) // what is remembered as absent stays so
		if got := c.used(); got != "a c d slow" {
			t.Errorf("%q are used: what nobody can be asked for takes places", got)
		}
		wg.Wait()
	})
}

// TestInForceAndDropped: a call for what is in force, and was not in use, waits until it
// is known to be followed: it may be dropped just now. What is known does not wait, nor
// does anybody longer than calls do, or without a control plane, which drops nothing.
func TestInForceAndDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := demanding(Demand{Wait: 5 * time.Second, MaxWaiting: 1})
		takes := func(what, name string, want time.Duration) {
			t.Helper()
			began := time.Now()
			if err := c.Use(t.Context(), topicName(name), true); err != nil || time.Since(began) != want {
				t.Errorf("%s: %v after %v, want %v", what, err, time.Since(began), want)
			}
		}
		takes("without a control plane", "a", 0)
		c.follows()
		time.AfterFunc(time.Second, func() { c.said(false, "a") })
		takes("perhaps dropped", "a", time.Second)
		takes("known", "a", 0)
		go takes("never told", "b", 5*time.Second)
		synctest.Wait()
		takes("too many wait", "c", 0)
		synctest.Wait()
		<-time.After(10 * time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := c.Use(ctx, topicName("d"), true); err == nil {
			t.Error("a call that has ended goes on")
		}
	})
}

// TestUnreachableTakesNoPlace: without a control plane a name that nobody can be asked
// for takes no place from one that is in use.
func TestUnreachableTakesNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := demanding(Demand{Wait: 5 * time.Second, Max: 1})
		c.follows()
		time.AfterFunc(time.Second, func() { c.said(false, "a") })
		if err := c.Use(t.Context(), topicName("a"), false); err != nil {
			t.Fatal(err)
		}
		c.lose()
		<-time.After(6 * time.Second)
		if got := reasonOf(c.Use(t.Context(), topicName("b"), false)); got != "unavailable control-plane-unreachable" {
			t.Error(got)
		}
		if got := c.used(); got != "a" {
			t.Errorf("%q are used", got)
		}
	})
}

// TestNamesBounded: with more names in use than allowed the ones go that are not there,
// then the one that was not used for longest, never one that is open, preloaded or
// awaited; and what nobody has used for long goes by itself.
func TestNamesBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := demanding(Demand{Preload: []Name{topicName("pre")}, Max: 4, Idle: time.Hour})
		c.follows()
		use := func(name string) error {
			<-time.After(time.Second)
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // it only begins to wait
			err := c.Use(ctx, topicName(name), false)
			if fault.From(err).Reason == "too-many-names" {
				return err
			}
			return nil
		}
		select {
		case <-c.Preloaded():
			t.Error("preloaded before anything was heard")
		default:
		}
		for _, name := range []string{"open", "old", "none"} {
			if err := use(name); err != nil {
				t.Error(err)
			}
		}
		if err := use("more"); err == nil {
			t.Error("all are awaited, and there is room for one more")
		}
		release := c.Pin(topicName("open"))
		c.said(false, "pre", "open", "old")
		<-c.Preloaded()
		c.said(true, "none")
		time.AfterFunc(time.Second, func() { _ = c.Use(t.Context(), topicName("old"), true) })
		<-time.After(2 * time.Second)
		for _, step := range []struct{ name, used string }{{"new", "new old open pre"}, {"newer", "newer old open pre"}, {"newest", "newer newest open pre"}} {
			if err := use(step.name); err != nil || c.used() != step.used {
				t.Errorf("%s: %v, used %q, want %q", step.name, err, c.used(), step.used)
			}
			c.said(step.name == "new", step.name)
		}
		<-time.After(2 * time.Hour)
		c.demand.expire()
		if got := c.used(); got != "open pre" {
			t.Errorf("after two hours %q are used", got)
		}
		// Whoever waits for names that are not there keeps none from others.
		c.Pin(topicName("gone"))
		<-time.After(time.Second)
		c.Pin(topicName("never"))
		c.said(true, "gone", "never")
		if err := use("now"); err != nil || c.used() != "never now open pre" {
			t.Errorf("beside names that are not there: %v, used %q", err, c.used())
		}
		c.said(false, "now")
		<-time.After(2 * time.Hour)
		c.demand.expire()
		release()
		c.demand.expire()
		if got := c.used(); got != "never open pre" {
			t.Errorf("just released, and %q are used", got)
		}
		<-time.After(2 * time.Hour)
		c.demand.expire()
		if got := c.used(); got != "never pre" {
			t.Errorf("after two hours more %q are used", got)
		}
	})
}

// TestNeedsBounded: what is used needs more resources than a subscription may have; the
// names used last have them, and those who wait for others hear why not.
func TestNeedsBounded(t *testing.T) {
	c := demanding(Demand{Max: maxNames})
	c.follows()
	for i := range maxNames/3 + 1 {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_ = c.Use(ctx, topicName("t"+strconv.Itoa(i)), false)
	}
	before := len(c.demand.uses)
	last := c.demand.list()[before-1]
	u := c.demand.uses[last]
	if got := c.wanted(); len(got) > maxNames || before <= maxNames/3 || u.err == nil || !u.done {
		t.Errorf("%d names used, %d asked for; the last one hears %v", before, len(got), u.err)
	}
}

// TestNeedsOfAMove: a topic that moves, and a Subscription that reads it, is served with
// the stores of all its epochs.
func TestNeedsOfAMove(t *testing.T) {
	c := demanding(Demand{})
	binding := &configv1.Resource{Spec: &configv1.Resource_TopicBinding{TopicBinding: &configv1.TopicBinding{
		Epochs: []*configv1.Epoch{{Number: 2, Store: "old"}, {Number: 3, Store: "new"}}}}}
	admission := &configv1.Resource{Spec: &configv1.Resource_SubscriptionAdmission{SubscriptionAdmission: &configv1.SubscriptionAdmission{
		Sources: []*configv1.SubscriptionSource{{Topic: "orders", Epoch: 2}, {Topic: "orders", Epoch: 3}}}}}
	c.mem.resources = map[string]*kept{"topicbinding/demo/orders": {good: snapshot.Versioned{Resource: binding}}, "subscriptionadmission/demo/late": {good: snapshot.Versioned{Resource: admission}}}
	for _, n := range []Name{topicName("orders"), {resource.Subscription, "demo", "late"}} {
		needs := c.mem.needs(n, nil)
		if !needs["eventstore/demo/old"] || !needs["eventstore/demo/new"] {
			t.Errorf("%s is served with %v", n, needs)
		}
	}
}

// manifestOf is a manifest that says of which names it is.
func manifestOf(m *discoveryv3.Resource, names ...string) *discoveryv3.Resource {
	r := &configv1.Resource{}
	if err := proto.Unmarshal(m.Resource.Value, r); err != nil {
		panic(err)
	}
	var sum resource.Digest
	for _, n := range names {
		sum = sum.Add(resource.DigestOf(n, "", nil))
	}
	if len(names) > 0 {
		r.GetManifest().Names = sum.Bytes()
	}
	return wire(r, m.Version)
}

// subscribes waits for a request that changes the subscription.
func (s *serverStream) subscribes() (add, drop []string) {
	s.t.Helper()
	for {
		req, err := s.rpc.Recv()
		if err != nil {
			s.t.Fatal(err)
		}
		if len(req.ResourceNamesSubscribe)+len(req.ResourceNamesUnsubscribe) > 0 {
			return req.ResourceNamesSubscribe, req.ResourceNamesUnsubscribe
		}
	}
}

// TestNamesOfBefore: a manifest that was made before the names were changed is not
// compared with what is here, and what it brings of other names is not taken; one of the
// names of now is compared. A stream that resumes asks for what the token is of.
func TestNamesOfBefore(t *testing.T) {
	s := startDelta(t, "127.0.0.1:0")
	f := &follower{t: t, states: latest.New(State{}), reg: prometheus.NewRegistry()}
	f.Client = New(Config{Addresses: []string{s.addr}, NodeID: "n1", Info: &discoveryv1.NodeInfo{Manifest: true, Namespaces: []string{"demo"}}, Dir: filepath.Join(t.TempDir(), "config"),
		Demand: &Demand{Wait: testPatience}, Metrics: f.reg, Log: slog.New(slog.DiscardHandler), Check: tasteful, Apply: func(_ context.Context, s State) { f.states.Store(s) }})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })

	st := s.accept(t)
	if got := st.first.ResourceNamesSubscribe; !slices.Equal(got, []string{"governing/demo/*"}) {
		t.Errorf("it asks for %v", got)
	}
	st.send([]*discoveryv3.Resource{closing("1-x", 5, true, nil)})
	used := make(chan error, 1)
	go func() { used <- f.Use(t.Context(), topicName("none"), false) }()
	add, _ := st.subscribes()
	want := []string{"topic/demo/none", "topicadmission/demo/none", "topicbinding/demo/none"}
	if !slices.Equal(add, want) {
		t.Errorf("it asks for %v", add)
	}
	// Of before: with a store that is not its, and digests of that.
	a := wire(storeRes("a", "1", testUID), "6")
	st.send([]*discoveryv3.Resource{a, manifestOf(closing("1-x", 6, false, map[string]string{nameA: "6"}), nameA)})
	if s := f.states.Get(); len(s.Set) != 0 || f.metric("weft_proxy_config_drift_total") != 0 {
		t.Errorf("it took %v", s.Set)
	}
	st.send([]*discoveryv3.Resource{manifestOf(closing("1-x", 6, false, nil), want...)}, want...)
	if err := <-used; err != nil {
		t.Error(err)
	}
	// Of before, once more, when all that is asked for was answered.
	st.send([]*discoveryv3.Resource{manifestOf(closing("1-x", 6, false, map[string]string{nameA: "6"}), nameA)})
	if f.metric("weft_proxy_config_drift_total") != 0 {
		t.Error("what is here was compared with a manifest of other names")
	}
	// Of now, and something is missing.
	st.refused([]*discoveryv3.Resource{manifestOf(closing("1-x", 7, false, map[string]string{nameA: "6"}), want...)})
	if f.metric("weft_proxy_config_drift_total") != 1 {
		t.Error("drift was not noticed")
	}
	st = s.accept(t)
	if got := st.first.ResourceNamesSubscribe; st.token != nil || !slices.Equal(got, slices.Concat([]string{"governing/demo/*"}, want)) {
		t.Errorf("from nothing it asks for %v, with %v", got, st.token)
	}
	st.send([]*discoveryv3.Resource{manifestOf(closing("1-x", 8, true, nil), want...)})
	st.end <- nil
	st = s.accept(t)
	var sum resource.Digest
	for _, n := range want {
		sum = sum.Add(resource.DigestOf(n, "", nil))
	}
	if got := st.first.ResourceNamesSubscribe; st.token == nil || string(st.token.Names) != string(sum.Bytes()) || !slices.Equal(got, slices.Concat([]string{"governing/demo/*"}, want)) {
		t.Errorf("it resumes with %v, by %v", got, st.token)
	}
	st.end <- nil
}

// TestAbsentChangesNothing: to hear that a name is not there puts nothing in force anew,
// and writes nothing to disk: clients may ask for any number of them.
func TestAbsentChangesNothing(t *testing.T) {
	s := startDelta(t, "127.0.0.1:0")
	f := &follower{t: t, reg: prometheus.NewRegistry()}
	var applied atomic.Int64
	dir := filepath.Join(t.TempDir(), "config")
	f.Client = New(Config{Addresses: []string{s.addr}, NodeID: "n1", Info: &discoveryv1.NodeInfo{Manifest: true, Namespaces: []string{"demo"}}, Dir: dir,
		Demand: &Demand{Wait: testPatience}, Metrics: f.reg, Log: slog.New(slog.DiscardHandler), Check: tasteful, Apply: func(context.Context, State) { applied.Add(1) }})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	st := s.accept(t)
	st.send([]*discoveryv3.Resource{closing("1-x", 5, true, nil)})
	kept := func() string {
		t.Helper()
		list, err := disk{dir}.list()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(list, " ")
	}
	before := ""
	var asked []string
	for n := range 3 {
		used := make(chan error, 1)
		go func() { used <- f.Use(t.Context(), topicName("none"+strconv.Itoa(n)), false) }()
		add, _ := st.subscribes()
		asked = append(asked, add...)
		if n == 0 {
			before = kept() // of the first delta, which was taken before it asked
		}
		st.send([]*discoveryv3.Resource{manifestOf(closing("1-x", 5, false, nil), asked...)}, add...)
		if err := <-used; err != nil {
			t.Fatal(err)
		}
	}
	if now := kept(); applied.Load() != 1 || now != before || before == "" {
		t.Errorf("%d were put in force; on disk is %s, and was %s", applied.Load(), now, before)
	}
	if f.metric("weft_proxy_config_drift_total") != 0 {
		t.Error("it has drifted")
	}
	st.end <- nil
}

// TestAge: the age grows while no control plane is followed, is nothing while one is,
// goes on over a restart by what was written down, and does not follow a clock that is
// set meanwhile.
func TestAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		jump := time.Duration(0)
		clock := func() time.Time { return time.Now().Add(jump) }
		a := newAge(dir, clock)
		is := func(what string, want time.Duration) {
			t.Helper()
			if got := a.Age().Round(time.Second); got != want {
				t.Errorf("%s: %v, want %v", what, got, want)
			}
		}
		<-time.After(time.Minute)
		is("before any", time.Minute)
		a.follows()
		<-time.After(time.Hour)
		is("followed", 0)
		a.lose()
		a.lose()
		jump = 48 * time.Hour
		<-time.After(10 * time.Minute)
		is("lost, and the clock was set", 10*time.Minute)
		jump = 0
		a = newAge(dir, clock)
		a.since(time.Now().Add(-100 * time.Hour))
		<-time.After(time.Minute)
		is("after a restart", 11*time.Minute)
		a = newAge(t.TempDir(), clock)
		a.since(time.Now().Add(-100 * time.Hour))
		is("nothing but the configuration was kept", 100*time.Hour)
		a.follows()
		a.lose()
		is("lost again", 0)
	})
}
