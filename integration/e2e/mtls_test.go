package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/tlsconf"
)

// TestMutualTLS: every listener has TLS, and everyone shows a certificate: the
// command line and the proxy to the control plane, clients to the proxy, where an
// Identity makes principals of them. Certificates of another authority are
// refused everywhere, and so is coming without one.
func TestMutualTLS(t *testing.T) {
	t.Parallel()
	store, etcd := onRocketMQ(t), servers.SharedEtcd(t)
	m := prepareMesh(t, etcd)
	// What secures the mesh, what clients are known by, and another of the same
	// names.
	own, clients, other := m.authority("mesh"), m.authority("clients"), m.authority("other")
	control, admin, node := own.issue("control", ""), own.issue("admin", ""), own.issue("node", "")
	otherNode, otherAdmin := other.issue("node", ""), other.issue("admin", "")
	m.startControlPlane("--admin-cert", control.Cert, "--admin-key", control.Key, "--admin-ca", own.file,
		"--discovery-cert", control.Cert, "--discovery-key", control.Key, "--discovery-ca", own.file)
	show := func(f tlsconf.Files) []string {
		flags := []string{"--server-ca", own.file}
		if f.Cert != "" {
			flags = append(flags, "--server-cert", f.Cert, "--server-key", f.Key)
		}
		return flags
	}
	joins := func(f tlsconf.Files) []string {
		flags := []string{"--control-plane-ca", own.file, "--cert", node.Cert, "--key", node.Key}
		if f.Cert != "" {
			flags = append(flags, "--control-plane-cert", f.Cert, "--control-plane-key", f.Key)
		}
		return flags
	}

	// The command line.
	for name, flags := range map[string][]string{"another authority's": show(otherAdmin), "none": show(tlsconf.Files{}), "no TLS": nil} {
		m.adminFlags = flags
		if out, err := m.administer("", "status"); err == nil {
			t.Errorf("the admin API answers to a certificate of %s: %s", name, out)
		}
	}
	m.adminFlags = show(admin)

	// The proxies: two that may not join, and one that may.
	strangers := map[string]*proxy{"another authority's": m.newProxy("p2", joins(otherNode)...), "none": m.newProxy("p3", joins(tlsconf.Files{})...)}
	for _, p := range strangers {
		p.Ready = answers("http://" + p.ops + "/livez")
		p.start()
	}
	for name, p := range strangers {
		m.await("attempts to join", func() error {
			if p.metric("weft_proxy_control_plane_connected") != 0 {
				t.Fatalf("a proxy with a certificate of %s has joined", name)
			}
			if n := p.metric("weft_proxy_control_plane_attempts_total"); n < 3 {
				return fmt.Errorf("there were %v", n)
			}
			return nil
		})
	}
	p := m.proxy("p1", joins(node)...)
	m.apply(store + topicYAML("orders") + subscriptionYAML("billing", "orders", "") + policyYAML("shop") + `---
apiVersion: weft/v1alpha1
kind: Identity
metadata: {namespace: NS, name: clients}
spec:
  mtls:
    principal_from: uri_san
    uri_prefix: "spiffe://example.org/"
    ca_certificates: |
      ` + strings.ReplaceAll(strings.TrimSpace(clients.pem), "\n", "\n      ") + "\n")
	m.settled(1) // and so nobody else is there
	for name, p := range strangers {
		if p.metric("weft_proxy_ready") != 0 || p.metric("weft_proxy_config_revision") != 0 {
			t.Errorf("a proxy with a certificate of %s has a configuration", name)
		}
	}

	// The clients.
	shop := clients.issue("shop", "spiffe://example.org/shop")
	var want []event.Event
	secure := func(f tlsconf.Files) (*rpc, *http.Client) {
		transport := &http.Transport{TLSClientConfig: own.tls(f)}
		t.Cleanup(transport.CloseIdleConnections)
		return m.dial(p.grpc, "", credentials.NewTLS(own.tls(f))), &http.Client{Transport: transport}
	}
	overGRPC, overHTTP := secure(shop)
	add := func(e event.Event) event.Event { want = append(want, e); return e }
	m.must(overGRPC.publish("orders", add(textEvent("grpc", "one"))))
	if code, body := m.post(overHTTP, "https://"+p.http, "orders", "", add(textEvent("http", "two"))); code != http.StatusOK {
		t.Errorf("over HTTP: %d %s", code, body)
	}
	library := m.clientOf(client.Config{Addresses: []string{p.grpc}, TLS: own.tls(shop)})
	// It waits for a proxy that it may trust.
	lctx, cancel := context.WithTimeout(m.ctx, 3*time.Minute)
	defer cancel()
	if _, err := library.Publish(lctx, m.ns, "orders", add(textEvent("library", "three"))); err != nil {
		t.Fatal(err)
	}
	out, err := m.weft("", "publish", "orders", "-n", m.ns, "--id", "command", "--source", "/shop", "--type", "order.created", "--content-type", "text/plain", "--data", "four",
		"--proxy", p.grpc, "--proxy-ca", own.file, "--proxy-cert", shop.Cert, "--proxy-key", shop.Key)
	if add(textEvent("command", "four")); err != nil {
		t.Error(out, err)
	}
	b, sse := newBox("the subscription"), m.events(overHTTP, "https://"+p.http, "orders", "")
	overGRPC.into(b, subscription("billing"))
	m.awaitAll(b, want)
	m.awaitAll(sse.box, want)

	for name, f := range map[string]tlsconf.Files{
		"another authority's":             other.issue("shop", "spiffe://example.org/shop"),
		"none":                            {},
		"the mesh's own":                  node,
		"the authority, of another realm": clients.issue("realm", "spiffe://example.com/shop"),
	} {
		overGRPC, overHTTP := secure(f)
		e := textEvent("refused", "never")
		if err := overGRPC.publish("orders", e); status.Code(err) != codes.Unauthenticated {
			t.Errorf("over gRPC a certificate of %s is answered with %v", name, err)
		}
		if _, err := overGRPC.open(m.ctx, subscription("billing"), 1); status.Code(err) != codes.Unauthenticated {
			t.Errorf("joining with a certificate of %s is answered with %v", name, err)
		}
		if code, body := m.post(overHTTP, "https://"+p.http, "orders", "", e); code != http.StatusUnauthorized {
			t.Errorf("over HTTP a certificate of %s is answered with %d %s", name, code, body)
		}
	}
	nobody := clients.issue("nobody", "spiffe://example.org/nobody")
	overGRPC, overHTTP = secure(nobody)
	if err := overGRPC.publish("orders", textEvent("refused", "never")); status.Code(err) != codes.PermissionDenied {
		t.Errorf("one who is known and not allowed is answered with %v", err)
	}
	if code, _ := m.post(overHTTP, "https://"+p.http, "orders", "", textEvent("refused", "never")); code != http.StatusForbidden {
		t.Errorf("over HTTP with %d", code)
	}
	plain := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(plain.CloseIdleConnections)
	if code, body, err := m.postBytes(plain, "http://"+p.http, "orders", "", http.Header{}, nil); err == nil && code == http.StatusOK {
		t.Errorf("without TLS: %d %s", code, body)
	}

	// Nothing of what was refused has come.
	last := textEvent("last", "five")
	overGRPC, _ = secure(shop)
	m.must(overGRPC.publish("orders", last))
	m.await("the last event", func() error {
		if _, ok := b.get("last"); !ok {
			return errors.New("it has not come")
		}
		return nil
	})
	m.awaitAll(b, append(want, last))
}
