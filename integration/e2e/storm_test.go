package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/tlsconf"
)

// storm is a proxy and thousands of clients, in processes beside it.
type storm struct {
	*mesh
	p      *proxy
	crowds []string // where each is told what to do
	are    []*servers.Process
	each   [3]int // clients over HTTP, tails over gRPC, members, of each

	numbers atomic.Int64
	strict  atomic.Bool // no publish may fail
	mu      sync.Mutex
	acked   []int
}

// status is what has become of the clients of a crowd: Status of its package.
type crowdStatus struct {
	Clients, Back, Followers, Complete int
	Missing                            []int
}

func (s *storm) tell(crowd, what string, v any) (st crowdStatus, err error) {
	b, err := json.Marshal(v)
	if err != nil {
		return st, err
	}
	req, err := http.NewRequestWithContext(s.ctx, http.MethodPost, "http://"+crowd+"/"+what, bytes.NewReader(b))
	if err != nil {
		return st, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return st, err
	}
	defer resp.Body.Close()
	b, err = io.ReadAll(resp.Body)
	if err == nil && len(b) > 0 {
		err = json.Unmarshal(b, &st)
	}
	return st, err
}

func (s *storm) tellAll(what string) {
	s.Helper()
	for _, c := range s.crowds {
		_, err := s.tell(c, what, nil)
		s.must(err)
	}
}

// publish publishes an event at every tick, until ctx ends, with the same number until it
// is acknowledged.
func (s *storm) publish(ctx context.Context, c *client.Client, tick <-chan time.Time) {
	for {
		select {
		case <-tick:
		case <-ctx.Done():
			return
		}
		n := int(s.numbers.Add(1))
		for ctx.Err() == nil {
			pctx, cancel := context.WithTimeout(ctx, time.Minute)
			_, err := c.Publish(pctx, s.ns, "orders", textEvent(fmt.Sprint("e", n), "x"))
			cancel()
			if err == nil {
				s.mu.Lock()
				s.acked = append(s.acked, n)
				s.mu.Unlock()
				break
			}
			if s.strict.Load() && ctx.Err() == nil {
				s.Errorf("a publisher that has lost nothing: %v", err)
			}
		}
	}
}

// events are those that are acknowledged.
func (s *storm) events() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.acked)
}

// back waits until all clients have connected anew and everything that is acknowledged,
// and more, has come: to each follower, and to a member.
func (s *storm) back(when string) {
	s.Helper()
	before := len(s.events())
	s.await("more events", func() error {
		if n := len(s.events()) - before; n < 8 {
			return fmt.Errorf("%d are acknowledged", n)
		}
		return nil
	})
	want := s.events()
	s.await("all clients, "+when, func() error {
		var missing []int
		for i, c := range s.crowds {
			if !s.are[i].Alive() {
				s.Fatal("a crowd has ended")
			}
			st, err := s.tell(c, "status", want)
			if err != nil {
				return err
			}
			if st.Back < st.Clients || st.Complete < st.Followers || st.Clients != s.each[0]+s.each[1]+s.each[2] || st.Followers != s.each[0]+s.each[1] {
				return fmt.Errorf("of %d clients %d are back; of %d followers %d have all %d events", st.Clients, st.Back, st.Followers, st.Complete, len(want))
			}
			if i == 0 {
				missing = st.Missing
			}
			missing = slices.DeleteFunc(missing, func(n int) bool { return !slices.Contains(st.Missing, n) })
		}
		if len(missing) > 0 {
			return fmt.Errorf("no member has %v", missing)
		}
		return nil
	})
	s.Logf("%s: %d clients, each follower has %d events", when, len(s.crowds)*(s.each[0]+s.each[1]+s.each[2]), len(want))
}

// uses is what the proxy holds: goroutines, and bytes of its heap after a collection.
func (s *storm) uses() (goroutines, heap float64, err error) {
	if err = answers("http://"+s.p.ops+"/debug/pprof/heap?gc=1")(s.ctx, nil); err != nil {
		return 0, 0, err
	}
	if goroutines, err = metric(s.ctx, s.p.ops, "go_goroutines"); err == nil {
		heap, err = metric(s.ctx, s.p.ops, "go_memstats_heap_alloc_bytes")
	}
	return goroutines, heap, err
}

