package quota

import (
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/pkg/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	perPrincipal = configv1.QuotaPer_QUOTA_PER_PRINCIPAL
	perTopic     = configv1.QuotaPer_QUOTA_PER_TOPIC
	perAll       = configv1.QuotaPer_QUOTA_PER_ALL
)

func principal(name string, groups ...string) *policy.Principal {
	return &policy.Principal{Namespace: "demo", Name: name, Groups: groups}
}

// rules compiles quotas of the namespace demo, called q0, q1 and so on.
func rules(t testing.TB, specs ...*configv1.Quota) *Rules {
	t.Helper()
	var list []Named
	for i, s := range specs {
		list = append(list, Named{Namespace: "demo", Name: fmt.Sprintf("quota/demo/q%d", i), UID: fmt.Sprint("uid", i), Spec: s})
	}
	r, refused := Compile(list)
	if len(refused) > 0 {
		t.Fatalf("refused: %v", refused)
	}
	return r
}

func eventsASecond(n uint32, per configv1.QuotaPer) *configv1.Quota {
	return &configv1.Quota{Principals: []string{"*"}, Per: per, Publish: &configv1.PublishQuota{EventsPerSecond: n}}
}

// passes publishes and ends it at once; it reports whether it passed.
func passes(t testing.TB, l *Limiter, r *Rules, who *policy.Principal, topic string, events int, size int64) bool {
	t.Helper()
	h, err := l.Publish(r.Publishing("demo", topic), who, topic, events, size)
	if err != nil && fault.ClassOf(err) != fault.Throttled {
		t.Fatalf("%v", err)
	}
	h.Release()
	return err == nil
}

// TestRate: whoever publishes as fast as it can, over whatever connections, has at
// most a tenth more than its rate in any ten seconds, and all of its rate in the
// long run; the time to try again is right.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, seconds = 50, 120
		l := New(nil, nil)
		r := rules(t, eventsASecond(rate, perPrincipal))
		start := time.Now()
		var mu sync.Mutex
		var at []time.Duration
		var wg sync.WaitGroup
		for range 8 { // connections of one principal, each with credentials of its own
			wg.Go(func() {
				who := principal("a")
				for time.Since(start) < seconds*time.Second {
					_, err := l.Publish(r.Publishing("demo", "orders"), who, "orders", 1, 100)
					mu.Lock()
					if err == nil {
						at = append(at, time.Since(start))
						mu.Unlock()
						continue
					}
					mu.Unlock()
					f := fault.From(err)
					if f.RetryAfter <= 0 || f.RetryAfter > time.Second || f.Reason != Exceeded {
						t.Errorf("refused with %+v", f)
						return
					}
					<-time.After(f.RetryAfter)
				}
			})
		}
		wg.Wait()
		if want := rate * (seconds + 1); len(at) < want-rate || len(at) > want+1 {
			t.Errorf("%d events passed in %d s, want %d", len(at), seconds, want)
		}
		for i, j := 0, 0; i < len(at); i++ {
			for at[i]-at[j] >= 10*time.Second {
				j++
			}
			if n := i - j + 1; n > rate*11 {
				t.Fatalf("%d events passed within ten seconds", n)
			}
		}
	})
}

// TestPer: whose use is counted together.
func TestPer(t *testing.T) {
	for name, tc := range map[string]struct {
		per                         configv1.QuotaPer
		sameTwice, other, elsewhere bool
	}{
		"principal": {perPrincipal, false, true, false},
		"topic":     {perTopic, false, false, true},
		"all":       {perAll, false, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, r := New(nil, nil), rules(t, eventsASecond(1, tc.per))
				if !passes(t, l, r, principal("a"), "orders", 1, 1) {
					t.Fatal("the first did not pass")
				}
				if got := passes(t, l, r, principal("a"), "orders", 1, 1); got != tc.sameTwice {
					t.Errorf("the same again: %v", got)
				}
				if got := passes(t, l, r, principal("b"), "orders", 1, 1); got != tc.other {
					t.Errorf("another principal: %v", got)
				}
				if got := passes(t, l, r, principal("a"), "audit", 1, 1); got != tc.elsewhere {
					t.Errorf("another topic: %v", got)
				}
			})
		})
	}
}

