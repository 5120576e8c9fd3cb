package inspect

import (
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/facts"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/store"
)

// world looks at a Subscription of one topic in a store, both of which "local" may read.
func world(st store.Store, topic *snapshot.Topic, sub *snapshot.Subscription) *Inspector {
	return New(Config{Facts: facts.New(nil), NodeID: "p", Clock: clock.Clock(nil), Members: func(string) (int, int) { return 0, 0 },
		Store: func(string) (store.Store, error) { return st, nil },
		Snapshots: latest.New(&snapshot.Snapshot{Topics: map[snapshot.Key]*snapshot.Topic{topic.Key: topic}, Subscriptions: map[snapshot.Key]*snapshot.Subscription{sub.Key: sub},
			Rules: policy.CompileRules([]policy.NamedPolicy{{Namespace: "demo", Name: "accesspolicy/demo/p", Spec: &configv1.AccessPolicy{Rules: []*configv1.AccessRule{
				{Name: "r", Effect: configv1.Effect_EFFECT_ALLOW, Principals: []string{"local"}, Actions: []configv1.Action{configv1.Action_ACTION_SUBSCRIBE, configv1.Action_ACTION_CONSUME},
					Topics: []string{"orders"}, Subscriptions: []string{"mine"}}}}}}, nil)})})
}
