package grpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	cev1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/pipeline"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fuzztest"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/listener"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/embedded"
	"github.com/weft-mesh/weft/store/position"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mesh is made of the real parts: identities, pipeline, delivery, embedded store.
type mesh struct {
	*pipeline.Pipeline
	*delivery.Manager
	snaps *latest.Value[*snapshot.Snapshot]
}

func (m mesh) Authenticate(ctx context.Context, c policy.Credentials) (*policy.Principal, error) {
	return m.snaps.Get().Identities.Authenticate(ctx, c, time.Now())
}

func (m mesh) Current(who *policy.Principal) (*policy.Principal, <-chan struct{}, error) {
	_, changed := m.snaps.Load()
	return who, changed, nil
}

func (m mesh) Hold(*policy.Principal, string, string) (frontend.Holding, error) { return nil, nil }

func (m mesh) Ready() error { return nil }

var _ frontend.Mesh = mesh{}

// serve serves a mesh with the topic demo/orders on a loopback port. wrap may
// stand before it.
func serve(t *testing.T, wrap ...func(frontend.Mesh) frontend.Mesh) (eventsv1.EventServiceClient, *grpc.ClientConn) {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	st, err := embedded.Driver{}.Open(context.Background(), store.Config{Name: "test", Dir: "store", Options: embedded.Options{FS: vfs.NewMem()}})
	must(err)
	t.Cleanup(func() { must(st.Close(context.Background())) })
	must(st.(store.Admin).EnsureTopic(context.Background(), store.TopicSpec{Name: "orders"}))
	k := snapshot.Key{Namespace: "demo", Name: "orders"}
	rules := &configv1.AccessPolicy{Rules: []*configv1.AccessRule{{Name: "all", Effect: configv1.Effect_EFFECT_ALLOW, Principals: []string{"local"}, Topics: []string{"orders"},
		Actions: []configv1.Action{configv1.Action_ACTION_PUBLISH, configv1.Action_ACTION_SUBSCRIBE}}}}
	m := mesh{snaps: latest.New(&snapshot.Snapshot{Lineage: "x", Identities: policy.CompileIdentities(nil, nil, true),
		Rules: policy.CompileRules([]policy.NamedPolicy{{Namespace: "demo", Name: "accesspolicy/demo/p", Spec: rules}}, nil),
		Topics: map[snapshot.Key]*snapshot.Topic{k: {Key: k, UID: "11111111-1111-4111-8111-111111111111", MaxEventBytes: 1 << 20,
			Epochs: []snapshot.Epoch{{Number: 1, StoreUID: "s", Physical: "orders"}}}}})}
	open := func(string) (store.Store, error) { return st, nil }
	m.Pipeline = pipeline.New(pipeline.Config{Snapshots: m.snaps, Store: open})
	m.Manager = delivery.New(delivery.Config{Snapshots: m.snaps, Store: open, Write: m.Write, Log: slog.New(slog.DiscardHandler)})
	l, err := listener.Listen("127.0.0.1:0", 10_000)
	must(err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- m.Run(ctx) }()
	sctx, stop := context.WithCancel(context.Background())
	served := frontend.Mesh(m)
	for _, w := range wrap {
		served = w(served)
	}
	requests, _ := served.(frontend.Requests)
	srv := New(Config{Mesh: served, Requests: requests, NodeID: "node", DrainTime: 5 * time.Second, Log: slog.New(slog.DiscardHandler)})
	srv.pool = poison{srv.pool}
	go func() { ended <- srv.Serve(sctx, l) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(err)
	t.Cleanup(func() {
		_ = conn.Close()
		stop()
		must(<-ended)
		cancel()
		must(<-ended)
	})
	return eventsv1.NewEventServiceClient(conn), conn
}

func ce(id string) *cev1.CloudEvent {
	return &cev1.CloudEvent{Id: id, Source: "/test", SpecVersion: "1.0", Type: "t", Data: &cev1.CloudEvent_BinaryData{BinaryData: []byte("data")}}
}

func ces(n int) []*cev1.CloudEvent {
	out := make([]*cev1.CloudEvent, n)
	for i := range out {
		out[i] = ce(fmt.Sprint(i))
	}
	return out
}

// reason is the stable word in a status.
func reason(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.Reason
		}
	}
	return ""
}

