package planes

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
)

// TestMigration: a topic moves between two stores of a proxy while it is published to;
// whatever was acknowledged is pushed, the old store can be given up and deleted.
func TestMigration(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	r := startReplica(ctx, t, startEtcd(ctx, t))
	var mu sync.Mutex
	pushed := map[string]bool{}
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		pushed[req.Header.Get("Ce-Id")] = true
	}))
	t.Cleanup(hook.Close)
	billing := subscriptionRes("billing", hook.URL, "orders")
	billing.GetSubscription().Retry = &configv1.Retry{MinBackoff: durationpb.New(100 * time.Millisecond), MaxBackoff: durationpb.New(100 * time.Millisecond)} // the end of the move waits as long
	apply(ctx, t, r, eventStore("demo", "main", "1"), eventStore("demo", "next", "1"), topic("demo", "orders"), billing, policyOf(everything("local")))
	g := startProxy(ctx, t, filepath.Join(t.TempDir(), "data"), r.Addrs().Discovery)
	g.await("the topic", ready([]string{"orders"}, []string{"billing"}))

	migrate := func(wish configv1.Migration_Wish) {
		t.Helper()
		apply(ctx, t, r, &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: "orders"}, Spec: &configv1.Resource_Migration{Migration: &configv1.Migration{To: "next", Wish: wish}}})
	}
	binding := func() *configv1.TopicBinding {
		t.Helper()
		got, err := r.admin.Get(ctx, &adminv1.GetRequest{Name: "topicbinding/demo/orders"})
		if err != nil {
			t.Fatal(err)
		}
		return got.Resource.GetTopicBinding()
	}
	var acked []string
	sent := 0
	publish := func() {
		id := fmt.Sprint(sent)
		sent++
		switch code, body := g.post("orders", "x", binary(id)); {
		case code == http.StatusOK:
			acked = append(acked, id)
		case code == http.StatusGatewayTimeout && strings.Contains(body, "moved-meanwhile"): // it may be read, or not
		default:
			t.Errorf("%s: %d %s", id, code, body)
		}
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	until := func(what string, is func() bool) {
		t.Helper()
		for !is() {
			publish()
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatalf("waited for %s: %v", what, binding())
			}
		}
	}
	publish()
	migrate(configv1.Migration_WISH_GO)
	until("the end of the old store", func() bool { return binding().GetMove().GetPhase() == configv1.Move_PHASE_DRAINED })
	if b := binding(); len(b.Epochs) != 2 || b.Epochs[1].Store != "next" || len(b.Epochs[0].Cut) == 0 {
		t.Errorf("it is at %v", b)
	}
	until("how far everyone is", func() bool {
		got, err := r.admin.Get(ctx, &adminv1.GetRequest{Name: "migration/demo/orders"})
		return err == nil && len(got.Move.GetGroups()) == 1 && got.Move.Groups[0].Subscription == "billing" && got.Move.Groups[0].Read && len(got.Move.Proxies) > 0 && got.Move.Proxies[0].Heard
	})
	migrate(configv1.Migration_WISH_FINISH)
	until("the end of the move", func() bool { return binding().Move == nil })
	ended := len(acked)
	until("all that was acknowledged", func() bool {
		mu.Lock()
		defer mu.Unlock()
		for _, id := range acked[:ended] {
			if !pushed[id] {
				return false
			}
		}
		return true
	})
	if _, err := r.admin.Delete(ctx, &adminv1.DeleteRequest{Targets: []*adminv1.DeleteTarget{{Name: "eventstore/demo/main"}, {Name: "migration/demo/orders"}}}); err != nil {
		t.Error(err)
	}
	publish()
}

// TestMigrationOfRetries: a move is not finished while an event of the store that is left, which
// is inside a proxy, waits there for another attempt; then it is.
func TestMigrationOfRetries(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	r := startReplica(ctx, t, startEtcd(ctx, t))
	failed, done := make(chan struct{}), make(chan struct{})
	var attempts atomic.Int32
	hook := httptest.NewServer(http.HandlerFunc(func(resp http.ResponseWriter, _ *http.Request) {
		switch attempts.Add(1) { // of the one event
		case 1:
			resp.WriteHeader(http.StatusServiceUnavailable)
			close(failed)
		case 2:
			close(done)
		}
	}))
	t.Cleanup(hook.Close)
	billing := subscriptionRes("billing", hook.URL, "orders")
	const backoff = 5 * time.Second // longer than a move takes where nothing holds it up
	billing.GetSubscription().Retry = &configv1.Retry{MinBackoff: durationpb.New(backoff), MaxBackoff: durationpb.New(backoff)}
	apply(ctx, t, r, eventStore("demo", "main", "1"), eventStore("demo", "next", "1"), topic("demo", "orders"), billing, policyOf(everything("local")))
	g := startProxy(ctx, t, filepath.Join(t.TempDir(), "data"), r.Addrs().Discovery)
	g.await("the topic", ready([]string{"orders"}, []string{"billing"}))
	if code, body := g.post("orders", "x", binary("1")); code != http.StatusOK {
		t.Fatal(code, body)
	}
	select {
	case <-failed:
	case <-ctx.Done():
		t.Fatal("the event is not pushed")
	}
	apply(ctx, t, r, &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: "orders"}, Spec: &configv1.Resource_Migration{Migration: &configv1.Migration{To: "next", Wish: configv1.Migration_WISH_FINISH}}})
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		got, err := r.admin.Get(ctx, &adminv1.GetRequest{Name: "topicbinding/demo/orders"})
		if err != nil {
			t.Fatal(err)
		}
		if b := got.Resource.GetTopicBinding(); b.Move == nil && len(b.Epochs) == 1 && b.Epochs[0].Store == "next" {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("the move does not finish")
		}
	}
	select {
	case <-done:
	default:
		t.Error("the move has finished while an event waits for another attempt")
	}
}