// TestSelects: who and what a Quota is for.
func TestSelects(t *testing.T) {
	other := &policy.Principal{Namespace: "other", Name: "a"}
	for name, tc := range map[string]struct {
		q     *configv1.Quota
		who   *policy.Principal
		topic string
		want  bool
	}{
		"its name":              {&configv1.Quota{Principals: []string{"a"}}, principal("a"), "orders", true},
		"another":               {&configv1.Quota{Principals: []string{"a"}}, principal("b"), "orders", false},
		"of another namespace":  {&configv1.Quota{Principals: []string{"a"}}, other, "orders", false},
		"qualified":             {&configv1.Quota{Principals: []string{"other/a"}}, other, "orders", true},
		"local":                 {&configv1.Quota{Principals: []string{"local"}}, &policy.Principal{Name: policy.Local}, "orders", true},
		"not a local of theirs": {&configv1.Quota{Principals: []string{"local"}}, principal("local"), "orders", false},
		"group":                 {&configv1.Quota{Groups: []string{"g"}}, principal("a", "demo/g"), "orders", true},
		"another's group":       {&configv1.Quota{Groups: []string{"g"}}, principal("a", "other/g"), "orders", false},
		"topic":                 {&configv1.Quota{Topics: []string{"orders"}}, principal("a"), "orders", true},
		"pattern":               {&configv1.Quota{Principals: []string{"*"}, Topics: []string{"plant.*"}}, principal("a"), "plant.x", true},
		"another topic":         {&configv1.Quota{Principals: []string{"*"}, Topics: []string{"plant.*"}}, principal("a"), "orders", false},
	} {
		tc.q.Per, tc.q.Publish = perAll, &configv1.PublishQuota{EventsPerSecond: 1}
		l, r := New(nil, nil), rules(t, tc.q)
		synctest.Test(t, func(t *testing.T) {
			_ = passes(t, l, r, tc.who, tc.topic, 1, 1)
			if got := !passes(t, l, r, tc.who, tc.topic, 1, 1); got != tc.want {
				t.Errorf("%s: %v", name, got)
			}
		})
		if len(r.Publishing("elsewhere", tc.topic)) > 0 {
			t.Errorf("%s: it is for another namespace", name)
		}
	}
}

// TestAllOrNothing: of a publish that one quota refuses no other one has taken
// anything, and what is refused is refused as a whole.
func TestAllOrNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(nil, nil)
		bytes := &configv1.Quota{Principals: []string{"*"}, Per: perAll, Publish: &configv1.PublishQuota{BytesPerSecond: 100}}
		busy := &configv1.Quota{Principals: []string{"*"}, Per: perAll, Publish: &configv1.PublishQuota{InFlight: 10}}
		r := rules(t, eventsASecond(10, perAll), busy, bytes)
		if !passes(t, l, r, principal("a"), "t", 1, 100) || passes(t, l, r, principal("a"), "t", 5, 100) {
			t.Fatal("bytes are not counted")
		}
		if !passes(t, l, r, principal("a"), "t", 9, 0) {
			t.Error("events of what was refused were counted")
		}
		if passes(t, l, r, principal("a"), "t", 1, 0) {
			t.Error("a tenth and more passed")
		}
	})
}