// TestBadCalls: each refusal has its code and reason.
func TestBadCalls(t *testing.T) {
	api, _ := serve(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	wrongVersion, noSource, badName, large := ce("1"), ce("1"), ce("1"), ce("1")
	wrongVersion.SpecVersion, noSource.Source = "0.3", ""
	badName.Attributes = map[string]*cev1.CloudEventAttributeValue{"Bad-Name": {Attr: &cev1.CloudEventAttributeValue_CeString{CeString: "x"}}}
	large.Data = &cev1.CloudEvent_BinaryData{BinaryData: make([]byte, 2<<20)}
	for name, tc := range map[string]struct {
		req    *eventsv1.PublishRequest
		code   codes.Code
		reason string
	}{
		"no event":        {&eventsv1.PublishRequest{Namespace: "demo", Topic: "orders"}, codes.InvalidArgument, "bad-event"},
		"wrong version":   {&eventsv1.PublishRequest{Namespace: "demo", Topic: "orders", Event: wrongVersion}, codes.InvalidArgument, "bad-event"},
		"no source":       {&eventsv1.PublishRequest{Namespace: "demo", Topic: "orders", Event: noSource}, codes.InvalidArgument, "bad-event"},
		"attribute name":  {&eventsv1.PublishRequest{Namespace: "demo", Topic: "orders", Event: badName}, codes.InvalidArgument, "bad-event"},
		"large":           {&eventsv1.PublishRequest{Namespace: "demo", Topic: "orders", Event: large}, codes.InvalidArgument, "event-too-large"},
		"no topic":        {&eventsv1.PublishRequest{Namespace: "demo", Event: ce("1")}, codes.InvalidArgument, "bad-name"},
		"bad topic":       {&eventsv1.PublishRequest{Namespace: "demo", Topic: "a b", Event: ce("1")}, codes.InvalidArgument, "bad-name"},
		"dots":            {&eventsv1.PublishRequest{Namespace: "demo", Topic: "../orders", Event: ce("1")}, codes.InvalidArgument, "bad-name"},
		"escaped":         {&eventsv1.PublishRequest{Namespace: "demo", Topic: "a%2Forders", Event: ce("1")}, codes.InvalidArgument, "bad-name"},
		"NUL":             {&eventsv1.PublishRequest{Namespace: "demo", Topic: "orders\x00", Event: ce("1")}, codes.InvalidArgument, "bad-name"},
		"4 KB":            {&eventsv1.PublishRequest{Namespace: "demo", Topic: strings.Repeat("a", 4<<10), Event: ce("1")}, codes.InvalidArgument, "bad-name"},
		"look-alike":      {&eventsv1.PublishRequest{Namespace: "demo", Topic: "\u043erders", Event: ce("1")}, codes.InvalidArgument, "bad-name"},
		"a pattern":       {&eventsv1.PublishRequest{Namespace: "demo", Topic: ">", Event: ce("1")}, codes.InvalidArgument, "bad-name"},
		"case":            {&eventsv1.PublishRequest{Namespace: "demo", Topic: "Orders", Event: ce("1")}, codes.PermissionDenied, "access-denied"},
		"bad namespace":   {&eventsv1.PublishRequest{Namespace: "../demo", Topic: "orders", Event: ce("1")}, codes.InvalidArgument, "bad-name"},
		"denied":          {&eventsv1.PublishRequest{Namespace: "demo", Topic: "other", Event: ce("1")}, codes.PermissionDenied, "access-denied"},
		"other namespace": {&eventsv1.PublishRequest{Namespace: "other", Topic: "orders", Event: ce("1")}, codes.PermissionDenied, "access-denied"},
	} {
		if _, err := api.Publish(ctx, tc.req); status.Code(err) != tc.code || reason(err) != tc.reason {
			t.Errorf("%s: %v (%s)", name, err, reason(err))
		}
		if tc.req.Event == nil {
			continue
		}
		// The same in a batch and on a stream: no way in leaves a check out.
		resp, err := api.PublishBatch(ctx, &eventsv1.PublishBatchRequest{Namespace: tc.req.Namespace, Topic: tc.req.Topic, Events: []*cev1.CloudEvent{tc.req.Event}})
		if err == nil && codes.Code(resp.Results[0].Error.GetCode()) != tc.code || err != nil && status.Code(err) != tc.code { //nolint:gosec // a code
			t.Errorf("%s in a batch: %v %v", name, resp, err)
		}
		if tc.req.Topic == "" {
			continue
		}
		st, err := api.PublishStream(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := st.Send(&eventsv1.PublishStreamRequest{Namespace: tc.req.Namespace, Topic: tc.req.Topic, Events: []*cev1.CloudEvent{tc.req.Event}}); err != nil {
			t.Fatal(err)
		}
		out, err := st.Recv()
		if err != nil || len(out.Failed) != 1 || codes.Code(out.Failed[0].Error.Code) != tc.code { //nolint:gosec // a code
			t.Errorf("%s on a stream: %v %v", name, out, err)
		}
		_ = st.CloseSend()
	}
	for _, key := range []string{"Basic x", "Bearer", "Bearer ", "Bearer    ", "Bearer nobody"} {
		_, err := api.Publish(metadata.AppendToOutgoingContext(ctx, "authorization", key), &eventsv1.PublishRequest{Namespace: "demo", Topic: "orders", Event: ce("1")})
		if status.Code(err) != codes.Unauthenticated {
			t.Errorf("authorization %q: %v", key, err)
		}
	}
	_, err := api.Publish(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer a", "authorization", "Bearer b"), &eventsv1.PublishRequest{Namespace: "demo", Topic: "orders", Event: ce("1")})
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("two keys: %v", err)
	}
}

// TestBadBatch: each event of a batch has its own result, whatever is wrong with
// it, and nothing of the batch is kept. On a stream the events are no batch: the one that
// is right is.
func TestBadBatch(t *testing.T) {
	api, _ := serve(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	list := ces(4)
	list[1].SpecVersion, list[2].Source = "0.3", ""
	list[3].Data = &cev1.CloudEvent_BinaryData{BinaryData: make([]byte, 2<<20)}
	want := []struct{ reason, says string }{{"batch-refused", "another"}, {"bad-event", "spec_version"}, {"bad-event", "source"}, {"event-too-large", "takes 1048576"}}
	check := func(i int, e *eventsv1.Error) {
		t.Helper()
		if e.GetReason() != want[i].reason || !strings.Contains(e.GetMessage(), want[i].says) || codes.Code(e.GetCode()) != codes.InvalidArgument { //nolint:gosec // a code
			t.Errorf("event %d: %v", i, e)
		}
	}
	out, err := api.PublishBatch(ctx, &eventsv1.PublishBatchRequest{Namespace: "demo", Topic: "orders", Events: list})
	if err != nil || len(out.Results) != len(want) {
		t.Fatalf("%v %v", out, err)
	}
	for i, r := range out.Results {
		check(i, r.Error)
	}
	// The next one is the topic's first.
	first, err := api.Publish(ctx, &eventsv1.PublishRequest{Namespace: "demo", Topic: "orders", Event: ce("1")})
	if err != nil {
		t.Fatal(err)
	}
	if tok, err := position.Parse(first.Position); err != nil || tok.Pos.Offset > 1 {
		t.Errorf("%+v, %v: something was kept", tok, err)
	}
	st, err := api.PublishStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(&eventsv1.PublishStreamRequest{Namespace: "demo", Topic: "orders", Events: list}); err != nil {
		t.Fatal(err)
	}
	resp, err := st.Recv()
	if err != nil || len(resp.Failed) != len(want)-1 {
		t.Fatalf("%v %v", resp, err)
	}
	for i, f := range resp.Failed {
		if check(i+1, f.Error); f.Sequence != uint64(i+2) { //nolint:gosec // small
			t.Errorf("event %d has sequence %d", i+1, f.Sequence)
		}
	}
	if _, err := api.PublishBatch(ctx, &eventsv1.PublishBatchRequest{Namespace: "demo", Topic: "orders", Events: ces(pipeline.MaxBatch + 1)}); reason(err) != "bad-batch" {
		t.Errorf("too many: %v", err)
	}
	if _, err := api.PublishBatch(ctx, &eventsv1.PublishBatchRequest{Namespace: "demo", Topic: "orders"}); reason(err) != "bad-batch" {
		t.Errorf("none: %v", err)
	}
}

// TestPublishStream: every event has one result, in order; one that is refused
// shifts nothing.
func TestPublishStream(t *testing.T) {
	api, _ := serve(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	st, err := api.PublishStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	bad := ces(3)
	bad[1].SpecVersion = "0.3"
	var next uint64 = 1
	for i, tc := range []struct {
		events []*cev1.CloudEvent
		failed int
	}{{ces(2), 0}, {bad, 1}, {ces(1000), 0}, {ces(1), 0}} {
		req := &eventsv1.PublishStreamRequest{Events: tc.events}
		if i == 0 {
			req.Namespace, req.Topic = "demo", "orders"
		}
		if err := st.Send(req); err != nil {
			t.Fatal(err)
		}
		resp, err := st.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if resp.FirstSequence != next || int(resp.Count) != len(tc.events) || len(resp.Failed) != tc.failed || len(resp.Positions) != len(tc.events) {
			t.Errorf("message %d: first %d, count %d, %d failed, %d positions", i, resp.FirstSequence, resp.Count, len(resp.Failed), len(resp.Positions))
		}
		for j, f := range resp.Failed {
			if f.Sequence != next+1+uint64(j) { //nolint:gosec // small
				t.Errorf("message %d: failure %d has sequence %d", i, j, f.Sequence)
			}
		}
		next += uint64(resp.Count)
	}
	if err := st.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); err == nil || status.Code(err) == codes.OK && err.Error() != "EOF" {
		t.Errorf("the end is %v", err)
	}
}

// counted notes the events of each call.
type counted struct {
	frontend.Mesh
	calls []int
}

func (c *counted) Publish(ctx context.Context, who *policy.Principal, namespace, topic string, events []event.Event, res []frontend.Result) error {
	c.calls = append(c.calls, len(events))
	return c.Mesh.Publish(ctx, who, namespace, topic, events, res)
}

func (c *counted) Begin(ctx context.Context, who *policy.Principal, namespace, topic string, events []event.Event, res []frontend.Result) (func(context.Context) error, error) {
	c.calls = append(c.calls, len(events))
	return c.Mesh.Begin(ctx, who, namespace, topic, events, res)
}

// TestPublishStreamTogether: what waits while the store works is published in
// one call, in order, up to another topic; an event that is wrong or denied takes no
// other with it, of its message or of others.
func TestPublishStreamTogether(t *testing.T) {
	c := &counted{}
	serve(t, func(m frontend.Mesh) frontend.Mesh {
		c.Mesh = m
		snaps := m.(mesh).snaps
		snap := *snaps.Get()
		publish := []configv1.Action{configv1.Action_ACTION_PUBLISH}
		rules := &configv1.AccessPolicy{Rules: []*configv1.AccessRule{
			{Name: "all", Effect: configv1.Effect_EFFECT_ALLOW, Principals: []string{"local"}, Topics: []string{"orders"}, Actions: publish},
			{Name: "theirs", Effect: configv1.Effect_EFFECT_DENY, Principals: []string{"local"}, Topics: []string{"orders"}, Actions: publish, Subjects: []string{"theirs"}}}}
		snap.Rules = policy.CompileRules([]policy.NamedPolicy{{Namespace: "demo", Name: "accesspolicy/demo/p", Spec: rules}}, nil)
		snaps.Store(&snap)
		return m
	})
	who, err := c.Authenticate(t.Context(), policy.Credentials{Peer: netip.MustParseAddrPort("127.0.0.1:1")})
	if err != nil {
		t.Fatal(err)
	}
	bad, denied := ce("bad"), ce("denied")
	bad.Source = ""
	denied.Attributes = map[string]*cev1.CloudEventAttributeValue{"subject": {Attr: &cev1.CloudEventAttributeValue_CeString{CeString: "theirs"}}}
	of := func(topic string, events ...*cev1.CloudEvent) *eventsv1.PublishStreamRequest {
		return &eventsv1.PublishStreamRequest{Topic: topic, Events: events}
	}
	for name, tc := range map[string]struct {
		waiting []*eventsv1.PublishStreamRequest
		calls   []int
		failed  map[uint64]codes.Code
	}{
		"together":       {[]*eventsv1.PublishStreamRequest{of("orders", ce("1")), of("", ce("2")), of("", ces(3)...)}, []int{5}, nil},
		"one is wrong":   {[]*eventsv1.PublishStreamRequest{of("orders", ce("1")), of("", bad, ce("3")), of("", ce("4"))}, []int{4, 3}, map[uint64]codes.Code{2: codes.InvalidArgument}},
		"one is denied":  {[]*eventsv1.PublishStreamRequest{of("orders", ce("1")), of("", denied, ce("3"), bad), of("", ce("5"))}, []int{5, 4, 3}, map[uint64]codes.Code{2: codes.PermissionDenied, 4: codes.InvalidArgument}},
		"in one message": {[]*eventsv1.PublishStreamRequest{of("orders", ce("1"), denied, ce("3"))}, []int{3, 2}, map[uint64]codes.Code{2: codes.PermissionDenied}},
		"all are wrong":  {[]*eventsv1.PublishStreamRequest{of("orders", bad, denied)}, []int{2, 1}, map[uint64]codes.Code{1: codes.InvalidArgument, 2: codes.PermissionDenied}},
		"another topic":  {[]*eventsv1.PublishStreamRequest{of("orders", ce("1")), of("other", ce("2")), of("", ce("3"))}, []int{1, 2}, map[uint64]codes.Code{2: codes.PermissionDenied, 3: codes.PermissionDenied}},
		"many":           {[]*eventsv1.PublishStreamRequest{of("orders", ce("1")), of("", ces(pipeline.MaxBatch)...), of("", ce("x"))}, []int{1, pipeline.MaxBatch, 1}, nil},
		"said again":     {[]*eventsv1.PublishStreamRequest{of("orders", ce("1")), of("orders", ce("2")), of("", ce("3"))}, []int{3}, nil},
		"nothing":        {[]*eventsv1.PublishStreamRequest{of("orders"), of("", ce("1"))}, []int{1}, nil},
	} {
		c.calls = nil
		in := &inbox{more: make(chan struct{}, 1), room: make(chan struct{}, 1), err: io.EOF}
		for _, req := range tc.waiting {
			b, err := proto.Marshal(req)
			if err != nil {
				t.Fatal(err)
			}
			r := &publishRequest{}
			if err := r.unmarshal(b); err != nil {
				t.Fatal(err)
			}
			in.list, in.bytes = append(in.list, r), in.bytes+r.size
		}
		st := publishStream{server: New(Config{Mesh: c}), who: who, namespace: "demo", next: 1}
		var failed map[uint64]codes.Code
		for next := uint64(1); ; {
			group, err := in.take(t.Context(), &st)
			if errors.Is(err, io.EOF) {
				break
			}
			p, err := st.begin(t.Context(), group)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := p.finish(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if resp.FirstSequence != next || len(resp.Positions) != int(resp.Count) {
				t.Errorf("%s: results from %d, %d of them with %d positions; %d is next", name, resp.FirstSequence, resp.Count, len(resp.Positions), next)
			}
			next += uint64(resp.Count)
			for _, f := range resp.Failed {
				if failed == nil {
					failed = map[uint64]codes.Code{}
				}
				failed[f.Sequence] = codes.Code(f.Error.Code) //nolint:gosec // a code
			}
			for i, p := range resp.Positions {
				if _, no := failed[resp.FirstSequence+uint64(i)]; no != (p == "") {
					t.Errorf("%s: event %d has position %q", name, resp.FirstSequence+uint64(i), p)
				}
			}
		}
		if !slices.Equal(c.calls, tc.calls) || !maps.Equal(failed, tc.failed) || in.bytes != 0 {
			t.Errorf("%s: calls with %v events, want %v; failed %v, want %v; %d bytes are left", name, c.calls, tc.calls, failed, tc.failed, in.bytes)
		}
	}
}

// TestPublishStreamAhead: a stream is read ahead of a slow store up to a bound, and how
// long it is held there is counted.
func TestPublishStreamAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := &inbox{more: make(chan struct{}, 1), room: make(chan struct{}, 1)}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		srv := New(Config{})
		go func() { in.read(ctx, &endless{ctx: ctx}, srv.held, srv.cfg.Log); close(done) }()
		st := &publishStream{server: srv}
		const slow = 3 * time.Second
		calls := 0
		for taken := 0; taken < 5*maxAhead; {
			synctest.Wait() // the reader has read as far as it goes
			if in.bytes <= maxAhead || in.bytes > maxAhead+endlessSize {
				t.Fatalf("%d bytes wait", in.bytes)
			}
			<-time.After(slow) // of the bubble's clock
			group, err := in.take(ctx, st)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range group {
				taken += r.size
			}
			calls++
		}
		synctest.Wait()
		var m dto.Metric
		if err := srv.held.(prometheus.Histogram).Write(&m); err != nil || m.Histogram.GetSampleSum() != float64(calls)*slow.Seconds() {
			t.Errorf("held for %v s, %v, where the store took %s %d times", m.Histogram.GetSampleSum(), err, slow, calls)
		}
		cancel()
		<-done
	})
}

// TestTail: what was published comes, with what generated code reads; credit
// bounds it, and more brings the rest.
func TestTail(t *testing.T) {
	api, _ := serve(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := api.PublishBatch(ctx, &eventsv1.PublishBatchRequest{Namespace: "demo", Topic: "orders", Events: ces(5)})
	if err != nil {
		t.Fatal(err)
	}
	st, err := api.Subscribe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	send := func(r *eventsv1.SubscribeRequest) {
		t.Helper()
		if err := st.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	send(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Open{Open: &eventsv1.SubscribeOpen{Namespace: "demo", Credit: 2,
		Source: &eventsv1.SubscribeOpen_Tail{Tail: &eventsv1.Tail{Topics: []string{"orders"}, From: &eventsv1.Tail_Beginning{Beginning: true}}}}}})
	if resp, err := st.Recv(); err != nil || resp.GetOpened().GetNodeId() != "node" {
		t.Fatalf("%v %v", resp, err)
	}
	var got []*eventsv1.Delivery
	take := func(n int) {
		t.Helper()
		for len(got) < n {
			resp, err := st.Recv()
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, resp.GetDeliveries().GetDeliveries()...)
		}
		if len(got) != n {
			t.Fatalf("%d deliveries, the credit was %d", len(got), n)
		}
	}
	take(2)
	send(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Credit{Credit: &eventsv1.Credit{Deliveries: 3}}})
	take(5)
	for i, d := range got {
		if d.Event.Id != fmt.Sprint(i) || string(d.Event.GetBinaryData()) != "data" || d.Topic != "orders" || d.Attempt != 1 || d.Position != out.Results[i].Position {
			t.Errorf("delivery %d: %v", i, d)
		}
	}
	// What is for members only ends a tail.
	send(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Ack{Ack: &eventsv1.Ack{Ids: []uint64{1}}}})
	if _, err := st.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("an ack on a tail: %v", err)
	}
}

