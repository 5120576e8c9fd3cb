package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/config"
	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/tlsconf"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/embedded"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreTopFunction("net/http.(*persistConn).writeLoop"))
}

func testConfig(t *testing.T) Config {
	return Config{ControlPlane: []string{"127.0.0.1:1"}, DataDir: filepath.Join(t.TempDir(), "data"), HTTPAddr: "127.0.0.1:0", GRPCAddr: "127.0.0.1:0",
		HealthAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0", TrustLoopback: true, DrainTime: 10 * time.Second,
		Drivers: map[string]store.Driver{embedded.Kind: embedded.Driver{}},
		Options: func(*configv1.EventStore) (string, any, error) { return embedded.Kind, embedded.Options{}, nil }}
}

func TestSettings(t *testing.T) {
	files := tlsconf.Files{Cert: "c", Key: "k", CA: "a"}
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string // part of the refusal; "" for accepted
	}{
		"as it is":                     {func(*Config) {}, ""},
		"an origin":                    {func(c *Config) { c.CORSOrigins = []string{"https://shop.example:8443"} }, ""},
		"any origin":                   {func(c *Config) { c.CORSOrigins = []string{"*"} }, "no origin"},
		"an origin with a path":        {func(c *Config) { c.CORSOrigins = []string{"https://shop.example/"} }, "no origin"},
		"no data folder":               {func(c *Config) { c.DataDir = "" }, "data folder"},
		"no control plane":             {func(c *Config) { c.ControlPlane = nil }, "control plane"},
		"remote control plane":         {func(c *Config) { c.ControlPlane = []string{"10.0.0.1:7421"} }, "without TLS"},
		"remote by name":               {func(c *Config) { c.ControlPlane = []string{"cp.example:7421"} }, "without TLS"},
		"remote with TLS":              {func(c *Config) { c.ControlPlane = []string{"10.0.0.1:7421"}; c.ControlPlaneTLS = files }, ""},
		"control plane without a port": {func(c *Config) { c.ControlPlane = []string{"127.0.0.1"} }, "control plane"},
		"open without TLS":             {func(c *Config) { c.HTTPAddr = "0.0.0.0:7410" }, "TLS"},
		"everywhere without TLS":       {func(c *Config) { c.GRPCAddr = ":7411" }, "TLS"},
		"open with TLS":                {func(c *Config) { c.HTTPAddr, c.TLS = "0.0.0.0:7410", files }, ""},
		"open, expressly":              {func(c *Config) { c.HTTPAddr, c.AllowPlaintext = "0.0.0.0:7410", true }, ""},
		"IPv6 loopback":                {func(c *Config) { c.HTTPAddr = "[::1]:7410" }, ""},
		"Unix sockets":                 {func(c *Config) { c.HTTPAddr, c.GRPCAddr = "unix:/run/h", "unix:/run/g" }, ""},
		"a Unix socket beside TLS":     {func(c *Config) { c.HTTPAddr, c.GRPCAddr, c.TLS = "unix:/run/h", ":7411", files }, ""},
		"Unix sockets with TLS":        {func(c *Config) { c.HTTPAddr, c.GRPCAddr, c.TLS = "unix:/run/h", "unix:/run/g", files }, "have no TLS"},
		"one socket for both":          {func(c *Config) { c.HTTPAddr, c.GRPCAddr = "unix:/run/h", "unix:/run/h" }, "a socket each"},
		"a relative socket":            {func(c *Config) { c.HTTPAddr = "unix:h" }, "HTTP: \"unix:h\" does not name a Unix socket by its absolute path"},
		"a long socket":                {func(c *Config) { c.GRPCAddr = "unix:/" + strings.Repeat("a", 107) }, "gRPC: the path of a Unix socket has at most 107 bytes"},
		"a socket, advertised":         {func(c *Config) { c.GRPCAddr, c.AdvertiseHost = "unix:/run/g", "10.0.0.1" }, "advertised"},
		"HTTP alone on a socket":       {func(c *Config) { c.HTTPAddr, c.AdvertiseHost = "unix:/run/h", "127.0.0.1" }, ""},
		"a mode that nobody can use":   {func(c *Config) { c.SocketMode = 0o060 }, "mode of sockets"},
		"a mode of more":               {func(c *Config) { c.SocketMode = 0o4660 }, "mode of sockets"},
		"health on a socket":           {func(c *Config) { c.HealthAddr = "unix:/run/health" }, "health"},
		"operations on a socket":       {func(c *Config) { c.OpsAddr = "unix:/run/ops" }, "operations"},
		"open operations":              {func(c *Config) { c.OpsAddr = "0.0.0.0:7419" }, "operations"},
		"open health":                  {func(c *Config) { c.HealthAddr = "0.0.0.0:7418" }, ""},
		"bad namespace":                {func(c *Config) { c.Namespaces = []string{"Demo"} }, "namespaces"},
		"bad node id":                  {func(c *Config) { c.NodeID = "a/b" }, "node id"},
		"grace longer than the drain":  {func(c *Config) { c.DrainGrace = time.Minute }, "grace"},
		"weight":                       {func(c *Config) { c.Weight = 20000 }, "weight"},
		"no drivers":                   {func(c *Config) { c.Options = nil }, "drivers"},
		"on demand": {func(c *Config) {
			c.OnDemand, c.Namespaces, c.Preload = true, []string{"demo"}, []string{"topic/demo/a"}
		}, ""},
		"on demand of everything": {func(c *Config) { c.OnDemand = true }, "namespaces"},
		"preload for nothing":     {func(c *Config) { c.Namespaces, c.Preload = []string{"demo"}, []string{"topic/demo/a"} }, "preload"},
		"preload of elsewhere": {func(c *Config) {
			c.OnDemand, c.Namespaces, c.Preload = true, []string{"demo"}, []string{"topic/shop/a"}
		}, "topic/shop/a"},
		"preload of a store": {func(c *Config) {
			c.OnDemand, c.Namespaces, c.Preload = true, []string{"demo"}, []string{"eventstore/demo/a"}
		}, "neither a topic nor"},
		"negative age":           {func(c *Config) { c.StaleAfter = -1 }, "negative"},
		"on stale":               {func(c *Config) { c.OnStale = []string{"deny", "demo=serve"} }, ""},
		"on stale, otherwise":    {func(c *Config) { c.OnStale = []string{"demo=drop"} }, "on stale"},
		"on stale, no namespace": {func(c *Config) { c.OnStale = []string{"De=deny"} }, "on stale"},
	} {
		c := testConfig(t)
		tc.change(&c)
		err := c.check()
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	// All problems at once.
	if err := (&Config{}).check(); err == nil || strings.Count(err.Error(), "\n") < 2 {
		t.Errorf("an empty configuration: %v", err)
	}
	c := Config{}
	_ = c.check()
	if c.HTTPAddr != "127.0.0.1:7410" || c.GRPCAddr != "127.0.0.1:7411" || c.HealthAddr != "127.0.0.1:7418" || c.OpsAddr != "127.0.0.1:7419" {
		t.Errorf("the defaults are %+v", c)
	}
}

