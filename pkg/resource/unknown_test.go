package resource

import (
	"cmp"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
)

// TestUnknownField: wherever a field of a later version stands, its message is
// named.
func TestUnknownField(t *testing.T) {
	later := protowire.AppendVarint(protowire.AppendTag(nil, 1000, protowire.VarintType), 1)
	for want, message := range map[string]func(*configv1.Resource) proto.Message{
		"":                       nil,
		"spec":                   func(r *configv1.Resource) proto.Message { return r },
		"metadata":               func(r *configv1.Resource) proto.Message { return r.Metadata },
		"spec.retry":             func(r *configv1.Resource) proto.Message { return r.GetSubscription().Retry },
		"spec.push":              func(r *configv1.Resource) proto.Message { return r.GetSubscription().GetPush() },
		"spec.filter.all[1]":     func(r *configv1.Resource) proto.Message { return r.GetSubscription().Filter.All[1] },
		"spec.ack_timeout":       func(r *configv1.Resource) proto.Message { return r.GetSubscription().AckTimeout },
		"spec.filter.all[0].not": func(r *configv1.Resource) proto.Message { return r.GetSubscription().Filter.All[0].Not },
	} {
		r := &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: "billing", Labels: map[string]string{"a": "b"}},
			Spec: &configv1.Resource_Subscription{Subscription: &configv1.Subscription{Topics: []string{"orders"}, AckTimeout: durationpb.New(1e9), Retry: &configv1.Retry{},
				Delivery: &configv1.Subscription_Push{Push: &configv1.PushDelivery{Url: "http://a/"}}, Filter: &configv1.Filter{All: []*configv1.Filter{{Not: &configv1.Filter{}}, {}}}}}}
		if message != nil {
			message(r).ProtoReflect().SetUnknown(protoreflect.RawFields(later))
		}
		if got := UnknownField(r); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestUnknownValue: so is a name of a later version, where one of several is to be chosen.
func TestUnknownValue(t *testing.T) {
	for want, set := range map[string]func(*configv1.Subscription, *configv1.AccessPolicy){
		"":                       func(*configv1.Subscription, *configv1.AccessPolicy) {},
		"spec.ordering":          func(s *configv1.Subscription, _ *configv1.AccessPolicy) { s.Ordering = 1000 },
		"spec.push.request.body": func(s *configv1.Subscription, _ *configv1.AccessPolicy) { s.GetPush().Request.Body = 1000 },
		"spec.rules[1].effect":   func(_ *configv1.Subscription, p *configv1.AccessPolicy) { p.Rules[1].Effect = 1000 },
		"spec.rules[0].actions":  func(_ *configv1.Subscription, p *configv1.AccessPolicy) { p.Rules[0].Actions[1] = 1000 },
		"spec.rules[1].mode":     func(_ *configv1.Subscription, p *configv1.AccessPolicy) { p.Rules[1].Mode = -1 },
	} {
		s := &configv1.Subscription{Ordering: configv1.Ordering_ORDERING_BY_KEY, Delivery: &configv1.Subscription_Push{Push: &configv1.PushDelivery{Request: &configv1.RestRequest{Body: configv1.RestBody_REST_BODY_DATA}}}}
		p := &configv1.AccessPolicy{Rules: []*configv1.AccessRule{{Actions: []configv1.Action{configv1.Action_ACTION_PUBLISH, configv1.Action_ACTION_CONSUME}}, {Effect: configv1.Effect_EFFECT_DENY}}}
		set(s, p)
		if got := cmp.Or(UnknownValue(&configv1.Resource{Spec: &configv1.Resource_Subscription{Subscription: s}}), UnknownValue(&configv1.Resource{Spec: &configv1.Resource_AccessPolicy{AccessPolicy: p}})); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
