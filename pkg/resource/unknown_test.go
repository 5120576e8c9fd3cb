package resource

import (
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