// TestDataFolder: the node id stays, and a folder has one proxy.
func TestDataFolder(t *testing.T) {
	cfg := testConfig(t)
	first, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second proxy in the folder: %v", err)
	}
	id, drawn := first.NodeID(), first.incarnation
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if again.NodeID() != id || !names.ValidNodeID(id) || again.incarnation == drawn {
		t.Errorf("node id %q and %q, incarnation %q and %q", id, again.NodeID(), drawn, again.incarnation)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(cfg.DataDir, "node-id")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if err := os.WriteFile(filepath.Join(cfg.DataDir, "node-id"), []byte("../x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "node id") {
		t.Errorf("a node id that is none: %v", err)
	}
	// A port that is taken.
	cfg = testConfig(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg.GRPCAddr = l.Addr().String()
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "grpc listener") {
		t.Errorf("a port that is taken: %v", err)
	}
}

// run runs a proxy; stop stops it.
func run(t *testing.T, cfg Config) (p *Proxy, stop func() error) {
	t.Helper()
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	stopped := false
	stop = func() error {
		cancel()
		if stopped {
			return nil
		}
		stopped = true
		return <-ended
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return p, stop
}

func fetch(t *testing.T, url, host string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// someState is a configuration with one topic in the embedded store.
func someState() config.State {
	const uid = "0190a0b0-0000-7000-8000-000000000001"
	set := map[string]snapshot.Versioned{}
	for _, r := range []*configv1.Resource{
		{Name: "eventstore/demo/main", Metadata: &configv1.Metadata{Namespace: "demo", Name: "main", Uid: uid},
			Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}}},
		{Name: "topic/demo/orders", Metadata: &configv1.Metadata{Namespace: "demo", Name: "orders", Uid: "t1"},
			Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{Store: "main"}}},
		{Name: "topicbinding/demo/orders", Metadata: &configv1.Metadata{Namespace: "demo", Name: "orders"},
			Spec: &configv1.Resource_TopicBinding{TopicBinding: &configv1.TopicBinding{TopicUid: "t1", Epochs: []*configv1.Epoch{{Number: 1, Store: "main", StoreUid: uid, PhysicalName: "demo_orders"}}}}},
		{Name: "topicadmission/demo/orders", Metadata: &configv1.Metadata{Namespace: "demo", Name: "orders"},
			Spec: &configv1.Resource_TopicAdmission{TopicAdmission: &configv1.TopicAdmission{TopicUid: "t1", Admitted: true, AtProxy: true}}},
	} {
		set[r.Name] = snapshot.Versioned{Resource: r, Version: "1"}
	}
	return config.State{Lineage: "1-x", Revision: 7, Set: set, Withheld: []string{"accesspolicy/demo/p"}}
}

