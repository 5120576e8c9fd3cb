package planes

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/binding"
	"github.com/weft-mesh/weft/store/embedded"
	"github.com/weft-mesh/weft/store/rocketmq"
)

// interrupted is a driver of a store of its own that calls back whenever the
// provisioner looks at it or makes something in it: in the middle of a pass.
type interrupted struct {
	rocketmq.Driver
	dir         string
	probe       func()
	ensureTopic func(physical string)
	ensureGroup func(physical string)
}

func (i *interrupted) Open(ctx context.Context, cfg store.Config) (store.Store, error) {
	cfg.Dir, cfg.Options = i.dir, embedded.Options{}
	st, err := embedded.Driver{}.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return interruptedStore{st.(*embedded.Store), i}, nil
}

type interruptedStore struct {
	*embedded.Store
	by *interrupted
}

func (s interruptedStore) Probe(ctx context.Context) (store.Capabilities, error) {
	s.by.probe()
	return s.Store.Probe(ctx)
}

func (s interruptedStore) EnsureTopic(ctx context.Context, spec store.TopicSpec) error {
	s.by.ensureTopic(spec.Name)
	return s.Store.EnsureTopic(ctx, spec)
}

func (s interruptedStore) EnsureGroup(ctx context.Context, topic, group string, from store.Start) error {
	s.by.ensureGroup(topic)
	return s.Store.EnsureGroup(ctx, topic, group, from)
}

// TestProvisioningAmidChanges: while other resources change in the middle of every
// pass, a topic and who subscribes to it become ready all the same; what changed
// itself is looked at again; and no topic is admitted before the groups are fixed of
// a Subscription that came meanwhile, nor before a Subscription that waits.
func TestProvisioningAmidChanges(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	const ns = "demo"
	physical := func(name string) string { return names.Physical(ns, name) }
	driver := &interrupted{dir: t.TempDir()}
	drivers := binding.Drivers()
	drivers[rocketmq.Kind] = driver
	var admin adminv1.AdminServiceClient
	change := func(rs ...*configv1.Resource) {
		if _, err := admin.Apply(ctx, &adminv1.ApplyRequest{Resources: rs}); err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	}
	subscription := func(name string, topics ...string) *configv1.Resource {
		return &configv1.Resource{Metadata: &configv1.Metadata{Namespace: ns, Name: name},
			Spec: &configv1.Resource_Subscription{Subscription: &configv1.Subscription{Topics: topics}}}
	}
	strict := func(needs configv1.Durability) *configv1.Resource {
		r := topic(ns, "strict")
		r.GetTopic().Needs = &configv1.Needs{Durability: needs}
		return r
	}
	admitted := func(name string) bool {
		got, err := admin.Get(ctx, &adminv1.GetRequest{Name: name})
		if err != nil && status.Code(err) != codes.NotFound && ctx.Err() == nil {
			t.Error(err)
		}
		res := got.GetResource()
		return res.GetTopicAdmission().GetAdmitted() || res.GetSubscriptionAdmission() != nil
	}
	var changes atomic.Int64
	var early, alone atomic.Bool
	driver.probe = func() {
		if admitted("topicadmission/"+ns+"/orders") && !admitted("subscriptionadmission/"+ns+"/both") {
			alone.Store(true)
		}
		change(eventStore(ns, "poke", fmt.Sprint(changes.Add(1))))
	}
	var joined, raised atomic.Bool
	driver.ensureTopic = func(name string) {
		switch {
		case name == physical("joined") && joined.CompareAndSwap(false, true):
			change(subscription("late", "joined"))
		case name == physical("strict") && raised.CompareAndSwap(false, true):
			change(strict(configv1.Durability_DURABILITY_REPLICATED))
		}
	}
	driver.ensureGroup = func(name string) {
		if name == physical("joined") && admitted("topicadmission/"+ns+"/joined") {
			early.Store(true)
		}
	}
	admin = provisioner(ctx, t, startEtcd(ctx, t), drivers, server.Times{})

	main := eventStore(ns, "main", "")
	main.Spec = &configv1.Resource_EventStore{EventStore: &configv1.EventStore{
		Driver: &configv1.EventStore_Rocketmq{Rocketmq: &configv1.RocketMQ{NameServers: []string{"127.0.0.1:1"}}}}}
	change(main, topic(ns, "orders"), subscription("billing", "orders"), subscription("both", "orders", "strict"), topic(ns, "joined"), strict(configv1.Durability_DURABILITY_DISK))
	awaitReady(ctx, t, admin, "topic/"+ns+"/orders", "", nil)
	awaitReady(ctx, t, admin, "subscription/"+ns+"/billing", "", nil)
	awaitReady(ctx, t, admin, "subscription/"+ns+"/late", "", nil)
	awaitReady(ctx, t, admin, "topic/"+ns+"/joined", "", nil)
	if early.Load() {
		t.Error("a topic was admitted before the group of who subscribes to it was fixed")
	}
	if alone.Load() {
		t.Error("a topic was admitted while the admission of who subscribes to it waited")
	}
	awaitReady(ctx, t, admin, "topic/"+ns+"/strict", "needs durability replicated", nil)
	if changes.Load() == 0 {
		t.Error("nothing changed meanwhile")
	}
}