// TestBadSubscribe: a stream that does not begin as it should ends with why.
func TestBadSubscribe(t *testing.T) {
	api, _ := serve(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	tail := func(tl *eventsv1.Tail) *eventsv1.SubscribeRequest {
		return &eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Open{Open: &eventsv1.SubscribeOpen{Namespace: "demo", Credit: 1, Source: &eventsv1.SubscribeOpen_Tail{Tail: tl}}}}
	}
	after := func(tokens ...string) *eventsv1.Tail {
		return &eventsv1.Tail{Topics: []string{"orders"}, From: &eventsv1.Tail_After{After: &eventsv1.Positions{Tokens: tokens}}}
	}
	gone := position.Token{TopicUID: "99999999-9999-4999-8999-999999999999", Epoch: 1}.String()
	for name, tc := range map[string]struct {
		first *eventsv1.SubscribeRequest
		code  codes.Code
	}{
		"nothing":         {&eventsv1.SubscribeRequest{}, codes.InvalidArgument},
		"credit first":    {&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Credit{Credit: &eventsv1.Credit{Deliveries: 1}}}, codes.InvalidArgument},
		"no source":       {&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Open{Open: &eventsv1.SubscribeOpen{Namespace: "demo"}}}, codes.InvalidArgument},
		"no topics":       {tail(&eventsv1.Tail{}), codes.InvalidArgument},
		"bad pattern":     {tail(&eventsv1.Tail{Topics: []string{"a..b"}}), codes.InvalidArgument},
		"denied":          {tail(&eventsv1.Tail{Topics: []string{"other"}}), codes.PermissionDenied},
		"bad token":       {tail(after("???")), codes.InvalidArgument},
		"bad time":        {tail(&eventsv1.Tail{Topics: []string{"orders"}, From: &eventsv1.Tail_After{After: &eventsv1.Positions{Others: &eventsv1.Positions_Time{Time: &timestamppb.Timestamp{Nanos: -1}}}}}), codes.InvalidArgument},
		"token of a past": {tail(after(gone)), codes.FailedPrecondition},
		"large credit": {&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Open{Open: &eventsv1.SubscribeOpen{Namespace: "demo", Credit: maxCredit + 1,
			Source: &eventsv1.SubscribeOpen_Tail{Tail: &eventsv1.Tail{Topics: []string{"orders"}}}}}}, codes.InvalidArgument},
		"denied subscription": {&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Open{Open: &eventsv1.SubscribeOpen{Namespace: "demo", Credit: 1,
			Source: &eventsv1.SubscribeOpen_Subscription{Subscription: "billing"}}}}, codes.PermissionDenied},
	} {
		st, err := api.Subscribe(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := st.Send(tc.first); err != nil {
			t.Fatal(err)
		}
		if resp, err := st.Recv(); status.Code(err) != tc.code {
			t.Errorf("%s: %v %v", name, resp, err)
		}
	}
}

