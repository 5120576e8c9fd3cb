package snapshot

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/pkg/resource"
)

func named(name, uid string, r *configv1.Resource) Versioned {
	r.Metadata = &configv1.Metadata{Namespace: "demo", Name: name, Uid: uid}
	r.Name = resource.NameOf(r)
	return Versioned{Resource: r, Version: "1"}
}

func set(vs ...Versioned) map[string]Versioned {
	m := map[string]Versioned{}
	for _, v := range vs {
		m[v.Resource.Name] = v
	}
	return m
}

func theStore() Versioned {
	return named("main", "s-uid", &configv1.Resource{Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}}})
}

func topic(name string) []Versioned {
	return []Versioned{
		named(name, name+"-uid", &configv1.Resource{Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{Store: "main", KeyFrom: "subject"}}}),
		named(name, "", &configv1.Resource{Spec: &configv1.Resource_TopicBinding{TopicBinding: &configv1.TopicBinding{TopicUid: name + "-uid",
			Epochs: []*configv1.Epoch{{Number: 1, Store: "main", StoreUid: "s-uid", PhysicalName: "demo_" + name}}}}}),
		named(name, "", &configv1.Resource{Spec: &configv1.Resource_TopicAdmission{TopicAdmission: &configv1.TopicAdmission{TopicUid: name + "-uid", Admitted: true, AtProxy: true}}}),
	}
}

func subscription(name string, topics ...string) []Versioned {
	adm := &configv1.SubscriptionAdmission{SubscriptionUid: name + "-uid"}
	for _, t := range topics {
		adm.Sources = append(adm.Sources, &configv1.SubscriptionSource{Topic: t, TopicUid: t + "-uid", Epoch: 1, PhysicalGroup: "g-" + t})
	}
	return []Versioned{
		named(name, name+"-uid", &configv1.Resource{Spec: &configv1.Resource_Subscription{Subscription: &configv1.Subscription{Topics: topics}}}),
		named(name, "", &configv1.Resource{Spec: &configv1.Resource_SubscriptionAdmission{SubscriptionAdmission: adm}}),
	}
}

func TestCompile(t *testing.T) {
	all := append([]Versioned{theStore()}, topic("orders")...)
	all = append(all, topic("audit")...)
	all = append(all, subscription("billing", "orders", "gone")...)
	all = append(all, named("r", "r-uid", &configv1.Resource{Spec: &configv1.Resource_Route{Route: &configv1.Route{Topic: "orders",
		Rules: []*configv1.RouteRule{{To: []*configv1.Destination{{Topic: "audit"}}}}}}}))
	s := Compile(Input{Set: set(all...), Lineage: "l", Revision: 5})
	orders := s.Topics[Key{"demo", "orders"}]
	if orders == nil || orders.NotReady != "" || orders.Written() != (Epoch{1, "s-uid", "demo_orders", true}) || orders.Route == nil || orders.AtProxy.Partitions != DefaultPartitions {
		t.Errorf("orders: %+v", orders)
	}
	billing := s.Subscriptions[Key{"demo", "billing"}]
	if billing == nil || billing.NotReady != "" || len(billing.Sources) != 1 || billing.Sources[0].Topic != orders ||
		billing.AckTimeout != DefaultAckTimeout || billing.MaxAttempts != DefaultMaxAttempts {
		t.Errorf("billing: %+v", billing)
	}
	if s.Rules.Authorize(&policy.Principal{Name: policy.Local}, policy.Publish, "demo", "orders").Allowed {
		t.Error("allowed without a policy")
	}
}

