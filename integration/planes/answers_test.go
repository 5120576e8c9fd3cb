package planes

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/binding"
	"github.com/weft-mesh/weft/store/embedded"
	"github.com/weft-mesh/weft/store/rocketmq"
)

// lacking is a driver of a store of its own, that is seen to lack what it is told to.
type lacking struct {
	rocketmq.Driver
	dir  string
	lack atomic.Pointer[func(*store.Capabilities)]
}

func (l *lacking) Open(ctx context.Context, cfg store.Config) (store.Store, error) {
	cfg.Dir, cfg.Options = l.dir, embedded.Options{}
	st, err := embedded.Driver{}.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return lackingStore{st.(*embedded.Store), l}, nil
}

type lackingStore struct {
	*embedded.Store
	by *lacking
}

func (s lackingStore) Probe(ctx context.Context) (store.Capabilities, error) {
	caps, err := s.Store.Probe(ctx)
	if f := s.by.lack.Load(); f != nil {
		(*f)(&caps)
	}
	return caps, err
}

func (l *lacking) now(f func(*store.Capabilities)) { l.lack.Store(&f) }

// TestNeedsAnswered: what a Topic needs is answered before anything changes, at every
// replica: by the store, by the mesh at its price, refused with the reason, or nobody
// knows yet. The Topic is admitted with nothing refused, and its status says how.
func TestNeedsAnswered(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	etcd := startEtcd(ctx, t)
	driver := &lacking{dir: t.TempDir()}
	driver.now(func(c *store.Capabilities) { c.DelayEmulated, c.DelayPrecision = true, 100*time.Millisecond })
	drivers := binding.Drivers()
	drivers[rocketmq.Kind] = driver
	change := func(cfg *server.Config) {
		cfg.Drivers, cfg.Options, cfg.Times.Provision = drivers, binding.AdminOptions, 20*time.Millisecond
	}
	replicas := []*replica{startReplica(ctx, t, etcd, change), startReplica(ctx, t, etcd, change)}
	admin := replicas[0].admin
	remote := func(label string) *configv1.Resource {
		r := eventStore("demo", "main", label)
		r.Spec = &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Rocketmq{Rocketmq: &configv1.RocketMQ{NameServers: []string{"127.0.0.1:1"}}}}}
		return r
	}
	orders := topic("demo", "orders")
	orders.GetTopic().Needs = &configv1.Needs{Durability: configv1.Durability_DURABILITY_DISK, Order: true, Delay: durationpb.New(time.Hour), Replay: true, Broadcast: true, RequestReply: true}
	asks := func(r *replica, with ...*configv1.Resource) map[string]*adminv1.NeedAnswer {
		t.Helper()
		resp, err := r.admin.Apply(ctx, &adminv1.ApplyRequest{Resources: append(with, orders), DryRun: true})
		if status.Code(err) == codes.FailedPrecondition {
			return nil // the replica has not seen the store yet
		}
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]*adminv1.NeedAnswer{}
		for _, n := range resp.Results[len(with)].Needs {
			kind, _, _ := strings.Cut(n.Need, " ")
			out[kind] = n
		}
		return out
	}
	awaits := func(what string, means adminv1.NeedAnswer_Means, need, detail string) {
		t.Helper()
		for _, r := range replicas {
			for asks(r)[need].GetMeans() != means {
				if ctx.Err() != nil {
					t.Fatalf("%s: %v", what, asks(r))
				}
			}
			if got := asks(r); len(got) != 7 || got[need].Detail != detail {
				t.Errorf("%s: %v", what, got)
			}
		}
	}

	if got := asks(replicas[1], remote("")); len(got) != 7 || got["replay"].Means != adminv1.NeedAnswer_MEANS_UNOBSERVED {
		t.Errorf("of a store that is not there yet: %v", got)
	}
	apply(ctx, t, replicas[0], remote(""))
	awaits("emulated", adminv1.NeedAnswer_MEANS_EMULATED, "delay", "one more write per event that is delayed, precision 100 ms")
	if got := asks(replicas[0]); got["replay"].Means != adminv1.NeedAnswer_MEANS_NATIVE || got["durability"].Means != adminv1.NeedAnswer_MEANS_NATIVE {
		t.Errorf("of a store that does it itself: %v", got)
	}
	if _, err := admin.Get(ctx, &adminv1.GetRequest{Name: "topic/demo/orders"}); err == nil {
		t.Error("asking has made the topic")
	}

	// What is refused is not admitted, and says why.
	driver.now(func(c *store.Capabilities) { c.Delay = 0 })
	awaits("refused", adminv1.NeedAnswer_MEANS_REFUSED, "delay", "EventStore main was observed to hold no event back")
	apply(ctx, t, replicas[0], orders)
	condition := func(of string, state adminv1.Condition_State, reason, says string) {
		t.Helper()
		awaitCondition(ctx, t, admin, "topic/demo/orders", of+" "+reason, func() {}, func(c *adminv1.Condition) bool {
			return c.Type == of && c.State == state && c.Reason == reason && strings.Contains(c.Message, says)
		})
	}
	condition("Ready", adminv1.Condition_STATE_FALSE, "NotProvisioned", "needs delay 1h0m0s, EventStore main was observed to hold no event back")
	condition("NeedsMet", adminv1.Condition_STATE_FALSE, "Refused", "delay 1h0m0s: refused, EventStore main was observed to hold no event back")

	driver.now(func(*store.Capabilities) {})
	condition("Ready", adminv1.Condition_STATE_TRUE, "Provisioned", "")
	condition("NeedsMet", adminv1.Condition_STATE_TRUE, "Emulated", "order by key: emulated, the store gives a partition to one reader")

	// Each of the others, as a need that was met is no longer: the topic goes on.
	for lacks, f := range map[string]func(*store.Capabilities){
		"order by key, EventStore main cannot":           func(c *store.Capabilities) { c.Order = false },
		"replay, EventStore main cannot":                 func(c *store.Capabilities) { c.Replay = false },
		"broadcast, EventStore main cannot":              func(c *store.Capabilities) { c.Tail = false },
		"request/reply, EventStore main cannot":          func(c *store.Capabilities) { c.Tail, c.Local = false, false },
		"events of 1048576 bytes, EventStore main was":   func(c *store.Capabilities) { c.MaxEventBytes = 1<<20 - 1 },
		"durability disk, EventStore main was":           func(c *store.Capabilities) { c.Durability = store.DurabilityProcess },
		"delay 1h0m0s, EventStore main was observed to ": func(c *store.Capabilities) { c.Delay = time.Minute },
	} {
		driver.now(f)
		condition("Provisioned", adminv1.Condition_STATE_FALSE, "AsAdmittedNoLonger", "needs "+lacks)
		condition("Ready", adminv1.Condition_STATE_TRUE, "Provisioned", "")
	}

	// A store that is another one by its spec was not observed.
	other := remote("")
	other.GetEventStore().GetRocketmq().NameServers = []string{"127.0.0.1:2"}
	if got := asks(replicas[1], other); got["delay"].Means != adminv1.NeedAnswer_MEANS_UNOBSERVED {
		t.Errorf("of a store that is changed with it: %v", got)
	}
}

