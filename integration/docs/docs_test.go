// Package docs keeps the documentation true: it does what the pages say, as
// they stand, and looks at what comes of it.
package docs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/weft-mesh/weft/integration/servers"
)

func TestMain(m *testing.M) {
	code := servers.Main(m)
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// TestSeparate is docs/separate.md, with the shared RocketMQ and Nacos, and an
// etcd that can be killed.
func TestSeparate(t *testing.T) {
	rocketmq, nacos := servers.SharedRocketMQ(t), servers.SharedNacos(t)
	s := newShell(t)
	etcd, err := servers.StartEtcd(s.ctx, servers.EtcdOptions{})
	s.must(err)
	t.Cleanup(func() {
		if err := etcd.Stop(); err != nil {
			t.Error(err)
		}
	})
	// The servers are shared, so the namespace is the test's own.
	ns := servers.Namespace(t)
	word := regexp.MustCompile(`\bshop\b`)
	s.swap = append(s.swap, func(in string) string { return word.ReplaceAllString(in, ns) })
	s.replace("make build", "true")
	s.replace("go run ./examples/nacos", filepath.Join(binaries(t), "example-nacos"))
	s.replace("weft-test-password", servers.NacosPassword)
	order := func(n int) string { return fmt.Sprintf(`(?m)^orders  order-%d  .*\{"order": ?%d\}$`, n, n) }
	ready := s.answers("http://127.0.0.1:7418/readyz")
	service := step{begins: "go run ./examples/nacos", says: []string{`published order-\S+-3`, `received order-\S+-1 \{"order": 1\}`, `received order-\S+-2 \{"order": 2\}`, `received order-\S+-3 \{"order": 3\}`}}
	s.walk(blocks(t, "docs/separate.md", ""),
		step{begins: "make servers", instead: func() {
			s.must(os.WriteFile(filepath.Join(s.dir, "bin", "servers.env"), fmt.Appendf(nil, "export %s=%s\nexport %s=%s\nexport %s=%s\nexport %s_PID=%d\n",
				servers.EnvRocketMQ, rocketmq, servers.EnvNacos, nacos, servers.EnvEtcd, etcd.Endpoint, servers.EnvEtcd, etcd.PID()), 0o600))
		}},
		step{begins: "source bin/servers.env"},
		step{begins: "echo weft-test-password", after: s.answers("http://127.0.0.1:7429/readyz")},
		step{begins: "weft apply -f - <<YAML", says: []string{`eventstore/` + ns + `/main created`, `identity/` + ns + `/\S+ created`, `1 of 1 proxy has all of it`, `topic/` + ns + `/orders +Ready`, `subscription/` + ns + `/billing +Ready`}},
		step{begins: "curl -sS http://127.0.0.1:7410", says: []string{`"position":"`, `order-2 is kept at `, order(1), order(2)}},
		service,
		step{begins: "weft snapshot", says: []string{ns + `\.snapshot: \d+ resources of \*/` + ns + `/\* at revision \d+`}},
		step{begins: "kill ", after: func() {
			s.wait("etcd is gone", func() error {
				if etcd.Alive() {
					return errors.New("it lives")
				}
				return nil
			})
		}},
		step{begins: "weft publish orders", says: append([]string{`order-3 is kept at `, order(3)}, service.says...)},
		step{begins: "weft publish orders", says: []string{`order-4 is kept at `, `order-5 is kept at `, order(4), order(5), `weft_proxy_config_from_disk 1`, `weft_proxy_config_age_seconds [0-9.]+`}, before: ready},
		step{begins: "weft publish orders", says: []string{`order-6 is kept at `, order(6), `weft_proxy_config_from_snapshot 1`}},
		step{begins: "kill ", after: func() {
			s.wait("the proxy has stopped", func() error {
				b, err := os.ReadFile(filepath.Join(s.dir, "proxy.log"))
				if strings.Contains(string(b), "DATA RACE") {
					s.Fatalf("%s", b)
				}
				return err
			})
		}})
}

// TestNacosPage is docs/nacos.md, with the shared Nacos and etcd.
func TestNacosPage(t *testing.T) {
	nacos, etcd := servers.SharedNacos(t), servers.SharedEtcd(t)
	s := newShell(t)
	ns := servers.Namespace(t)
	word := regexp.MustCompile(`\bshop\b`)
	s.swap = append(s.swap, func(in string) string { return word.ReplaceAllString(in, ns) })
	s.replace("weft-test-password", servers.NacosPassword)
	s.replace("health-7418", "health-"+strings.TrimPrefix(s.page("127.0.0.1:7418"), "127.0.0.1:"))
	s.must(os.WriteFile(filepath.Join(s.dir, "bin", "servers.env"), fmt.Appendf(nil, "export %s=%s\nexport %s=%s\n",
		servers.EnvNacos, nacos, servers.EnvEtcd, etcd), 0o600))
	s.walk(blocks(t, "docs/nacos.md", ""),
		step{begins: "source bin/servers.env"},
		step{begins: "TOKEN=", says: []string{`"healthy":true`, `"weight":200`, `"weft-zone":"eu-1a"`, `"weft-port-http":"\d+"`, `"weft-port-grpc":"\d+"`,
			`"weft-namespaces":""`, `"weft-version":"[^"]+"`, `"weft-id":"[^"]+"`, `"clusterName":"health-\d+"`}})
}

// TestQuickStart is docs/quickstart.md.
func TestQuickStart(t *testing.T) {
	s := newShell(t)
	called := s.webhook()
	delivered := func(want string) func() {
		return func() { s.wait("the webhook", func() error { return says(called.String(), []string{want}) }) }
	}
	s.walk(blocks(t, "docs/quickstart.md", ""),
		step{begins: "make run", instead: s.up},
		step{begins: "export PATH", says: []string{`1 of 1 proxy has all of it`, `topic/demo/hello +Ready`}},
		step{begins: "# binary", says: []string{`(?s)"position":.*"position":.*"results":\[\{"position":`}},
		step{begins: "weft subscribe --tail hello", says: []string{`(?m)^hello  1  greeting  \{"hello": ?"world"\}$`, `(?m)^hello  2  greeting  \{"hello":"world"\}$`, `(?m)^hello  3  greeting  $`}},
		step{begins: "curl -sSN", follow: true, says: []string{`data: \{[^\n]*"id":"1"`, `data: \{[^\n]*"id":"2"[^\n]*"data":\{"hello":"world"\}`, `data: \{[^\n]*"id":"3"`}},
		step{begins: "weft apply -f examples/orders/", says: []string{`topic/demo/orders created`, `subscription/demo/billing +Ready`, `(?m)^orders  order-1  order.created  \{"order": ?1\}$`},
			after: delivered(`(?m)^/orders order-1 \{"order": ?1\}$`)},
		step{begins: "weft publish orders --id order-9", says: []string{`(?m)^\S+  orders  order-9  order.created  \{"order": ?9\}$`}},
		step{begins: "curl", says: []string{`"ack_timeout":"30s","deliveries":\[\]`}},
		step{begins: "weft publish orders --id order-2", says: []string{`(?m)^orders.eu  order-2  order.created  \{"order": ?2\}$`}},
		step{begins: "weft apikey", says: []string{`identity/demo/order-service-\S+ created`, `order-3 is kept at`}, after: delivered(`(?m)^/orders order-3 \{"order": ?3\}$`)},
		step{begins: "curl", says: []string{`"position":`}, after: delivered(`(?m)^/orders order-4 \{"order": ?4\}$`)},
		step{begins: "curl", says: []string{`"status":403`, `no AccessPolicy of namespace demo allows demo/order-service to publish topic hello`, `"reason":"access-denied"`}},
		step{begins: "weft get topic", says: []string{`topic/demo/orders unchanged`, `demo +orders.eu `, `topic/demo/orders deleted`, `subscription/demo/warehouse deleted`}})
	if strings.Contains(called.String(), "order-2") {
		t.Errorf("the webhook got a European order:\n%s", called)
	}
}

// TestSidecar is docs/sidecar.md.
func TestSidecar(t *testing.T) {
	s := newShell(t)
	for _, addr := range []string{"127.0.0.1:7438", "127.0.0.1:7439"} {
		port, err := servers.FreePort()
		s.must(err)
		s.replace(addr, fmt.Sprintf("127.0.0.1:%d", port))
	}
	s.walk(blocks(t, "docs/sidecar.md", ""),
		step{begins: "make run", instead: s.up},
		step{begins: "export PATH", says: []string{`(?m)^ok$`}},
		step{begins: "curl", says: []string{`"position":"`}},
		step{begins: "export WEFT_PROXY", says: []string{`2 is kept at `, `(?m)^hello  1  greeting  \{"hello": ?"socket"\}$`, `(?m)^hello  2  greeting  \{"hello": ?"gRPC"\}$`}},
		step{begins: "weft proxy", says: []string{`another process listens on \S+/http\.sock: stop it, or name another path`, `(?m)^refused$`}},
		step{begins: "kill -9", says: []string{`http\.sock`, `3 is kept at `, `(?m)^srw-rw----$`}, after: func() {
			b, err := os.ReadFile(filepath.Join(s.dir, "sidecar.log"))
			s.must(err)
			if strings.Contains(string(b), "DATA RACE") || strings.Contains(string(b), "level=ERROR") {
				s.Errorf("%s", b)
			}
		}})
}

// TestReceiving is docs/receiving.md.
func TestReceiving(t *testing.T) {
	s := newShell(t)
	s.up()
	s.walk(blocks(t, "docs/receiving.md", ""),
		step{begins: "weft apply", says: []string{`(?m)^orders  r-1  order.created  \{"order": ?1\}$`}},
		step{begins: "weft publish orders --id r-2", says: []string{`\{"ack_timeout":"30s","deliveries":\[\{"delivery_id":"[^"]+","topic":"orders","position":"[^"]+","attempt":1,"event":\{[^\n]*"id":"r-2"`}},
		step{begins: `{"ack_timeout"`, instead: func() {}},
		step{begins: "id=", says: []string{`\{"settled":1\}`}},
		step{begins: "weft publish orders --id r-3", says: []string{`(?m)^\S+  orders  r-3  order.created  \{"order": ?3\}$`}},
		step{begins: "at=", says: []string{`r-6 is kept at `, `subscription/demo/again created`, `(?m)^orders  r-6  order.created  \{"order": ?6\}$`}},
		step{begins: "cat > paced.yaml", says: []string{`subscription/demo/paced created`}},
		step{begins: "cat > shipping.yaml", says: []string{`subscription/demo/shipping created`, `(?m)^\S+  orders  o-1  order.created`, `(?m)^\S+  orders  o-2  order.paid`}},
		step{begins: "weft publish orders --id r-4", says: []string{`(?m)^orders  r-1  order.created`}})
}

// TestTokenExample is examples/jwt/README.md, with another server of the keys.
func TestTokenExample(t *testing.T) {
	s := newShell(t)
	keys := httptest.NewServer(http.FileServer(http.Dir(filepath.Join(s.dir, "provider"))))
	t.Cleanup(keys.Close)
	s.edit("jwt/identity.yaml", "http://127.0.0.1:8085", keys.URL)
	s.replace("python3 -m http.server --bind 127.0.0.1 --directory ./provider 8085", "sleep 600")
	s.walk(blocks(t, "examples/jwt/README.md", ""),
		step{begins: "weft up", instead: s.up},
		step{begins: "examples/jwt/issuer.sh keys", says: []string{`identity/demo/staff created`, `weft_proxy_issuer_key_fetches_total\{identity="identity/demo/staff",outcome="ok"\} 1`}},
		step{begins: "issuer=", says: []string{`sale-1 is kept at`, `(?m)^\{"position":`, `no AccessPolicy of namespace demo allows demo/bob to publish topic sales`, `weft: .*the token has expired`,
			`(?m)^sales  sale-1  .*\{"sale": ?1\}$`, `(?m)^sales  sale-2  sale  \{"sale": ?2\}$`}},
		step{begins: "examples/jwt/issuer.sh token", says: []string{`weft: .*the token has expired`}},
		step{begins: "kill", before: keys.Close, says: []string{`sale-4 is kept at`}},
		step{begins: "curl", says: []string{`weft_proxy_issuer_keys_fetched_timestamp_seconds\{identity="identity/demo/staff"\} `,
			`weft_proxy_issuer_tokens_refused_total\{identity="identity/demo/staff",reason="expired"\} [2-9]`, `identity/demo/staff deleted`}})
}

// freeAddr is an address that nobody listens at.
func freeAddr(s *shell) string {
	s.Helper()
	port, err := servers.FreePort()
	s.must(err)
	return fmt.Sprintf("127.0.0.1:%d", port)
}

// TestStoreCredentialsExample is examples/store-credentials/README.md, with a broker
// that takes signed requests alone.
func TestStoreCredentialsExample(t *testing.T) {
	servers.NeedServers(t)
	newShell(t).credentials()
}

func (s *shell) credentials() {
	s.Helper()
	broker, err := servers.StartRocketMQ(s.ctx, servers.RocketMQOptions{AccessKey: "admin", SecretKey: "admins-secret"})
	s.must(err)
	s.Cleanup(func() {
		if err := broker.Stop(); err != nil {
			s.Error(err)
		}
	})
	s.must(broker.SetUser(s.ctx, "proxy", "proxys-first-secret"))
	s.must(broker.Allow(s.ctx, "proxy", "Topic:*", "Group:*"))
	s.env = append(s.env, "ROCKETMQ="+broker.NameServer)
	s.walk(blocks(s.T, "examples/store-credentials/README.md", ""),
		step{begins: "weft up", instead: s.up},
		step{begins: "sed", says: []string{`eventstore/demo/signed created`, `SecretMissing`}},
		step{begins: "mkdir", says: []string{`refund-1 is kept at`}, after: func() { s.must(broker.SetUser(s.ctx, "proxy", "proxys-second-secret")) }},
		step{begins: "(umask"},
		step{begins: "until", says: []string{`refund-2 is kept at`, `(?m)^refunds  refund-1 `, `(?m)^refunds  refund-2 `}},
		step{begins: "weft get", says: []string{`file: /\S+/secrets/proxy-secret`, `file: /\S+/secrets/admin-secret`, `eventstore/demo/signed deleted`}})
	// Nothing else has a key, not even the data folder, in which etcd is too.
	found := 0
	s.must(filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, key := range []string{"proxys-first-secret", "proxys-second-secret", "admins-secret"} {
			switch has := bytes.Contains(b, []byte(key)); {
			case has && strings.Contains(path, "/secrets/"):
				found++
			case has && !strings.Contains(path, "/examples/"):
				s.Errorf("%s is in %s", key, path)
			}
		}
		return nil
	}))
	if found != 2 {
		s.Errorf("%d keys are where they belong", found)
	}
}

