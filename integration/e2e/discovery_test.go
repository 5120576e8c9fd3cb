package e2e

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
)

// TestFoundWithNacosSDK: an application in another process, with nacos-sdk-go
// and an empty cache folder, finds the proxy and publishes; the proxy is killed
// and comes back on other ports, and the same process finds it there.
func TestFoundWithNacosSDK(t *testing.T) {
	t.Parallel()
	store, etcd := onRocketMQ(t), servers.SharedEtcd(t)
	m := prepareMesh(t, etcd)
	m.startControlPlane(m.nacosFlags()...)
	key, identity := m.key("shop")
	p := m.proxy("p1", "--advertise", "127.0.0.1")
	m.apply(store + topicYAML("orders") + subscriptionYAML("billing", "orders", "") + policyYAML("shop") + identity)
	m.settled(1)
	application := m.startFinder(key, "orders")
	publish := func(id string) {
		t.Helper()
		if at := application.publish(id); at != p.grpc {
			t.Errorf("%s went to %s, the proxy is at %s", id, at, p.grpc)
		}
	}
	publish("f1")
	before := p.grpc
	m.must(p.Kill())
	p.settle()
	p.start()
	if p.grpc == before {
		t.Fatalf("the proxy came back on its old port %s", before)
	}
	publish("f2")
	b := newBox("the subscription")
	m.dial(p.grpc, m.read(key), nil).into(b, subscription("billing"))
	var want []event.Event
	for _, id := range []string{"f1", "f2"} {
		want = append(want, event.Event{ID: id, Source: "/finder", Type: "found", Data: []byte("found " + id)})
	}
	m.awaitAll(b, want)
}

// finder is a running process of the command in finder.
type finder struct {
	m   *mesh
	in  io.Writer
	out *bufio.Scanner
	log string
}

func (m *mesh) startFinder(keyFile, topic string) *finder {
	m.Helper()
	dir := filepath.Join(m.dir, "finder")
	m.must(os.MkdirAll(dir, 0o700))
	log, err := os.Create(filepath.Join(m.dir, "finder.log"))
	m.must(err)
	cmd := exec.CommandContext(m.ctx, finderBinary.path(m.T), "-nacos", servers.SharedNacos(m.T), "-user", servers.NacosUser, "-dir", dir,
		"-service", m.ns, "-namespace", m.ns, "-topic", topic)
	cmd.Env = append(os.Environ(), "FINDER_NACOS_PASSWORD="+servers.NacosPassword, "FINDER_API_KEY="+m.read(keyFile))
	cmd.Stderr = log
	in, err := cmd.StdinPipe()
	m.must(err)
	out, err := cmd.StdoutPipe()
	m.must(err)
	m.must(cmd.Start())
	m.Cleanup(func() {
		if err := in.Close(); err != nil {
			m.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			m.Errorf("%v; its log:\n%s", err, m.read(log.Name()))
		}
		_ = log.Close()
	})
	return &finder{m, in, bufio.NewScanner(out), log.Name()}
}

// publish has it publish one event and tells to which address.
func (f *finder) publish(id string) string {
	f.m.Helper()
	_, err := fmt.Fprintln(f.in, id)
	f.m.must(err)
	// The SDK prints to its output too.
	for f.out.Scan() {
		if at, ok := strings.CutPrefix(f.out.Text(), id+" "); ok {
			return at
		}
	}
	f.m.Fatalf("it has ended; its log:\n%s", f.m.read(f.log))
	return ""
}
