package validate

import (
	"fmt"
	"testing"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
)

// TestRings: a change that closes a ring of forwards, dead letters and Routes is
// refused, and told which ring; one that does not is not.
func TestRings(t *testing.T) {
	topic := func(name string) *configv1.Resource {
		return inDemo(name, &configv1.Resource{Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{Store: "main"}}})
	}
	sub := func(name, reads, dead, forward string) *configv1.Resource {
		s := &configv1.Subscription{Topics: []string{reads}, DeadLetterTopic: dead}
		if forward != "" {
			s.Delivery = &configv1.Subscription_Forward{Forward: &configv1.ForwardDelivery{Topic: forward}}
		}
		return inDemo(name, &configv1.Resource{Spec: &configv1.Resource_Subscription{Subscription: s}})
	}
	route := func(of, to string) *configv1.Resource {
		return inDemo("r-"+of, &configv1.Resource{Spec: &configv1.Resource_Route{Route: &configv1.Route{Topic: of, Rules: []*configv1.RouteRule{{To: []*configv1.Destination{{Topic: to}}}}}}})
	}
	store := inDemo("main", &configv1.Resource{Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}}})
	there := []*configv1.Resource{store, topic("a"), topic("b"), topic("c"), topic("d.x")}
	const round = goesRound
	for name, tc := range map[string]struct {
		was         []*configv1.Resource
		is          *configv1.Resource
		field, says string
	}{
		"a chain": {[]*configv1.Resource{sub("s", "a", "", "b"), sub("t", "b", "", "c")}, sub("u", "c", "", "d.x"), "", ""},
		"two forwards": {[]*configv1.Resource{sub("s", "a", "", "b")}, sub("t", "b", "", "a"), "spec.forward.topic",
			round + "b -> a (forwarded by subscription/demo/t) -> b (forwarded by subscription/demo/s)"},
		"by pattern": {[]*configv1.Resource{sub("s", "d.*", "", "b")}, sub("t", "b", "", "d.x"), "spec.forward.topic",
			round + "b -> d.x (forwarded by subscription/demo/t) -> b (forwarded by subscription/demo/s)"},
		"over dead letters": {[]*configv1.Resource{sub("s", "a", "b", "")}, sub("t", "b", "", "a"), "spec.forward.topic",
			round + "b -> a (forwarded by subscription/demo/t) -> b (dead letters of subscription/demo/s)"},
		"dead letters of one that is forwarded to": {[]*configv1.Resource{sub("s", "a", "", "b")}, sub("t", "b", "a", "c"), "spec.dead_letter_topic",
			round + "b -> a (dead letters of subscription/demo/t) -> b (forwarded by subscription/demo/s)"},
		"over a route": {[]*configv1.Resource{sub("s", "a", "", "b"), route("c", "a")}, sub("t", "b", "", "c"), "spec.forward.topic",
			round + "b -> a (forwarded to c by subscription/demo/t and routed) -> b (forwarded by subscription/demo/s)"},
		"routed back to itself": {[]*configv1.Resource{route("c", "a")}, sub("t", "a", "", "c"), "spec.forward.topic",
			round + "a -> a (forwarded to c by subscription/demo/t and routed)"},
		"by a new route": {[]*configv1.Resource{sub("s", "a", "", "b"), sub("t", "b", "", "c")}, route("c", "a"), "spec.rules",
			"makes a ring of subscription/demo/t, in which an event may go round for ever: b -> a (forwarded to c by subscription/demo/t and routed) -> b (forwarded by subscription/demo/s)"},
		"a route that leads on":                  {[]*configv1.Resource{sub("s", "a", "", "b"), sub("t", "b", "", "c")}, route("c", "d.x"), "", ""},
		"a route of what nobody forwards to":     {[]*configv1.Resource{sub("s", "a", "", "b")}, route("c", "a"), "", ""},
		"dead letters are not routed":            {[]*configv1.Resource{route("c", "a")}, sub("t", "a", "c", ""), "", ""},
		"no such topic":                          {nil, sub("t", "a", "", "nowhere"), "spec.forward.topic", "there is no Topic nowhere in namespace demo"},
		"from where the route has led everybody": {[]*configv1.Resource{route("a", "c")}, sub("t", "c", "", "b"), "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			problems := Together(configOf(append(there, tc.was...)...), []*configv1.Resource{tc.is}, nil)
			got := ""
			for _, p := range problems {
				got += fmt.Sprintf("%s: %s\n", p.Field, p.Message)
			}
			want := ""
			if tc.field != "" {
				want = tc.field + ": " + tc.says + "\n"
			}
			if got != want {
				t.Errorf("got %swant %s", got, want)
			}
		})
	}
	problems := Together(configOf(append(there, sub("s", "a", "", "b"))...), nil, []string{"topic/demo/b"})
	if len(problems) != 1 || problems[0].Rule != "in-use" {
		t.Errorf("a topic that is forwarded to can be deleted: %v", problems)
	}
}