// TestPages: readiness follows the configuration, and what is open to the
// network tells nothing else.
func TestPages(t *testing.T) {
	p, _ := run(t, testConfig(t))
	health, ops := "http://"+p.Addrs().Health, "http://"+p.Addrs().Ops
	for _, base := range []string{health, ops} {
		if code, body := fetch(t, base+"/readyz", ""); code != http.StatusServiceUnavailable || !strings.Contains(body, "no configuration") {
			t.Errorf("without a configuration: %d %s", code, body)
		}
	}
	if code, _ := fetch(t, ops+"/livez", ""); code != http.StatusOK {
		t.Errorf("livez: %d", code)
	}
	p.apply(t.Context(), someState())
	for _, base := range []string{health, ops} {
		if code, body := fetch(t, base+"/readyz", ""); code != http.StatusOK {
			t.Errorf("with a configuration: %d %s", code, body)
		}
	}
	for _, path := range []string{"/", "/metrics", "/livez", "/debug/pprof/", "/debug/config", "/readyz/", "/readyz/../metrics"} {
		if code, _ := fetch(t, health+path, ""); code == http.StatusOK {
			t.Errorf("%s is served to the network", path)
		}
	}
	for _, host := range []string{"evil.example", "evil.example:7419", "127.0.0.1.nip.io", "10.0.0.1:7419"} {
		if code, _ := fetch(t, ops+"/debug/config", host); code != http.StatusForbidden {
			t.Errorf("Host %s: %d", host, code)
		}
	}
	for _, host := range []string{"localhost", "localhost:7419", "127.0.0.1", "[::1]:1", "[::1]"} {
		if code, _ := fetch(t, ops+"/livez", host); code != http.StatusOK {
			t.Errorf("Host %s: %d", host, code)
		}
	}
	_, body := fetch(t, ops+"/debug/config", "")
	var v view
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		t.Fatal(err)
	}
	if v.Revision != 7 || len(v.Topics) != 1 || v.Topics[0].NotReady != "" || len(v.Stores) != 1 || !v.Stores[0].Open || v.Withheld[0] != "accesspolicy/demo/p" {
		t.Errorf("the configuration is shown as %s", body)
	}
	_, metrics := fetch(t, ops+"/metrics", "")
	for _, want := range []string{"weft_proxy_ready 1", `weft_proxy_store_open{store="demo/main"} 1`, "weft_proxy_build_info{", `weft_proxy_connections{listener="ops"} 1`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
}

