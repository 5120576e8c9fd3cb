package frontend_test

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	cev1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/frontend"
	frontgrpc "github.com/weft-mesh/weft/dataplane/frontend/grpc"
	fronthttp "github.com/weft-mesh/weft/dataplane/frontend/http"
	"github.com/weft-mesh/weft/dataplane/pipeline"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/store"
)

// touched is a store that keeps nothing, and remembers which topics were.
type touched struct {
	store.Store
	mu     sync.Mutex
	topics []string
}

func (s *touched) touch(topic string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.topics = append(s.topics, topic)
}

// take gives what was touched since the last time.
func (s *touched) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.topics
	s.topics = nil
	return out
}

func (s *touched) Publish(_ context.Context, topic string, events []store.Outgoing, _ []store.Result) error {
	for range events {
		s.touch(topic)
	}
	return nil
}

func (s *touched) Tail(_ context.Context, r store.TailRequest) (store.Tail, error) {
	s.touch(r.Topic)
	return nil, fault.New(fault.Unavailable, "test", "touched", "there is nothing to read")
}

// mesh is made of the real parts, over touched.
type mesh struct {
	*pipeline.Pipeline
	*delivery.Manager
	snap *snapshot.Snapshot
}

func (m mesh) Authenticate(ctx context.Context, c policy.Credentials) (*policy.Principal, error) {
	c.Peer = netip.MustParseAddrPort("127.0.0.1:1")
	return m.snap.Identities.Authenticate(ctx, c, time.Now())
}

func (m mesh) Current(who *policy.Principal) (*policy.Principal, <-chan struct{}, error) {
	return who, nil, nil
}

func (m mesh) Hold(*policy.Principal, string, string) (frontend.Holding, error) { return nil, nil }

func (m mesh) Ready() error { return nil }

// The topics and Subscriptions of two tenants, of which t1 lets the client have orders
// and what is below it, and the Subscription billing; t1x nothing.
var (
	tenants = []string{"t1", "t1x"}
	topics  = []string{"orders", "orders.eu", "Orders", "orders-x", "ordersX", "order", "secret", "secret.orders"}
	subs    = []string{"billing", "Billing", "billing2"}
)

// mayTopic is which topics the client may use, told apart from how the mesh finds out.
func mayTopic(namespace, topic string) bool {
	return namespace == "t1" && (topic == "orders" || topic == "orders.eu")
}