// TestNotReady: what misses something says what, and others go on.
func TestNotReady(t *testing.T) {
	for name, tc := range map[string]struct {
		without  string // canonical name that is left out
		withheld string
		want     string // part of the topic's reason
	}{
		"no binding":     {"topicbinding/demo/orders", "", "not bound"},
		"no admission":   {"topicadmission/demo/orders", "", "not provisioned"},
		"no store":       {"eventstore/demo/main", "", "event store main"},
		"withheld route": {"", "route/demo/r", "route/demo/r"},
		"whole":          {"", "", ""},
	} {
		m := set(append([]Versioned{theStore()}, topic("orders")...)...)
		delete(m, tc.without)
		in := Input{Set: m}
		if tc.withheld != "" {
			in.Withheld = []string{tc.withheld}
		}
		got := Compile(in).Topics[Key{"demo", "orders"}].NotReady
		if (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
			t.Errorf("%s: %q", name, got)
		}
	}
	// An admission of a topic that was deleted and created again does not count.
	m := set(append([]Versioned{theStore()}, topic("orders")...)...)
	m["topic/demo/orders"].Resource.Metadata.Uid = "another"
	if Compile(Input{Set: m}).Topics[Key{"demo", "orders"}].NotReady == "" {
		t.Error("a topic is ready by the admission of its predecessor")
	}
}

func TestWithheldPolicyDenies(t *testing.T) {
	allowAll := named("p", "p", &configv1.Resource{Spec: &configv1.Resource_AccessPolicy{AccessPolicy: &configv1.AccessPolicy{Rules: []*configv1.AccessRule{{
		Name: "all", Effect: configv1.Effect_EFFECT_ALLOW, Principals: []string{"*"}, Actions: []configv1.Action{configv1.Action_ACTION_PUBLISH}, Topics: []string{">"}}}}}})
	who := &policy.Principal{Namespace: "demo", Name: "a"}
	if !Compile(Input{Set: set(allowAll)}).Rules.Authorize(who, policy.Publish, "demo", "t").Allowed {
		t.Fatal("not allowed")
	}
	// Nor where something of a kind that is not known says what is allowed.
	if Compile(Input{Set: set(allowAll), Denied: map[string]string{"demo": "tariff/demo/q"}}).Rules.Authorize(who, policy.Publish, "demo", "t").Allowed ||
		!Compile(Input{Set: set(allowAll), Denied: map[string]string{"other": "tariff/other/q"}}).Rules.Authorize(who, policy.Publish, "demo", "t").Allowed {
		t.Error("an unknown kind that governs a namespace denies the wrong one")
	}
	if Compile(Input{Set: set(allowAll), Withheld: []string{"accesspolicy/demo/q"}}).Rules.Authorize(who, policy.Publish, "demo", "t").Allowed {
		t.Error("a namespace with a policy that is not understood must be denied")
	}
}

