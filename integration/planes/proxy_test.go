package planes

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	cloudeventsv1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"

	"github.com/weft-mesh/weft/controlplane/embedetcd"
	"github.com/weft-mesh/weft/dataplane/proxy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/embedded"
)

// gateway is a running proxy with clients.
type gateway struct {
	*proxy.Proxy
	t      *testing.T
	ctx    context.Context
	events eventsv1.EventServiceClient
	stop   func()
}

func startProxy(ctx context.Context, t *testing.T, dir string, controlPlane ...string) *gateway {
	t.Helper()
	return runProxy(ctx, t, proxyConfig(dir, controlPlane...))
}

func proxyConfig(dir string, controlPlane ...string) proxy.Config {
	return proxy.Config{ControlPlane: controlPlane, DataDir: dir, HTTPAddr: "127.0.0.1:0", GRPCAddr: "127.0.0.1:0", HealthAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0",
		TrustLoopback: true, PushAllow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, DrainTime: 4 * time.Second, Log: quiet,
		Drivers: map[string]store.Driver{embedded.Kind: embedded.Driver{}},
		Options: func(*configv1.EventStore) (string, any, error) { return embedded.Kind, embedded.Options{}, nil }}
}

func runProxy(ctx context.Context, t *testing.T, cfg proxy.Config) *gateway {
	t.Helper()
	p, err := proxy.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	pctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(pctx) }()
	conn, err := grpc.NewClient(p.Addrs().GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{Proxy: p, t: t, ctx: ctx, events: eventsv1.NewEventServiceClient(conn)}
	g.stop = sync.OnceFunc(func() {
		_ = conn.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(g.stop)
	return g
}

// await waits for a configuration that fits.
func (g *gateway) await(what string, fits func(*snapshot.Snapshot) bool) {
	g.t.Helper()
	for {
		s, replaced := g.Snapshot()
		if fits(s) {
			return
		}
		select {
		case <-replaced:
		case <-g.ctx.Done():
			g.t.Fatalf("waiting for %s: revision %d, topics %v", what, s.Revision, s.Topics)
		}
	}
}

func ready(topics, subs []string) func(*snapshot.Snapshot) bool {
	return func(s *snapshot.Snapshot) bool {
		for _, n := range topics {
			if t := s.Topics[snapshot.Key{Namespace: "demo", Name: n}]; t == nil || t.NotReady != "" {
				return false
			}
		}
		for _, n := range subs {
			if t := s.Subscriptions[snapshot.Key{Namespace: "demo", Name: n}]; t == nil || t.NotReady != "" {
				return false
			}
		}
		return true
	}
}

// post publishes over HTTP.
func (g *gateway) post(topic, body string, header map[string]string) (int, string) {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.ctx, http.MethodPost, "http://"+g.Addrs().HTTP+"/v1/demo/topics/"+topic, strings.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func binary(id string) map[string]string {
	return map[string]string{"Content-Type": "text/plain", "Ce-Specversion": "1.0", "Ce-Id": id, "Ce-Source": "/test", "Ce-Type": "t"}
}

// member is an open subscription over gRPC.
type member struct {
	*gateway
	stream grpc.BidiStreamingClient[eventsv1.SubscribeRequest, eventsv1.SubscribeResponse]
	more   []*eventsv1.Delivery
}

func (g *gateway) join(ctx context.Context, subscription string) (*member, error) {
	stream, err := g.events.Subscribe(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Open{Open: &eventsv1.SubscribeOpen{Namespace: "demo", Credit: 64,
		Source: &eventsv1.SubscribeOpen_Subscription{Subscription: subscription}}}}); err != nil {
		return nil, err
	}
	resp, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	if resp.GetOpened() == nil {
		return nil, fmt.Errorf("the first answer is %v", resp)
	}
	return &member{gateway: g, stream: stream}, nil
}

func (m *member) next() (*eventsv1.Delivery, error) {
	for len(m.more) == 0 {
		resp, err := m.stream.Recv()
		if err != nil {
			return nil, err
		}
		m.more = resp.GetDeliveries().GetDeliveries()
	}
	d := m.more[0]
	m.more = m.more[1:]
	return d, nil
}

// take receives n events, acknowledges them, and gives id=data of each, sorted.
func (m *member) take(n int) []string {
	m.t.Helper()
	var out []string
	for range n {
		d, err := m.next()
		if err != nil {
			m.t.Fatalf("%d of %d events came: %v", len(out), n, err)
		}
		out = append(out, d.Event.Id+"="+string(d.Event.GetBinaryData())+d.Event.GetTextData())
		if err := m.stream.Send(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Ack{Ack: &eventsv1.Ack{Ids: []uint64{d.Id}}}}); err != nil {
			m.t.Fatal(err)
		}
	}
	slices.Sort(out)
	return out
}

func (m *member) mustTake(want ...string) {
	m.t.Helper()
	if got := m.take(len(want)); !slices.Equal(got, want) {
		m.t.Errorf("got %v, want %v", got, want)
	}
}

func policyOf(rules ...*configv1.AccessRule) *configv1.Resource {
	return &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: "access"}, Spec: &configv1.Resource_AccessPolicy{AccessPolicy: &configv1.AccessPolicy{Rules: rules}}}
}

