// Package chaos shows what the control plane promises while replicas, members of
// etcd, proxies and the ways between them fail at random: no proxy goes back, an
// accepted change arrives at every proxy, what was answered OK stays, what was
// refused did not happen.
package chaos

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/config"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/resource"
)

// Sizes of a run.
const (
	replicas = 3
	members  = 3
	proxies  = 20
	writers  = 2
	keys     = 4 // of each writer
	faults   = faultKinds
	prefix   = "/chaos/"
	// convergeTime bounds the wait for everything to be everywhere once all is
	// well; machines are small and busy.
	convergeTime = 2 * time.Minute
)

// envSeed repeats a run.
const envSeed = "WEFT_CHAOS_SEED"

func TestMain(m *testing.M) {
	if name := os.Getenv(envCandidate); name != "" {
		os.Exit(candidate(name))
	}
	os.Exit(servers.Main(m))
}

// world is what a run is about.
type world struct {
	*testing.T
	*log
	ctx   context.Context
	rnd   *rand.Rand // the nemesis's own
	kinds []int      // of the faults to come
	dir   string
	etcd  *servers.EtcdCluster
	own   *clientv3.Client // the test's, to all members
	cps   []*replica
	peers []*link // to each member, for the others
	toCP  [2][]*link
	real  *servers.Process
	ops   string // of the real proxy

	proxies  []*proxy
	gate     sync.RWMutex // writers pass while nobody holds it
	era      atomic.Int64 // restores
	attempts atomic.Int64
}

type replica struct {
	*servers.Process
	admin, disco, ops string
	toEtcd            []*link
	client            adminv1.AdminServiceClient
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) link(to string) *link {
	w.Helper()
	k, err := newLink(to)
	w.must(err)
	w.Cleanup(k.close)
	return k
}

func (w *world) addr() string {
	w.Helper()
	p, err := servers.FreePort()
	w.must(err)
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(p))
}

// TestChaos is one run; its seed says which faults come in which order.
func TestChaos(t *testing.T) {
	servers.NeedServers(t)
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv(envSeed); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("%s: %v", envSeed, err)
		}
	}
	t.Logf("%s=%d repeats the faults of this run", envSeed, seed)
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	t.Cleanup(cancel)
	w := &world{T: t, log: newLog(), ctx: ctx, rnd: rand.New(rand.NewPCG(seed, 0)), dir: t.TempDir()}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s=%d; the history:\n%s", envSeed, seed, strings.Join(w.lines, "\n"))
		}
	})
	w.start()
	wctx, stopWriting := context.WithCancel(ctx)
	var writing sync.WaitGroup
	for i := range writers {
		writing.Go(func() { w.write(wctx, i, rand.New(rand.NewPCG(seed, uint64(i)+1))) })
	}
	w.hold(20)
	w.nemesis()
	w.printf("all is well again")
	w.converge(true)
	stopWriting()
	writing.Wait()
	final := w.converge(false)
	w.checkReal(final)
	for _, p := range w.proxies {
		p.stop()
	}
	for _, bad := range w.judge(final) {
		t.Error(bad)
	}
	counts := map[outcome]int{}
	for _, x := range w.writes {
		counts[x.outcome]++
	}
	t.Logf("%d writes were done, %d refused, %d of unknown outcome; %d states at %d revisions", counts[done], counts[refused], counts[unknown], len(w.lines), len(w.seen))
	if counts[done] < 50 || len(w.seen) < 20 {
		t.Error("too little happened to say anything")
	}
}

