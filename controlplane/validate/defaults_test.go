package validate

import (
	"testing"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
)

func inDemo(name string, r *configv1.Resource) *configv1.Resource {
	r.Metadata = &configv1.Metadata{Namespace: "demo", Name: name}
	return r
}

// TestDefaultsAreValues: what may not change may not change from or to a default
// either, and writing a default out is no change.
func TestDefaultsAreValues(t *testing.T) {
	store := inDemo("main", &configv1.Resource{Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}}})
	topic := func(partitions uint32) *configv1.Resource {
		return inDemo("orders", &configv1.Resource{Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{Store: "main", Partitions: partitions}}})
	}
	subscription := func(start configv1.Start) *configv1.Resource {
		return inDemo("billing", &configv1.Resource{Spec: &configv1.Resource_Subscription{Subscription: &configv1.Subscription{Topics: []string{"orders"}, Start: start}}})
	}
	for name, tc := range map[string]struct {
		was, is *configv1.Resource
		refused string
	}{
		"8 of 16":                {topic(16), topic(8), "spec.partitions"},
		"the default of 16":      {topic(16), topic(0), "spec.partitions"},
		"4 of the default":       {topic(0), topic(4), "spec.partitions"},
		"the default, spelled":   {topic(0), topic(8), ""},
		"the default, unspelled": {topic(8), topic(0), ""},
		"more than the default":  {topic(0), topic(9), ""},
		"end, spelled":           {subscription(0), subscription(configv1.Start_START_END), ""},
		"beginning of the end":   {subscription(0), subscription(configv1.Start_START_BEGINNING), "spec.start"},
	} {
		problems := Together(configOf(topic(0), store, tc.was), []*configv1.Resource{tc.is}, nil)
		if tc.refused == "" && len(problems) > 0 || tc.refused != "" && (len(problems) != 1 || problems[0].Field != tc.refused) {
			t.Errorf("%s: %v", name, problems)
		}
	}
}

// TestFilterSize: a filter that proxies would refuse for its size is refused on
// entry.
func TestFilterSize(t *testing.T) {
	v, err := New()
	if err != nil {
		t.Fatal(err)
	}
	filter := func(anys int) *configv1.Filter {
		f := &configv1.Filter{}
		for range anys {
			any := &configv1.Filter{}
			for range 31 {
				any.Any = append(any.Any, &configv1.Filter{Exact: map[string]string{"type": "a"}})
			}
			f.All = append(f.All, any)
		}
		return f
	}
	for anys, refused := range map[int]bool{7: false, 8: true} { // 225 and 257 expressions
		r := inDemo("billing", &configv1.Resource{Spec: &configv1.Resource_Subscription{Subscription: &configv1.Subscription{Topics: []string{"orders"}, Filter: filter(anys)}}})
		problems := v.Alone(r)
		if !refused && len(problems) > 0 || refused && (len(problems) != 1 || problems[0].Field != "spec.filter") {
			t.Errorf("%d: %v", anys, problems)
		}
	}
}

// TestOthersPhysicalTopics: topics that a store keeps for itself cannot be adopted.
func TestOthersPhysicalTopics(t *testing.T) {
	v, err := New()
	if err != nil {
		t.Fatal(err)
	}
	for physical, refused := range map[string]bool{"orders": false, "%DLQ%billing": false, "%RETRY%billing": true, "weft-retry-x": true, "RMQ_SYS_TRANS_HALF_TOPIC": true, "SCHEDULE_TOPIC_XXXX": true, "TBW102": true} {
		r := inDemo("orders", &configv1.Resource{Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{Store: "main", PhysicalName: physical}}})
		if problems := v.Alone(r); (len(problems) > 0) != refused {
			t.Errorf("%s: %v", physical, problems)
		}
	}
}