func TestCheck(t *testing.T) {
	sub := func(change func(*configv1.Subscription)) Versioned {
		v := subscription("s", "orders")[0]
		change(v.Resource.GetSubscription())
		return v
	}
	future := theStore()
	b, err := proto.Marshal(future.Resource.GetEventStore())
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(protowire.AppendVarint(protowire.AppendTag(b, 99, protowire.VarintType), 1), future.Resource.GetEventStore()); err != nil {
		t.Fatal(err)
	}
	renamed := theStore()
	renamed.Resource.Name = "eventstore/demo/other"
	for name, tc := range map[string]struct {
		v     Versioned
		field string
	}{
		"good store":        {theStore(), ""},
		"good subscription": {sub(func(*configv1.Subscription) {}), ""},
		"no kind":           {Versioned{Resource: &configv1.Resource{Name: "x"}}, "spec"},
		"another name":      {renamed, "name"},
		"unknown field":     {future, "spec"},
		"unknown value":     {sub(func(s *configv1.Subscription) { s.Ordering = 1000 }), "spec.ordering"},
		"pattern":           {sub(func(s *configv1.Subscription) { s.Topics = []string{"ok", "a>"} }), "spec.topics[1]"},
		"filter":            {sub(func(s *configv1.Subscription) { s.Filter = &configv1.Filter{} }), "spec.filter"},
		"push scheme": {sub(func(s *configv1.Subscription) {
			s.Delivery = &configv1.Subscription_Push{Push: &configv1.PushDelivery{Url: "gopher://x/"}}
		}), "spec.push.url"},
		"push tls": {sub(func(s *configv1.Subscription) {
			s.Delivery = &configv1.Subscription_Push{Push: &configv1.PushDelivery{Url: "https://x.example/", Tls: &configv1.PushTLS{Certificate: "c"}}}
		}), "spec.push.tls.key"},
		"push user": {sub(func(s *configv1.Subscription) {
			s.Delivery = &configv1.Subscription_Push{Push: &configv1.PushDelivery{Url: "http://u:p@x/"}}
		}), "spec.push.url"},
		"negative timeout": {sub(func(s *configv1.Subscription) { s.AckTimeout = durationpb.New(-1) }), "spec.ack_timeout"},
		"no dead letters":  {sub(func(s *configv1.Subscription) { s.OnExhausted = configv1.OnExhausted_ON_EXHAUSTED_DEAD_LETTER }), "spec.dead_letter_topic"},
		"no rate":          {sub(func(s *configv1.Subscription) { s.Rate = &configv1.Rate{} }), "spec.rate.deliveries"},
		"negative rate": {sub(func(s *configv1.Subscription) {
			s.Rate = &configv1.Rate{Deliveries: 1, Per: durationpb.New(-1)}
		}), "spec.rate.per"},
		"no driver":     {named("x", "x", &configv1.Resource{Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{}}}), "spec"},
		"empty binding": {named("x", "x", &configv1.Resource{Spec: &configv1.Resource_TopicBinding{TopicBinding: &configv1.TopicBinding{}}}), "spec.epochs"},
		"bad policy": {named("x", "x", &configv1.Resource{Spec: &configv1.Resource_AccessPolicy{AccessPolicy: &configv1.AccessPolicy{
			Rules: []*configv1.AccessRule{{Name: "r", Effect: configv1.Effect_EFFECT_ALLOW, Topics: []string{"x", "a b"}}}}}}), "spec.rules[0].topics[1]"},
	} {
		field, err := Check(tc.v.Resource)
		if (err == nil) != (tc.field == "") || field != tc.field {
			t.Errorf("%s: %q %v, want %q", name, field, err, tc.field)
		}
	}
}

func BenchmarkCompile10000(b *testing.B) {
	vs := []Versioned{theStore()}
	for i := range 2500 {
		vs = append(vs, topic(fmt.Sprintf("t%d", i))...)
		vs = append(vs, subscription(fmt.Sprintf("s%d", i), fmt.Sprintf("t%d", i))...)
	}
	in := Input{Set: set(vs...)}
	b.ReportAllocs()
	for b.Loop() {
		Compile(in)
	}
}

// FuzzCheck: a resource of any bytes is refused, or compiles: what cannot be used
// is not ready, and says why.
func FuzzCheck(f *testing.F) {
	for _, r := range []*configv1.Resource{
		{Name: "topic/demo/orders", Metadata: &configv1.Metadata{Namespace: "demo", Name: "orders", Uid: "t1"}, Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{Store: "main"}}},
		{Name: "route/demo/r", Metadata: &configv1.Metadata{Namespace: "demo", Name: "r"}, Spec: &configv1.Resource_Route{Route: &configv1.Route{Topic: "orders", Rules: []*configv1.RouteRule{{Filter: &configv1.Filter{Exact: map[string]string{"type": "a"}}, To: []*configv1.Destination{{Topic: "b"}}}}}}},
		{Name: "accesspolicy/demo/p", Metadata: &configv1.Metadata{Namespace: "demo", Name: "p"}, Spec: &configv1.Resource_AccessPolicy{AccessPolicy: &configv1.AccessPolicy{Rules: []*configv1.AccessRule{{Name: "a", Effect: configv1.Effect_EFFECT_ALLOW, Principals: []string{"*"}, Actions: []configv1.Action{configv1.Action_ACTION_PUBLISH}, Topics: []string{">"}}}}}},
		{Name: "subscription/demo/s", Metadata: &configv1.Metadata{Namespace: "demo", Name: "s", Uid: "s1"}, Spec: &configv1.Resource_Subscription{Subscription: &configv1.Subscription{Topics: []string{"orders"}}}},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &configv1.Resource{}
		if proto.Unmarshal(b, r) != nil {
			return
		}
		field, err := Check(r)
		if err != nil {
			if field == "" {
				t.Errorf("the refusal names no field: %v", err)
			}
			return
		}
		s := Compile(Input{Set: map[string]Versioned{r.Name: {Resource: r, Version: "1"}}, Lineage: "1-x", Revision: 1})
		for k, topic := range s.Topics {
			if topic.NotReady == "" {
				t.Errorf("topic %s is ready by itself", k)
			}
		}
		for k, sub := range s.Subscriptions {
			if sub.NotReady == "" {
				t.Errorf("subscription %s is ready by itself", k)
			}
		}
	})
}