// TestNeedsOfEmbedded: what an embedded store gives is known without asking one.
func TestNeedsOfEmbedded(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	r := startReplica(ctx, t, startEtcd(ctx, t), func(cfg *server.Config) { cfg.Drivers, cfg.Options = binding.Drivers(), binding.AdminOptions })
	orders, plain := topic("demo", "orders"), topic("demo", "plain")
	orders.GetTopic().Needs = &configv1.Needs{Delay: durationpb.New(time.Hour), RequestReply: true}
	resp, err := r.admin.Apply(ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{eventStore("demo", "main", ""), orders, plain}})
	if err != nil {
		t.Fatal(err)
	}
	got := resp.Results[1].Needs
	if len(got) != 3 || got[0].Means != adminv1.NeedAnswer_MEANS_NATIVE || got[0].Detail != "precision 10 ms" || got[1].Means != adminv1.NeedAnswer_MEANS_EMULATED || !strings.HasPrefix(got[1].Detail, "no write") {
		t.Errorf("%v", got)
	}
	if got := resp.Results[2].Needs; len(got) != 1 || got[0].Need != "events of 1048576 bytes" || got[0].Means != adminv1.NeedAnswer_MEANS_NATIVE {
		t.Errorf("of a Topic that states none: %v", got)
	}
	awaitCondition(ctx, t, r.admin, "topic/demo/orders", "ready", func() {}, func(c *adminv1.Condition) bool {
		return c.Type == "Ready" && c.State == adminv1.Condition_STATE_TRUE
	})
}
