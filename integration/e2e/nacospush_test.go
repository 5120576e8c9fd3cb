package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
)

// application is an instance of a service in Nacos, which keeps the events that it is
// given.
type application struct {
	*httptest.Server
	*box
}

func newApplication(t *testing.T, all *box) *application {
	a := &application{box: newBox("an instance")}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		e, err := cloudevents.DecodeBinary(r.Header, body)
		if err != nil || r.URL.Path != "/events" {
			t.Errorf("%s: %v", r.URL, err)
			return
		}
		a.put(e)
		all.put(e)
	}))
	t.Cleanup(a.Close)
	return a
}

// nacosCall calls Nacos's API.
func (m *mesh) nacosCall(method, path, token string, params url.Values) string {
	m.Helper()
	req, err := http.NewRequestWithContext(m.ctx, method, "http://"+servers.SharedNacos(m.T)+"/nacos"+path+"?"+params.Encode(), nil)
	m.must(err)
	req.Header.Set("accessToken", token)
	resp, err := http.DefaultClient.Do(req)
	m.must(err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	m.must(err)
	if resp.StatusCode != http.StatusOK {
		m.Fatalf("%s %s: %s", method, path, b)
	}
	return string(b)
}

// TestPushToNacos: pushes to a service of Nacos, as docs/nacos.md has it, go to the
// instances that are there and follow them as they come, die and go; none is lost.
func TestPushToNacos(t *testing.T) {
	t.Parallel()
	m := newMesh(t, servers.SharedEtcd(t))
	key, identity := m.key("shop")
	flags := m.nacosFlags()
	p := m.proxy("p1", append(flags[:len(flags)-2], "--push-allow", "127.0.0.0/8")...)
	page, err := os.ReadFile("../../docs/nacos.md")
	m.must(err)
	_, rest, found := strings.Cut(string(page), "```yaml\n")
	yaml, _, whole := strings.Cut(rest, "```")
	if !found || !whole {
		t.Fatal("the page has no Subscription")
	}
	service := m.ns
	yaml = strings.NewReplacer("namespace: shop,", "namespace: NS,", "service: {name: billing,", "service: {name: "+service+",").Replace(yaml)
	m.apply(onDisk + topicYAML("orders") + policyYAML("shop") + identity + "---\n" + yaml)
	m.settled(1)

	var login struct{ AccessToken string }
	m.must(json.Unmarshal([]byte(m.nacosCall(http.MethodPost, "/v3/auth/user/login", "", url.Values{"username": {servers.NacosUser}, "password": {servers.NacosPassword}})), &login))
	m.nacosCall(http.MethodPost, "/v3/admin/ns/service", login.AccessToken, url.Values{"serviceName": {service}, "ephemeral": {"false"}, "protectThreshold": {"0"}})
	register := func(method string, a *application) {
		t.Helper()
		host, port, _ := strings.Cut(strings.TrimPrefix(a.URL, "http://"), ":")
		m.nacosCall(method, "/v3/admin/ns/instance", login.AccessToken, url.Values{"serviceName": {service}, "ip": {host}, "port": {port}, "ephemeral": {"false"}, "healthy": {"true"}, "weight": {"1"}, "enabled": {"true"}})
	}
	c := m.client(key, p)
	all := newBox("the service")
	var sent []event.Event
	publish := func(n int) {
		t.Helper()
		for range n {
			e := textEvent(fmt.Sprint("e", len(sent)), "data")
			sent = append(sent, e)
			_, err := c.Publish(m.ctx, m.ns, "orders", e)
			m.must(err)
		}
	}
	// until publishes until an instance has got something since.
	until := func(a *application) {
		t.Helper()
		before := a.count()
		m.await("an event at an instance that has come", func() error {
			publish(1)
			if a.count() == before {
				return fmt.Errorf("it has had %d", before)
			}
			return nil
		})
	}
	publish(10) // before there is anybody
	first, second := newApplication(t, all), newApplication(t, all)
	register(http.MethodPost, first)
	m.awaitAll(all, sent)
	register(http.MethodPost, second)
	until(second)
	m.awaitAll(all, sent)
	first.Close() // it dies, and nobody tells Nacos
	publish(50)
	m.awaitAll(all, sent)
	third := newApplication(t, all)
	register(http.MethodPost, third)
	register(http.MethodDelete, second)
	until(third)
	publish(20)
	m.awaitAll(all, sent)
}
