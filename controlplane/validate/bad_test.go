package validate

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/resource"
)

// good is a resource of each kind that nothing is wrong with.
func good() map[resource.Kind]*configv1.Resource {
	md := func() *configv1.Metadata { return &configv1.Metadata{Namespace: "demo", Name: "x"} }
	return map[resource.Kind]*configv1.Resource{
		resource.EventStore: {Metadata: md(), Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Rocketmq{Rocketmq: &configv1.RocketMQ{NameServers: []string{"a:1"}}}}}},
		resource.Topic:      {Metadata: md(), Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{Store: "main"}}},
		resource.Route:      {Metadata: md(), Spec: &configv1.Resource_Route{Route: &configv1.Route{Topic: "a", Rules: []*configv1.RouteRule{{To: []*configv1.Destination{{Topic: "b"}}}}}}},
		resource.Subscription: {Metadata: md(), Spec: &configv1.Resource_Subscription{Subscription: &configv1.Subscription{Topics: []string{"a"}, DeadLetterTopic: "d",
			Delivery: &configv1.Subscription_Push{Push: &configv1.PushDelivery{Url: "https://x.example/"}}, Retry: &configv1.Retry{}}}},
		resource.AccessPolicy: {Metadata: md(), Spec: &configv1.Resource_AccessPolicy{AccessPolicy: &configv1.AccessPolicy{Rules: []*configv1.AccessRule{
			{Name: "r", Effect: configv1.Effect_EFFECT_ALLOW, Principals: []string{"p"}, Actions: []configv1.Action{configv1.Action_ACTION_PUBLISH}, Topics: []string{"a"}}}}}},
		resource.HTTPBinding: {Metadata: md(), Spec: &configv1.Resource_HttpBinding{HttpBinding: &configv1.HttpBinding{Hosts: []string{"a.example"}, Rules: []*configv1.HttpRule{
			{Path: "/a/{b}", Topic: "a", Attributes: map[string]string{"type": "t", "source": "/s", "subject": "{b}"}}}}}},
		resource.Identity: {Metadata: md(), Spec: &configv1.Resource_Identity{Identity: &configv1.Identity{Method: &configv1.Identity_ApiKeys{ApiKeys: &configv1.ApiKeys{
			Keys: []*configv1.ApiKey{{Id: "aaaaaaaaaaaa", Hash: "sha256:" + strings.Repeat("0", 64), Principal: "p"}}}}}}},
	}
}

