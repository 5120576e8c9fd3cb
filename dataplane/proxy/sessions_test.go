package proxy

import (
	"context"
	"slices"
	"testing"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/quota"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
)

// waitingRequest waits for its reply until let is closed.
type waitingRequest struct {
	frontend.Requests
	began, let chan struct{}
}

func (w waitingRequest) Request(context.Context, *policy.Principal, string, string, event.Event, time.Duration) (event.Event, error) {
	close(w.began)
	<-w.let
	return event.Event{}, nil
}

// TestConnectionsOfAllKinds: tails, members, publish streams and requests are counted
// together, while they are open; who may not open one is not told of quotas.
func TestConnectionsOfAllKinds(t *testing.T) {
	p, err := New(testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	w := &passing{}
	p.mesh.in, p.mesh.out = w, w
	s := snapshot.Compile(snapshot.Input{Lineage: "1-x", Revision: 1, TrustLoopback: true})
	orders := &snapshot.Topic{Key: snapshot.Key{Namespace: "demo", Name: "orders"}}
	s.Topics[orders.Key] = orders
	s.Subscriptions[snapshot.Key{Namespace: "demo", Name: "billing"}] = &snapshot.Subscription{Sources: []snapshot.Source{{Topic: orders}}}
	s.Quotas, _ = quota.Compile([]quota.Named{{Namespace: "demo", Name: "quota/demo/q", UID: "q", Spec: &configv1.Quota{Topics: []string{"orders"}, Per: configv1.QuotaPer_QUOTA_PER_PRINCIPAL, Connections: 4}}})
	allow := func(names ...string) {
		s.Rules = policy.CompileRules([]policy.NamedPolicy{{Namespace: "demo", Name: "accesspolicy/demo/p", Spec: &configv1.AccessPolicy{Rules: []*configv1.AccessRule{{Name: "all", Effect: configv1.Effect_EFFECT_ALLOW,
			Principals: []string{"local"}, Actions: []configv1.Action{configv1.Action_ACTION_PUBLISH, configv1.Action_ACTION_SUBSCRIBE, configv1.Action_ACTION_CONSUME}, Topics: names, Subscriptions: names}}}}}, nil)
	}
	allow(">")
	p.snapshots.Store(s)
	who := &policy.Principal{Name: policy.Local, Credential: "loopback"}
	open := map[string]func() (func(), error){
		"member": func() (func(), error) {
			m, err := p.mesh.Join(t.Context(), who, "demo", "billing")
			if err != nil {
				return nil, err
			}
			return m.Close, nil
		},
		"tail": func() (func(), error) {
			m, err := p.mesh.Tail(t.Context(), who, delivery.TailRequest{Namespace: "demo", Topics: []string{"*"}})
			if err != nil {
				return nil, err
			}
			return m.Close, nil
		},
		"publish stream": func() (func(), error) { return p.mesh.Hold(who, "demo", "orders") },
		"request": func() (func(), error) {
			asks := waitingRequest{began: make(chan struct{}), let: make(chan struct{})}
			p.mesh.requests = asks
			ended := make(chan error, 1)
			go func() {
				_, err := p.mesh.Request(t.Context(), who, "demo", "orders", event.Event{}, time.Minute)
				ended <- err
			}()
			select {
			case <-asks.began:
				return func() { close(asks.let); <-ended }, nil
			case err := <-ended:
				return nil, err
			}
		},
	}
	var ends []func()
	for kind, f := range open {
		end, err := f()
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		ends = append(ends, end)
	}
	for kind, f := range open {
		if _, err := f(); err == nil || fault.ClassOf(err) != fault.Throttled {
			t.Errorf("a fifth, %s: %v", kind, err)
		}
	}
	allow("other")
	for kind, f := range open {
		if end, err := f(); err != nil {
			t.Errorf("%s: who may not is told of quotas: %v", kind, err)
		} else {
			end()
		}
	}
	allow(">")
	for _, end := range ends {
		end()
		for kind, f := range open {
			again, err := f()
			if err != nil {
				t.Errorf("%s after another has ended: %v", kind, err)
				continue
			}
			again()
		}
	}
}

// TestTailOfTooMany: a tail that names more topics than one may is told so before its names
// are looked for in the configuration, and by no quota.
func TestTailOfTooMany(t *testing.T) {
	p, err := New(testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	s := snapshot.Compile(snapshot.Input{Lineage: "1-x", Revision: 1, TrustLoopback: true})
	orders := &snapshot.Topic{Key: snapshot.Key{Namespace: "demo", Name: "orders"}}
	s.Topics[orders.Key] = orders
	s.Quotas, _ = quota.Compile([]quota.Named{{Namespace: "demo", Name: "quota/demo/q", UID: "q", Spec: &configv1.Quota{Topics: []string{"orders"}, Per: configv1.QuotaPer_QUOTA_PER_PRINCIPAL, Connections: 1}}})
	s.Rules = policy.CompileRules([]policy.NamedPolicy{{Namespace: "demo", Name: "accesspolicy/demo/p", Spec: &configv1.AccessPolicy{Rules: []*configv1.AccessRule{{Name: "all", Effect: configv1.Effect_EFFECT_ALLOW,
		Principals: []string{"local"}, Actions: []configv1.Action{configv1.Action_ACTION_PUBLISH, configv1.Action_ACTION_SUBSCRIBE}, Topics: []string{">"}}}}}}, nil)
	p.snapshots.Store(s)
	who := &policy.Principal{Name: policy.Local, Credential: "loopback"}
	release, err := p.mesh.Hold(who, "demo", "orders") // all that there may be
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	topics := append(slices.Repeat([]string{"*"}, delivery.MaxTailTopics), "orders")
	if _, err := p.mesh.Tail(t.Context(), who, delivery.TailRequest{Namespace: "demo", Topics: topics}); err == nil || fault.From(err).Reason != "bad-topics" {
		t.Errorf("one too many: %v", err)
	}
	if _, err := p.mesh.Tail(t.Context(), who, delivery.TailRequest{Namespace: "demo", Topics: topics[1:]}); err == nil || fault.From(err).Reason != quota.Exceeded {
		t.Errorf("as many as may be: %v", err)
	}
}