func everything(principals ...string) *configv1.AccessRule {
	return &configv1.AccessRule{Name: "all", Effect: configv1.Effect_EFFECT_ALLOW, Principals: principals, Topics: []string{">"}, Subscriptions: []string{">"},
		Actions: []configv1.Action{configv1.Action_ACTION_PUBLISH, configv1.Action_ACTION_SUBSCRIBE, configv1.Action_ACTION_CONSUME}}
}

func subscriptionRes(name string, push string, topics ...string) *configv1.Resource {
	s := &configv1.Subscription{Topics: topics, Start: configv1.Start_START_BEGINNING}
	if push != "" {
		s.Delivery = &configv1.Subscription_Push{Push: &configv1.PushDelivery{Url: push}}
	}
	return &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: name}, Spec: &configv1.Resource_Subscription{Subscription: s}}
}

func connections(t *testing.T, g *gateway) string {
	t.Helper()
	resp, err := http.Get("http://" + g.Addrs().Ops + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if v, ok := strings.CutPrefix(lines.Text(), `weft_proxy_connections{listener="grpc"} `); ok {
			return v
		}
	}
	t.Fatal("no count of connections")
	return ""
}

// TestOneEvent walks events from each way in to each way out.
func TestOneEvent(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cp := startReplica(ctx, t, startEtcd(ctx, t))
	pushed := make(chan string, 100)
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		pushed <- r.Header.Get("Ce-Id") + "=" + string(b)
	}))
	t.Cleanup(hook.Close)
	g := startProxy(ctx, t, filepath.Join(t.TempDir(), "data"), cp.Addrs().Discovery)
	apply(ctx, t, cp, eventStore("demo", "main", "1"), topic("demo", "orders"), subscriptionRes("billing", "", "orders"), subscriptionRes("hook", hook.URL, "orders"), policyOf(everything("local")))
	g.await("topic and subscriptions", ready([]string{"orders"}, []string{"billing", "hook"}))

	// A live tail, over server-sent events.
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+g.Addrs().HTTP+"/v1/demo/topics/orders/events?from=beginning", nil)
	if err != nil {
		t.Fatal(err)
	}
	tail, err := http.DefaultClient.Do(req)
	if err != nil || tail.StatusCode != http.StatusOK {
		t.Fatal(tail, err)
	}
	defer tail.Body.Close()

	for _, p := range []struct {
		body   string
		header map[string]string
	}{
		{"one", binary("1")},
		{`{"specversion":"1.0","id":"2","source":"/test","type":"t","datacontenttype":"text/plain","data":"two"}`, map[string]string{"Content-Type": "application/cloudevents+json"}},
		{`[{"specversion":"1.0","id":"3","source":"/test","type":"t","datacontenttype":"text/plain","data":"three"}]`, map[string]string{"Content-Type": "application/cloudevents-batch+json"}},
	} {
		if code, body := g.post("orders", p.body, p.header); code != http.StatusOK || !strings.Contains(body, "position") {
			t.Errorf("%v: %d %s", p.header, code, body)
		}
	}
	resp, err := g.events.Publish(ctx, &eventsv1.PublishRequest{Namespace: "demo", Topic: "orders", Event: &cloudeventsv1.CloudEvent{Id: "4", Source: "/test", SpecVersion: "1.0", Type: "t",
		Data: &cloudeventsv1.CloudEvent_BinaryData{BinaryData: []byte("four")}}})
	if err != nil || resp.Position == "" {
		t.Errorf("%v %v", resp, err)
	}
	m, err := g.join(ctx, "billing")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"1=one", "2=two", "3=three", "4=four"}
	m.mustTake(want...)
	var got []string
	for range want {
		select {
		case p := <-pushed:
			got = append(got, p)
		case <-ctx.Done():
			t.Fatalf("pushed were %v", got)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("pushed were %v", got)
	}
	got = nil
	for lines := bufio.NewScanner(tail.Body); len(got) < len(want) && lines.Scan(); {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			var e struct{ ID string }
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				t.Fatal(err)
			}
			got = append(got, e.ID)
		}
	}
	if !slices.Equal(got, []string{"1", "2", "3", "4"}) {
		t.Errorf("tailed were %v", got)
	}
}

