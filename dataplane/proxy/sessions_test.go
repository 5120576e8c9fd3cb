package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	cev1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/frontend"
	frontgrpc "github.com/weft-mesh/weft/dataplane/frontend/grpc"
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
		"publish stream": func() (func(), error) {
			h, err := p.mesh.Hold(who, "demo", "orders")
			if err != nil {
				return nil, err
			}
			return h.Close, nil
		},
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

// TestConnectionsThatWait: a tail whose patterns match no topic yet and a member of a
// Subscription whose topics are not there are open, and count.
func TestConnectionsThatWait(t *testing.T) {
	p, err := New(testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.mesh.out = &passing{}
	s := snapshot.Compile(snapshot.Input{Lineage: "1-x", Revision: 1, TrustLoopback: true})
	s.Subscriptions[snapshot.Key{Namespace: "demo", Name: "billing"}] = &snapshot.Subscription{Topics: []string{"later.>"}}
	s.Quotas, _ = quota.Compile([]quota.Named{{Namespace: "demo", Name: "quota/demo/q", UID: "q", Spec: &configv1.Quota{Topics: []string{"later.*"}, Per: configv1.QuotaPer_QUOTA_PER_PRINCIPAL, Connections: 1}}})
	s.Rules = policy.CompileRules([]policy.NamedPolicy{{Namespace: "demo", Name: "accesspolicy/demo/p", Spec: &configv1.AccessPolicy{Rules: []*configv1.AccessRule{{Name: "all", Effect: configv1.Effect_EFFECT_ALLOW,
		Principals: []string{"local"}, Actions: []configv1.Action{configv1.Action_ACTION_SUBSCRIBE, configv1.Action_ACTION_CONSUME}, Topics: []string{"later.a"}, Subscriptions: []string{">"}}}}}}, nil)
	p.snapshots.Store(s)
	who := &policy.Principal{Name: policy.Local, Credential: "loopback"}
	tail := func(pattern string) (interface{ Close() }, error) {
		return p.mesh.Tail(t.Context(), who, delivery.TailRequest{Namespace: "demo", Topics: []string{pattern}})
	}
	join := func() (interface{ Close() }, error) { return p.mesh.Join(t.Context(), who, "demo", "billing") }
	for name, first := range map[string]func() (interface{ Close() }, error){"a tail": func() (interface{ Close() }, error) { return tail("later.*") }, "a member": join} {
		open, err := first()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tail("later.>"); err == nil || fault.ClassOf(err) != fault.Throttled {
			t.Errorf("a tail beside %s: %v", name, err)
		}
		if _, err := join(); err == nil || fault.ClassOf(err) != fault.Throttled {
			t.Errorf("a member beside %s: %v", name, err)
		}
		if other, err := tail("later.*.b"); err != nil {
			t.Errorf("who may read nothing that matches is told of quotas: %v", err)
		} else {
			other.Close()
		}
		open.Close()
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
	held, err := p.mesh.Hold(who, "demo", "orders") // all that there may be
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	topics := append(slices.Repeat([]string{"*"}, delivery.MaxTailTopics), "orders")
	if _, err := p.mesh.Tail(t.Context(), who, delivery.TailRequest{Namespace: "demo", Topics: topics}); err == nil || fault.From(err).Reason != "bad-topics" {
		t.Errorf("one too many: %v", err)
	}
	if _, err := p.mesh.Tail(t.Context(), who, delivery.TailRequest{Namespace: "demo", Topics: topics[1:]}); err == nil || fault.From(err).Reason != quota.Exceeded {
		t.Errorf("as many as may be: %v", err)
	}
}

// TestStreamOfSeveralTopics: a publish stream counts as a connection to each topic that it
// publishes to, whichever was its first, and as one where topics are counted together.
func TestStreamOfSeveralTopics(t *testing.T) {
	p, err := New(testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.mesh.in = &passing{}
	s := snapshot.Compile(snapshot.Input{Lineage: "1-x", Revision: 1, TrustLoopback: true})
	for _, name := range []string{"free", "closed", "orders", "bills"} {
		topic := &snapshot.Topic{Key: snapshot.Key{Namespace: "demo", Name: name}}
		s.Topics[topic.Key] = topic
	}
	s.Quotas, _ = quota.Compile([]quota.Named{{Namespace: "demo", Name: "quota/demo/q", UID: "q", Spec: &configv1.Quota{Topics: []string{"orders", "bills"}, Per: configv1.QuotaPer_QUOTA_PER_PRINCIPAL, Connections: 1}}})
	s.Rules = policy.CompileRules([]policy.NamedPolicy{{Namespace: "demo", Name: "accesspolicy/demo/p", Spec: &configv1.AccessPolicy{Rules: []*configv1.AccessRule{{Name: "all", Effect: configv1.Effect_EFFECT_ALLOW,
		Principals: []string{"local"}, Actions: []configv1.Action{configv1.Action_ACTION_PUBLISH}, Topics: []string{"free", "orders", "bills"}}}}}}, nil)
	p.snapshots.Store(s)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	server := frontgrpc.New(frontgrpc.Config{Mesh: p.mesh, Requests: p.mesh, Log: p.cfg.Log, Metrics: prometheus.NewRegistry(), DrainTime: time.Millisecond})
	go func() { defer close(ended); _ = server.Serve(ctx, l) }()
	conn, err := grpc.NewClient("passthrough:///"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	// publish publishes to topics over one stream, and says how that ended.
	publish := func(topics ...string) (eventsv1.EventService_PublishStreamClient, error) {
		stream, err := eventsv1.NewEventServiceClient(conn).PublishStream(ctx)
		for _, topic := range topics {
			if err == nil {
				err = stream.Send(&eventsv1.PublishStreamRequest{Namespace: "demo", Topic: topic, Events: []*cev1.CloudEvent{{Id: "1", Source: "/s", SpecVersion: "1.0", Type: "t"}}})
			}
			if err == nil {
				_, err = stream.Recv()
			}
		}
		return stream, err
	}
	first, err := publish("closed", "free", "orders", "bills", "orders")
	if err != nil {
		t.Fatalf("one stream: %v", err)
	}
	for _, topics := range [][]string{{"orders"}, {"closed", "orders"}, {"free", "orders"}, {"free", "bills"}} {
		if _, err := publish(topics...); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("a second stream, to %v: %v", topics, err)
		}
	}
	if _, err := publish("free", "closed"); err != nil {
		t.Errorf("to a topic that is not counted: %v", err)
	}
	if err := first.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Recv(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if _, err := publish("free", "orders"); err != nil {
		t.Errorf("after the first has ended: %v", err)
	}
	_ = conn.Close()
	cancel()
	<-ended
}