// TestReadme is the README's quick start.
func TestReadme(t *testing.T) {
	s := newShell(t)
	s.webhook()
	s.walk(blocks(t, "README.md", "## Try it"),
		step{begins: "make run", instead: s.up},
		step{begins: "bin/weft apply -f examples/orders/", says: []string{`topic/demo/orders created`, `"position":`, `(?m)^orders  1  order.created  \{"order": ?1\}$`, `topic/demo/orders +Ready`}})
}

// TestAdministration does what docs/administration.md says.
func TestAdministration(t *testing.T) {
	etcd := servers.SharedEtcd(t)
	s := newShell(t)
	s.must(os.WriteFile(filepath.Join(s.dir, "bin", "servers.env"), fmt.Appendf(nil, "export %s=%s\n", servers.EnvEtcd, etcd), 0o600))
	s.replace("/administration/", "/"+servers.Namespace(t)+"/")
	s.walk(blocks(t, "docs/administration.md", ""),
		step{begins: "export PATH"},
		step{begins: "mkdir", says: []string{`(?m)^\+\+\+ b/topic/shop/returns$`, `topic/shop/orders created`}},
		step{begins: "weft export"},
		step{begins: "cat > shop", says: []string{`(?m)^-    max_age: 168h0m0s$`, `(?m)^\+    max_age: 24h0m0s$`, `topic/shop/orders updated`, `topic/shop/returns deleted`}},
		step{begins: "weft history", says: []string{`topic/shop/orders updated, topic/shop/returns deleted`, `2 resources would be as they were`, `2 resources are as they were`, `(?m)^shop +returns `}},
		step{begins: "source bin/servers.env"},
		step{begins: "printf", says: []string{`NAMESPACE`, `weft: shop-pipeline may not Apply: that needs the role admin in namespace shop`, `REFUSED: PermissionDenied`}})
}

