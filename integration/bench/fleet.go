package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/discovery"
	"github.com/weft-mesh/weft/integration/servers"
)

// The fleet: so many simulated proxies, each a connection with mutual TLS and a
// stream of its own, and so many resources in fleetSpaces namespaces.
const (
	fleetNodes     = 1000
	fleetResources = 10000
	fleetSpaces    = 100
)

func fleetSpace(i int) string { return fmt.Sprintf("ns-%d", i%fleetSpaces) }

// configServer is what a fleet follows: the control plane, or a contender.
type configServer struct {
	name  string
	disco string
	// ops is the address of its operations; empty where it has none.
	ops string
	pid int
	// change makes a new version of one resource, whose label v is version.
	change func(ctx context.Context, space, name, version string) error
	// apply changes several and gives the revision; nil where that is not measured.
	apply func(ctx context.Context, list []*configv1.Resource) (revision int64, err error)
	// inUse is the memory in use, in bytes; nil where that cannot be asked.
	inUse func(ctx context.Context) (float64, error)
	tls   *fleetTLS
	stop  func() error
	// restart kills it and starts it again; nil where that is not measured.
	restart func(ctx context.Context) error
}

// startControl starts a control plane with so many resources.
func (r *run) startControl(ctx context.Context, name string, resources int) (_ *configServer, err error) {
	etcd, err := r.etcd(ctx)
	if err != nil {
		return nil, err
	}
	m := &mesh{r: r}
	if err := addresses(&m.admin, &m.disco, &m.controlOps); err != nil {
		return nil, err
	}
	certs, err := newFleetTLS(filepath.Join(r.dir, name))
	if err != nil {
		return nil, err
	}
	m.control = &servers.Process{Name: "control plane", Log: filepath.Join(r.dir, name+"-control.log"), Ready: answers("http://" + m.controlOps + "/readyz"),
		Args: []string{filepath.Join(r.dir, "weft"), "control-plane", "--etcd", etcd, "--etcd-prefix", "/" + r.ns + name + "/", "--admin", m.admin, "--discovery", m.disco, "--ops", m.controlOps,
			"--discovery-cert", certs.serverCert, "--discovery-key", certs.serverKey, "--discovery-ca", certs.ca}}
	if err := m.control.Start(ctx); err != nil {
		return nil, err
	}
	s := &configServer{name: "weft", disco: m.disco, ops: m.controlOps, pid: m.control.PID(), inUse: m.inUse, tls: certs, stop: m.control.Stop}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	conn, err := grpc.NewClient(m.admin, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	s.stop = func() error { return errors.Join(conn.Close(), m.control.Stop()) }
	s.restart = func(ctx context.Context) error {
		if err := m.control.Kill(); err != nil {
			return err
		}
		if err := m.control.Start(ctx); err != nil {
			return err
		}
		s.pid = m.control.PID()
		return nil
	}
	admin := adminv1.NewAdminServiceClient(conn)
	s.apply = func(ctx context.Context, list []*configv1.Resource) (int64, error) {
		resp, err := admin.Apply(ctx, &adminv1.ApplyRequest{Resources: list})
		return resp.GetRevision(), err
	}
	s.change = func(ctx context.Context, space, name, version string) error {
		_, err := s.apply(ctx, []*configv1.Resource{eventStore(space, name, version)})
		return err
	}
	for from := 0; from < resources; from += 100 {
		var batch []*configv1.Resource
		for i := from; i < min(from+100, resources); i++ {
			batch = append(batch, eventStore(fleetSpace(i), fmt.Sprintf("s%d", i), "0"))
		}
		if _, err := s.apply(ctx, batch); err != nil {
			return s, err
		}
	}
	return s, nil
}

// fleet measures how configuration reaches many proxies, beside go-control-plane's
// LinearCache on the same work.
func fleet(ctx context.Context, r *run) error {
	ours, err := r.startControl(ctx, "fleet", fleetResources)
	if err != nil {
		return err
	}
	defer r.end(ours)
	theirs, err := r.startLinear(ctx, fleetResources)
	if err != nil {
		return err
	}
	defer r.end(theirs)
	weft, linear, err := r.meshWide(ctx, ours, theirs)
	if err != nil {
		return err
	}
	r.note("one change to %d proxies with %d resources: 99 %% after %s ms with %s ms of the control plane's CPU (aimed at 250 and 100); go-control-plane's LinearCache: %s ms and %s ms: %.0f and %.0f times as much",
		fleetNodes, fleetResources, spread(weft.p99, "%.0f"), spread(weft.cpu, "%.0f"), spread(linear.p99, "%.0f"), spread(linear.cpu, "%.0f"), median(linear.p99)/median(weft.p99), median(linear.cpu)/max(1, median(weft.cpu)))
	return nil
}

func (r *run) end(s *configServer) {
	if err := s.stop(); err != nil {
		r.printf("  stopping %s: %v\n", s.name, err)
	}
}

// reach is what changes cost: milliseconds to the acknowledgement by half, by 99 %
// and by all, and of the server's CPU.
type reach struct{ half, p99, all, cpu []float64 }

// meshWide measures changes that every proxy gets, in turns.
func (r *run) meshWide(ctx context.Context, contenders ...*configServer) (a, b reach, err error) {
	found := make([]reach, len(contenders))
	fleets := make([]*simulated, len(contenders))
	for i, s := range contenders {
		fleets[i] = newSimulated(s)
		defer fleets[i].stop()
		if err := fleets[i].connect(ctx, fleetNodes, everywhere, s.name == "weft"); err != nil {
			return a, b, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	for round := range 5 * r.rounds {
		for i := range contenders {
			if err := fleets[i].changes(ctx, &found[i], 0, "s0", fmt.Sprint(round+1), 4); err != nil {
				return a, b, fmt.Errorf("%s: %w", contenders[i].name, err)
			}
		}
	}
	for i, s := range contenders {
		f := found[i]
		r.printf("  %-14s one change to all of %d: 50 %% %s ms, 99 %% %s ms, all %s ms; %s ms of CPU\n", s.name, fleetNodes, spread(f.half, "%.0f"), spread(f.p99, "%.0f"), spread(f.all, "%.0f"), spread(f.cpu, "%.0f"))
	}
	return found[0], found[len(found)-1], nil
}

// resume measures how a fleet comes back: by token, to a control plane that it knows
// and to one that has just started; with and without the TLS sessions that it had.
func resume(ctx context.Context, r *run) error {
	s, err := r.startControl(ctx, "resume", fleetResources)
	if err != nil {
		return err
	}
	defer r.end(s)
	f := newSimulated(s)
	defer f.stop()
	if err := f.connect(ctx, fleetNodes, everywhere, true); err != nil { // knows the token, and has sessions
		return err
	}
	var same, again, fresh struct{ took, cpu []float64 }
	for range r.rounds {
		for _, one := range []struct {
			found           *struct{ took, cpu []float64 }
			restart, forget bool
		}{{&same, false, false}, {&again, true, false}, {&fresh, false, true}} {
			f.stop()
			if one.restart {
				if err := s.restart(ctx); err != nil {
					return err
				}
			}
			if one.forget {
				clear(f.sessions)
			}
			profiled := r.profileOf(ctx, s, fmt.Sprintf("resume-restart-%t-forget-%t", one.restart, one.forget))
			began, cpu := time.Now(), cpuOf(s.pid)
			if err := f.connect(ctx, fleetNodes, everywhere, true); err != nil {
				return err
			}
			one.found.took, one.found.cpu = append(one.found.took, time.Since(began).Seconds()), append(one.found.cpu, (cpuOf(s.pid)-cpu).Seconds())
			profiled()
		}
	}
	for _, one := range []struct {
		name string
		of   struct{ took, cpu []float64 }
	}{{"with the TLS sessions that they had", same}, {"the same, at a control plane that has just started", again}, {"with whole TLS handshakes", fresh}} {
		r.note("%d proxies resumed by token, %s: %s s and %s s of CPU (aimed at 2 s and 1 s)", fleetNodes, one.name, spread(one.of.took, "%.2f"), spread(one.of.cpu, "%.2f"))
	}
	return nil
}

// fleetAlone measures what only a control plane of ours does: syncs from nothing,
// memory, changes in one namespace.
func fleetAlone(ctx context.Context, r *run) error {
	s, err := r.startControl(ctx, "alone", fleetResources)
	if err != nil {
		return err
	}
	defer r.end(s)
	f := newSimulated(s)
	defer f.stop()
	// 100 at once, from nothing; the first one apart, so that the code is warm.
	if err := f.connect(ctx, 1, everywhere, false); err != nil {
		return err
	}
	f.stop()
	began, cpu := time.Now(), cpuOf(s.pid)
	if err := f.connect(ctx, 100, everywhere, false); err != nil {
		return err
	}
	took, spent := time.Since(began), cpuOf(s.pid)-cpu
	r.note("100 proxies synced from nothing, %d resources: %s and %s of the control plane's CPU (aimed at 2 s and 0.5 s)", fleetResources, took.Round(10*time.Millisecond), spent)
	f.stop()
	before, err := s.inUse(ctx)
	if err != nil {
		return err
	}
	if err := f.connect(ctx, fleetNodes, everywhere, true); err != nil {
		return err
	}
	after, err := s.inUse(ctx)
	if err != nil {
		return err
	}
	r.note("%.0f KiB of the control plane's memory (heap and stacks in use) a stream with its connection (aimed at 100 KB)", (after-before)/fleetNodes/1024)
	f.stop()
	// 10 proxies in each of 100 namespaces.
	if err := f.connect(ctx, fleetNodes, fleetSpace, false); err != nil {
		return err
	}
	var one reach
	for round := range 5 * r.rounds {
		if err := f.changes(ctx, &one, round, "s"+strconv.Itoa(round%fleetSpaces), "x"+fmt.Sprint(round), 10); err != nil {
			return err
		}
	}
	slices.Sort(one.all)
	r.note("a change in one of %d namespaces, to %d of %d proxies: all after %s ms, of %d changes 99 %% within %.0f ms; %s ms of CPU (aimed at 20 ms)", fleetSpaces, fleetNodes/fleetSpaces, fleetNodes,
		spread(one.all, "%.0f"), len(one.all), one.all[len(one.all)*99/100], spread(one.cpu, "%.0f"))
	return nil
}

func eventStore(ns, name, label string) *configv1.Resource {
	return &configv1.Resource{Metadata: &configv1.Metadata{Namespace: ns, Name: name, Labels: map[string]string{"v": label}},
		Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}}}
}

// simulated is a fleet that follows a server.
type simulated struct {
	server *configServer
	acked  chan acknowledgement
	failed chan error
	cancel context.CancelFunc
	wg     *sync.WaitGroup
	scopes []string // of each node
	token  string   // to resume everywhere
	// sessions are the TLS sessions of each node.
	sessions map[string]tls.ClientSessionCache
	// log is of what comes; nil keeps none.
	log *pushes
}

func newSimulated(s *configServer) *simulated {
	return &simulated{server: s, cancel: func() {}, wg: &sync.WaitGroup{}, sessions: map[string]tls.ClientSessionCache{}}
}

func everywhere(int) string { return "" }

// connect opens a stream for each node and waits until all have acknowledged what
// there is. Scope is the namespace of a node, "" for all; with resume, all but the
// first begin with the first one's token.
func (f *simulated) connect(ctx context.Context, nodes int, scope func(int) string, resume bool) error {
	ctx, f.cancel = context.WithCancel(ctx)
	f.acked, f.failed = make(chan acknowledgement, 4*nodes), make(chan error, nodes)
	f.scopes = make([]string, nodes)
	synced := make(chan string, nodes)
	began := 0
	open := func(i int) {
		f.scopes[i] = scope(i)
		token := ""
		if resume {
			token = f.token
		}
		began++
		node := fmt.Sprintf("node-%d", i)
		if f.sessions[node] == nil {
			f.sessions[node] = tls.NewLRUClientSessionCache(1)
		}
		sessions := f.sessions[node]
		f.wg.Go(func() {
			if err := f.follow(ctx, node, sessions, f.scopes[i], token, synced); err != nil && ctx.Err() == nil {
				f.failed <- err
			}
		})
	}
	timeout := time.NewTimer(5 * time.Minute)
	defer timeout.Stop()
	await := func(n int) error {
		for range n {
			select {
			case token := <-synced:
				if f.token == "" {
					f.token = token
				}
			case err := <-f.failed:
				return err
			case <-timeout.C:
				return errors.New("the fleet does not sync")
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}
	first := 0
	if resume && f.token == "" {
		open(0)
		if err := await(1); err != nil {
			return err
		}
		first = 1
	}
	for i := first; i < nodes; i++ {
		open(i)
	}
	return await(nodes - first)
}

// stop ends all streams.
func (f *simulated) stop() {
	f.cancel()
	f.wg.Wait()
}

// acknowledgement is when a proxy acknowledged a version.
type acknowledgement struct {
	label string
	at    time.Time
}

// rest is between two changes that are measured: one that comes too soon after another
// waits, as long as discovery.PaceEvery.
const rest = 2 * discovery.PaceEvery

// changes makes a resource of a namespace new a few times, one after another, and
// adds what one of them cost.
func (f *simulated) changes(ctx context.Context, found *reach, space int, name, version string, times int) error {
	nodes := 0
	for _, s := range f.scopes {
		if s == "" || s == fleetSpace(space) {
			nodes++
		}
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	cpu := cpuOf(f.server.pid)
	for i := range times {
		label := fmt.Sprintf("%s.%d", version, i)
		wait(ctx, rest)
		began := time.Now()
		if err := f.server.change(ctx, fleetSpace(space), name, label); err != nil {
			return err
		}
		var took []time.Duration
		timeout := time.NewTimer(2 * time.Minute)
		defer timeout.Stop()
		for len(took) < nodes {
			select {
			case a := <-f.acked:
				if a.label == label {
					took = append(took, a.at.Sub(began))
				}
			case err := <-f.failed:
				return err
			case <-timeout.C:
				return fmt.Errorf("%d of %d proxies have acknowledged", len(took), nodes)
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		slices.Sort(took)
		found.half, found.p99, found.all = append(found.half, ms(took[nodes/2])), append(found.p99, ms(took[max(0, nodes*99/100-1)])), append(found.all, ms(took[nodes-1]))
	}
	found.cpu = append(found.cpu, ms(cpuOf(f.server.pid)-cpu)/float64(times))
	return nil
}

// inUse is the memory that the control plane uses, in bytes, after collections.
func (m *mesh) inUse(ctx context.Context) (bytes float64, err error) {
	var heap string
	for range 3 { // pools give up their buffers at the second one
		if heap, err = get(ctx, "http://"+m.controlOps+"/debug/pprof/heap?gc=1"); err != nil {
			return 0, err
		}
	}
	if m.r.profiles != "" {
		if err := os.WriteFile(filepath.Join(m.r.profiles, "control-plane-heap.pprof"), []byte(heap), 0o600); err != nil {
			return 0, err
		}
	}
	text, err := get(ctx, "http://"+m.controlOps+"/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		for _, name := range []string{"go_memstats_heap_inuse_bytes ", "go_memstats_stack_inuse_bytes "} {
			if v, ok := strings.CutPrefix(line, name); ok {
				n, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
				if err != nil {
					return 0, err
				}
				bytes += n
			}
		}
	}
	return bytes, nil
}

func get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(b), err
}