// TestBatch: a batch that can never pass is told so, and takes nothing.
func TestBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(nil, nil)
		r := rules(t, &configv1.Quota{Principals: []string{"*"}, Per: perAll,
			Publish: &configv1.PublishQuota{EventsPerSecond: 10, BytesPerSecond: 1000, Burst: durationpb.New(2 * time.Second), InFlight: 15}})
		for _, tc := range []struct {
			events int
			size   int64
			want   string
		}{{21, 100, "at most 20 "}, {1, 2001, "at most 2000 "}, {16, 100, "15 may be in flight"}} {
			_, err := l.Publish(r.Publishing("demo", "t"), principal("a"), "t", tc.events, tc.size)
			if f := fault.From(err); f == nil || f.Class != fault.TooLarge || f.Reason != TooMuch || !strings.Contains(f.Msg, tc.want) || !strings.Contains(f.Msg, "q0") {
				t.Errorf("%d events of %d bytes: %v", tc.events, tc.size, err)
			}
		}
		if !passes(t, l, r, principal("a"), "t", 15, 2000) || !passes(t, l, r, principal("a"), "t", 5, 0) {
			t.Error("what can pass did not")
		}
	})
}

// TestInFlight: what waits for its store counts until it is released.
func TestInFlight(t *testing.T) {
	l := New(nil, nil)
	r := rules(t, &configv1.Quota{Principals: []string{"*"}, Per: perPrincipal, Publish: &configv1.PublishQuota{InFlight: 3}})
	pub := r.Publishing("demo", "t")
	a, err := l.Publish(pub, principal("a"), "t", 2, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Publish(pub, principal("a"), "t", 2, 1); fault.From(err) == nil || fault.ClassOf(err) != fault.Throttled || fault.From(err).RetryAfter == 0 {
		t.Errorf("a fourth in flight: %v", err)
	}
	if !passes(t, l, r, principal("a"), "t", 1, 1) || !passes(t, l, r, principal("b"), "t", 3, 1) {
		t.Error("what has room did not pass")
	}
	a.Release()
	if !passes(t, l, r, principal("a"), "t", 3, 1) {
		t.Error("what was released counts")
	}
}

// TestOutlivesChanges: what was used stays used when the configuration is
// compiled again, or the Quota itself is changed; one that is created again begins
// anew.
func TestOutlivesChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(nil, nil)
		if !passes(t, l, rules(t, eventsASecond(10, perPrincipal)), principal("a"), "t", 10, 1) {
			t.Fatal("the first did not pass")
		}
		if passes(t, l, rules(t, eventsASecond(10, perPrincipal)), principal("a"), "t", 1, 1) {
			t.Error("compiled again, it begins anew")
		}
		if passes(t, l, rules(t, eventsASecond(9, perPrincipal)), principal("a"), "t", 1, 1) {
			t.Error("changed, it begins anew")
		}
		again, _ := Compile([]Named{{Namespace: "demo", Name: "quota/demo/q0", UID: "another", Spec: eventsASecond(10, perPrincipal)}})
		if !passes(t, l, again, principal("a"), "t", 10, 1) {
			t.Error("created again, it goes on with what its predecessor counted")
		}
	})
}

// TestForgets: of many principals those are forgotten that use nothing any more,
// and no others; more than there is room for are refused.
func TestForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, r := New(nil, nil), rules(t, eventsASecond(1, perPrincipal))
		busy := r.Publishing("demo", "t")
		for second := range 20 {
			for i := range 2000 {
				if !passes(t, l, r, principal(fmt.Sprintf("%d-%d", second, i)), "t", 1, 1) {
					t.Fatal("the first of a principal did not pass")
				}
			}
			if passes(t, l, r, principal(fmt.Sprintf("%d-%d", second, 0)), "t", 1, 1) {
				t.Fatal("one that used it up a moment ago was forgotten")
			}
			<-time.After(time.Second)
		}
		if n := l.held(); n > 3*2000+shards*minSweep {
			t.Errorf("%d are remembered", n)
		}
		var refused error
		for i := 0; refused == nil && i <= 2*shards*maxShard; i++ {
			_, refused = l.Publish(busy, principal(fmt.Sprint("crowd", i)), "t", 1, 1)
		}
		if refused == nil || fault.ClassOf(refused) != fault.Throttled || l.held() > shards*maxShard {
			t.Errorf("a crowd: %v, %d held", refused, l.held())
		}
	})
}