// TestSecurity is docs/security.md, with an etcd of its own prefix.
func TestSecurity(t *testing.T) {
	etcd := servers.SharedEtcd(t)
	s := newShell(t)
	s.env = append(s.env, servers.EnvEtcd+"="+etcd)
	s.replace("/secure/", "/"+servers.Namespace(t)+"/")
	for _, a := range addresses {
		for _, e := range s.env {
			if addr, ok := strings.CutPrefix(e, a.env+"=127.0.0.1:"); ok {
				s.replace("localhost:"+a.port, "localhost:"+addr)
				s.env = append(s.env, map[string]string{"WEFT_ADMIN": "WEFT_SERVER"}[a.env]+"=localhost:"+addr)
			}
		}
	}
	s.walk(blocks(t, "docs/security.md", ""),
		step{begins: "openssl"},
		step{begins: "weft control-plane", after: s.answers("http://127.0.0.1:7429/readyz")},
		step{begins: "weft admin join-token", says: []string{`join token \S+ of node edge-7`, `edge-7 +demo +20`}},
		step{begins: "weft apply", says: []string{`identity/demo/services created`, `identity/demo/shop-\S+ created`}},
		step{begins: "weft apply", says: []string{`1 of 1 proxy has all of it`, `"position":`, `order-2 is kept`, `(?m)^orders  order-1  .*\{"order": ?1\}$`, `(?m)^orders  order-2  .*\{"order": ?2\}$`}},
		step{begins: "curl", says: []string{`"status":401`, `no AccessPolicy of namespace demo allows demo/billing to publish topic orders`, `(?s)weft: .*does it know the certificate`}},
		step{begins: "b64()", says: []string{`identity/demo/staff created`, `"position":`, `"status":401`, `the token has expired`}},
		step{begins: "weft delete identity", says: []string{`identity/demo/shop-\S+ deleted`, `weft: .*not valid`}},
		step{begins: "kill"})
	key, err := os.ReadFile(filepath.Join(s.dir, "shop.key"))
	s.must(err)
	for _, log := range []string{"control-plane.log", "proxy.log"} {
		b, err := os.ReadFile(filepath.Join(s.dir, log))
		s.must(err)
		if strings.Contains(string(b), strings.TrimSpace(string(key))) || strings.Contains(string(b), "DATA RACE") {
			t.Errorf("%s:\n%s", log, b)
		}
	}
}

