package planes

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/binding"
	"github.com/weft-mesh/weft/store/embedded"
	"github.com/weft-mesh/weft/store/rocketmq"
)

// common is a driver of stores that all who open them have in common, as they do those
// of servers.
type common struct {
	rocketmq.Driver
	t   *testing.T
	dir string
	mu  sync.Mutex
	all map[string]*embedded.Store // by the EventStore's canonical name
}

type commonStore struct{ *embedded.Store }

func (commonStore) Close(context.Context) error { return nil }

func (d *common) Open(ctx context.Context, cfg store.Config) (store.Store, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all[cfg.Name] == nil {
		cfg.Dir, cfg.Options = filepath.Join(d.dir, cfg.UID), embedded.Options{}
		st, err := embedded.Driver{}.Open(ctx, cfg)
		if err != nil {
			return nil, err
		}
		d.all[cfg.Name] = st.(*embedded.Store)
		d.t.Cleanup(func() { _ = st.Close(context.Background()) })
	}
	return commonStore{d.all[cfg.Name]}, nil
}

// native writes events to a physical topic past the mesh.
func (d *common) native(ctx context.Context, st, topic string, ids ...string) {
	d.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, id := range ids {
		e := &event.Event{ID: id, Source: "/native", Type: "t", Ext: []event.Attr{{Name: event.AttrPartitionKey, Value: "k"}}, Data: []byte(id)}
		if err := d.all[st].Publish(ctx, topic, []store.Outgoing{{Event: e, Key: "k"}}, make([]store.Result, 1)); err != nil {
			d.t.Fatal(err)
		}
	}
}

// TestNativeProducers: what a native producer writes behind the cut reaches a
// Subscription behind what it wrote before, also after the move was turned back, without a
// circle; and a move ends once what was there is in the topic, for which it waits while no
// proxy runs.
func TestNativeProducers(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	d := &common{t: t, dir: t.TempDir(), all: map[string]*embedded.Store{}}
	drivers := binding.Drivers()
	drivers[rocketmq.Kind] = d
	r := startReplica(ctx, t, startEtcd(ctx, t), func(c *server.Config) { c.Drivers, c.Options = drivers, binding.AdminOptions })
	var mu sync.Mutex
	var pushed []string
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		pushed = append(pushed, req.Header.Get("Ce-Id"))
	}))
	t.Cleanup(hook.Close)
	reached := func(name string) *configv1.Resource {
		s := eventStore("demo", name, "")
		s.Spec = &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Rocketmq{Rocketmq: &configv1.RocketMQ{NameServers: []string{"127.0.0.1:1"}}}}}
		return s
	}
	sub := subscriptionRes("billing", hook.URL, "orders")
	sub.GetSubscription().Ordering = configv1.Ordering_ORDERING_BY_KEY
	sub.GetSubscription().Retry = &configv1.Retry{MinBackoff: durationpb.New(time.Second / 10), MaxBackoff: durationpb.New(time.Second / 10)}
	apply(ctx, t, r, reached("main"), reached("next"), topic("demo", "orders"), sub, policyOf(everything("local")))
	cfg := proxyConfig(filepath.Join(t.TempDir(), "data"), r.Addrs().Discovery)
	cfg.Drivers, cfg.Options = drivers, binding.Options
	g := runProxy(ctx, t, cfg)
	g.await("the topic", ready([]string{"orders"}, []string{"billing"}))

	got := func(what string, is func(b *configv1.TopicBinding, condition string) bool) {
		t.Helper()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			resp, err := r.admin.Get(ctx, &adminv1.GetRequest{Name: "topicbinding/demo/orders"})
			if err != nil {
				t.Fatal(err)
			}
			said := ""
			if m, err := r.admin.Get(ctx, &adminv1.GetRequest{Name: "migration/demo/orders"}); err == nil && len(m.Conditions) > 0 {
				said = fmt.Sprint(m.Conditions)
			}
			b := resp.Resource.GetTopicBinding()
			if is(b, said) {
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				mu.Lock()
				defer mu.Unlock()
				t.Fatalf("waited for %s: %v, %s; pushed are %v", what, b, said, pushed)
			}
		}
	}
	wish := func(wish configv1.Migration_Wish) {
		t.Helper()
		apply(ctx, t, r, &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: "orders"}, Spec: &configv1.Resource_Migration{Migration: &configv1.Migration{To: "next", Wish: wish}}})
	}
	drained := func(epochs int) {
		t.Helper()
		got("the end of the old store", func(b *configv1.TopicBinding, _ string) bool {
			return len(b.Epochs) == epochs && b.GetMove().GetPhase() == configv1.Move_PHASE_DRAINED
		})
	}
	// arrived waits until everything has come, in its order; nothing comes twice here.
	arrived := func(want ...string) {
		t.Helper()
		got(fmt.Sprint(want), func(*configv1.TopicBinding, string) bool {
			mu.Lock()
			defer mu.Unlock()
			if len(pushed) > len(want) || !slices.Equal(pushed, want[:len(pushed)]) {
				t.Fatalf("pushed are %v, not %v", pushed, want)
			}
			return len(pushed) == len(want)
		})
	}
	old := names.Physical("demo", "orders")
	d.native(ctx, "demo/main", old, "1", "2")
	wish(configv1.Migration_WISH_GO)
	drained(2)
	d.native(ctx, "demo/main", old, "3", "4")
	arrived("1", "2", "3", "4")
	wish(configv1.Migration_WISH_ROLL_BACK)
	drained(3)
	d.native(ctx, "demo/main", old, "5")
	arrived("1", "2", "3", "4", "5")
	g.stop()
	d.native(ctx, "demo/main", old, "6")
	wish(configv1.Migration_WISH_FINISH)
	got("what holds it up", func(_ *configv1.TopicBinding, said string) bool {
		return strings.Contains(said, "1 of what native producers wrote to EventStore main are not in the topic yet")
	})
	g = runProxy(ctx, t, cfg)
	got("the end of the move", func(b *configv1.TopicBinding, _ string) bool { return b.Move == nil })
	arrived("1", "2", "3", "4", "5", "6")
	g.stop()
}