// FuzzSubscribeRequest: what a receiver says is refused, or is within the bounds
// of what may be asked for.
func FuzzSubscribeRequest(f *testing.F) {
	fuzztest.Seeds(f, "subscribe-*")
	f.Fuzz(func(t *testing.T, b []byte) {
		req := &eventsv1.SubscribeRequest{}
		var err error
		n := fuzztest.Allocated(func() { err = codec{mem.DefaultBufferPool()}.Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, req) })
		if n > 256*uint64(len(b))+256<<10 {
			t.Errorf("%d bytes for %d", n, len(b))
		}
		if err != nil {
			return
		}
		if got, err := checkCredit(req.GetOpen().GetCredit()); err == nil && (got < 0 || got > maxCredit) {
			t.Errorf("a credit of %d", got)
		}
		if tail := req.GetOpen().GetTail(); tail != nil {
			r, err := tailRequest(req.GetOpen().Namespace, tail)
			if err == nil && (r.Namespace != req.GetOpen().Namespace || len(r.Topics) != len(tail.Topics) || len(r.After) > 4096) {
				t.Errorf("%v becomes %+v", req, r)
			}
			for i := range r.After {
				if r.After[i].String() != tail.GetAfter().Tokens[i] {
					t.Errorf("position %q becomes %q", tail.GetAfter().Tokens[i], r.After[i].String())
				}
			}
		}
	})
}