// TestQuotas: a topic has the quotas that are about it; a Quota that is not
// understood denies its namespace, one that is withheld too.
func TestQuotas(t *testing.T) {
	who := &policy.Principal{Namespace: "demo", Name: "a"}
	allowAll := named("p", "p", &configv1.Resource{Spec: &configv1.Resource_AccessPolicy{AccessPolicy: &configv1.AccessPolicy{Rules: []*configv1.AccessRule{{
		Name: "all", Effect: configv1.Effect_EFFECT_ALLOW, Principals: []string{"*"}, Actions: []configv1.Action{configv1.Action_ACTION_PUBLISH}, Topics: []string{">"}}}}}})
	limit := func(spec *configv1.Quota) Versioned {
		return named("q", "q", &configv1.Resource{Spec: &configv1.Resource_Quota{Quota: spec}})
	}
	good := limit(&configv1.Quota{Topics: []string{"orders"}, Per: configv1.QuotaPer_QUOTA_PER_ALL, Publish: &configv1.PublishQuota{InFlight: 1}})
	bad := limit(&configv1.Quota{Topics: []string{"orders"}, Per: 99, Publish: &configv1.PublishQuota{InFlight: 1}})
	if _, err := Check(good.Resource); err != nil {
		t.Error(err)
	}
	if field, err := Check(bad.Resource); err == nil || field != "spec.per" {
		t.Errorf("%s: %v", field, err)
	}
	all := append(append([]Versioned{theStore(), allowAll}, topic("orders")...), topic("audit")...)
	s := Compile(Input{Set: set(append(all, good)...)})
	if len(s.Topics[Key{"demo", "orders"}].Quotas) != 1 || len(s.Topics[Key{"demo", "audit"}].Quotas) != 0 || !s.Rules.Authorize(who, policy.Publish, "demo", "orders").Allowed {
		t.Error("the quota is not that of orders alone")
	}
	for name, in := range map[string]Input{"not understood": {Set: set(append(all, bad)...)}, "withheld": {Set: set(all...), Withheld: []string{"quota/demo/q"}}} {
		if d := Compile(in).Rules.Authorize(who, policy.Publish, "demo", "audit"); d.Allowed || !strings.Contains(d.Why, "quota/demo/q") {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

// TestCalls: rules are found below their namespace and at their hosts; where one is not
// understood or withheld, none of the namespace is called.
func TestCalls(t *testing.T) {
	bind := func(name, path string, hosts ...string) Versioned {
		return named(name, name, &configv1.Resource{Spec: &configv1.Resource_HttpBinding{HttpBinding: &configv1.HttpBinding{Hosts: hosts,
			Rules: []*configv1.HttpRule{{Path: path, Topic: "orders", Attributes: map[string]string{"type": "t", "source": "/s"}}}}}})
	}
	a, b, bad := bind("a", "/a", "a.example"), bind("b", "/b"), bind("c", "c")
	if _, err := Check(a.Resource); err != nil {
		t.Error(err)
	}
	if field, err := Check(bad.Resource); err == nil || field != "spec.rules[0].path" {
		t.Errorf("%s: %v", field, err)
	}
	for name, tc := range map[string]struct {
		in              Input
		ready           bool
		atA, everywhere bool // a host that is named, and another one
	}{
		"both":           {Input{Set: set(a, b)}, true, true, false},
		"not understood": {Input{Set: set(a, bad)}, false, true, false},
		"two of a path":  {Input{Set: set(a, b, bind("d", "/b"))}, false, true, false},
		"withheld":       {Input{Set: set(a), Withheld: []string{"httpbinding/demo/b"}}, false, true, true},
		"all withheld":   {Input{Withheld: []string{"httpbinding/demo/a"}}, false, true, true},
	} {
		calls := Compile(tc.in).Calls
		in, at, other := calls.In("demo"), calls.At("a.example"), calls.At("b.example")
		if in == nil || (in.NotReady == "") != tc.ready || (at != nil) != tc.atA || (other != nil) != tc.everywhere || other != nil && other.NotReady == "" || calls.In("other") != nil {
			t.Errorf("%s: %+v, %+v, %+v", name, in, at, other)
		}
		if name == "withheld" && at.NotReady == "" {
			t.Error("a host of a namespace of which something is withheld is called")
		}
	}
	theirs := bind("e", "/e", "a.example")
	theirs.Resource.Metadata.Namespace, theirs.Resource.Name = "other", "httpbinding/other/e"
	if at := Compile(Input{Set: set(a, theirs)}).Calls.At("a.example"); at.NotReady == "" {
		t.Error("a host of two namespaces is called")
	}
}

// TestMatching: topics are found by names and patterns, each once, and those of a
// namespace without going through all for each who asks.
func TestMatching(t *testing.T) {
	var all []Versioned
	for _, name := range []string{"a", "a.b", "a.c", "d"} {
		all = append(all, topic(name)...)
	}
	other := topic("a.x")[0]
	other.Resource = proto.CloneOf(other.Resource)
	other.Resource.Metadata.Namespace, other.Resource.Name = "other", "topic/other/a.x"
	s := Compile(Input{Set: set(append(all, other)...)})
	for _, tc := range []struct {
		namespace string
		list      []string
		want      string
	}{
		{"demo", []string{"a", "a", "none"}, "a"},
		{"demo", []string{"a.*"}, "a.b a.c"},
		{"demo", []string{"a.b", "a.*", "*", "a"}, "a a.b a.c d"},
		{"demo", []string{">"}, "a a.b a.c d"},
		{"other", []string{">", "a"}, "a.x"},
		{"none", []string{">"}, ""},
	} {
		var got []string
		for _, t := range s.Matching(tc.namespace, tc.list) {
			got = append(got, t.Name)
		}
		slices.Sort(got)
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%v of %s are %v, want %s", tc.list, tc.namespace, got, tc.want)
		}
	}
	if a, b := s.Namespace("demo"), s.Namespace("demo"); len(a) != 4 || &a[0] != &b[0] {
		t.Error("a namespace is gone through again")
	}
}

// TestSchemas: a topic has the schema that it names, which is compiled once for what it
// says; without it nothing may be published.
func TestSchemas(t *testing.T) {
	doc := func(version, document string) Versioned {
		v := named("order", "sch", &configv1.Resource{Spec: &configv1.Resource_Schema{Schema: &configv1.Schema{Format: &configv1.Schema_Json{Json: &configv1.JsonSchema{Document: document}}}}})
		v.Version = version
		return v
	}
	all := append([]Versioned{theStore()}, topic("orders")...)
	all[1].Resource.GetTopic().Schema = "order"
	at := func(vs ...Versioned) *Topic {
		return Compile(Input{Set: set(append(all, vs...)...)}).Topics[Key{"demo", "orders"}]
	}
	if got := at(); got.Schema != nil || !strings.Contains(got.Unjudged, "schema order") || got.NotReady != "" {
		t.Errorf("without it: %+v", got)
	}
	first := at(doc("1", "{}"))
	if first.Schema == nil || first.Unjudged != "" || at(doc("1", "{}")).Schema != first.Schema || at(doc("2", "true")).Schema == first.Schema {
		t.Error("it is not compiled once for what it says")
	}
	if got := at(doc("3", "{")); got.Unjudged == "" {
		t.Error("one that is not understood judges")
	}
	if field, err := Check(doc("3", "{").Resource); err == nil || field != "spec.json.document" {
		t.Errorf("%s: %v", field, err)
	}
}
