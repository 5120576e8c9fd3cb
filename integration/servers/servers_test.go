package servers

import (
	"context"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

func startContext(t *testing.T) context.Context {
	NeedServers(t)
	ctx, cancel := context.WithTimeout(context.Background(), StartTimeout)
	t.Cleanup(cancel)
	return ctx
}

func reachable(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

func TestRocketMQKilledAndStarted(t *testing.T) {
	ctx := startContext(t)
	r, err := StartRocketMQ(ctx, RocketMQOptions{})
	if err != nil {
		t.Fatal(err)
	}
	addr := r.BrokerAddr
	if !reachable(addr) || !reachable(r.NameServer) {
		t.Error("ready, but not reachable")
	}
	if err := r.Broker.Kill(); err != nil {
		t.Fatal(err)
	}
	if r.Broker.Alive() || reachable(addr) {
		t.Error("killed, but still there")
	}
	if err := r.Broker.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if !reachable(addr) {
		t.Error("started again, but not at its port")
	}
	pid := r.Broker.PID()
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	if syscall.Kill(pid, 0) == nil {
		t.Error("a stopped broker's process is still there")
	}
}

func TestKafkaKilledAndStarted(t *testing.T) {
	ctx := startContext(t)
	k, err := StartKafka(ctx, KafkaOptions{})
	if err != nil {
		t.Fatal(err)
	}
	node := k.Nodes[0]
	if err := node.Kill(); err != nil {
		t.Fatal(err)
	}
	if reachable(k.Brokers[0]) {
		t.Error("killed, but still there")
	}
	if err := node.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if !reachable(k.Brokers[0]) {
		t.Error("started again, but not at its port")
	}
	if err := k.Stop(); err != nil {
		t.Fatal(err)
	}
}

func TestEtcdKilledAndStarted(t *testing.T) {
	ctx := startContext(t)
	e, err := StartEtcd(ctx, EtcdOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := e.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := e.Stop(); err != nil {
		t.Fatal(err)
	}
}

// TestNotReadyIsExplained: a server that does not start says why.
func TestNotReadyIsExplained(t *testing.T) {
	p := &Process{Name: "broken", Args: []string{"sh", "-c", "echo cannot find my shoes; exit 3"},
		Log: t.TempDir() + "/log", Ready: printed("never")}
	err := p.Start(context.Background())
	if err == nil || !strings.Contains(err.Error(), "cannot find my shoes") {
		t.Errorf("got %v", err)
	}
}

func TestPauseAndResume(t *testing.T) {
	p := &Process{Name: "sleeper", Args: []string{"sh", "-c", "echo up; exec sleep 1000"}, Log: t.TempDir() + "/log", Ready: printed("up")}
	if err := p.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, f := range []func() error{p.Pause, p.Resume, p.Pause, p.Stop} {
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	if p.Alive() {
		t.Error("a paused process must end when it is stopped")
	}
}

func TestNamespace(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		ns := Namespace(t)
		if seen[ns] || len(ns) > 32 || strings.Trim(ns, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			t.Fatalf("bad namespace %q", ns)
		}
		seen[ns] = true
	}
}
