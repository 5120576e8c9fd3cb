package planes

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/dataplane/proxy"
	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/registry/nacos"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/embedded"
)

var update = flag.Bool("update", false, "write the tables of docs/metrics.md")

// failing is the embedded store on a bad day: demo/main opens at the second try, and it
// does not keep events of the type "fail".
type failing struct {
	embedded.Driver
	tries *atomic.Int32
}

type failingStore struct {
	store.Store
	store.Admin
	store.Delayer
}

func (d failing) Open(ctx context.Context, cfg store.Config) (store.Store, error) {
	if cfg.Name == "demo/main" && d.tries.Add(1) == 1 {
		return nil, fault.New(fault.Unavailable, "test", "bad-day", "not yet")
	}
	st, err := d.Driver.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return failingStore{st, st.(store.Admin), st.(store.Delayer)}, nil
}

func (s failingStore) Publish(ctx context.Context, topic string, events []store.Outgoing, res []store.Result) error {
	if events[0].Type != "fail" {
		return s.Store.Publish(ctx, topic, events, res)
	}
	err := fault.New(fault.Unavailable, "test", "bad-day", "not today")
	for i := range res {
		res[i].Err = err
	}
	return err
}

// TestMetrics: after traffic that is known, the metrics of a whole mesh are what
// promtool finds nothing wrong with, have the values of what was sent, and are
// those that docs/metrics.md lists.
func TestMetrics(t *testing.T) {
	t.Parallel()
	servers.NeedServers(t)
	ctx := testContext(t)
	promtool, err := servers.Promtool(ctx)
	if err != nil {
		t.Fatal(err)
	}

	// A control plane that registers in Nacos, a proxy, and a node that refuses
	// the EventStore named "odd".
	reg, err := nacos.New(nacos.Config{URL: "http://" + servers.SharedNacos(t) + "/nacos",
		Credentials: func() (string, string, error) { return servers.NacosUser, servers.NacosPassword, nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := reg.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	cp, err := server.New(server.Config{Etcd: startEtcd(ctx, t).Client(), AdminAddr: "127.0.0.1:0", DiscoveryAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0",
		DrainTime: time.Millisecond, Registry: reg, Service: servers.Namespace(t), Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	runFor(t, cp.Run)
	if err := cp.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	p, err := proxy.New(proxy.Config{ControlPlane: []string{cp.Addrs().Discovery}, DataDir: filepath.Join(t.TempDir(), "data"), HTTPAddr: "127.0.0.1:0", GRPCAddr: "127.0.0.1:0",
		HealthAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0", AdvertiseHost: "127.0.0.1", TrustLoopback: true, PushAllow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		DrainTime: time.Second, Log: quiet, Drivers: map[string]store.Driver{embedded.Kind: failing{tries: &atomic.Int32{}}},
		Options: func(*configv1.EventStore) (string, any, error) { return embedded.Kind, embedded.Options{}, nil }})
	if err != nil {
		t.Fatal(err)
	}
	runFor(t, p.Run)
	startNode(t, "", func(r *configv1.Resource) bool { return r.Metadata.Name == "odd" }, nil, cp.Addrs().Discovery)

	// The configuration, in two changes; one is refused, one is only tried, and
	// one deletes.
	conn, err := grpc.NewClient(cp.Addrs().Admin, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	admin := adminv1.NewAdminServiceClient(conn)
	var failures atomic.Int32
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if failures.Add(1) == 1 {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	t.Cleanup(hook.Close)
	issuer := newSigner(t)
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, issuer.jwks()) }))
	t.Cleanup(keys.Close)
	staff := tokensOf("")
	staff.GetIdentity().GetJwt().Keys = &configv1.JwtIssuer_JwksUri{JwksUri: keys.URL}
	billing := subscriptionRes("billing", "", "orders")
	spec := billing.GetSubscription()
	spec.Filter = &configv1.Filter{Prefix: map[string]string{"type": "order."}}
	spec.Retry = &configv1.Retry{MaxAttempts: 2, MinBackoff: durationpb.New(10 * time.Millisecond), MaxBackoff: durationpb.New(10 * time.Millisecond)}
	spec.AckTimeout, spec.DeadLetterTopic = durationpb.New(time.Second), "dead"
	hooked := subscriptionRes("hook", hook.URL, "hooked")
	hooked.GetSubscription().Retry = spec.Retry
	// An expression that cannot be evaluated for these events, and one that matches.
	unjudged := func(typ string) *configv1.Filter {
		return &configv1.Filter{Any: []*configv1.Filter{{Sql: "absent = 'x'"}, {Exact: map[string]string{"type": typ}}}}
	}
	hooked.GetSubscription().Filter, hooked.GetSubscription().DeadLetterTopic = unjudged("t"), "dead"
	// A retry from the retry topic would meet the filter again.
	hooked.GetSubscription().Retry = &configv1.Retry{MinBackoff: durationpb.New(10 * time.Millisecond), MaxBackoff: durationpb.New(10 * time.Millisecond)}
	hooked.GetSubscription().Transform = &configv1.Transform{Language: &configv1.Transform_Cel{Cel: &configv1.CelTransform{
		Attributes: map[string]string{"extra": "has(event.bad) ? event.nothing : 'y'"}}}}
	copied := subscriptionRes("copy", "", "audit")
	copied.GetSubscription().Delivery = &configv1.Subscription_Forward{Forward: &configv1.ForwardDelivery{Topic: "copies"}}
	deny := everything("local")
	deny.Name, deny.Effect, deny.Topics, deny.Subscriptions = "not-secret", configv1.Effect_EFFECT_DENY, []string{"secret"}, []string{"secret"}
	odd := everything("local")
	odd.Name, odd.Effect, odd.Topics, odd.Actions, odd.Subscriptions = "not-odd", configv1.Effect_EFFECT_DENY, []string{"small"}, []configv1.Action{configv1.Action_ACTION_PUBLISH}, nil
	odd.Condition = "event.odd == 'x'"
	shadow := everything("local")
	shadow.Name, shadow.Effect, shadow.Mode, shadow.Topics, shadow.Subscriptions = "no-small", configv1.Effect_EFFECT_DENY, configv1.Mode_MODE_SHADOWED, []string{"small"}, []string{"small"}
	small := topic("demo", "small")
	small.GetTopic().MaxEventBytes = 1024
	route := &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: "orders"}, Spec: &configv1.Resource_Route{Route: &configv1.Route{Topic: "orders",
		Rules: []*configv1.RouteRule{{Filter: unjudged("audit"), To: []*configv1.Destination{{Topic: "audit"}}}}}}}
	change := func(want codes.Code, dry bool, rs ...*configv1.Resource) {
		t.Helper()
		if _, err := admin.Apply(ctx, &adminv1.ApplyRequest{DryRun: dry, Resources: rs}); status.Code(err) != want {
			t.Fatalf("apply: %v", err)
		}
	}
	quotaOf := func(name string, mode configv1.Mode, most uint64) *configv1.Resource {
		return &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: name}, Spec: &configv1.Resource_Quota{Quota: &configv1.Quota{Topics: []string{"limited"},
			Per: configv1.QuotaPer_QUOTA_PER_PRINCIPAL, Mode: mode, Publish: &configv1.PublishQuota{BytesPerSecond: most}}}}
	}
	limited := topic("demo", "limited")
	limited.GetTopic().Schema = "shape"
	shape := &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: "shape"}, Spec: &configv1.Resource_Schema{Schema: &configv1.Schema{
		Mode: configv1.Mode_MODE_SHADOWED, Format: &configv1.Schema_Json{Json: &configv1.JsonSchema{Document: "{}"}}}}}
	change(codes.OK, false, shape, quotaOf("limits", configv1.Mode_MODE_ENFORCED, 100), quotaOf("would-limit", configv1.Mode_MODE_SHADOWED, 50), limited, eventStore("demo", "main", "1"), topic("demo", "orders"), topic("demo", "dead"), topic("demo", "audit"), topic("demo", "hooked"), topic("demo", "secret"), topic("demo", "copies"), small,
		route, billing, hooked, copied, staff, policyOf(everything("local"), deny, odd, shadow))
	change(codes.OK, false, eventStore("demo", "main", "2"), eventStore("demo", "odd", ""))
	change(codes.FailedPrecondition, false, &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: "lost"}, Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{Store: "nowhere"}}})
	change(codes.OK, true, topic("demo", "tried"))
	g := &gateway{Proxy: p, t: t, ctx: ctx}
	g.await("topics and subscriptions", ready([]string{"orders", "dead", "audit", "hooked", "secret", "small", "limited", "copies"}, []string{"billing", "hook", "copy"}))
	until(ctx, t, "the refusal of odd", func() error {
		if n := scrape(t, cp.Addrs().Ops).value(`weft_controlplane_discovery_answers_total{answer="nack"}`); n != 1 {
			return fmt.Errorf("%v refusals", n)
		}
		return nil
	})
	last, err := admin.Delete(ctx, &adminv1.DeleteRequest{Targets: []*adminv1.DeleteTarget{{Name: "eventstore/demo/odd"}}})
	if err != nil {
		t.Fatal(err)
	}
	// An event that meets two revisions of a filter is judged by both.
	until(ctx, t, "the proxy's last revision", func() error {
		if at := scrape(t, p.Addrs().Ops).value("weft_proxy_config_revision"); at < float64(last.Revision) {
			return fmt.Errorf("revision %v", at)
		}
		return nil
	})

	// A tail, over a connection of its own, as is each request.
	var httpConns float64
	do := func(method, path, body string, header map[string]string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, method, "http://"+p.Addrs().HTTP+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range header {
			req.Header.Set(k, v)
		}
		httpConns++
		resp, err := (&http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{}).DialContext}).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		return resp
	}
	tail := do(http.MethodGet, "/v1/demo/topics/orders/events", "", nil)

	// In over HTTP.
	size := map[string]float64{}
	post := func(want int, topic, id, typ, data string, more ...string) {
		t.Helper()
		h := map[string]string{"Content-Type": "text/plain", "Ce-Specversion": "1.0", "Ce-Id": id, "Ce-Source": "/test", "Ce-Type": typ}
		for i := 0; i < len(more); i += 2 {
			h[more[i]] = more[i+1]
		}
		resp := do(http.MethodPost, "/v1/demo/topics/"+topic, data, h)
		if resp.StatusCode != want {
			b, err := io.ReadAll(resp.Body)
			t.Fatalf("%s to %s: %s %s %v", id, topic, resp.Status, b, err)
		}
		if want == http.StatusOK {
			size[topic] += float64((&event.Event{ID: id, Source: "/test", Type: typ, DataContentType: "text/plain", Data: []byte(data)}).Size())
		}
	}
	for i := range 5 {
		post(200, "orders", fmt.Sprint(i), "order.created", strings.Repeat("x", i))
	}
	post(200, "orders", "a1", "audit", "x")
	post(200, "hooked", "h1", "t", "one")
	post(200, "hooked", "h2", "t", "two")
	post(200, "hooked", "h3", "t", "three", "Ce-Bad", "x")
	size["hooked"] += float64(len("bad") + len("x"))
	post(403, "secret", "s1", "t", "x")
	post(403, "secret", "s2", "t", "x")
	post(404, "unknown", "u1", "t", "x")
	post(400, "a..b", "u2", "t", "x")
	post(413, "small", "b1", "t", strings.Repeat("x", 1025), "Ce-Odd", "y")
	post(403, "small", "b2", "t", "x") // whether it is odd cannot be said
	post(200, "limited", "q0", "t", strings.Repeat("x", 50))
	post(413, "limited", "q1", "t", strings.Repeat("x", 101))
	post(503, "hooked", "f1", "fail", "x")
	post(400, "orders", "", "t", "x")
	post(401, "orders", "k1", "t", "x", "Authorization", "Bearer weft_abcdefgh_0123456789abcdef")
	const fetches = `weft_proxy_issuer_key_fetches_total{identity="identity/demo/staff",outcome="ok"}`
	until(ctx, t, "the issuer's keys", func() error {
		if n := scrape(t, p.Addrs().Ops).value(fetches); n != 1 {
			return fmt.Errorf("%v fetches", n)
		}
		return nil
	})
	post(401, "orders", "k2", "t", "x", "Authorization", "Bearer "+issuer.token("alice", time.Now().Add(-time.Minute)))
	do(http.MethodGet, "/v1", "", nil)
	// A request that nobody replies to in time, and a reply to one of an earlier run.
	post(504, "copies:request?timeout=500ms", "ask", "t", "x")
	main, err := admin.Get(ctx, &adminv1.GetRequest{Name: "eventstore/demo/main"})
	if err != nil {
		t.Fatal(err)
	}
	ofStore := uuid.MustParse(main.Resource.Metadata.Uid)
	token := base64.RawURLEncoding.EncodeToString(append(append(append([]byte{1}, ofStore[:]...), make([]byte, 16+16+8)...), "copies"...))
	if resp := do(http.MethodPost, "/v1/demo/replies", "x", map[string]string{"Ce-Specversion": "1.0", "Ce-Id": "1", "Ce-Source": "/test", "Ce-Type": "t", "Ce-Replyto": token}); resp.StatusCode != http.StatusPreconditionFailed {
		t.Fatalf("a late reply: %s", resp.Status)
	}

	// In over gRPC, as a batch that the subscription's filter leaves out.
	c, err := client.New(client.Config{Addresses: []string{p.Addrs().GRPC}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	notes := make([]event.Event, 3)
	for i := range notes {
		notes[i] = event.Event{ID: fmt.Sprint("n", i), Source: "/test", Type: "note", Data: []byte("note")}
		size["orders"] += float64(notes[i].Size())
	}
	if _, err := c.PublishBatch(ctx, "demo", "orders", notes); err != nil {
		t.Fatal(err)
	}

	// Out to a member: three are settled, one after it was given back, and one
	// becomes a dead letter after a time-out and being given back.
	gconn, err := grpc.NewClient(p.Addrs().GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer gconn.Close()
	g.events = eventsv1.NewEventServiceClient(gconn)
	// A message without events that is more than a stream is read ahead.
	stream, err := g.events.PublishStream(ctx)
	if err == nil {
		err = errors.Join(stream.Send(&eventsv1.PublishStreamRequest{Namespace: strings.Repeat("n", 1<<20+1)}), stream.CloseSend())
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	m, err := g.join(ctx, "billing")
	if err != nil {
		t.Fatal(err)
	}
	say := func(req *eventsv1.SubscribeRequest) {
		t.Helper()
		if err := m.stream.Send(req); err != nil {
			t.Fatal(err)
		}
	}
	ack := func(id uint64) {
		say(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Ack{Ack: &eventsv1.Ack{Ids: []uint64{id}}}})
	}
	nack := func(id uint64) {
		say(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Nack{Nack: &eventsv1.Nack{Ids: []uint64{id}, Reason: "test"}}})
	}
	var delivered float64
	timedOut := uint64(0)
	for range 7 {
		d, err := m.next()
		if err != nil {
			t.Fatal(err)
		}
		delivered += float64((&event.Event{ID: d.Event.Id, Source: "/test", Type: "order.created", DataContentType: "text/plain", Data: []byte(d.Event.GetTextData() + string(d.Event.GetBinaryData()))}).Size())
		switch {
		case d.Event.Id == "3" && d.Attempt == 1:
			nack(d.Id)
		case d.Event.Id == "4" && d.Attempt == 1:
			timedOut = d.Id // nobody settles it
		case d.Event.Id == "4":
			ack(timedOut) // too late
			nack(d.Id)
		default:
			ack(d.Id)
		}
	}

	// What the tail had.
	seen := 0
	for buf := make([]byte, 4096); seen < 8; {
		n, err := tail.Body.Read(buf)
		seen += bytes.Count(buf[:n], []byte("\ndata: "))
		if err != nil {
			t.Fatalf("the tail had %d events: %v", seen, err)
		}
	}

	want := map[string]float64{
		`weft_proxy_publish_events_total{namespace="demo",topic="orders"}`:                                      9,
		`weft_proxy_publish_events_total{namespace="demo",topic="hooked"}`:                                      3,
		`weft_proxy_publish_events_total{namespace="demo",topic="secret"}`:                                      -1,
		`weft_proxy_publish_bytes_total{namespace="demo",topic="orders"}`:                                       size["orders"],
		`weft_proxy_publish_bytes_total{namespace="demo",topic="hooked"}`:                                       size["hooked"],
		`weft_proxy_publish_refused_total{namespace="demo",reason="access-denied"}`:                             3,
		`weft_proxy_publish_refused_total{namespace="demo",reason="unknown-topic"}`:                             1,
		`weft_proxy_publish_refused_total{namespace="demo",reason="bad-name"}`:                                  1,
		`weft_proxy_publish_errors_total{namespace="demo",reason="event-too-large",topic="small"}`:              1,
		`weft_proxy_publish_errors_total{namespace="demo",reason="bad-day",topic="hooked"}`:                     1,
		`weft_proxy_publish_errors_total{namespace="demo",reason="bad-event",topic="orders"}`:                   1,
		`weft_proxy_publish_duration_seconds{namespace="demo",topic="orders"}`:                                  7,
		`weft_proxy_publish_batch_events`:                                                                       17,
		`weft_proxy_publish_stream_held_seconds`:                                                                1,
		`weft_proxy_publish_batch_bytes`:                                                                        17,
		`weft_proxy_publish_event_bytes{namespace="demo",topic="orders"}`:                                       9,
		`weft_proxy_metrics_names_over_limit{kind="topic"}`:                                                     0,
		`weft_proxy_metrics_names_over_limit{kind="subscription"}`:                                              0,
		`weft_proxy_publish_in_flight_bytes`:                                                                    0,
		`weft_proxy_store_open{store="demo/main"}`:                                                              1,
		`weft_proxy_store_failures_total{store="demo/main"}`:                                                    1,
		`weft_proxy_store_write_duration_seconds{store="demo/main"}`:                                            16, // with the dead letters
		`weft_proxy_store_write_errors_total{class="unavailable",store="demo/main"}`:                            1,
		`weft_proxy_delivery_deliveries_total{namespace="demo",subscription="billing"}`:                         7,
		`weft_proxy_delivery_bytes_total{namespace="demo",subscription="billing"}`:                              delivered,
		`weft_proxy_delivery_acks_total{namespace="demo",subscription="billing"}`:                               4,
		`weft_proxy_delivery_nacks_total{namespace="demo",subscription="billing"}`:                              2,
		`weft_proxy_delivery_timeouts_total{namespace="demo",subscription="billing"}`:                           1,
		`weft_proxy_delivery_retries_total{namespace="demo",subscription="billing"}`:                            2,
		`weft_proxy_delivery_dead_letters_total{cause="failed",namespace="demo",subscription="billing"}`:        1,
		`weft_proxy_delivery_filtered_total{namespace="demo",subscription="billing"}`:                           3,
		`weft_proxy_delivery_filter_errors_total{namespace="demo",subscription="hook"}`:                         3,
		`weft_proxy_route_filter_errors_total{namespace="demo",topic="orders"}`:                                 9,
		`weft_proxy_delivery_stale_settlements_total{namespace="demo",subscription="billing"}`:                  1,
		`weft_proxy_delivery_settle_duration_seconds{namespace="demo",subscription="billing"}`:                  4,
		`weft_proxy_delivery_latency_seconds{namespace="demo",subscription="billing"}`:                          5,
		`weft_proxy_delivery_end_to_end_seconds{namespace="demo",subscription="billing"}`:                       4,
		`weft_proxy_delivery_lag_events{namespace="demo",subscription="billing",topic="orders"}`:                0,
		`weft_proxy_delivery_oldest_unsettled_seconds{namespace="demo",subscription="billing"}`:                 0,
		`weft_proxy_delivery_in_flight{namespace="demo",subscription="billing"}`:                                0,
		`weft_proxy_delivery_members{namespace="demo",subscription="billing"}`:                                  1,
		`weft_proxy_delivery_store_errors_total{namespace="demo",subscription="billing"}`:                       0,
		`weft_proxy_delivery_acks_total{namespace="demo",subscription="hook"}`:                                  2,
		`weft_proxy_delivery_retries_total{namespace="demo",subscription="hook"}`:                               1,
		`weft_proxy_delivery_transform_errors_total{namespace="demo",subscription="hook"}`:                      1,
		`weft_proxy_access_refused_total{action="publish",policy="accesspolicy/demo/access",rule="not-odd"}`:    1,
		`weft_proxy_access_refused_total{action="publish",policy="accesspolicy/demo/access",rule="not-secret"}`: 2,
		`weft_proxy_access_condition_errors_total{policy="accesspolicy/demo/access",rule="not-odd"}`:            1,
		`weft_proxy_delivery_tails`:        1,
		`weft_proxy_delivery_tailed_total`: 8,
		`weft_proxy_push_requests_total{namespace="demo",outcome="ok",subscription="hook"}`:      2,
		`weft_proxy_push_requests_total{namespace="demo",outcome="refused",subscription="hook"}`: 1,
		`weft_proxy_forwards_total{namespace="demo",outcome="ok",subscription="copy"}`:           1,
		`weft_proxy_requests_total{namespace="demo",outcome="no-reply",topic="copies"}`:          1,
		`weft_proxy_requests_waiting`:                                                          0,
		`weft_proxy_request_duration_seconds`:                                                  0,
		`weft_proxy_replies_total{outcome="late"}`:                                             1,
		`weft_proxy_http_requests_total{code="504",operation="request"}`:                       1,
		`weft_proxy_http_requests_total{code="412",operation="reply"}`:                         1,
		`weft_proxy_push_in_flight{namespace="demo",subscription="hook"}`:                      0,
		`weft_proxy_push_tls_files_unusable{namespace="demo",subscription="hook"}`:             0,
		`weft_proxy_push_duration_seconds`:                                                     3,
		`weft_proxy_schema_mismatches_total{mode="shadowed",namespace="demo",topic="limited"}`: 1,
		`weft_proxy_quota_exceeded_total{limit="bytes",quota="demo/limits"}`:                   1,
		`weft_proxy_quota_shadowed_total{limit="bytes",quota="demo/would-limit"}`:              1,
		`weft_proxy_access_shadowed_total{policy="accesspolicy/demo/access",rule="no-small"}`:  1,
		`weft_proxy_authentications_total{outcome="ok"}`:                                       httpConns - 3 + 3, // all but the bad key, the bad token and the bad path; three calls
		fetches: 1,
		`weft_proxy_issuer_tokens_refused_total{identity="identity/demo/staff",reason="expired"}`: 1,
		`weft_proxy_authentications_total{outcome="unauthenticated"}`:                             -1,
		`weft_proxy_http_requests_total{code="200",operation="publish"}`:                          10,
		`weft_proxy_http_requests_total{code="400",operation="publish"}`:                          2,
		`weft_proxy_http_requests_total{code="401",operation="publish"}`:                          2,
		`weft_proxy_http_requests_total{code="403",operation="publish"}`:                          3,
		`weft_proxy_http_requests_total{code="404",operation="other"}`:                            1,
		`weft_proxy_http_requests_total{code="413",operation="publish"}`:                          2,
		`weft_proxy_http_requests_total{code="503",operation="publish"}`:                          1,
		`weft_proxy_grpc_calls_total{code="OK",method="PublishBatch"}`:                            1,
		`weft_proxy_connections{listener="http"}`:                                                 1, // the tail
		`weft_proxy_connections{listener="grpc"}`:                                                 2,
		`weft_proxy_connections_accepted_total{listener="http"}`:                                  httpConns,
		`weft_proxy_connections_accepted_total{listener="grpc"}`:                                  2,
		`weft_proxy_ready`:                                                              1,
		`weft_proxy_config_from_disk`:                                                   0,
		`weft_proxy_config_from_snapshot`:                                               0,
		`weft_proxy_config_age_seconds`:                                                 0,
		`weft_proxy_config_rejected_resources`:                                          0,
		`weft_proxy_config_drift_total`:                                                 0,
		`weft_proxy_config_disk_errors_total`:                                           0,
		`weft_proxy_control_plane_connected`:                                            1,
		`weft_proxy_control_plane_failures_total`:                                       0,
		`weft_controlplane_resources{kind="topic"}`:                                     8,
		`weft_controlplane_resources{kind="eventstore"}`:                                1,
		`weft_controlplane_admin_calls_total{code="OK",method="Apply"}`:                 3,
		`weft_controlplane_admin_calls_total{code="FailedPrecondition",method="Apply"}`: 1,
		`weft_controlplane_admin_calls_total{code="OK",method="Delete"}`:                1,
		`weft_controlplane_admin_call_duration_seconds{method="Apply"}`:                 4,
		`weft_controlplane_admin_changes_total{change="created",kind="topic"}`:          8,
		`weft_controlplane_admin_changes_total{change="created",kind="eventstore"}`:     2,
		`weft_controlplane_admin_changes_total{change="updated",kind="eventstore"}`:     1,
		`weft_controlplane_admin_changes_total{change="deleted",kind="eventstore"}`:     1,
		`weft_controlplane_admin_problems_total{rule="reference"}`:                      1,
		`weft_controlplane_discovery_streams`:                                           2,
		`weft_controlplane_discovery_full_syncs_total`:                                  2,
		`weft_controlplane_discovery_rejected_resources_total`:                          1,
		`weft_controlplane_discovery_answers_total{answer="nack"}`:                      1,
		`weft_controlplane_discovery_proxies_behind`:                                    0,
		`weft_controlplane_provision_leader`:                                            1,
		`weft_controlplane_move_leader`:                                                 1,
		`weft_controlplane_registered_proxies`:                                          1,
		`weft_controlplane_registry_failures_total`:                                     0,
		`weft_controlplane_etcd_failures_total`:                                         0,
	}
	// Some of it is still on its way.
	var px, plane scraped
	var bad []string
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for bad = []string{"nothing was asked yet"}; len(bad) > 0 && ctx.Err() == nil; <-tick.C {
		px, plane, bad = scrape(t, p.Addrs().Ops), scrape(t, cp.Addrs().Ops), nil
		for series, v := range want {
			from := px
			if strings.HasPrefix(series, "weft_controlplane_") {
				from = plane
			}
			if got := from.value(series); got != v {
				bad = append(bad, fmt.Sprintf("%s is %v, want %v", series, got, v))
			}
		}
		// Revisions go on without a change too: etcd has other keys.
		if got, newest := px.value("weft_proxy_config_revision"), plane.value("weft_controlplane_revision"); got < float64(last.Revision) || got > newest {
			bad = append(bad, fmt.Sprintf("the last change has revision %v, the proxy %v, the control plane %v", last.Revision, got, newest))
		}
	}
	if len(bad) > 0 {
		slices.Sort(bad)
		t.Fatalf("after all that was sent:\n%s", strings.Join(bad, "\n"))
	}
	if got := sum(px.families["weft_proxy_publish_batch_events"]); got != 19 {
		t.Errorf("the batches had %v events, want 19", got)
	}

	for name, s := range map[string]scraped{"proxy": px, "control plane": plane} {
		cmd := exec.CommandContext(ctx, promtool, "check", "metrics")
		cmd.Stdin = bytes.NewReader(s.text)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("promtool check metrics, %s: %v\n%s", name, err, out)
		}
	}
	checkList(t, "proxy", px)
	checkList(t, "control plane", plane)

	// A tail and a member that have gone, and a subscription that was deleted.
	_ = tail.Body.Close()
	if err := m.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.next(); !errors.Is(err, io.EOF) {
		t.Errorf("the member's stream ends with %v", err)
	}
	if _, err := admin.Delete(ctx, &adminv1.DeleteRequest{Targets: []*adminv1.DeleteTarget{{Name: "subscription/demo/hook"}}}); err != nil {
		t.Fatal(err)
	}
	for _, end := range []struct {
		series string
		want   float64
	}{{`weft_proxy_http_requests_total{code="200",operation="tail"}`, 1}, {`weft_proxy_grpc_calls_total{code="OK",method="Subscribe"}`, 1}, {`weft_proxy_delivery_tails`, 0},
		{`weft_proxy_delivery_members{namespace="demo",subscription="billing"}`, 0}, {`weft_proxy_delivery_acks_total{namespace="demo",subscription="hook"}`, -1},
		{`weft_proxy_push_requests_total{namespace="demo",outcome="ok",subscription="hook"}`, -1}} {
		for px.value(end.series) != end.want {
			if ctx.Err() != nil {
				t.Fatalf("%s is %v at the end, want %v", end.series, px.value(end.series), end.want)
			}
			<-tick.C
			px = scrape(t, p.Addrs().Ops)
		}
	}
}