// TestShadowed: a shadowed Quota is counted and refuses nothing; what is counted of a Quota
// goes with it.
func TestShadowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		var r *Rules
		l := New(reg, func() *Rules { return r })
		q := eventsASecond(1, perAll)
		q.Mode, q.Connections = configv1.Mode_MODE_SHADOWED, 1
		q.Publish.InFlight = 1
		r = rules(t, q, eventsASecond(3, perAll))
		for i := range 4 {
			if got := passes(t, l, r, principal("a"), "t", 1, 1); got != (i < 3) {
				t.Errorf("publish %d: %v", i, got)
			}
			if _, err := l.Open(r, principal("a"), "demo", []string{"t"}); err != nil {
				t.Error(err)
			}
		}
		counted := func() map[string]float64 {
			families, err := reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]float64{}
			for _, f := range families {
				for _, m := range f.Metric {
					name := f.GetName()
					for _, l := range m.Label {
						name += " " + l.GetValue()
					}
					got[name] = m.GetCounter().GetValue()
				}
			}
			return got
		}
		want := map[string]float64{"weft_proxy_quota_exceeded_total events demo/q1": 1, "weft_proxy_quota_shadowed_total connections demo/q0": 3,
			"weft_proxy_quota_shadowed_total events demo/q0": 2, "weft_proxy_quota_counted": 0}
		if got := counted(); !maps.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
		r = rules(t, q) // the other one is deleted
		delete(want, "weft_proxy_quota_exceeded_total events demo/q1")
		if got := counted(); !maps.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
		r = nil // of no configuration
		if got := counted(); len(got) != 1 {
			t.Errorf("%v", got)
		}
	})
}

// TestShadowedFull: a shadowed Quota refuses nothing either where there is no room to count
// for another principal, and what was not counted is not given back.
func TestShadowedFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(nil, nil)
		q := eventsASecond(1, perPrincipal)
		q.Mode, q.Publish.InFlight = configv1.Mode_MODE_SHADOWED, 1
		of := rules(t, q).Publishing("demo", "t")
		publish := func(who string) Held {
			h, err := l.Publish(of, principal(who), "t", 1, 1)
			if err != nil {
				t.Fatalf("%s is refused by a Quota that is shadowed: %v", who, err)
			}
			return h
		}
		var crowd, late []Held
		for i := 0; i%1000 > 0 || l.held() < shards*maxShard; i++ { // until there is no room in any shard
			crowd = append(crowd, publish(fmt.Sprint(i)))
		}
		for i := range 100 {
			late = append(late, publish(fmt.Sprint("late", i)))
		}
		for _, h := range crowd {
			h.Release()
		}
		<-time.After(time.Minute) // nothing of the crowd counts any more
		for _, h := range late {
			h.Release()
		}
		for i := range l.shards {
			for k, e := range l.shards[i].entries {
				if e.inFlight != 0 {
					t.Fatalf("%s has %d in flight", k.name, e.inFlight)
				}
			}
		}
	})
}

