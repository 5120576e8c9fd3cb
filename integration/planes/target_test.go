package planes

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
)

// TestTargetFailing: a push target that fails, three requests in a row, is a
// condition of its Subscription with the reason, beside it being ready, and listed
// before what is well; it goes when the target works again, or is another one.
func TestTargetFailing(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cp := startReplica(ctx, t, startEtcd(ctx, t))
	g := startProxy(ctx, t, filepath.Join(t.TempDir(), "data"), cp.Addrs().Discovery)
	var answer, asked atomic.Int32
	answer.Store(http.StatusOK)
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(int(answer.Load()))
	}))
	t.Cleanup(hook.Close)
	hooked := func(url string) *configv1.Resource {
		r := subscriptionRes("hook", url, "orders")
		r.GetSubscription().Retry = &configv1.Retry{MaxAttempts: 1000, MinBackoff: durationpb.New(100 * time.Millisecond), MaxBackoff: durationpb.New(100 * time.Millisecond)}
		return r
	}
	well := subscriptionRes("a-hook", hook.URL, "well")
	apply(ctx, t, cp, eventStore("demo", "main", "1"), topic("demo", "orders"), topic("demo", "well"), hooked(hook.URL), well, policyOf(everything("local")))
	g.await("the topics", ready([]string{"orders", "well"}, []string{"hook", "a-hook"}))
	publish := func() {
		t.Helper()
		if code, body := g.post("orders", "x", binary("1")); code != http.StatusOK {
			t.Fatalf("%d %s", code, body)
		}
	}
	// find gives the condition, and nil where there is none.
	find := func() (*adminv1.Condition, *adminv1.GetStatusResponse) {
		t.Helper()
		st, err := cp.admin.GetStatus(ctx, &adminv1.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range st.Resources {
			for _, c := range r.Conditions {
				if c.Type == "TargetFailing" {
					if r.Name != "subscription/demo/hook" || st.Resources[st.ResourcesNotReady].Name != r.Name {
						t.Fatalf("it is one of %s, and first is %s", r.Name, st.Resources[st.ResourcesNotReady].Name)
					}
					return c, st
				}
			}
		}
		return nil, st
	}
	fails := func(reason, says string) {
		t.Helper()
		until(ctx, t, "the condition", func() error {
			c, st := find()
			if c.GetReason() != reason {
				publish() // those before may have gone to the target before
				return fmt.Errorf("%v, %v", c, st.Proxies)
			}
			if c.State != adminv1.Condition_STATE_TRUE || c.Message != g.NodeID()+": "+says || c.Since.AsTime().After(time.Now()) || time.Since(c.Since.AsTime()) > time.Hour {
				t.Errorf("%v", c)
			}
			if st.ResourcesNotReady != 0 || strings.Contains(c.Message, hook.URL) {
				t.Errorf("%d are not ready: %v", st.ResourcesNotReady, c)
			}
			return nil
		})
	}
	works := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		until(ctx, t, "the end of the condition", func() error {
			if c, _ := find(); c != nil {
				return fmt.Errorf("%v", c)
			}
			return nil
		})
	}
	publish()
	until(ctx, t, "the first event", func() error {
		if asked.Load() == 0 {
			return fmt.Errorf("the target was not called")
		}
		return nil
	})
	if c, _ := find(); c != nil {
		t.Errorf("a target that works: %v", c)
	}
	answer.Store(http.StatusInternalServerError)
	fails("Refused", "http 500")
	answer.Store(http.StatusOK)
	works()

	// Addresses that are not called, and then a target that is.
	apply(ctx, t, cp, hooked("http://10.0.0.1/"))
	fails("Forbidden", "the target's address is not one that this proxy calls")
	apply(ctx, t, cp, hooked(hook.URL))
	works()
}