// returns waits until the proxy holds about what it held.
func (s *storm) returns(when string, goroutines, heap float64) {
	s.Helper()
	s.await("what the proxy holds, "+when, func() error {
		g, h, err := s.uses()
		if err == nil && (g > goroutines*1.05+50 || h > heap*1.25+16<<20) {
			err = fmt.Errorf("%.0f goroutines and %.0f MiB, and there were %.0f and %.0f", g, h/(1<<20), goroutines, heap/(1<<20))
		}
		return err
	})
}

// TestReconnectStorm: thousands of clients, each on a connection of its own, get each
// event. They lose their connections in one instant, and then with the proxy, which is
// killed and started again: all come back, nothing that was acknowledged is lost, who
// keeps its connection publishes on without an error, and the proxy holds no more than
// before.
func TestReconnectStorm(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		t.Run(map[bool]string{false: "plain", true: "TLS"}[secure], func(t *testing.T) { reconnectStorm(t, secure) })
	}
}

func reconnectStorm(t *testing.T, secure bool) {
	s := &storm{mesh: prepareMesh(t, servers.SharedEtcd(t)), each: [3]int{240, 240, 120}}
	crowds, every := 1, 200*time.Millisecond
	if soaking {
		crowds, every, s.each = 4, 2*time.Second, [3]int{1000, 1000, 500}
	}
	m := s.mesh
	m.bin = plainBinary.path(t) // the race detector allows 8,128 goroutines
	m.startControlPlane()
	key, identity := m.key("shop")
	var flags, ca []string
	cfg := client.Config{APIKey: client.APIKeyFile(key)}
	if secure {
		own := m.authority("mesh")
		node := own.issue("node", "")
		flags, ca = []string{"--cert", node.Cert, "--key", node.Key}, []string{"-ca", own.file}
		cfg.TLS = own.tls(tlsconf.Files{})
	}
	p := m.proxy("p1", flags...)
	s.p = p
	m.apply(onDisk + topicYAML("orders") + subscriptionYAML("billing", "orders", "") + policyYAML("shop") + identity)
	m.settled(1)

	// Publishers that keep their connections.
	cfg.Addresses = []string{p.grpc}
	keeps := m.clientOf(cfg)
	ctx, stop := context.WithCancel(m.ctx)
	tick := time.NewTicker(every)
	var publishing sync.WaitGroup
	t.Cleanup(func() { stop(); publishing.Wait(); tick.Stop() })
	for range 4 {
		publishing.Go(func() { s.publish(ctx, keeps, tick.C) })
	}
	s.strict.Store(true)
	s.back("when there is nobody")
	alone, small, err := s.uses()
	m.must(err)

	// Everybody else.
	for i := range crowds {
		ops := port(t)
		s.crowds = append(s.crowds, ops)
		c := m.process(&servers.Process{Name: fmt.Sprint("crowd-", i), Ready: answers("http://" + ops + "/readyz"), Args: append([]string{crowdBinary.path(t), "-ops", ops, "-http", p.http, "-grpc", p.grpc,
			"-key-file", key, "-ns", m.ns, "-topic", "orders", "-subscription", "billing", "-sse", fmt.Sprint(s.each[0]), "-tails", fmt.Sprint(s.each[1]), "-members", fmt.Sprint(s.each[2])}, ca...)})
		m.must(c.Start(m.ctx))
		s.are = append(s.are, c)
	}
	s.back("at first")
	many, large, err := s.uses()
	m.must(err)
	t.Logf("the proxy has %.0f goroutines and %.0f MiB, alone %.0f and %.0f", many, large/(1<<20), alone, small/(1<<20))

	// All connections but some are lost in one instant.
	s.tellAll("cut")
	s.back("after the cut")
	s.returns("after the cut", many, large)

	// The proxy is killed, and starts again where it was.
	s.strict.Store(false)
	s.tellAll("mark")
	m.must(p.Kill())
	p.start()
	s.back("after the kill")
	s.returns("after the kill", many, large)
	for _, l := range []string{"http", "grpc"} {
		for _, why := range []string{"limit", "descriptors"} {
			if n := p.metric(`weft_proxy_connections_refused_total{listener="` + l + `",reason="` + why + `"}`); n != 0 {
				t.Errorf("%.0f connections were refused, %s", n, why)
			}
		}
	}

	// They go.
	for _, c := range s.are {
		m.must(c.Stop())
	}
	m.await("nobody", func() error {
		if n := p.connections("http") + p.connections("grpc"); n > 1 {
			return fmt.Errorf("there are %d connections", n)
		}
		return nil
	})
	s.returns("when all have gone", alone, small)
}