// TestConnections: sessions count while they are open, those too that were open
// before there was the Quota.
func TestConnections(t *testing.T) {
	l := New(nil, nil)
	open := func(r *Rules, who string, topics ...string) *Session {
		s, err := l.Open(r, principal(who), "demo", topics)
		if err != nil && (fault.ClassOf(err) != fault.Throttled || fault.From(err).Reason != Exceeded || !strings.Contains(fault.From(err).Msg, "q0")) {
			t.Error(err)
		}
		return s
	}
	first := open(&Rules{}, "a", "t")
	q := &configv1.Quota{Principals: []string{"*"}, Per: perPrincipal, Connections: 2}
	two := rules(t, q)
	second := open(two, "a", "u", "t")
	if first == nil || second == nil || open(two, "a", "t") != nil || open(rules(t, q), "a", "t") != nil {
		t.Error("three of a principal's are open")
	}
	if open(two, "b", "t") == nil {
		t.Error("another's count")
	}
	first.Close()
	first.Close()
	if open(two, "a", "t") == nil || open(two, "a", "t") != nil {
		t.Error("one that was closed twice does not count once")
	}
	of := rules(t, &configv1.Quota{Topics: []string{"v.*"}, Per: perTopic, Connections: 1})
	both := open(of, "a", "v.1", "v.2", "w")
	if both == nil || open(of, "b", "v.2") != nil || open(of, "b", "v.3") == nil || open(of, "b", "w") == nil {
		t.Error("topics are not counted each")
	}
	var none *Session
	none.Close()
}

// TestCheck: what this version does not enforce is refused, by its field.
func TestCheck(t *testing.T) {
	good := func(change func(*configv1.Quota)) *configv1.Quota {
		q := eventsASecond(10, perAll)
		change(q)
		return q
	}
	for field, q := range map[string]*configv1.Quota{
		"":                               good(func(*configv1.Quota) {}),
		"spec.per":                       good(func(q *configv1.Quota) { q.Per = 99 }),
		"spec.scope":                     good(func(q *configv1.Quota) { q.Scope = 99 }),
		"spec.mode":                      good(func(q *configv1.Quota) { q.Mode = 99 }),
		"spec.topics[0]":                 good(func(q *configv1.Quota) { q.Topics = []string{"a..b"} }),
		"spec.publish.burst":             good(func(q *configv1.Quota) { q.Publish.Burst = durationpb.New(99 * time.Millisecond) }),
		"spec.publish.events_per_second": good(func(q *configv1.Quota) { q.Publish.EventsPerSecond = 1 << 31 }),
		"spec.publish.bytes_per_second":  good(func(q *configv1.Quota) { q.Publish.BytesPerSecond = 1 << 63 }),
		"spec":                           good(func(q *configv1.Quota) { q.Publish = nil }),
	} {
		err := Check(q)
		if fe, _ := err.(*policy.FieldError); (field == "") != (err == nil) || field != "" && (fe == nil || fe.Field != field) { //nolint:errorlint // it is returned as it is
			t.Errorf("%s: %v", field, err)
		}
		if _, refused := Compile([]Named{{Namespace: "demo", Name: "quota/demo/q", Spec: q}}); (len(refused) == 1) != (field != "") {
			t.Errorf("%s: refused %v", field, refused)
		}
	}
}

func TestPublishAllocatesNothing(t *testing.T) {
	l, r, who := New(nil, nil), rules(t, eventsASecond(maxEvents, perPrincipal), eventsASecond(maxEvents, perTopic)), principal("a")
	pub := r.Publishing("demo", "t")
	if n := testing.AllocsPerRun(1000, func() {
		h, err := l.Publish(pub, who, "t", 1, 100)
		if err != nil {
			t.Fatal(err)
		}
		h.Release()
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkPublish(b *testing.B) {
	for name, specs := range map[string][]*configv1.Quota{
		"none":  nil,
		"one":   {eventsASecond(maxEvents, perPrincipal)},
		"three": {eventsASecond(maxEvents, perPrincipal), eventsASecond(maxEvents, perTopic), {Principals: []string{"*"}, Per: perAll, Publish: &configv1.PublishQuota{BytesPerSecond: maxBytes, InFlight: maxCount}}},
	} {
		b.Run(name, func(b *testing.B) {
			l, who := New(nil, nil), principal("a")
			pub := rules(b, specs...).Publishing("demo", "t")
			b.ReportAllocs()
			for b.Loop() {
				h, _ := l.Publish(pub, who, "t", 1, 1)
				h.Release()
			}
		})
	}
}