func newMesh(t *testing.T) (mesh, *touched) {
	st := &touched{}
	rules := &configv1.AccessPolicy{Rules: []*configv1.AccessRule{{Name: "all", Effect: configv1.Effect_EFFECT_ALLOW, Principals: []string{"local"}, Topics: []string{"orders", "orders.>"}, Subscriptions: []string{"billing"},
		Actions: []configv1.Action{configv1.Action_ACTION_PUBLISH, configv1.Action_ACTION_SUBSCRIBE, configv1.Action_ACTION_CONSUME}}}}
	snap := &snapshot.Snapshot{Lineage: "x", Identities: policy.CompileIdentities(nil, nil, true), Topics: map[snapshot.Key]*snapshot.Topic{}, Subscriptions: map[snapshot.Key]*snapshot.Subscription{},
		Rules: policy.CompileRules([]policy.NamedPolicy{{Namespace: "t1", Name: "accesspolicy/t1/p", Spec: rules}}, nil)}
	for i, ns := range tenants {
		for j, name := range topics {
			k := snapshot.Key{Namespace: ns, Name: name}
			snap.Topics[k] = &snapshot.Topic{Key: k, UID: fmt.Sprintf("11111111-1111-4111-8111-1111111111%d%d", i, j), MaxEventBytes: 1 << 10,
				Epochs: []snapshot.Epoch{{Number: 1, StoreUID: "s", Physical: ns + "/" + name}}}
		}
		for j, name := range subs {
			k, topic := snapshot.Key{Namespace: ns, Name: name}, snap.Topics[snapshot.Key{Namespace: ns, Name: "orders"}]
			snap.Subscriptions[k] = &snapshot.Subscription{Key: k, UID: fmt.Sprintf("22222222-2222-4222-8222-2222222222%d%d", i, j), Topics: []string{"orders"},
				Sources:    []snapshot.Source{{Topic: topic, Epoch: topic.Epochs[0], Group: "g", RetryTopic: "retry", RetryGroup: "g"}},
				AckTimeout: time.Minute, MaxInFlight: 16, MaxAttempts: 3, MinBackoff: time.Hour, MaxBackoff: time.Hour}
		}
	}
	m := mesh{snap: snap}
	cell := latest.New(snap)
	open := func(string) (store.Store, error) { return st, nil }
	m.Pipeline = pipeline.New(pipeline.Config{Snapshots: cell, Store: open})
	m.Manager = delivery.New(delivery.Config{Snapshots: cell, Store: open, Write: m.Write, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return m, st
}

// bent is a name as somebody writes it who wants it taken for another one.
func bent(r *rand.Rand, name string) string {
	for range r.IntN(4) {
		at := r.IntN(len(name) + 1)
		put := func(s string) { name = name[:at] + s + name[at:] }
		switch r.IntN(14) {
		case 0:
			put([]string{".", "..", "/", "//", "\\", ";", ";x=1", ":", "?", "#", "&", "+", "@", "~"}[r.IntN(14)])
		case 1:
			put([]string{"%2F", "%2f", "%2e", "%2E%2e", "%00", "%0d%0a", "%252F", "%3E", "%2A", "%5c", "%c0%af", "%25", "%3b", "%20", "%u002e"}[r.IntN(15)])
		case 2:
			put([]string{"*", ">", ".>", "*.", "x", "\x00", "\u00e9", "\u0130", "\u212a", "\ufeff", "\u202e", "\uff0e", "\xff"}[r.IntN(13)])
		case 3: // a letter, escaped
			if at < len(name) {
				name = name[:at] + fmt.Sprintf("%%%02x", name[at]) + name[at+1:]
			}
		case 4:
			name = strings.ToUpper(name[:at]) + name[at:]
		case 5:
			name = []func(string) string{norm.NFC.String, norm.NFD.String, norm.NFKC.String}[r.IntN(3)](strings.Replace(name, "o", "\u00f6", 1))
		case 6:
			name = "../" + name
		case 7:
			name = "secret/../" + name
		case 8:
			name = name + "/" + []string{".", "..", "", "events", "../secret"}[r.IntN(5)]
		case 9:
			name = "t1x/topics/" + name
		case 10:
			name = strings.Repeat(name, 1+r.IntN(3))
		case 11:
			name = name[:at]
		case 12:
			name = strings.ToLower(name)
		case 13:
			put(" ")
		}
	}
	return name
}

// TestNamesHTTP: whatever a path says, what is stored or read is the topic or
// Subscription that it names letter for letter, and one that the client may have;
// nothing of another tenant.
func TestNamesHTTP(t *testing.T) {
	m, st := newMesh(t)
	srv := fronthttp.New(fronthttp.Config{Mesh: m, Log: slog.New(slog.DiscardHandler)})
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	took, refused, used := 0, 0, 0
	for i := range 100_000 {
		ns, name := bent(r, tenants[r.IntN(2)]), topics[r.IntN(len(topics))]
		method, kind, after := "POST", "topics", ""
		switch i % 10 {
		case 0:
			kind, after, name = "subscriptions", ":pull", subs[r.IntN(len(subs))]
		case 1:
			method, after = "GET", "/events?from=beginning"
		}
		name = bent(r, name)
		pull := kind == "subscriptions"
		if pull && ns == "t1" && name == "billing" {
			continue // it may, and waits
		}
		path := "/v1/" + ns + "/" + kind + "/" + name + after
		req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(method + " " + path + " HTTP/1.1\r\nHost: localhost\r\nce-specversion: 1.0\r\nce-id: 1\r\nce-source: /s\r\nce-type: t\r\nContent-Length: 0\r\n\r\n")))
		if err != nil {
			refused++ // before anybody sees it
			continue
		}
		req.RemoteAddr = "127.0.0.1:1"
		answer := httptest.NewRecorder()
		srv.ServeHTTP(answer, req)
		topics := st.take()
		took++
		literal, _, _ := strings.Cut(name, "?")
		wants := ns + "/" + literal
		tail := method == "GET"
		if tail {
			// A "?" in the name ends the path, which may end as a tail's does.
			if before, _, cut := strings.Cut(name, "?"); cut {
				name = strings.TrimSuffix(before, "/events")
			}
			literal = strings.NewReplacer("%3E", ">", "%3e", ">", "%2A", "*", "%2a", "*").Replace(name)
		}
		for _, touched := range topics {
			used++
			space, topic, _ := strings.Cut(touched, "/")
			switch {
			case !mayTopic(space, topic):
				t.Fatalf("seed %d: %s %q reached %s, which the client may not have", seed, method, path, touched)
			case pull, tail && (space != ns || !strings.ContainsAny(literal, ">*") && topic != literal), !tail && touched != wants:
				t.Fatalf("seed %d: %s %q reached %s", seed, method, path, touched)
			}
		}
		if pull && answer.Code/100 != 4 || !pull && !tail && (answer.Code == http.StatusOK) != (len(topics) == 1) {
			t.Fatalf("seed %d: %s %q: %d, and reached %v", seed, method, path, answer.Code, topics)
		}
	}
	if used < 500 || took < 20_000 {
		t.Errorf("%d names were no request, %d were judged, %d reached a topic", refused, took, used)
	}
}

