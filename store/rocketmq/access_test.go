package rocketmq_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/rocketmq"
)

// TestAccessControl: a broker that takes signed requests alone serves a store with
// keys, in every request that a store makes; one without, or with wrong ones, it
// refuses, and the store says so. Keys that change are taken while it is open.
func TestAccessControl(t *testing.T) {
	servers.NeedServers(t)
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	const user, first, second = "weft", "f1rst-secret", "s3cond-secret"
	broker, err := servers.StartRocketMQ(ctx, servers.RocketMQOptions{AccessKey: "root", SecretKey: "r00t-secret"})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(err)
	t.Cleanup(func() { must(broker.Stop()) })
	must(broker.SetUser(ctx, user, first))
	must(broker.Allow(ctx, user, "Topic:*", "Group:*"))
	open := func(keys func() (rocketmq.Keys, error)) store.Store {
		st, err := rocketmq.Driver{}.Open(ctx, store.Config{Name: "test", ClientID: servers.Namespace(t), Options: rocketmq.Options{NameServers: []string{broker.NameServer}, Keys: keys}})
		must(err)
		t.Cleanup(func() { must(st.Close(context.WithoutCancel(ctx))) })
		return st
	}
	always := func(k rocketmq.Keys) func() (rocketmq.Keys, error) {
		return func() (rocketmq.Keys, error) { return k, nil }
	}
	for name, keys := range map[string]func() (rocketmq.Keys, error){"none": nil, "wrong": always(rocketmq.Keys{Access: user, Secret: second}), "unknown": always(rocketmq.Keys{Access: "nobody", Secret: first})} {
		if err := open(keys).(store.Checker).Check(ctx); store.Why(err) != "AccessDenied" {
			t.Errorf("%s: %v", name, err)
		}
	}

	root := open(always(rocketmq.Keys{Access: "root", Secret: "r00t-secret"}))
	if _, err := root.Probe(ctx); err != nil {
		t.Error(err)
	}
	admin := root.(store.Admin)
	must(admin.EnsureTopic(ctx, store.TopicSpec{Name: "orders", Partitions: 1}))
	must(admin.EnsureGroup(ctx, "orders", "billing", store.Start{}))

	var mu sync.Mutex
	now := rocketmq.Keys{Access: user, Secret: first}
	st := open(func() (rocketmq.Keys, error) { mu.Lock(); defer mu.Unlock(); return now, nil })
	must(st.(store.Checker).Check(ctx))
	sub, err := st.Subscribe(ctx, store.SubscribeRequest{Topic: "orders", Group: "billing", Ordered: true}) // which locks queues too
	must(err)
	defer func() { must(sub.Close(context.WithoutCancel(ctx))) }()
	tail, err := st.Tail(ctx, store.TailRequest{Topic: "orders"})
	must(err)
	defer func() { must(tail.Close(context.WithoutCancel(ctx))) }()
	publish := func(id string, n int) error {
		out := make([]store.Outgoing, n) // of several, one request has all
		for i := range out {
			out[i].Event = &event.Event{ID: id, Source: "/s", Type: "t", Data: []byte("é\x00")}
		}
		return st.Publish(ctx, "orders", out, make([]store.Result, n))
	}
	arrive := func(id string, n int) {
		t.Helper()
		for name, fetch := range map[string]func(context.Context, []store.Message) (int, error){"the group": sub.Fetch, "the tail": tail.Next} {
			got := make([]store.Message, n)
			for have := 0; have < n; {
				k, err := fetch(ctx, got[have:])
				if err != nil {
					if ctx.Err() != nil || store.Why(err) != "AccessDenied" {
						t.Fatalf("%s: %v", name, err)
					}
					continue // from the time of the change
				}
				for i := have; i < have+k; i++ {
					if got[i].ID != id {
						t.Errorf("to %s came %s", name, got[i].ID)
					}
					if name == "the group" {
						sub.Settle([]*store.Message{&got[i]})
					}
				}
				have += k
			}
		}
	}
	must(publish("one", 1))
	arrive("one", 1)
	must(publish("many", 20))
	arrive("many", 20)

	must(broker.SetUser(ctx, user, second))
	if err := publish("refused", 1); store.Why(err) != "AccessDenied" {
		t.Errorf("with the keys of before: %v", err)
	}
	mu.Lock()
	now.Secret = second
	mu.Unlock()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for err := publish("again", 1); err != nil; err = publish("again", 1) {
		if store.Why(err) != "AccessDenied" {
			t.Fatal(err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the new keys are not taken: %v", err)
		}
	}
	arrive("again", 1)
}