// start starts everything.
func (w *world) start() {
	w.Helper()
	etcd, err := servers.StartEtcdCluster(w.ctx, servers.EtcdClusterOptions{Members: members, PeerProxy: func(addr string) (string, error) {
		k, err := newLink(addr)
		if err != nil {
			return "", err
		}
		w.Cleanup(k.close)
		w.peers = append(w.peers, k)
		return k.addr, nil
	}})
	w.must(err)
	w.etcd = etcd
	w.Cleanup(func() {
		if err := etcd.Stop(); err != nil {
			w.Error(err)
		}
	})
	w.own, err = clientv3.New(clientv3.Config{Endpoints: etcd.Endpoints(), DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	w.must(err)
	w.Cleanup(func() { _ = w.own.Close() })
	bin := filepath.Join(w.dir, "weft")
	if out, err := exec.Command("go", "build", "-race", "-o", bin, "../../tools/cmd/weft").CombinedOutput(); err != nil {
		w.Fatalf("go build: %v\n%s", err, out)
	}
	for i := range replicas {
		r := &replica{admin: w.addr(), disco: w.addr(), ops: w.addr()}
		var endpoints []string
		for _, m := range etcd.Members {
			k := w.link(strings.TrimPrefix(m.Endpoint, "http://"))
			r.toEtcd = append(r.toEtcd, k)
			endpoints = append(endpoints, "http://"+k.addr)
		}
		r.Process = w.process("replica-"+strconv.Itoa(i), bin, "control-plane", "--etcd", strings.Join(endpoints, ","), "--etcd-prefix", prefix,
			"--admin", r.admin, "--discovery", r.disco, "--ops", r.ops, "--etcd-max-retry", "500ms", "--election-ttl", "1s")
		w.must(r.Start(w.ctx))
		conn, err := grpc.NewClient(r.admin, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, MaxDelay: 300 * time.Millisecond}, MinConnectTimeout: time.Second}))
		w.must(err)
		w.Cleanup(func() { _ = conn.Close() })
		r.client = adminv1.NewAdminServiceClient(conn)
		w.cps = append(w.cps, r)
		for side := range w.toCP {
			w.toCP[side] = append(w.toCP[side], w.link(r.disco))
		}
	}
	w.ops = w.addr()
	w.real = w.process("proxy", bin, "proxy", "--control-plane", strings.Join([]string{w.cps[0].disco, w.cps[1].disco, w.cps[2].disco}, ","),
		"--data", filepath.Join(w.dir, "proxy"), "--node-id", "real", "--http", w.addr(), "--grpc", w.addr(), "--health", w.addr(), "--ops", w.ops,
		"--control-plane-max-retry", "500ms", "--control-plane-answer-timeout", "2s")
	w.must(w.real.Start(w.ctx))
	for i := range proxies {
		p := &proxy{w: w, id: i}
		w.proxies = append(w.proxies, p)
		p.start()
		w.Cleanup(p.stop)
	}
}

// process makes a process that is looked after: whatever it says of races or
// panics fails the run.
func (w *world) process(name string, args ...string) *servers.Process {
	p := &servers.Process{Name: name, Args: args, Log: filepath.Join(w.dir, name+".log"), Ready: func(context.Context, []byte) error { return nil }}
	w.Cleanup(func() {
		if err := p.Kill(); err != nil {
			w.Error(err)
		}
		b, err := os.ReadFile(p.Log)
		if err != nil {
			w.Error(err)
		}
		if strings.Contains(string(b), "DATA RACE") || strings.Contains(string(b), "panic:") || w.Failed() {
			w.Errorf("the log of %s:\n%s", name, b[max(0, len(b)-8<<10):])
		}
	})
	return p
}

// proxy is the part of a proxy that follows the control plane. Every second one
// has a disk.
type proxy struct {
	w     *world
	id    int
	lives int
	end   context.CancelFunc
	ended chan struct{}
}

// life names the proxy, as long as it must not go back: one without a disk knows
// nothing after a restart.
func (p *proxy) life() string {
	if p.id%2 == 0 {
		return "p" + strconv.Itoa(p.id)
	}
	return fmt.Sprintf("p%d.%d", p.id, p.lives)
}

func (p *proxy) start() {
	p.lives++
	life := p.life()
	var addrs []string
	for _, k := range p.w.toCP[p.id/2%2] {
		addrs = append(addrs, k.addr)
	}
	dir := ""
	if p.id%2 == 0 {
		dir = filepath.Join(p.w.dir, "config-"+strconv.Itoa(p.id))
		p.w.must(os.MkdirAll(dir, 0o700))
	}
	c := config.New(config.Config{Addresses: addrs, NodeID: "p" + strconv.Itoa(p.id), Info: &discoveryv1.NodeInfo{Incarnation: life, Manifest: true}, Dir: dir,
		Times: config.Times{AnswerTimeout: 2 * time.Second, Keepalive: 10 * time.Second, MaxRetry: 500 * time.Millisecond},
		Check: snapshot.Check, Log: slog.New(slog.DiscardHandler),
		Apply: func(_ context.Context, s config.State) { p.w.applied(life, stateOf(s)) }})
	ctx, end := context.WithCancel(p.w.ctx)
	ended := make(chan struct{})
	p.end, p.ended = end, ended
	go func() {
		defer close(ended)
		_ = c.Run(ctx)
	}()
}

func (p *proxy) stop() {
	p.end()
	<-p.ended
}

func stateOf(s config.State) state {
	out := state{lineage: s.Lineage, revision: s.Revision, set: map[string]held{}}
	for name, v := range s.Set {
		n, _ := strconv.ParseInt(v.Version, 10, 64)
		out.set[name] = held{n, v.Resource.GetMetadata().GetLabels()["v"]}
	}
	return out
}

