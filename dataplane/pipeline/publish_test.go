package pipeline

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/quota"
	"github.com/weft-mesh/weft/dataplane/route"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/schema"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/embedded"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var local = &policy.Principal{Name: policy.Local}

const uidStore = "44444444-4444-4444-8444-444444444444"

// troubled is the embedded store with trouble on demand.
type troubled struct {
	store.Store
	calls int
	fail  map[string]error // by physical topic
	hold  chan struct{}    // Publish waits for it, if set
	began chan struct{}
}

func (s *troubled) Publish(ctx context.Context, topic string, events []store.Outgoing, res []store.Result) error {
	s.calls++
	if s.hold != nil {
		s.began <- struct{}{}
		<-s.hold
	}
	if err := s.fail[topic]; err != nil {
		for i := range res {
			res[i].Err = err
		}
		return err
	}
	return s.Store.Publish(ctx, topic, events, res)
}

type world struct {
	testing.TB
	st  *troubled
	p   *Pipeline
	reg *prometheus.Registry
}

// newWorld has the topics orders, audit, small (100 bytes at most), waiting (not
// ready), routed (events of type "a" to audit, "lost" to a topic that is not
// there) and secret, which local may not use.
func newWorld(t testing.TB, maxInFlight int64) *world {
	t.Helper()
	w := &world{TB: t, reg: prometheus.NewRegistry()}
	st, err := embedded.Driver{}.Open(context.Background(), store.Config{Name: "test", Dir: "store", Options: embedded.Options{FS: vfs.NewMem()}})
	w.must(err)
	t.Cleanup(func() { w.must(st.Close(context.Background())) })
	w.st = &troubled{Store: st, fail: map[string]error{}}
	snap := &snapshot.Snapshot{Topics: map[snapshot.Key]*snapshot.Topic{}, Identities: policy.CompileIdentities(nil, nil, true)}
	for i, name := range []string{"orders", "audit", "small", "waiting", "routed", "secret"} {
		w.must(st.(store.Admin).EnsureTopic(context.Background(), store.TopicSpec{Name: name}))
		k := snapshot.Key{Namespace: "demo", Name: name}
		snap.Topics[k] = &snapshot.Topic{Key: k, UID: fmt.Sprintf("11111111-1111-4111-8111-11111111111%d", i), KeyFrom: "subject", MaxEventBytes: 1 << 20,
			Epochs: []snapshot.Epoch{{Number: 1, StoreUID: uidStore, Physical: name}}}
	}
	topic := func(name string) *snapshot.Topic {
		return snap.Topics[snapshot.Key{Namespace: "demo", Name: name}]
	}
	topic("small").MaxEventBytes = 100
	topic("waiting").NotReady = "nobody made it yet"
	to := func(typ, topic string) *configv1.RouteRule {
		return &configv1.RouteRule{Filter: &configv1.Filter{Exact: map[string]string{"type": typ}}, To: []*configv1.Destination{{Topic: topic}}}
	}
	topic("routed").Route, err = route.CompileTable(&configv1.Route{Rules: []*configv1.RouteRule{to("a", "audit"), to("lost", "nowhere")}})
	w.must(err)
	rule := func(name string, effect configv1.Effect, topic string) *configv1.AccessRule {
		return &configv1.AccessRule{Name: name, Effect: effect, Principals: []string{"local"}, Actions: []configv1.Action{configv1.Action_ACTION_PUBLISH}, Topics: []string{topic}}
	}
	snap.Rules = policy.CompileRules([]policy.NamedPolicy{{Namespace: "demo", Name: "accesspolicy/demo/p", Spec: &configv1.AccessPolicy{Rules: []*configv1.AccessRule{
		rule("all", configv1.Effect_EFFECT_ALLOW, ">"), rule("not-that", configv1.Effect_EFFECT_DENY, "secret"), rule("nor-that", configv1.Effect_EFFECT_DENY, "never.there")}}}}, nil)
	w.p = New(Config{Snapshots: latest.New(snap), MaxInFlight: maxInFlight, Metrics: w.reg, Store: func(uid string) (store.Store, error) {
		if uid != uidStore {
			return nil, errors.New("no such store")
		}
		return w.st, nil
	}})
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func events(types ...string) []event.Event {
	out := make([]event.Event, len(types))
	for i, typ := range types {
		out[i] = event.Event{ID: fmt.Sprint(i), Source: "/test", Type: typ, Subject: "k", Data: []byte("data")}
	}
	return out
}

func (w *world) publish(topic string, in []event.Event) ([]frontend.Result, error) {
	res := make([]frontend.Result, len(in))
	err := w.p.Publish(context.Background(), local, "demo", topic, in, res)
	return res, err
}

// kept are the ids and types that a topic of the store has.
func (w *world) kept(topic string, n int) string {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	tail, err := w.st.Tail(ctx, store.TailRequest{Topic: topic})
	w.must(err)
	defer func() { w.must(tail.Close(ctx)) }()
	var ids []string
	for len(ids) < n {
		dst := make([]store.Message, 16)
		got, err := tail.Next(ctx, dst)
		w.must(err)
		for i := range dst[:got] {
			ids = append(ids, dst[i].ID+dst[i].Type)
		}
	}
	return strings.Join(ids, " ")
}

// empty tells that a topic has nothing: an event that is written into it now is
// its first.
func (w *world) empty(topic string) {
	w.Helper()
	var res [1]store.Result
	e := &event.Event{ID: "mark", Source: "/test", Type: "m"}
	w.must(w.st.Store.Publish(context.Background(), topic, []store.Outgoing{{Event: e}}, res[:]))
	if got := w.kept(topic, 1); got != "markm" {
		w.Errorf("%s has %s", topic, got)
	}
}

func TestPublish(t *testing.T) {
	w := newWorld(t, 0)
	in := events("x", "y")
	res, err := w.publish("orders", in)
	w.must(err)
	if w.kept("orders", 2) != "0x 1y" || !res[0].Position.Pos.Less(res[1].Position.Pos) || res[0].Position.Epoch != 1 || res[0].Position.String() == "" {
		t.Errorf("%+v", res)
	}
	if w.st.calls != 1 {
		t.Errorf("%d writes for one batch", w.st.calls)
	}
	// Events that are not kept are in neither.
	w.st.fail["orders"] = fault.New(fault.Unavailable, "test", "down", "the store is down")
	if _, err := w.publish("orders", in); fault.ClassOf(err) != fault.Unavailable {
		t.Errorf("a store that is down: %v", err)
	}
	for name, want := range map[string]float64{"weft_proxy_publish_events_total": 2, "weft_proxy_publish_bytes_total": float64(in[0].Size() + in[1].Size()),
		"weft_proxy_publish_errors_total": 2, "weft_proxy_publish_in_flight_bytes": 0} {
		if got, _ := w.metric(name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

// metric is the sum of a metric's series, and how many there are.
func (w *world) metric(name string) (sum float64, series int) {
	w.Helper()
	families, err := w.reg.Gather()
	w.must(err)
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			series++
		}
	}
	return sum, series
}

// TestRefusals: nothing of what is refused reaches the store.
func TestRefusals(t *testing.T) {
	w := newWorld(t, 0)
	bad := events("x", "y", "z")
	bad[1].Source = ""
	large := events("x")
	large[0].Data = make([]byte, 100)
	many := make([]event.Event, MaxBatch+1)
	for name, tc := range map[string]struct {
		namespace, topic string
		in               []event.Event
		class            fault.Class
		reason, says     string
	}{
		"namespace":               {"Demo", "orders", events("x"), fault.Invalid, "bad-name", ""},
		"no namespace":            {"", "orders", events("x"), fault.Invalid, "bad-name", ""},
		"topic":                   {"demo", "a/b", events("x"), fault.Invalid, "bad-name", ""},
		"escaped":                 {"demo", "ord%65rs", events("x"), fault.Invalid, "bad-name", ""},
		"a pattern":               {"demo", ">", events("x"), fault.Invalid, "bad-name", ""},
		"control character":       {"demo", "orders\x00", events("x"), fault.Invalid, "bad-name", ""},
		"denied":                  {"demo", "secret", events("x"), fault.Denied, "access-denied", "not-that"},
		"denied, in a batch":      {"demo", "secret", events("x", "y"), fault.Denied, "access-denied", "not-that"},
		"denied, not there":       {"demo", "never.there", events("x"), fault.Denied, "access-denied", "nor-that"},
		"another namespace":       {"other", "orders", events("x"), fault.Denied, "access-denied", "no AccessPolicy of namespace other"},
		"denied with a bad event": {"demo", "secret", bad, fault.Denied, "access-denied", "not-that"},
		"unknown":                 {"demo", "unknown", events("x"), fault.NotFound, "unknown-topic", "unknown"},
		"not ready":               {"demo", "waiting", events("x"), fault.Unavailable, "topic-not-ready", "nobody made it"},
		"empty":                   {"demo", "orders", nil, fault.Invalid, "bad-batch", ""},
		"too many":                {"demo", "orders", many, fault.Invalid, "bad-batch", "1001"},
		"bad event":               {"demo", "orders", bad, fault.Invalid, "bad-event", "source"},
		"large":                   {"demo", "small", large, fault.TooLarge, "event-too-large", "takes 100"},
		"route to nowhere":        {"demo", "routed", events("lost"), fault.Unavailable, "topic-not-ready", "nowhere"},
	} {
		res := make([]frontend.Result, len(tc.in))
		err := w.p.Publish(context.Background(), local, tc.namespace, tc.topic, tc.in, res)
		if f := fault.From(err); err == nil || f.Class != tc.class || f.Reason != tc.reason || !strings.Contains(f.Msg, tc.says) {
			t.Errorf("%s: %v", name, err)
		}
		for i := range res {
			if res[i].Err == nil {
				t.Errorf("%s: event %d has no error", name, i)
			}
		}
	}
	if w.st.calls != 0 {
		t.Errorf("%d writes reached the store", w.st.calls)
	}
	// Labels are names of the configuration only.
	if sum, n := w.metric("weft_proxy_publish_refused_total"); n != 6 || sum != 16 {
		t.Errorf("%d series of refusals, %v in all", n, sum)
	}
	if n := w.p.inFlight.Load(); n != 0 {
		t.Errorf("%d bytes are in flight for ever", n)
	}
}

// TestRoute: each event is kept by one topic; after a run that failed nothing
// more is written.
func TestRoute(t *testing.T) {
	w := newWorld(t, 0)
	res, err := w.publish("routed", events("x", "a", "a", "x"))
	w.must(err)
	if w.kept("routed", 2) != "0x 3x" || w.kept("audit", 2) != "1a 2a" || w.st.calls != 3 {
		t.Errorf("routed %s, audit %s, %d writes", w.kept("routed", 2), w.kept("audit", 2), w.st.calls)
	}
	if res[0].Position.TopicUID == res[1].Position.TopicUID {
		t.Error("the position does not name the topic that keeps the event")
	}
	w = newWorld(t, 0)
	w.st.fail["audit"] = fault.New(fault.Unavailable, "test", "down", "the store is down")
	res, err = w.publish("routed", events("x", "a", "x", "x"))
	if fault.From(err).Reason != "down" || res[0].Err != nil || fault.From(res[1].Err).Reason != "down" || fault.From(res[2].Err).Reason != "after-a-failure" || res[3].Err == nil {
		t.Errorf("%v %+v", err, res)
	}
	if got := w.kept("routed", 1); got != "0x" || w.st.calls != 2 {
		t.Errorf("routed has %s after %d writes", got, w.st.calls)
	}
	w.empty("audit")
}

// TestFull: what waits for stores is bounded; a single batch always fits.
func TestFull(t *testing.T) {
	w := newWorld(t, 10)
	w.st.hold, w.st.began = make(chan struct{}), make(chan struct{})
	first := make(chan error, 1)
	go func() {
		_, err := w.publish("orders", events("x"))
		first <- err
	}()
	<-w.st.began
	_, err := w.publish("orders", events("y"))
	if f := fault.From(err); err == nil || f.Class != fault.Throttled || f.RetryAfter == 0 {
		t.Errorf("the second batch: %v", err)
	}
	close(w.st.hold)
	w.must(<-first)
	if n := w.p.inFlight.Load(); n != 0 {
		t.Errorf("%d bytes are in flight", n)
	}
}

// TestSchema: what does not conform reaches no store, nor does the rest of its batch;
// a topic whose schema is not here takes nothing; a shadowed one takes everything.
func TestSchema(t *testing.T) {
	w := newWorld(t, 0)
	orders := w.p.cfg.Snapshots.Get().Topics[snapshot.Key{Namespace: "demo", Name: "orders"}]
	with := func(mode configv1.Mode) {
		var err error
		orders.Schema, err = schema.Compile(&configv1.Schema{Mode: mode, Format: &configv1.Schema_Json{Json: &configv1.JsonSchema{Document: `{"properties": {"n": {"type": "integer"}}}`}}})
		w.must(err)
	}
	with(configv1.Mode_MODE_ENFORCED)
	in := events("x", "y")
	in[0].Data, in[1].Data = []byte(`{"n": 1}`), []byte(`{"n": "x"}`)
	res, err := w.publish("orders", in)
	if f := fault.From(err); err == nil || f.Class != fault.Invalid || f.Reason != "schema-mismatch" || !strings.Contains(f.Msg, "at /n") || fault.From(res[0].Err).Reason != "batch-refused" || w.st.calls != 0 {
		t.Errorf("%v, %+v, %d writes", err, res, w.st.calls)
	}
	_, err = w.publish("orders", in[:1])
	w.must(err)
	w.must(w.p.Write(context.Background(), orders, in))
	with(configv1.Mode_MODE_SHADOWED)
	_, err = w.publish("orders", in)
	w.must(err)
	if sum, series := w.metric("weft_proxy_schema_mismatches_total"); sum != 2 || series != 2 {
		t.Errorf("%v mismatches in %d series", sum, series)
	}
	orders.Schema, orders.Unjudged = nil, "schema order is not on this proxy"
	if _, err = w.publish("orders", in); err == nil || fault.ClassOf(err) != fault.Unavailable || !strings.Contains(fault.From(err).Msg, "schema order") {
		t.Errorf("without its schema: %v", err)
	}
}

// TestSchemaCounts: what its schema refuses counts for quotas, which come first: data that
// do not conform are not judged at any rate.
func TestSchemaCounts(t *testing.T) {
	w := newWorld(t, 0)
	snap := w.p.cfg.Snapshots.Get()
	orders := snap.Topics[snapshot.Key{Namespace: "demo", Name: "orders"}]
	var err error
	orders.Schema, err = schema.Compile(&configv1.Schema{Mode: configv1.Mode_MODE_ENFORCED, Format: &configv1.Schema_Json{Json: &configv1.JsonSchema{Document: `{"type": "integer"}`}}})
	w.must(err)
	snap.Quotas, _ = quota.Compile([]quota.Named{{Namespace: "demo", Name: "quota/demo/q", UID: "q", Spec: &configv1.Quota{Topics: []string{"orders"},
		Per: configv1.QuotaPer_QUOTA_PER_PRINCIPAL, Publish: &configv1.PublishQuota{EventsPerSecond: 1, Burst: durationpb.New(20 * time.Second), InFlight: 1}}}})
	orders.Quotas = snap.Quotas.Publishing("demo", "orders")
	bad := events("x")
	bad[0].Data = []byte(`"x"`)
	refused := 0
	for range 1000 {
		if _, err = w.publish("orders", bad); fault.From(err).Reason != "schema-mismatch" {
			break
		}
		refused++
	}
	if f := fault.From(err); refused < 20 || f.Class != fault.Throttled || f.Reason != quota.Exceeded {
		t.Errorf("after %d that its schema refused: %v", refused, err)
	}
}

// TestQuota: what is above a quota is refused whole and reaches no store; what
// waits for its store is in flight; the proxy's own writes are not counted.
func TestQuota(t *testing.T) {
	w := newWorld(t, 0)
	snap := w.p.cfg.Snapshots.Get()
	orders := snap.Topics[snapshot.Key{Namespace: "demo", Name: "orders"}]
	var refused map[string]string
	if snap.Quotas, refused = quota.Compile([]quota.Named{{Namespace: "demo", Name: "quota/demo/q", UID: "q", Spec: &configv1.Quota{Topics: []string{"orders"},
		Per: configv1.QuotaPer_QUOTA_PER_PRINCIPAL, Publish: &configv1.PublishQuota{EventsPerSecond: 3, Burst: durationpb.New(time.Minute), InFlight: 2}}}}); len(refused) > 0 {
		t.Fatal(refused)
	}
	orders.Quotas = snap.Quotas.Publishing("demo", "orders")
	bad := events("x")
	bad[0].Source = ""
	for range 200 { // no events
		_, _ = w.publish("orders", bad)
	}
	res, err := w.publish("orders", events("x", "y", "z"))
	if f := fault.From(err); err == nil || f.Class != fault.TooLarge || f.Reason != quota.TooMuch || res[2].Err == nil || w.st.calls != 0 {
		t.Errorf("more than may be in flight: %v, %d writes", err, w.st.calls)
	}
	w.must(w.p.Write(context.Background(), orders, make([]event.Event, 179)))
	for i := range 90 {
		if _, err := w.publish("orders", events("x", "y")); err != nil {
			t.Fatalf("publish %d: %v", i, err)
		}
	}
	_, err = w.publish("orders", events("x"))
	if f := fault.From(err); err == nil || f.Class != fault.Throttled || f.Reason != quota.Exceeded || f.RetryAfter <= 0 || !strings.Contains(f.Msg, "Quota q ") || w.st.calls != 91 {
		t.Errorf("above it: %v, %d writes", err, w.st.calls)
	}
	_, err = w.publish("audit", events("x"))
	w.must(err)
}

// TestWrite: the proxy's own writes ask no rules and follow no routes.
func TestWrite(t *testing.T) {
	w := newWorld(t, 0)
	snap := w.p.cfg.Snapshots.Get()
	w.must(w.p.Write(context.Background(), snap.Topics[snapshot.Key{Namespace: "demo", Name: "routed"}], events("a")))
	w.must(w.p.Write(context.Background(), snap.Topics[snapshot.Key{Namespace: "demo", Name: "secret"}], events("a")))
	if w.kept("routed", 1) != "0a" || w.kept("secret", 1) != "0a" {
		t.Error("they are elsewhere")
	}
	if err := w.p.Write(context.Background(), snap.Topics[snapshot.Key{Namespace: "demo", Name: "waiting"}], events("a")); fault.ClassOf(err) != fault.Unavailable {
		t.Errorf("a topic that is not ready: %v", err)
	}
}

// TestWriteWhereItIs: what the proxy itself writes goes to where the topic is now, however long
// ago that was looked up: what is written to the place that it has left lies behind the cut.
func TestWriteWhereItIs(t *testing.T) {
	w := newWorld(t, 0)
	before := w.p.cfg.Snapshots.Get()
	k := snapshot.Key{Namespace: "demo", Name: "routed"}
	was := before.Topics[k]
	is := *was
	is.Epochs = append(slices.Clone(was.Epochs), snapshot.Epoch{Number: 2, StoreUID: uidStore, Physical: "secret"})
	now := &snapshot.Snapshot{Topics: maps.Clone(before.Topics), Stores: before.Stores, Rules: before.Rules}
	now.Topics[k] = &is
	w.p.cfg.Snapshots.Store(now)
	w.must(w.p.Write(context.Background(), was, events("a")))
	w.must(w.p.Write(context.Background(), now.Topics[snapshot.Key{Namespace: "demo", Name: "secret"}], events("z")))
	if !strings.HasPrefix(w.kept("secret", 1), "0a") {
		t.Error("it is elsewhere")
	}
	again := is
	again.UID = "another"
	now = &snapshot.Snapshot{Topics: maps.Clone(now.Topics), Stores: before.Stores, Rules: before.Rules}
	now.Topics[k] = &again
	w.p.cfg.Snapshots.Store(now)
	if err := w.p.Write(context.Background(), was, events("b")); fault.From(err).Reason != "topic-not-ready" {
		t.Errorf("a topic that was made anew: %v", err)
	}
}

// instant is a store that costs nothing.
type instant struct{ store.Store }

func (instant) Publish(context.Context, string, []store.Outgoing, []store.Result) error { return nil }

// BenchmarkPublish is what the pipeline adds to the store, for 16 events of 1 KiB.
func BenchmarkPublish(b *testing.B) {
	w := newWorld(b, 0)
	w.p.cfg.Store = func(string) (store.Store, error) { return instant{}, nil }
	in := make([]event.Event, 16)
	for i := range in {
		in[i] = event.Event{ID: fmt.Sprint(i), Source: "/bench", Type: "com.example.t", Subject: "k", Data: make([]byte, 1024)}
	}
	res := make([]frontend.Result, len(in))
	b.ReportAllocs()
	for b.Loop() {
		if err := w.p.Publish(context.Background(), local, "demo", "orders", in, res); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(in)), "ns/event")
}

// TestRulesLookAtEvents: subjects and conditions decide for each event; where one is
// refused nothing is published, by the rule that says so, and counted.
func TestRulesLookAtEvents(t *testing.T) {
	w := newWorld(t, 0)
	snap := *w.p.cfg.Snapshots.Get()
	rule := func(name string, effect configv1.Effect, change func(*configv1.AccessRule)) *configv1.AccessRule {
		r := &configv1.AccessRule{Name: name, Effect: effect, Principals: []string{"local"}, Actions: []configv1.Action{configv1.Action_ACTION_PUBLISH}, Topics: []string{"orders", "gone"}}
		change(r)
		return r
	}
	snap.Rules = policy.CompileRules([]policy.NamedPolicy{{Namespace: "demo", Name: "accesspolicy/demo/p", Spec: &configv1.AccessPolicy{Rules: []*configv1.AccessRule{
		rule("plants", configv1.Effect_EFFECT_ALLOW, func(r *configv1.AccessRule) { r.Subjects = []string{"k", "plant/*"} }),
		rule("no-secrets", configv1.Effect_EFFECT_DENY, func(r *configv1.AccessRule) { r.Condition = "event.type == 'secret'" })}}}}, nil)
	refused := map[string]int{}
	snap.Rules.Observer.Refused = func(a policy.Action, policy, rule string) { refused[a.String()+" "+policy+"#"+rule]++ }
	w.p.cfg.Snapshots.Store(&snap)
	if _, err := w.publish("orders", events("a", "b")); err != nil {
		t.Fatal(err)
	}
	batch := events("a", "secret", "c")
	res, err := w.publish("orders", batch)
	if fault.ClassOf(err) != fault.Denied || !strings.Contains(err.Error(), `rule "no-secrets" of accesspolicy/demo/p denies`) || fault.From(res[0].Err).Reason != "batch-refused" || fault.ClassOf(res[1].Err) != fault.Denied {
		t.Errorf("%v %v", err, res)
	}
	batch = events("a")
	batch[0].Subject = "plant/1/2"
	// Who may publish no such event does not hear whether there is such a topic.
	for _, topic := range []string{"orders", "gone"} {
		if _, err := w.publish(topic, batch); fault.ClassOf(err) != fault.Denied || !strings.Contains(err.Error(), "and not this one, whose subject is") {
			t.Errorf("%s: %v", topic, err)
		}
	}
	if _, err := w.publish("gone", events("a")); fault.ClassOf(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
	batch = events("secret")
	batch[0].ID = "" // it is wrong by itself, and refused for that
	if _, err := w.publish("orders", batch); fault.From(err).Reason != "bad-event" {
		t.Errorf("%v", err)
	}
	if got := w.kept("orders", 2); got != "0a 1b" {
		t.Errorf("kept %s", got)
	}
	if want := "map[publish #:2 publish accesspolicy/demo/p#no-secrets:1]"; fmt.Sprint(refused) != want {
		t.Errorf("%v, want %s", refused, want)
	}
}