// TestAccessChanges: a rule that changes takes effect on open connections and
// subscriptions, both ways, and names itself; the connections stay.
func TestAccessChanges(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cp := startReplica(ctx, t, startEtcd(ctx, t))
	g := startProxy(ctx, t, filepath.Join(t.TempDir(), "data"), cp.Addrs().Discovery)
	apply(ctx, t, cp, eventStore("demo", "main", "1"), topic("demo", "orders"), topic("demo", "other"), subscriptionRes("billing", "", "orders"), policyOf(everything("local")))
	g.await("the topic", ready([]string{"orders", "other"}, []string{"billing"}))
	publish := func(topic string) error {
		_, err := g.events.Publish(ctx, &eventsv1.PublishRequest{Namespace: "demo", Topic: topic, Event: &cloudeventsv1.CloudEvent{Id: "1", Source: "/test", SpecVersion: "1.0", Type: "t",
			Data: &cloudeventsv1.CloudEvent_BinaryData{BinaryData: []byte("x")}}})
		return err
	}
	if err := publish("orders"); err != nil {
		t.Fatal(err)
	}
	m, err := g.join(ctx, "billing")
	if err != nil {
		t.Fatal(err)
	}
	m.mustTake("1=x")
	before := connections(t, g)
	deny := everything("local")
	deny.Name, deny.Effect, deny.Topics, deny.Subscriptions = "not-orders", configv1.Effect_EFFECT_DENY, []string{"orders"}, []string{"billing"}
	apply(ctx, t, cp, policyOf(everything("local"), deny))
	if _, err := m.next(); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "not-orders") {
		t.Errorf("the open subscription ends with %v", err)
	}
	if err := publish("orders"); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "not-orders") {
		t.Errorf("publishing is answered with %v", err)
	}
	if err := publish("other"); err != nil {
		t.Errorf("what is allowed still: %v", err)
	}
	if _, err := g.join(ctx, "billing"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("joining is answered with %v", err)
	}
	if code, body := g.post("orders", "x", binary("2")); code != http.StatusForbidden || !strings.Contains(body, "not-orders") {
		t.Errorf("over HTTP: %d %s", code, body)
	}
	if code, body := g.post("no-such-topic", "x", binary("2")); code != http.StatusNotFound {
		t.Errorf("a topic that is not there, to one who may know: %d %s", code, body)
	}
	apply(ctx, t, cp, policyOf(everything("local")))
	for publish("orders") != nil {
		if ctx.Err() != nil {
			t.Fatal("it is not allowed again")
		}
	}
	if after := connections(t, g); after != before {
		t.Errorf("there were %s connections, now %s", before, after)
	}
}