// TestDrain: the steps come in their order, sessions that end in time are
// waited for, those that do not are cut, within the one deadline.
func TestDrain(t *testing.T) {
	for _, lasts := range []bool{false, true} {
		cfg := testConfig(t)
		cfg.DrainTime, cfg.DrainGrace = 2*time.Second, 10*time.Millisecond
		p, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		var steps []string
		told := make(chan struct{})
		p.engine.tell = func() {
			if p.ready() == nil {
				steps = append(steps, "still ready")
			}
			if c, err := net.Dial("tcp", p.Addrs().HTTP); err == nil {
				_ = c.Close()
				steps = append(steps, "still accepting")
			}
			steps = append(steps, "told")
			close(told)
		}
		p.engine.parts = []enginePart{{"delivery", func(ctx context.Context) error { <-ctx.Done(); steps = append(steps, "delivery"); return nil }}}
		session := make(chan net.Conn, 1)
		p.engine.frontends = []frontendPart{{listenHTTP, func(ctx context.Context, l net.Listener) error {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			session <- c
			<-ctx.Done()
			<-told
			if lasts {
				_, _ = c.Read(make([]byte, 1)) // until it is cut
			} else {
				_ = c.Close()
			}
			steps = append(steps, "sessions")
			return nil
		}}}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- p.Run(ctx) }()
		c, err := net.Dial("tcp", p.Addrs().HTTP)
		if err != nil {
			t.Fatal(err)
		}
		<-session
		p.apply(t.Context(), someState())
		if err := p.ready(); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("lasting sessions %v: %v", lasts, err)
		}
		_ = c.Close()
		if got := fmt.Sprint(steps); got != "[told sessions delivery]" {
			t.Errorf("lasting sessions %v: the steps were %s", lasts, got)
		}
		if _, err := p.stores.Get("0190a0b0-0000-7000-8000-000000000001"); err == nil {
			t.Error("a store is left open")
		}
	}
}

// TestPartFails: a part that ends by itself stops the proxy, with its error.
func TestPartFails(t *testing.T) {
	p, err := New(testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	p.engine.parts = append(p.engine.parts, enginePart{"odd", func(context.Context) error { return errors.New("no more") }})
	if err := p.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "odd: no more") {
		t.Errorf("the error is %v", err)
	}
}

// passing takes what comes through.
type passing struct{ n int }

func (w *passing) Publish(_ context.Context, _ *policy.Principal, _, _ string, events []event.Event, _ []frontend.Result) error {
	w.n += len(events)
	return nil
}

func (w *passing) Begin(ctx context.Context, who *policy.Principal, namespace, topic string, events []event.Event, res []frontend.Result) (func(context.Context) error, error) {
	return nil, w.Publish(ctx, who, namespace, topic, events, res)
}

func (w *passing) Binds(string) bool { return true }

func (w *passing) Bound(*policy.Principal, frontend.Call) (frontend.Bound, error) {
	w.n++
	return frontend.Bound{}, nil
}

func (w *passing) Join(context.Context, *policy.Principal, string, string) (delivery.Member, error) {
	w.n++
	return idleMember{}, nil
}

func (w *passing) Pull(context.Context, *policy.Principal, string, string, delivery.PullRequest) (delivery.Pulled, error) {
	w.n++
	return delivery.Pulled{}, nil
}

func (w *passing) Settle(context.Context, *policy.Principal, string, string, delivery.Settlement) ([]delivery.Unsettled, error) {
	w.n++
	return nil, nil
}

func (w *passing) Tail(context.Context, *policy.Principal, delivery.TailRequest) (delivery.Tail, error) {
	w.n++
	return idleTail{}, nil
}

// idleMember and idleTail only end.
type idleMember struct{ delivery.Member }

func (idleMember) Close() {}

type idleTail struct{ delivery.Tail }

func (idleTail) Close() {}