// TestRestore is docs/restore.md, with an etcd of its own.
func TestRestore(t *testing.T) {
	servers.NeedServers(t)
	s := newShell(t)
	tools, err := servers.EtcdTools(s.ctx, nil)
	s.must(err)
	etcd, err := servers.EtcdBinary(s.ctx, nil)
	s.must(err)
	for name, path := range map[string]string{"etcd": etcd, "etcdctl": filepath.Join(tools, "etcdctl"), "etcdutl": filepath.Join(tools, "etcdutl")} {
		s.must(os.Symlink(path, filepath.Join(s.dir, "bin", name)))
	}
	port, err := servers.FreePort(1)
	s.must(err)
	s.replace("127.0.0.1:2379", fmt.Sprintf("127.0.0.1:%d", port))
	s.replace("127.0.0.1:2380", fmt.Sprintf("127.0.0.1:%d", port+1))
	have := `1 of 1 proxy has all of it`
	s.walk(blocks(t, "docs/restore.md", ""),
		step{begins: "etcd --name a", says: []string{`eventstore/shop/main created`, have}},
		step{begins: "etcdctl"},
		step{begins: "weft get eventstore", says: []string{`eventstore/shop/main updated`, have}},
		step{begins: "kill"},
		step{begins: "etcdutl"},
		step{begins: "etcd --name a"},
		step{begins: "weft admin restore", says: []string{`lineage 2-\S+ begins at revision 10000\d+`, have, `state: before-the-backup`}})
}