// bad are resources that are refused: of every kind, what is wrong with a good one.
func bad() map[string]*configv1.Resource {
	out := map[string]*configv1.Resource{}
	add := func(kind resource.Kind, what string, change func(*configv1.Resource)) {
		r := proto.Clone(good()[kind]).(*configv1.Resource)
		change(r)
		out[string(kind)+", "+what] = r
	}
	names := []string{"", ".", "..", "../x", "a..b", ".a", "a.", "a/b", "a b", "a\x00", "a\n", "ä", "a%2Fb", "*", ">", "a.*", "a#", "a?b", "%RETRY%a", strings.Repeat("a", 81), strings.Repeat("a.", 41), "a\\b", "a:b", "\u202ea", "a\u200b"}
	namespaces := []string{"", "A", "a_b", "a.b", "-a", "a-", "a/b", "../a", "a b", "ä", "*", strings.Repeat("a", 33), "weft-system", "a\x00"}
	for kind := range good() {
		for i, n := range names {
			add(kind, fmt.Sprintf("name %d %q", i, n), func(r *configv1.Resource) { r.Metadata.Name = n })
		}
		for i, n := range namespaces {
			add(kind, fmt.Sprintf("namespace %d %q", i, n), func(r *configv1.Resource) { r.Metadata.Namespace = n })
		}
		add(kind, "no metadata", func(r *configv1.Resource) { r.Metadata = nil })
		add(kind, "no spec", func(r *configv1.Resource) { r.Spec = nil })
		add(kind, "another name", func(r *configv1.Resource) { r.Name = "topic/other/y" })
		add(kind, "too many labels", func(r *configv1.Resource) {
			r.Metadata.Labels = map[string]string{}
			for i := range 1000 {
				r.Metadata.Labels[fmt.Sprint("l", i)] = "x"
			}
		})
		add(kind, "a field of another version", func(r *configv1.Resource) { r.Metadata.ProtoReflect().SetUnknown([]byte{0xf8, 0x7c, 1}) })
	}
	for i, n := range names {
		if n != "" {
			add(resource.Route, fmt.Sprintf("destination %d", i), func(r *configv1.Resource) { r.GetRoute().Rules[0].To[0].Topic = n })
			add(resource.Route, fmt.Sprintf("topic %d", i), func(r *configv1.Resource) { r.GetRoute().Topic = n })
			add(resource.Subscription, fmt.Sprintf("dead letters %d", i), func(r *configv1.Resource) { r.GetSubscription().DeadLetterTopic = n })
		}
	}
	for i, f := range badFilters() {
		add(resource.Route, fmt.Sprintf("filter %d", i), func(r *configv1.Resource) { r.GetRoute().Rules[0].Filter = f })
		add(resource.Subscription, fmt.Sprintf("filter %d", i), func(r *configv1.Resource) { r.GetSubscription().Filter = f })
	}
	for i, p := range []string{"", ">.a", "a>", "a.*b", "**", "a..>", "#", "+", "a.>.b"} {
		add(resource.Subscription, fmt.Sprintf("pattern %d", i), func(r *configv1.Resource) { r.GetSubscription().Topics = []string{p} })
		add(resource.AccessPolicy, fmt.Sprintf("pattern %d", i), func(r *configv1.Resource) { r.GetAccessPolicy().Rules[0].Topics = []string{p} })
	}
	for i, u := range []string{"", "x", "/a", "ftp://x/", "http://", "https://u:p@x/", "https://x/#f", "http://x y/", "gopher://x/", "unix:///a", "javascript:1", "//x/", "https://" + strings.Repeat("x", 2048)} {
		add(resource.Subscription, fmt.Sprintf("url %d", i), func(r *configv1.Resource) { r.GetSubscription().GetPush().Url = u })
	}
	for i, d := range []*durationpb.Duration{{Seconds: -1}, {Nanos: 1}, {Seconds: math.MaxInt64}, {Seconds: 86401}, {Nanos: math.MaxInt32}} {
		add(resource.Subscription, fmt.Sprintf("ack timeout %d", i), func(r *configv1.Resource) { r.GetSubscription().AckTimeout = d })
		add(resource.Subscription, fmt.Sprintf("backoff %d", i), func(r *configv1.Resource) { r.GetSubscription().Retry.MinBackoff = d })
		add(resource.Subscription, fmt.Sprintf("timeout %d", i), func(r *configv1.Resource) { r.GetSubscription().GetPush().Timeout = d })
	}
	for i, rate := range []*configv1.Rate{{}, {Deliveries: 1000001}, {Deliveries: 1, Burst: 65537}, {Deliveries: 1, Per: durationpb.New(time.Millisecond)},
		{Deliveries: 1, Per: durationpb.New(2 * time.Hour)}} {
		add(resource.Subscription, fmt.Sprintf("rate %d", i), func(r *configv1.Resource) { r.GetSubscription().Rate = rate })
	}
	for i, h := range []string{"", "A.example", "a.example.", "a..b", "-a", "a:80", "[::1]", "*.example", "a/b", "ä", "a\x00", strings.Repeat("a.", 127) + "ab"} {
		add(resource.HTTPBinding, fmt.Sprintf("host %d", i), func(r *configv1.Resource) { r.GetHttpBinding().Hosts = []string{h} })
	}
	for i, p := range []string{"", "a", "/a/", "/a//b", "/a/..", "/{b}/{b}", "/{b...}/a", "/a%2fb", "/{b", "/a?b", "/" + strings.Repeat("a", 2048)} {
		add(resource.HTTPBinding, fmt.Sprintf("path %d", i), func(r *configv1.Resource) { r.GetHttpBinding().Rules[0].Path = p })
	}
	for i, m := range []string{"GET", "post", "CONNECT", "OPTIONS", "*", "A B"} {
		add(resource.HTTPBinding, fmt.Sprintf("method %d", i), func(r *configv1.Resource) { r.GetHttpBinding().Rules[0].Method = m })
	}
	for i, d := range []time.Duration{-1, 0, time.Microsecond, 5*time.Minute + 1} {
		add(resource.HTTPBinding, fmt.Sprintf("reply %d", i), func(r *configv1.Resource) {
			r.GetHttpBinding().Rules[0].Reply = &configv1.HttpReply{Timeout: durationpb.New(d)}
		})
	}
	for i, a := range []string{"{x}", "{b", "}", "{data.x}", "{header.authorization}", "{query.}", "", "a\r\nb", strings.Repeat("a", 2049)} {
		add(resource.HTTPBinding, fmt.Sprintf("attribute %d", i), func(r *configv1.Resource) { r.GetHttpBinding().Rules[0].Attributes["subject"] = a })
	}
	add(resource.HTTPBinding, "no rules", func(r *configv1.Resource) { r.GetHttpBinding().Rules = nil })
	add(resource.HTTPBinding, "no type", func(r *configv1.Resource) { delete(r.GetHttpBinding().Rules[0].Attributes, "type") })
	add(resource.HTTPBinding, "one path twice", func(r *configv1.Resource) {
		r.GetHttpBinding().Rules = append(r.GetHttpBinding().Rules, &configv1.HttpRule{Path: "/{c}/{d}", Topic: "a", Attributes: map[string]string{"type": "t", "source": "/s"}},
			&configv1.HttpRule{Path: "/a/{d...}", Method: "POST", Topic: "a", Attributes: map[string]string{"type": "t", "source": "/s"}}, &configv1.HttpRule{Path: "/{c}/b", Topic: "a", Attributes: map[string]string{"type": "t", "source": "/s"}})
	})
	for i, f := range []*configv1.ForwardDelivery{{}, {Topic: "*"}, {Topic: "a"}, {Topic: strings.Repeat("a", 81)}, {Topic: "b", Concurrency: 1025}} {
		add(resource.Subscription, fmt.Sprintf("forward %d", i), func(r *configv1.Resource) {
			r.GetSubscription().Delivery = &configv1.Subscription_Forward{Forward: f}
		})
	}
	add(resource.Subscription, "reads its dead letters", func(r *configv1.Resource) { r.GetSubscription().Topics = []string{"a", "*"} })
	add(resource.Subscription, "no topics", func(r *configv1.Resource) { r.GetSubscription().Topics = nil })
	add(resource.Subscription, "a topic twice", func(r *configv1.Resource) { r.GetSubscription().Topics = []string{"a", "a"} })
	add(resource.Subscription, "a start that is none", func(r *configv1.Resource) { r.GetSubscription().Start = 9 })
	add(resource.Topic, "partitions", func(r *configv1.Resource) { r.GetTopic().Partitions = math.MaxUint32 })
	for i, p := range []string{"weft-x", "%RETRY%x", "RMQ_SYS_X", "TBW102", "a b", "a/b", strings.Repeat("a", 250)} {
		add(resource.Topic, fmt.Sprintf("physical name %d", i), func(r *configv1.Resource) { r.GetTopic().PhysicalName = p })
	}
	for i, k := range []string{"id", "time", "specversion", "datacontenttype", "Subject", "a-b", "ä"} {
		add(resource.Topic, fmt.Sprintf("key %d", i), func(r *configv1.Resource) { r.GetTopic().KeyFrom = k })
	}
	for i, s := range []string{"", "*x", "a/b/c", "/a", "a/", "ä", "A B", "NS/x", "a\x00"} {
		add(resource.AccessPolicy, fmt.Sprintf("principal %d", i), func(r *configv1.Resource) { r.GetAccessPolicy().Rules[0].Principals = []string{s} })
	}
	for i, h := range []string{"", "x", "md5:00", "sha256:", "sha256:" + strings.Repeat("g", 64), "sha256:" + strings.Repeat("0", 63), strings.Repeat("0", 64)} {
		add(resource.Identity, fmt.Sprintf("hash %d", i), func(r *configv1.Resource) { r.GetIdentity().GetApiKeys().Keys[0].Hash = h })
	}
	for i, pem := range []string{"", "x", "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"} {
		add(resource.Identity, fmt.Sprintf("authority %d", i), func(r *configv1.Resource) {
			r.GetIdentity().Method = &configv1.Identity_Mtls{Mtls: &configv1.MutualTls{CaCertificates: pem, PrincipalFrom: configv1.PrincipalSource_PRINCIPAL_SOURCE_COMMON_NAME}}
		})
	}
	for i, s := range []string{"", "x", "x:y", ":1", "a:99999", "a b:1"} {
		add(resource.EventStore, fmt.Sprintf("name server %d", i), func(r *configv1.Resource) { r.GetEventStore().GetRocketmq().NameServers = []string{s} })
		add(resource.EventStore, fmt.Sprintf("broker %d", i), func(r *configv1.Resource) {
			r.GetEventStore().Driver = &configv1.EventStore_Kafka{Kafka: &configv1.Kafka{Brokers: []string{s}}}
		})
	}
	return out
}