// TestMesh: before the first configuration nobody passes, and whose credentials
// are withdrawn passes no more, on whichever way.
func TestMesh(t *testing.T) {
	p, err := New(testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	w := &passing{}
	m := p.mesh
	m.in, m.out = w, w
	m.snapshots = latest.New(snapshot.Compile(snapshot.Input{}))
	loop := policy.Credentials{Peer: netip.MustParseAddrPort("127.0.0.1:1")}
	local := &policy.Principal{Name: policy.Local}
	all := func() []error {
		res := make([]frontend.Result, 2)
		errs := []error{m.Publish(t.Context(), local, "demo", "orders", make([]event.Event, 2), res)}
		if (errs[0] == nil) != (res[1].Err == nil) {
			t.Errorf("the call says %v, its result %v", errs[0], res[1].Err)
		}
		_, err := m.Join(t.Context(), local, "demo", "billing")
		errs = append(errs, err)
		_, err = m.Pull(t.Context(), local, "demo", "billing", delivery.PullRequest{})
		errs = append(errs, err)
		_, err = m.Settle(t.Context(), local, "demo", "billing", delivery.Settlement{})
		errs = append(errs, err)
		_, err = m.Tail(t.Context(), local, delivery.TailRequest{})
		return append(errs, err)
	}
	if _, err := m.Authenticate(t.Context(), loop); fault.ClassOf(err) != fault.Unavailable {
		t.Errorf("without a configuration: %v", err)
	}
	for _, err := range all() {
		if err == nil || fault.ClassOf(err) != fault.Unavailable {
			t.Errorf("without a configuration: %v", err)
		}
	}
	m.snapshots.Store(snapshot.Compile(snapshot.Input{Lineage: "1-x", Revision: 1, TrustLoopback: true}))
	if who, err := m.Authenticate(t.Context(), loop); err != nil || who.Name != policy.Local {
		t.Errorf("%v %v", who, err)
	}
	for _, err := range all() {
		if err != nil {
			t.Error(err)
		}
	}
	if w.n != 6 {
		t.Errorf("%d came through", w.n)
	}
	m.snapshots.Store(snapshot.Compile(snapshot.Input{Lineage: "1-x", Revision: 2}))
	for _, err := range all() {
		if err == nil || fault.ClassOf(err) != fault.Unauthenticated {
			t.Errorf("withdrawn: %v", err)
		}
	}
	if w.n != 6 {
		t.Error("a withdrawn principal came through")
	}
}

// waits stands for a client to which a new configuration comes while a call waits.
type waits func()

func (w waits) Use(context.Context, config.Name, bool) error { w(); return nil }
func (w waits) Pin(config.Name) func()                       { return func() {} }

// TestMeshJudgesAgain: who is withdrawn while a call waits for its configuration does
// not come through.
func TestMeshJudgesAgain(t *testing.T) {
	p, err := New(testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	w := &passing{}
	m := p.mesh
	m.in, m.out = w, w
	rule := &configv1.AccessRule{Name: "all", Effect: configv1.Effect_EFFECT_ALLOW, Principals: []string{policy.Local}, Topics: []string{">"}, Subscriptions: []string{">"},
		Actions: []configv1.Action{configv1.Action_ACTION_PUBLISH, configv1.Action_ACTION_SUBSCRIBE, configv1.Action_ACTION_CONSUME}}
	set := map[string]snapshot.Versioned{"accesspolicy/demo/p": {Version: "1", Resource: &configv1.Resource{Name: "accesspolicy/demo/p", Metadata: &configv1.Metadata{Namespace: "demo", Name: "p"},
		Spec: &configv1.Resource_AccessPolicy{AccessPolicy: &configv1.AccessPolicy{Rules: []*configv1.AccessRule{rule}}}}}}
	comes := func(trusted bool) {
		m.snapshots.Store(snapshot.Compile(snapshot.Input{Lineage: "1-x", Revision: 1, Set: set, TrustLoopback: trusted}))
	}
	waited := 0
	m.demand = &demand{waits(func() { waited++; comes(false) })}
	local := &policy.Principal{Name: policy.Local}
	for what, call := range map[string]func() error{
		"publish": func() error {
			return m.Publish(t.Context(), local, "demo", "orders", make([]event.Event, 1), make([]frontend.Result, 1))
		},
		"join": func() error { _, err := m.Join(t.Context(), local, "demo", "billing"); return err },
		"pull": func() error {
			_, err := m.Pull(t.Context(), local, "demo", "billing", delivery.PullRequest{})
			return err
		},
		"settle": func() error {
			_, err := m.Settle(t.Context(), local, "demo", "billing", delivery.Settlement{})
			return err
		},
		"tail": func() error {
			_, err := m.Tail(t.Context(), local, delivery.TailRequest{Namespace: "demo", Topics: []string{"orders"}})
			return err
		},
	} {
		comes(true)
		if err := call(); err == nil || fault.ClassOf(err) != fault.Unauthenticated {
			t.Errorf("%s: %v", what, err)
		}
	}
	if w.n != 0 || waited != 5 {
		t.Errorf("%d came through of %d that waited", w.n, waited)
	}
}
