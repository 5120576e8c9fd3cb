package planes

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/dataplane/proxy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
)

// has tells which topics and subscriptions a proxy has.
func (g *gateway) has() string {
	s, _ := g.Snapshot()
	var out []string
	for k := range maps.Keys(s.Topics) {
		out = append(out, k.Name)
	}
	for k := range maps.Keys(s.Subscriptions) {
		out = append(out, k.Name)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// answers publishes an event and compares the status, and a part of the answer.
func (g *gateway) answers(topic, id string, code int, part string) {
	g.t.Helper()
	if got, body := g.post(topic, "x", binary(id)); got != code || !strings.Contains(body, part) {
		g.t.Errorf("%s: %d %s, want %d with %q", topic, got, body, code, part)
	}
}

// readyz asks whether the proxy is ready.
func (g *gateway) readyz() (int, string) {
	g.t.Helper()
	resp, err := http.Get("http://" + g.Addrs().Health + "/readyz")
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

// demandMesh is a control plane with topics that are admitted.
func demandMesh(ctx context.Context, t *testing.T) (cp *replica, again func() *replica) {
	t.Helper()
	e := startEtcd(ctx, t)
	cp = startReplica(ctx, t, e)
	g := startProxy(ctx, t, filepath.Join(t.TempDir(), "whole"), cp.Addrs().Discovery)
	dead := subscriptionRes("billing", "", "orders")
	dead.GetSubscription().DeadLetterTopic = "dead"
	apply(ctx, t, cp, eventStore("demo", "main", "1"), eventStore("demo", "spare", "1"), topic("demo", "orders"), topic("demo", "dead"), topic("demo", "entry"), topic("demo", "kept"),
		topic("demo", "never"), dead, policyOf(everything("local")),
		&configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: "r"}, Spec: &configv1.Resource_Route{Route: &configv1.Route{Topic: "entry",
			Rules: []*configv1.RouteRule{{To: []*configv1.Destination{{Topic: "kept"}}}}}}})
	g.await("the topics", ready([]string{"orders", "dead", "entry", "kept", "never"}, []string{"billing"}))
	g.stop()
	addr := cp.Addrs().Discovery
	return cp, func() *replica {
		return startReplica(ctx, t, e, func(c *server.Config) { c.DiscoveryAddr = addr })
	}
}

// onDemand is a proxy that has only what is used.
func onDemand(dir, controlPlane string) proxy.Config {
	cfg := proxyConfig(dir, controlPlane)
	cfg.OnDemand, cfg.Namespaces, cfg.OnDemandWait = true, []string{"demo"}, 20*time.Second
	return cfg
}

func (g *gateway) live() {
	g.t.Helper()
	g.await("a control plane", func(s *snapshot.Snapshot) bool { return s.Origin == snapshot.Live })
}

// TestOnDemand: a proxy has what its clients use and what that needs, and no more;
// what it was told is not there follows when it appears; what it used it has after a
// restart without a control plane, where it does not know of the rest; and a control
// plane that comes back tells it what changed only.
func TestOnDemand(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cp, again := demandMesh(ctx, t)
	cfg := onDemand(filepath.Join(t.TempDir(), "sidecar"), cp.Addrs().Discovery)
	g := runProxy(ctx, t, cfg)
	g.live()
	if got := g.has(); got != "" {
		t.Errorf("before anything is used it has %s", got)
	}
	g.answers("nothing", "0", http.StatusNotFound, "unknown-topic")
	g.answers("entry", "1", http.StatusOK, "")
	if got := g.has(); got != "entry kept" {
		t.Errorf("it has %q", got)
	}
	m, err := g.join(ctx, "billing")
	if err != nil {
		t.Fatal(err)
	}
	if got := g.has(); got != "billing dead entry kept orders" {
		t.Errorf("it has %q", got)
	}
	g.answers("orders", "2", http.StatusOK, "")
	m.mustTake("2=x")
	if s, _ := g.Snapshot(); len(s.Stores) != 1 {
		t.Errorf("it has the stores %v", s.Stores)
	}
	g.answers("nothing", "0", http.StatusNotFound, "unknown-topic")
	apply(ctx, t, cp, topic("demo", "nothing"))
	g.await("what was not there", ready([]string{"nothing"}, nil))
	g.answers("nothing", "3", http.StatusOK, "")
	if _, err := g.join(ctx, "nobody"); status.Code(err) != codes.NotFound {
		t.Errorf("an unknown subscription: %v", err)
	}
	metrics := scrape(t, g.Addrs().Ops)
	for series, want := range map[string]float64{`weft_proxy_on_demand_names{state="there"}`: 4, `weft_proxy_on_demand_names{state="absent"}`: 1, `weft_proxy_on_demand_names{state="asked"}`: 0,
		"weft_proxy_on_demand_waiting": 0, `weft_proxy_on_demand_misses_total{outcome="absent"}`: 2, `weft_proxy_on_demand_misses_total{outcome="arrived"}`: 2,
		"weft_proxy_config_drift_total": 0} {
		if got := metrics.value(series); got != want {
			t.Errorf("%s is %v, want %v", series, got, want)
		}
	}

	g.stop()
	cp.stop()
	cfg.OnDemandWait = time.Millisecond
	g = runProxy(ctx, t, cfg)
	g.await("what is on disk", ready([]string{"orders", "entry", "kept", "nothing"}, []string{"billing"}))
	g.answers("orders", "4", http.StatusOK, "")
	g.answers("never", "5", http.StatusServiceUnavailable, "control-plane-unreachable")
	g.answers("nobody", "5", http.StatusServiceUnavailable, "control-plane-unreachable")
	if _, err := g.join(ctx, "nobody"); status.Code(err) != codes.Unavailable {
		t.Errorf("what was not there when there was a control plane: %v", err)
	}
	if m, err = g.join(ctx, "billing"); err != nil {
		t.Fatal(err)
	}
	m.mustTake("4=x")
	g.stop()

	cp = again()
	cfg.OnDemandWait = 20 * time.Second
	g = runProxy(ctx, t, cfg)
	g.live()
	g.answers("never", "6", http.StatusOK, "")
	if got := g.has(); got != "billing dead entry kept never nothing orders" {
		t.Errorf("it has %q", got)
	}
	metrics = scrape(t, cp.Addrs().Ops)
	if full, resumed := metrics.value("weft_controlplane_discovery_full_syncs_total"), metrics.value("weft_controlplane_discovery_resumes_total"); full != 0 || resumed != 1 {
		t.Errorf("%v full syncs and %v resumes", full, resumed)
	}
	if drift := scrape(t, g.Addrs().Ops).value("weft_proxy_config_drift_total"); drift != 0 {
		t.Errorf("it drifted %v times", drift)
	}
}

// TestOnDemandDrops: what nobody uses is dropped, and comes again when it is used;
// what somebody has open is not.
func TestOnDemandDrops(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cp, _ := demandMesh(ctx, t)
	cfg := onDemand(filepath.Join(t.TempDir(), "sidecar"), cp.Addrs().Discovery)
	cfg.OnDemandIdle = 50 * time.Millisecond
	g := runProxy(ctx, t, cfg)
	g.live()
	m, err := g.join(ctx, "billing")
	if err != nil {
		t.Fatal(err)
	}
	g.answers("entry", "1", http.StatusOK, "")
	for i := range 1000 { // each of which makes the proxy look
		if g.answers(fmt.Sprintf("none%d", i), "0", http.StatusNotFound, "unknown-topic"); g.has() == "billing dead orders" {
			break
		}
	}
	if got := g.has(); got != "billing dead orders" {
		t.Errorf("it has %q", got)
	}
	if s, _ := g.Snapshot(); s.Origin != snapshot.Live {
		t.Errorf("it is from %s", s.Origin)
	}
	g.answers("entry", "2", http.StatusOK, "")
	g.answers("orders", "3", http.StatusOK, "")
	m.mustTake("3=x")
	if drift := scrape(t, g.Addrs().Ops).value("weft_proxy_config_drift_total"); drift != 0 {
		t.Errorf("it drifted %v times", drift)
	}
	if st, err := cp.admin.GetStatus(ctx, &adminv1.GetStatusRequest{}); err != nil || len(st.Alarms) > 0 {
		t.Errorf("the alarms are %v, %v", st.GetAlarms(), err)
	}
}

// TestPreload: a proxy is ready once it has what it is to preload, or knows that it
// does not exist; a new one without a control plane has neither; from a snapshot file it
// has all of its namespaces, and once a control plane is there what is used.
func TestPreload(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cp, again := demandMesh(ctx, t)
	cfg := onDemand(filepath.Join(t.TempDir(), "sidecar"), cp.Addrs().Discovery)
	cfg.Preload = []string{"subscription/demo/billing", "topic/demo/entry", "topic/demo/none"}
	g := runProxy(ctx, t, cfg)
	if err := g.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	if got := g.has(); got != "billing dead entry kept orders" {
		t.Errorf("when it is ready it has %q", got)
	}
	g.stop()
	file, _, err := exported(ctx, cp, "demo")
	if err != nil {
		t.Fatal(err)
	}
	cp.stop()
	g = runProxy(ctx, t, cfg)
	g.await("what is on disk", ready([]string{"entry"}, nil))
	if code, body := g.readyz(); code != http.StatusServiceUnavailable || !strings.Contains(body, "preload") {
		t.Errorf("of topic none it cannot know: %d %s", code, body)
	}
	g.stop()

	cfg = onDemand(filepath.Join(t.TempDir(), "new"), cp.Addrs().Discovery)
	cfg.Preload, cfg.SnapshotFile, cfg.OnDemandWait = []string{"topic/demo/orders"}, filepath.Join(t.TempDir(), "snapshot"), time.Millisecond
	if err := os.WriteFile(cfg.SnapshotFile, file, 0o600); err != nil {
		t.Fatal(err)
	}
	g = runProxy(ctx, t, cfg)
	if err := g.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	g.answers("entry", "1", http.StatusOK, "")
	g.answers("nothing", "1", http.StatusServiceUnavailable, "control-plane-unreachable")
	again()
	g.await("a control plane", func(s *snapshot.Snapshot) bool { return s.Origin == snapshot.Live })
	if got := g.has(); got != "entry kept orders" {
		t.Errorf("of what the file had is left %q", got)
	}
}

// TestStale: after the age that it is told, a proxy without a control plane refuses the
// namespace that is to be denied, publishers and who has something open, and serves the
// other; with a control plane it serves both again. The age outlives a restart, by the
// clock on the wall.
func TestStale(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cp, again := demandMesh(ctx, t)
	cfg := proxyConfig(filepath.Join(t.TempDir(), "data"), cp.Addrs().Discovery)
	cfg.StaleAfter, cfg.OnStale = 50*time.Millisecond, []string{"demo=deny"}
	cfg.ControlPlaneTimes.MaxRetry = 100 * time.Millisecond
	g := runProxy(ctx, t, cfg)
	g.await("the topics", ready([]string{"orders"}, []string{"billing"}))
	m, err := g.join(ctx, "billing")
	if err != nil {
		t.Fatal(err)
	}
	g.answers("orders", "1", http.StatusOK, "")
	m.mustTake("1=x")
	tail, err := http.Get("http://" + g.Addrs().HTTP + "/v1/demo/topics/orders/events")
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Body.Close()
	cp.stop()
	if _, err := m.next(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "no control plane has confirmed") {
		t.Errorf("who consumes hears %v", err)
	}
	if b, err := io.ReadAll(tail.Body); err != nil {
		t.Errorf("the tail ended with %v: %s", err, b)
	}
	g.answers("orders", "2", http.StatusServiceUnavailable, "configuration-stale")
	if _, err := g.join(ctx, "billing"); status.Code(err) != codes.Unavailable {
		t.Errorf("who joins hears %v", err)
	}
	metrics := scrape(t, g.Addrs().Ops)
	if metrics.value("weft_proxy_config_stale") != 1 || metrics.value("weft_proxy_config_age_seconds") <= 0 {
		t.Errorf("stale %v, age %v", metrics.value("weft_proxy_config_stale"), metrics.value("weft_proxy_config_age_seconds"))
	}
	cp = again()
	g.await("the control plane", func(s *snapshot.Snapshot) bool { return s.Refusal("demo") == nil })
	g.answers("orders", "3", http.StatusOK, "")
	g.stop()
	cp.stop()

	for _, tc := range []struct {
		later time.Duration
		on    []string
		code  int
		part  string
	}{
		{0, []string{"deny"}, http.StatusOK, ""},
		{2 * time.Hour, []string{"deny"}, http.StatusServiceUnavailable, "configuration-stale"},
		{2 * time.Hour, []string{"deny", "demo=serve"}, http.StatusOK, ""},
		{2 * time.Hour, nil, http.StatusOK, ""},
	} {
		cfg.StaleAfter, cfg.OnStale = time.Hour, tc.on
		cfg.Clock = func() time.Time { return time.Now().Add(tc.later) }
		g = runProxy(ctx, t, cfg)
		g.await("what is on disk", ready([]string{"orders"}, nil))
		g.answers("orders", "4", tc.code, tc.part)
		g.stop()
	}
}

// TestOnDemandDenied: nobody is asked for what a client may not use; a tail by pattern,
// which cannot be asked for, is refused, and one by name keeps its topic.
func TestOnDemandDenied(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cp, _ := demandMesh(ctx, t)
	rule := everything("local")
	rule.Topics, rule.Subscriptions = []string{"entry"}, []string{"none"}
	apply(ctx, t, cp, policyOf(rule))
	g := runProxy(ctx, t, onDemand(filepath.Join(t.TempDir(), "sidecar"), cp.Addrs().Discovery))
	g.live()
	g.answers("never", "1", http.StatusForbidden, "access-denied")
	g.answers("nothing", "1", http.StatusForbidden, "access-denied")
	if _, err := g.join(ctx, "billing"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("who may not consume hears %v", err)
	}
	tail := func(topic string) (int, string) {
		t.Helper()
		tctx, cancel := context.WithCancel(ctx)
		t.Cleanup(cancel)
		req, err := http.NewRequestWithContext(tctx, http.MethodGet, "http://"+g.Addrs().HTTP+"/v1/demo/topics/"+topic+"/events", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode == http.StatusOK {
			return resp.StatusCode, ""
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	if code, body := tail("never"); code != http.StatusForbidden {
		t.Errorf("a tail of what may not be read: %d %s", code, body)
	}
	if code, body := tail(url.PathEscape("ent*")); code == http.StatusOK {
		t.Errorf("a tail by pattern: %d %s", code, body)
	}
	stream, err := g.events.Subscribe(ctx)
	if err == nil {
		err = stream.Send(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Open{Open: &eventsv1.SubscribeOpen{Namespace: "demo", Credit: 1,
			Source: &eventsv1.SubscribeOpen_Tail{Tail: &eventsv1.Tail{Topics: []string{">"}}}}}})
	}
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "pattern") {
		t.Errorf("a tail by pattern hears %v", err)
	}
	metrics := scrape(t, g.Addrs().Ops)
	for _, state := range []string{"asked", "absent", "there"} {
		if n := metrics.value(fmt.Sprintf("weft_proxy_on_demand_names{state=%q}", state)); n != 0 {
			t.Errorf("%v names are %s", n, state)
		}
	}
	if code, body := tail("entry"); code != http.StatusOK || g.has() != "entry kept" {
		t.Errorf("a tail of what may be read: %d %s, it has %q", code, body, g.has())
	}
}