func badFilters() []*configv1.Filter {
	deep := &configv1.Filter{Exact: map[string]string{"type": "a"}}
	for range maxFilterDepth {
		deep = &configv1.Filter{Not: deep}
	}
	wide := &configv1.Filter{}
	for range 33 {
		wide.Any = append(wide.Any, &configv1.Filter{Exact: map[string]string{"type": "a"}})
	}
	return []*configv1.Filter{{}, deep, wide, {Exact: map[string]string{"": "a"}}, {Exact: map[string]string{"Type": "a"}}, {Exact: map[string]string{"type": ""}}, {Prefix: map[string]string{"a b": "c"}},
		{Exact: map[string]string{"type": "a"}, Not: &configv1.Filter{}}, {All: []*configv1.Filter{{}}}, {Not: &configv1.Filter{Suffix: map[string]string{"x": ""}}}}
}

// TestBad: each of some hundred bad resources is refused, with a field and a rule,
// and a good one is not.
func TestBad(t *testing.T) {
	v, err := New()
	if err != nil {
		t.Fatal(err)
	}
	for kind, r := range good() {
		if p := v.Alone(r); len(p) > 0 {
			t.Errorf("a good %s: %v", kind, p)
		}
	}
	all := bad()
	if len(all) < 200 {
		t.Errorf("%d bad resources", len(all))
	}
	for what, r := range all {
		problems := v.Alone(r)
		if len(problems) == 0 {
			t.Errorf("%s is accepted", what)
		}
		for _, p := range problems {
			if p.Field == "" || p.Rule == "" || p.Message == "" {
				t.Errorf("%s: %+v", what, p)
			}
		}
	}
	t.Logf("%d bad resources", len(all))
}
