package planes

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
)

// TestKeysBlocked: keys that wait behind events whose attempts are over are a condition of
// their Subscription, with how many there are and where the first event is, and no key;
// it goes when somebody settles the events, or when they may go to a dead-letter topic.
func TestKeysBlocked(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cp := startReplica(ctx, t, startEtcd(ctx, t))
	g := startProxy(ctx, t, filepath.Join(t.TempDir(), "data"), cp.Addrs().Discovery)
	var mu sync.Mutex
	var fails bool
	got := map[string]bool{}
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		mu.Lock()
		defer mu.Unlock()
		id := r.Header.Get("Ce-Id")
		if fails && !strings.HasPrefix(id, "good") {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		got[id] = true
	}))
	t.Cleanup(hook.Close)
	ordered := func(on configv1.OnExhausted) *configv1.Resource {
		r := subscriptionRes("hook", hook.URL, "orders")
		s := r.GetSubscription()
		s.Ordering, s.OnExhausted, s.DeadLetterTopic = configv1.Ordering_ORDERING_BY_KEY, on, "dead"
		s.Retry = &configv1.Retry{MaxAttempts: 2, MinBackoff: durationpb.New(100 * time.Millisecond), MaxBackoff: durationpb.New(100 * time.Millisecond)}
		return r
	}
	apply(ctx, t, cp, eventStore("demo", "main", "1"), topic("demo", "orders"), topic("demo", "dead"), ordered(configv1.OnExhausted_ON_EXHAUSTED_BLOCK), policyOf(everything("local")))
	g.await("the topics", ready([]string{"orders", "dead"}, []string{"hook"}))
	publish := func(id, key string) (position string) {
		t.Helper()
		h := binary(id)
		h["ce-partitionkey"] = key
		code, body := g.post("orders", "x", h)
		var answer struct{ Position string }
		if err := json.Unmarshal([]byte(body), &answer); code != http.StatusOK || err != nil || answer.Position == "" {
			t.Fatalf("%d %s %v", code, body, err)
		}
		return answer.Position
	}
	find := func() *adminv1.Condition {
		t.Helper()
		st, err := cp.admin.GetStatus(ctx, &adminv1.GetStatusRequest{Name: "subscription/demo/hook"})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range st.Resources[0].Conditions {
			if c.Type == "KeysBlocked" {
				if st.ResourcesNotReady != 0 {
					t.Error("it counts as not ready")
				}
				return c
			}
		}
		return nil
	}
	blocked := func(keys int, position string) {
		t.Helper()
		until(ctx, t, "the condition", func() error {
			c, want := find(), fmt.Sprintf("%s: keys that wait behind events which have failed as often as they may: %d; the first failed in orders at %s", g.NodeID(), keys, position)
			if c.GetMessage() != want || c.GetReason() != "AttemptsOver" || time.Since(c.Since.AsTime()) > time.Hour {
				return fmt.Errorf("%v, not %q", c, want)
			}
			return nil
		})
	}
	free := func(taken ...string) {
		t.Helper()
		until(ctx, t, "the end of the condition", func() error {
			if c := find(); c != nil {
				return fmt.Errorf("%v", c)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, id := range taken {
				if !got[id] {
					return fmt.Errorf("%s has not come", id)
				}
			}
			return nil
		})
	}
	set := func(to bool) {
		mu.Lock()
		defer mu.Unlock()
		fails = to
	}

	set(true)
	first := publish("a1", "private-a")
	blocked(1, first) // before there is another, or their first failures may be in one second
	publish("a2", "private-a")
	publish("good-c", "private-c")
	publish("b1", "private-b")
	publish("b2", "private-b")
	until(ctx, t, "the second key", func() error {
		if c := find(); !strings.Contains(c.GetMessage(), ": 2; ") || strings.Contains(c.GetMessage(), "private") {
			return fmt.Errorf("%v", c)
		}
		return nil
	})
	set(false)
	free("a1", "a2", "b1", "b2", "good-c")

	// What never succeeds goes to the dead-letter topic, once it may.
	set(true)
	blocked(1, publish("d1", "private-d"))
	publish("good-d", "private-d")
	apply(ctx, t, cp, ordered(configv1.OnExhausted_ON_EXHAUSTED_DEAD_LETTER))
	free("good-d")
}
