package provision

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
)

// keeping is a driver of one store, which keeps what its groups are done with.
type keeping struct {
	store.Store
	store.Admin
	mu      sync.Mutex
	trimmed []string // topics, sorted
	denies  string   // Trim of such a topic is refused
}

func (k *keeping) Kind() string                                            { return "kafka" }
func (k *keeping) Open(context.Context, store.Config) (store.Store, error) { return k, nil }
func (k *keeping) Close(context.Context) error                             { return nil }
func (k *keeping) EnsureTopic(context.Context, store.TopicSpec) error      { return nil }
func (k *keeping) TopicExists(context.Context, string) (bool, error)       { return true, nil }
func (k *keeping) EnsureGroup(context.Context, string, string, store.Start) error {
	return nil
}

func (k *keeping) Probe(context.Context) (store.Capabilities, error) {
	return store.Capabilities{Order: true, Tail: true, Replay: true, Delay: time.Hour, MaxEventBytes: 1 << 22}, nil
}

func (k *keeping) Lag(context.Context, string, string) ([]store.PartitionLag, error) {
	return nil, nil
}

func (k *keeping) OwnTopics() []store.OwnTopic {
	return []store.OwnTopic{{Spec: store.TopicSpec{Name: "own-0"}, Group: "own-0"}, {Spec: store.TopicSpec{Name: "own-1"}, Group: "own-1"}}
}

func (k *keeping) Trim(_ context.Context, topic, _ string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.trimmed = append(k.trimmed, topic)
	slices.Sort(k.trimmed)
	if k.denies != "" && strings.HasPrefix(topic, k.denies) {
		return fault.New(fault.Denied, "kafka.trim", "store-access-denied", "TOPIC_AUTHORIZATION_FAILED")
	}
	return nil
}

// TestTrim: from time to time a store is asked to remove what retries and delays are done with,
// each topic once, however many Topics a Subscription reads. One that does not is left in peace
// until the next time, and says so while that lasts; one that others provision is never asked.
func TestTrim(t *testing.T) {
	k := &keeping{}
	w := newWorld(t, k)
	es := kafka("shop", "main")
	sub := subscription("shop", "billing", "*")
	w.put(slices.Concat([]*configv1.Resource{es, sub}, topic("orders", es), topic("refunds", es))...)
	retry := names.RetryTopic(sub.Metadata.Uid)
	w.pass() // fixes where the Subscription begins
	pass := func(say string, want ...string) {
		t.Helper()
		k.trimmed = nil
		w.p.groups = time.Time{}
		w.pass()
		if !slices.Equal(k.trimmed, want) {
			t.Errorf("%s: removed from %v, want %v", say, k.trimmed, want)
		}
	}
	due := func() { w.p.trimmed = w.p.trimmed.Add(-w.p.cfg.TrimEvery) }
	kept := func(want string) {
		t.Helper()
		all, err := Conditions(w.store)(w.ctx)
		w.must(err)
		for _, c := range all[es.Name] {
			if c.Type == "Reachable" && strings.Contains(c.Message, "is kept") == (want == "") || !strings.Contains(c.Message, want) {
				t.Errorf("the EventStore says %q, want %q of what is kept", c.Message, want)
			}
		}
	}
	pass("it was a moment ago")
	due()
	pass("it is time", "own-0", "own-1", retry)
	kept("")
	due()
	k.denies = "own-1"
	pass("a store that denies it", "own-0", "own-1")
	kept("own-1")
	pass("a moment after that")
	kept("own-1")
	due()
	k.denies = "weft-retry-"
	pass("it denies that of retries", "own-0", "own-1", retry)
	pass("a moment after that")
	kept(retry)
	k.denies = ""
	due()
	pass("it is allowed", "own-0", "own-1", retry)
	kept("")
	es.GetEventStore().Provisioning = configv1.Provisioning_PROVISIONING_VERIFY
	w.put(es)
	due()
	pass("others provision it")
}
