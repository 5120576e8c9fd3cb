package validate

import (
	"testing"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/resource"
)

// TestExpressions: what cannot be compiled is refused with its path, where a proxy
// would refuse it too.
func TestExpressions(t *testing.T) {
	v, err := New()
	if err != nil {
		t.Fatal(err)
	}
	rule := func(change func(*configv1.AccessRule)) *configv1.Resource {
		r := proto.Clone(good()[resource.AccessPolicy]).(*configv1.Resource)
		change(r.GetAccessPolicy().Rules[0])
		return r
	}
	sub := func(attributes map[string]string, data string, change func(*configv1.Subscription)) *configv1.Resource {
		r := proto.Clone(good()[resource.Subscription]).(*configv1.Resource)
		r.GetSubscription().Transform = &configv1.Transform{Language: &configv1.Transform_Cel{Cel: &configv1.CelTransform{Attributes: attributes, Data: data}}}
		if change != nil {
			change(r.GetSubscription())
		}
		return r
	}
	for what, tc := range map[string]struct {
		r           *configv1.Resource
		field, rule string
	}{
		"a rule": {rule(func(r *configv1.AccessRule) {
			r.Subjects, r.Condition = []string{"a/*", "b/>", ""}, "event.type == 'a'"
		}), "", ""},
		"a subject":   {rule(func(r *configv1.AccessRule) { r.Subjects = []string{"a", "b*"} }), "spec.rules[0].subjects[1]", "pattern"},
		"a condition": {rule(func(r *configv1.AccessRule) { r.Condition = "event.type ==" }), "spec.rules[0].condition", "condition"},
		"not a bool":  {rule(func(r *configv1.AccessRule) { r.Condition = "event.type" }), "spec.rules[0].condition", "condition"},
		"with consume": {rule(func(r *configv1.AccessRule) {
			r.Condition, r.Subscriptions = "true", []string{"s"}
			r.Actions = append(r.Actions, configv1.Action_ACTION_CONSUME)
		}), "spec.rules[0].actions", "per-event"},
		"a transform":          {sub(map[string]string{"type": "'a'"}, "{'a': data}", nil), "", ""},
		"of nothing":           {sub(nil, "", nil), "spec.transform.cel", "transform"},
		"of the identity":      {sub(map[string]string{"id": "'a'"}, "", nil), "spec.transform.cel.attributes.id", "transform"},
		"of an attribute":      {sub(map[string]string{"x": "'a' +"}, "", nil), "spec.transform.cel.attributes.x", "transform"},
		"of data":              {sub(nil, "dta", nil), "spec.transform.cel.data", "transform"},
		"without dead letters": {sub(nil, "data", func(s *configv1.Subscription) { s.DeadLetterTopic = "" }), "spec.dead_letter_topic", "transform-dead-letters"},
	} {
		found := tc.rule == ""
		problems := v.Alone(tc.r)
		for _, p := range problems {
			found = found || p.Field == tc.field && p.Rule == tc.rule
		}
		if !found || tc.rule == "" && len(problems) > 0 {
			t.Errorf("%s: %v", what, problems)
		}
	}
}