// content is what etcd has, all at one revision.
func (w *world) content() (state, error) {
	ctx, cancel := context.WithTimeout(w.ctx, 5*time.Second)
	defer cancel()
	resp, err := w.own.Txn(ctx).Then(clientv3.OpGet(prefix+"r/", clientv3.WithPrefix()), clientv3.OpGet(prefix+"m/lineage")).Commit()
	if err != nil {
		return state{}, err
	}
	s := state{revision: resp.Header.Revision, set: map[string]held{}}
	for _, kv := range resp.Responses[0].GetResponseRange().Kvs {
		r := &configv1.Resource{}
		if err := proto.Unmarshal(kv.Value, r); err != nil {
			return state{}, err
		}
		s.set[r.Name] = held{kv.ModRevision, r.GetMetadata().GetLabels()["v"]}
	}
	for _, kv := range resp.Responses[1].GetResponseRange().Kvs {
		s.lineage = string(kv.Value)
	}
	return s, nil
}

// converge waits until every proxy has what etcd has; while others write, what it
// had at one time.
func (w *world) converge(writing bool) state {
	w.Helper()
	var lives []string
	for _, p := range w.proxies {
		lives = append(lives, p.life())
	}
	if writing {
		w.gate.Lock()
		defer w.gate.Unlock()
	}
	ctx, cancel := context.WithTimeout(w.ctx, convergeTime)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := w.content()
		var who []string
		if err == nil {
			if who = w.behind(s, lives); len(who) == 0 {
				return s
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.Fatalf("it does not converge: etcd has %s/%d %s (%v), behind are %v", s.lineage, s.revision, s.digest(), err, who)
		}
	}
}

// write writes the resources of one writer, one at a time, through any replica.
func (w *world) write(ctx context.Context, id int, rnd *rand.Rand) {
	versions := map[string]string{} // "" is not there; missing is not known
	era := int64(0)
	pause := time.NewTicker(20 * time.Millisecond)
	defer pause.Stop()
	for n := 0; ctx.Err() == nil; n++ {
		w.gate.RLock()
		if now := w.era.Load(); now != era {
			era = now
			clear(versions)
		}
		w.attempt(ctx, id, n, rnd, versions)
		w.gate.RUnlock()
		w.attempts.Add(1)
		<-pause.C
	}
}

func (w *world) attempt(ctx context.Context, id, n int, rnd *rand.Rand, versions map[string]string) {
	// A call outlasts its writer's stopping, or its outcome would be unknown for
	// no reason.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 1500*time.Millisecond)
	defer cancel()
	at := rnd.IntN(replicas)
	cp := w.cps[at].client
	by, where := "writer "+strconv.Itoa(id), "replica "+strconv.Itoa(at)
	r := &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: fmt.Sprintf("w%d-%d", id, rnd.IntN(keys))},
		Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}}}
	name := resource.NameOf(r)
	version, known := versions[name]
	if !known {
		got, err := cp.Get(ctx, &adminv1.GetRequest{Name: name})
		switch {
		case err == nil:
			version = got.Resource.Metadata.Version
		case status.Code(err) != codes.NotFound:
			return
		}
	}
	x := &write{name: name, text: fmt.Sprintf("%d-%d", id, n), blind: version == ""}
	var err error
	if version != "" && rnd.IntN(6) == 0 {
		x.remove = true
		var resp *adminv1.DeleteResponse
		if resp, err = cp.Delete(ctx, &adminv1.DeleteRequest{Targets: []*adminv1.DeleteTarget{{Name: name, Version: version}}, AllowMassRemoval: true}); err == nil {
			x.version, versions[name] = resp.Revision, ""
		}
	} else {
		r.Metadata.Version, r.Metadata.Labels = version, map[string]string{"v": x.text}
		var resp *adminv1.ApplyResponse
		if resp, err = cp.Apply(ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{r}}); err == nil {
			versions[name] = resp.Results[0].Version
			x.version, _ = strconv.ParseInt(versions[name], 10, 64)
		}
	}
	switch status.Code(err) {
	case codes.OK:
		x.outcome = done
	case codes.InvalidArgument, codes.FailedPrecondition, codes.Aborted, codes.NotFound:
		x.outcome = refused
		delete(versions, name)
	default:
		x.outcome = unknown
		delete(versions, name)
	}
	w.wrote(x, by, where)
	if err != nil {
		w.printf("%s: %v", by, err)
	}
}

// hold waits until the writers have tried n times more.
func (w *world) hold(n int) {
	w.Helper()
	until := w.attempts.Load() + int64(n)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for w.attempts.Load() < until {
		select {
		case <-tick.C:
		case <-w.ctx.Done():
			w.Fatal("the writers hang")
		}
	}
}

// checkReal: the proxy process has what etcd has.
func (w *world) checkReal(final state) {
	w.Helper()
	var last int64
	for _, h := range final.set {
		last = max(last, h.version)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(w.ctx, convergeTime)
	defer cancel()
	for {
		got, err := metric(ctx, w.ops, "weft_proxy_config_revision")
		if err == nil && int64(got) < last {
			err = fmt.Errorf("it is at revision %v, of %d", got, last)
		}
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.Errorf("the proxy: %v", errors.Join(err, ctx.Err()))
			return
		}
	}
}