// TestEmbeddedBackup is what docs/operations.md says of a copy of a data folder.
func TestEmbeddedBackup(t *testing.T) {
	s := newShell(t)
	s.walk(blocks(t, "docs/operations.md", "## Backup of embedded stores"),
		step{begins: "weft up", says: []string{`kept is kept at `}},
		step{begins: "rm -rf data", says: []string{`(?m)^hello  kept `}})
}

// TestEtcdFull is what docs/operations.md says of an etcd that is full: a change is
// refused with what to do, and nothing else breaks, not even where everything starts
// again; the commands of the page end it.
func TestEtcdFull(t *testing.T) {
	servers.NeedServers(t)
	s := newShell(t)
	tools, err := servers.EtcdTools(s.ctx, nil)
	s.must(err)
	s.must(os.Symlink(filepath.Join(tools, "etcdctl"), filepath.Join(s.dir, "bin", "etcdctl")))
	etcd, err := servers.StartEtcd(s.ctx, servers.EtcdOptions{Args: []string{"--quota-backend-bytes=" + strconv.Itoa(16<<20)}})
	s.must(err)
	t.Cleanup(func() {
		if err := etcd.Stop(); err != nil {
			t.Error(err)
		}
	})
	s.replace("http://127.0.0.1:2379", etcd.Endpoint)
	const begin = `
weft control-plane --etcd http://127.0.0.1:2379 > control-plane-$n.log 2>&1 &
echo $! > control-plane.pid
curl -sSf -o /dev/null --retry 60 --retry-all-errors --retry-delay 1 http://127.0.0.1:7429/readyz
weft proxy --control-plane 127.0.0.1:7421 --data ./proxy-data --node-id p1 > proxy-$n.log 2>&1 &
echo $! > proxy.pid
curl -sSf -o /dev/null --retry 60 --retry-all-errors --retry-delay 1 http://127.0.0.1:7418/readyz
`
	const end = `
for p in proxy control-plane; do kill $(cat $p.pid); while kill -0 $(cat $p.pid) 2>/dev/null; do sleep 0.1; done; done
`
	label := func(text string) string {
		return `
weft apply -f - <<YAML
apiVersion: weft/v1alpha1
kind: EventStore
metadata: {namespace: shop, name: main, labels: {state: ` + text + `}}
spec: {embedded: {}}
YAML
`
	}
	const publish = "weft publish orders -n shop --type t --data 1\n"
	s.does("n=1\n"+begin+label("before")+`
weft apply -f - <<YAML
apiVersion: weft/v1alpha1
kind: Topic
metadata: {namespace: shop, name: orders}
spec: {store: main}
---
apiVersion: weft/v1alpha1
kind: AccessPolicy
metadata: {namespace: shop, name: access}
spec: {rules: [{name: all, effect: allow, principals: [shop], actions: [publish, subscribe], topics: [">"]}]}
YAML
weft apikey shop -n shop --key-file shop.key | weft apply -f -
export WEFT_API_KEY_FILE=shop.key
weft status --wait 1m
`+publish, `1 of 1 proxy has all of it`)

	client, err := clientv3.New(clientv3.Config{Endpoints: []string{etcd.Endpoint}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	s.must(err)
	defer client.Close()
	for err == nil {
		_, err = client.Put(s.ctx, "another program's", strings.Repeat("x", 1<<20))
	}
	if !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Fatal(err)
	}
	refused := "if " + strings.TrimSpace(label("full")) + "\nthen exit 9; fi\n"
	why := []string{`etcd has used up its space and takes no writes; nothing was changed: compact and defragment it, then disarm its alarm`}
	s.does(refused+publish, why...)
	s.does(end+"n=2\n"+begin+publish+"weft get eventstore main -n shop -o yaml\nweft status\n"+refused, append(why, `state: before`, `1 of 1 proxy has all of it`)...)
	s.walk(blocks(t, "docs/operations.md", "## When etcd is full"),
		step{begins: "etcdctl", says: []string{`alarm:NOSPACE`}},
		step{begins: "revision=", says: []string{`compacted revision \d+`, `Finished defragmenting`, `alarm:NOSPACE`}},
		step{begins: "weft status", says: []string{`1 of 1 proxy has all of it`}})
	s.does(label("after")+"weft status --wait 1m\nweft get eventstore main -n shop -o yaml\n"+publish, `eventstore/shop/main updated`, `1 of 1 proxy has all of it`, `state: after`)
}