// TestNamesGRPC: the same of names in messages.
func TestNamesGRPC(t *testing.T) {
	m, st := newMesh(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- frontgrpc.New(frontgrpc.Config{Mesh: m, DrainTime: 5 * time.Second, Log: slog.New(slog.DiscardHandler)}).Serve(ctx, l)
	}()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	api := eventsv1.NewEventServiceClient(conn)
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 2))
	stream, err := api.PublishStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	used := 0
	var last [2]string // what is empty is as it was before
	for i := range 40_000 {
		ns, name := bent(r, tenants[r.IntN(2)]), bent(r, topics[r.IntN(len(topics))])
		if !utf8.ValidString(ns) || !utf8.ValidString(name) {
			continue // no message of protobuf
		}
		ok := false
		switch i % 10 {
		case 0:
			ctx, hangUp := context.WithCancel(t.Context())
			sub, err := api.Subscribe(ctx)
			if err == nil {
				err = sub.Send(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Open{Open: &eventsv1.SubscribeOpen{Namespace: ns, Credit: 1,
					Source: &eventsv1.SubscribeOpen_Tail{Tail: &eventsv1.Tail{Topics: []string{name}, From: &eventsv1.Tail_Beginning{Beginning: true}}}}}})
			}
			for err == nil || errors.Is(err, io.EOF) {
				if _, err = sub.Recv(); err == nil { // it waits for a topic, since the store has nothing to read
					if ns != "t1" || !strings.ContainsAny(name, "*>") {
						t.Fatalf("seed %d: %q in %q is waited for", seed, name, ns)
					}
					hangUp()
				}
			}
			hangUp()
		default:
			if err := stream.Send(&eventsv1.PublishStreamRequest{Namespace: ns, Topic: name, Events: []*cev1.CloudEvent{{Id: "1", Source: "/s", SpecVersion: "1.0", Type: "t"}}}); err != nil {
				t.Fatal(err)
			}
			ns, name = cmp.Or(ns, last[0]), cmp.Or(name, last[1])
			last = [2]string{ns, name}
			resp, err := stream.Recv()
			if err != nil {
				t.Fatalf("seed %d: %q in %q ended the stream: %v", seed, name, ns, err)
			}
			ok = len(resp.Failed) == 0
		}
		reached := st.take()
		for _, touched := range reached {
			used++
			space, topic, _ := strings.Cut(touched, "/")
			if !mayTopic(space, topic) || space != ns || topic != name && !strings.ContainsAny(name, "*>") {
				t.Fatalf("seed %d: %q in %q reached %s", seed, name, ns, touched)
			}
		}
		if i%10 > 0 && ok != slices.Equal(reached, []string{ns + "/" + name}) {
			t.Fatalf("seed %d: %q in %q: acknowledged %v, and reached %v", seed, name, ns, ok, reached)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	if used < 400 {
		t.Errorf("%d names reached a topic", used)
	}
}
