package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/integration/servers"
)

// TestWithoutQuorum: two of three members of etcd hang. Replicas go on to show and
// to serve what they have read, and are ready: proxies keep all, and start again. A change
// is answered with UNAVAILABLE, before a caller's time is up. Once the members are back
// changes are made and arrive, new proxies, which etcd must have before they are sent
// anything, get everything, and nobody suspects a restore.
func TestWithoutQuorum(t *testing.T) {
	t.Parallel()
	servers.NeedServers(t)
	sctx, cancel := context.WithTimeout(context.Background(), servers.StartTimeout)
	defer cancel()
	etcd, err := servers.StartEtcdCluster(sctx, servers.EtcdClusterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := etcd.Stop(); err != nil {
			t.Error(err)
		}
	})
	m := prepareMesh(t, strings.Join(etcd.Endpoints(), ","))
	replicas := m.replicas(2, "--etcd-max-retry", "500ms")
	key, identity := m.key("shop")
	p1 := m.proxy("p1")
	m.apply(onDisk + topicYAML("orders", "late") + subscriptionYAML("late", "late", "") + policyYAML("shop") + identity)
	m.settled(1)
	revision := p1.metric("weft_proxy_config_revision")

	for _, member := range etcd.Members[1:] {
		m.must(member.Pause())
	}
	for i, r := range replicas {
		admin := m.adminOf(r)
		text := fmt.Sprintf("without-a-quorum-%d", i)
		ctx, cancel := context.WithTimeout(m.ctx, time.Minute)
		_, err := admin.Apply(ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{{
			Metadata: &configv1.Metadata{Namespace: m.ns, Name: text}, Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}}}}})
		cancel()
		if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "etcd did not answer") {
			t.Errorf("%s answers %v to a change", r.Name, err)
		}
		m.await("the readiness of "+r.Name, func() error {
			code, body, err := m.get("http://" + r.ops + "/readyz")
			if err == nil && code != http.StatusOK {
				m.Fatalf("%s is not ready: %s", r.Name, body)
			}
			if err == nil && !strings.HasPrefix(body, "ok\netcd does not answer this replica") {
				err = errors.New(body)
			}
			return err
		})
		got, err := admin.Get(m.ctx, &adminv1.GetRequest{Name: "topic/" + m.ns + "/orders"})
		if err != nil || got.Resource.GetTopic() == nil {
			t.Errorf("%s shows %v, %v", r.Name, got, err)
		}
		// Who is at another replica is asked there, where that is known: the member
		// that is left tells.
		m.await("the status at "+r.Name, func() error {
			st, err := admin.GetStatus(m.ctx, &adminv1.GetStatusRequest{})
			if err == nil && (len(st.Proxies) != 1 || len(st.Alarms) == 0 || st.Alarms[0].Reason != "EtcdUnreachable") {
				err = fmt.Errorf("it is %v", st)
			}
			return err
		})
	}
	m.serves(p1, key, "late", "late-1")
	m.must(p1.Kill())
	p1.start()
	m.connected(p1)
	m.serves(p1, key, "late", "late-2")
	if got := p1.metric("weft_proxy_config_revision"); got < revision {
		t.Errorf("it is at revision %v, before it was %v", got, revision)
	}

	for _, member := range etcd.Members[1:] {
		m.must(member.Resume())
	}
	m.must(etcd.Healthy(m.ctx))
	p2 := m.proxy("p2")
	m.connected(p2)
	for i, r := range replicas {
		m.admin = r.admin
		m.await("a change at "+r.Name, func() error {
			_, err := m.administer(strings.ReplaceAll(topicYAML(fmt.Sprintf("after-%d", i)), "namespace: NS,", "namespace: "+m.ns+","), "apply", "-f", "-")
			return err
		})
	}
	m.settled(2)
	for _, r := range replicas {
		if r.metric("weft_controlplane_restore_suspected") != 0 {
			t.Errorf("%s suspects a restore", r.Name)
		}
	}
	if _, err := m.client(key, p2).Publish(m.ctx, m.ns, "after-1", textEvent("after", "x")); err != nil {
		t.Error(err)
	}
}

// get reads a page.
func (m *mesh) get(url string) (code int, body string, err error) {
	req, err := http.NewRequestWithContext(m.ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// adminOf is a client of a replica's admin API.
func (m *mesh) adminOf(r *replica) adminv1.AdminServiceClient {
	m.Helper()
	conn, err := grpc.NewClient(r.admin, grpc.WithTransportCredentials(insecure.NewCredentials()))
	m.must(err)
	m.Cleanup(func() { _ = conn.Close() })
	return adminv1.NewAdminServiceClient(conn)
}

// connected waits until a proxy follows a control plane.
func (m *mesh) connected(p *proxy) {
	m.Helper()
	m.await(p.name+" to be connected", func() error {
		if p.metric("weft_proxy_control_plane_connected") != 1 {
			return errors.New("it is not")
		}
		return nil
	})
}