// TestKeyWithdrawn: a key that is taken back ends the session that it opened.
func TestKeyWithdrawn(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cp := startReplica(ctx, t, startEtcd(ctx, t))
	g := startProxy(ctx, t, filepath.Join(t.TempDir(), "data"), cp.Addrs().Discovery)
	const key = "weft_abcdefgh_0123456789abcdef"
	sum := sha256.Sum256([]byte(key))
	identity := &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: "keys"}, Spec: &configv1.Resource_Identity{Identity: &configv1.Identity{
		Method: &configv1.Identity_ApiKeys{ApiKeys: &configv1.ApiKeys{Keys: []*configv1.ApiKey{{Id: "abcdefgh", Hash: "sha256:" + hex.EncodeToString(sum[:]), Principal: "alice"}}}}}}}
	apply(ctx, t, cp, eventStore("demo", "main", "1"), topic("demo", "orders"), subscriptionRes("billing", "", "orders"), identity, policyOf(everything("alice")))
	g.await("the topic", ready([]string{"orders"}, []string{"billing"}))
	with := func(k string) map[string]string {
		h := binary("1")
		h["Authorization"] = "Bearer " + k
		return h
	}
	if code, body := g.post("orders", "x", with(key)); code != http.StatusOK {
		t.Errorf("with the key: %d %s", code, body)
	}
	if code, body := g.post("orders", "x", with(key+"0")); code != http.StatusUnauthorized || strings.Contains(body, "0123456789") {
		t.Errorf("with another: %d %s", code, body)
	}
	if code, _ := g.post("orders", "x", binary("1")); code != http.StatusForbidden {
		t.Errorf("without, as local: %d", code)
	}
	m, err := g.join(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+key), "billing")
	if err != nil {
		t.Fatal(err)
	}
	m.mustTake("1=x")
	if _, err := cp.admin.Delete(ctx, &adminv1.DeleteRequest{Targets: []*adminv1.DeleteTarget{{Name: "identity/demo/keys"}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.next(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("the open subscription ends with %v", err)
	}
	if code, _ := g.post("orders", "x", with(key)); code != http.StatusUnauthorized {
		t.Errorf("with the key that was taken back: %d", code)
	}
}

// TestWithoutControlPlane: with the control plane gone events flow, and a proxy
// that starts again does so from its disk, with what was not settled.
func TestWithoutControlPlane(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	e, err := embedetcd.Start(ctx, filepath.Join(t.TempDir(), "etcd"))
	if err != nil {
		t.Fatal(err)
	}
	stopEtcd := sync.OnceFunc(e.Close)
	t.Cleanup(stopEtcd)
	cp := startReplica(ctx, t, e)
	dir := filepath.Join(t.TempDir(), "data")
	g := startProxy(ctx, t, dir, cp.Addrs().Discovery)
	apply(ctx, t, cp, eventStore("demo", "main", "1"), topic("demo", "orders"), subscriptionRes("billing", "", "orders"), policyOf(everything("local")))
	g.await("the topic", ready([]string{"orders"}, []string{"billing"}))
	cp.stop()
	stopEtcd()
	if code, body := g.post("orders", "one", binary("1")); code != http.StatusOK {
		t.Errorf("without a control plane: %d %s", code, body)
	}
	m, err := g.join(ctx, "billing")
	if err != nil {
		t.Fatal(err)
	}
	m.mustTake("1=one")
	if code, body := g.post("orders", "two", binary("2")); code != http.StatusOK {
		t.Errorf("%d %s", code, body)
	}
	revision := func(g *gateway) int64 { s, _ := g.Snapshot(); return s.Revision }
	before, id := revision(g), g.NodeID()
	g.stop()
	began := time.Now()
	g = startProxy(ctx, t, dir, cp.Addrs().Discovery)
	if code, body := g.post("orders", "early", binary("2a")); code != http.StatusOK {
		t.Errorf("who comes first is answered with %d %s", code, body)
	}
	if err := g.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("ready from disk after %v", time.Since(began))
	if s, _ := g.Snapshot(); s.Origin != snapshot.FromDisk || s.Revision != before || g.NodeID() != id {
		t.Errorf("revision %d from %v, node %s; before %d and %s", s.Revision, s.Origin, g.NodeID(), before, id)
	}
	if m, err = g.join(ctx, "billing"); err != nil {
		t.Fatal(err)
	}
	m.mustTake("2=two", "2a=early")
	if code, body := g.post("orders", "three", binary("3")); code != http.StatusOK {
		t.Errorf("after the restart: %d %s", code, body)
	}
	m.mustTake("3=three")
}
