package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/names"
)

// checkSecrets fails the test where a secret is found. Every mesh of this
// package is looked through when its processes have ended.
func (m *mesh) checkSecrets() {
	for what, secret := range m.secrets {
		where, err := m.spilled(secret)
		if err != nil {
			m.Errorf("looking for %s: %v", what, err)
		}
		for _, place := range where {
			m.Errorf("%s is in %s", what, place)
		}
	}
}

// spilled looks for text in the logs of all processes, in the keys and values
// that the mesh has in etcd, and in the files of the proxies' data folders.
func (m *mesh) spilled(text string) (where []string, err error) {
	var errs []error
	look := func(place string, content []byte) {
		if bytes.Contains(content, []byte(text)) {
			where = append(where, place)
		}
	}
	read := func(place, file string) {
		b, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		look(place, b)
	}
	for _, p := range m.processes {
		read("the log of "+p.Name, p.Log)
	}
	for _, dir := range m.dataDirs {
		errs = append(errs, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				read("the file "+path, path)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}))
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(m.etcd, ","), DialTimeout: 5 * time.Second})
	if err != nil {
		return where, errors.Join(append(errs, err)...)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	resp, err := c.Get(ctx, m.prefix(), clientv3.WithPrefix())
	if err != nil {
		return where, errors.Join(append(errs, err)...)
	}
	for _, kv := range resp.Kvs {
		look("etcd, key "+string(kv.Key), kv.Key)
		look("etcd, the value of "+string(kv.Key), kv.Value)
	}
	return where, errors.Join(errs...)
}

// nacosFlags are the control plane's for the Nacos that tests share.
func (m *mesh) nacosFlags() []string {
	m.Helper()
	file := filepath.Join(m.TempDir(), "nacos-password")
	m.must(os.WriteFile(file, []byte(servers.NacosPassword+"\n"), 0o600))
	m.secrets["the password of Nacos"] = servers.NacosPassword
	return []string{"--nacos", "http://" + servers.SharedNacos(m.T) + "/nacos", "--nacos-user", servers.NacosUser, "--nacos-password-file", file, "--mesh", m.ns}
}

// TestSecrets: keys and passwords, right ones and wrong ones, are in no log,
// however much is logged, not in etcd and not in the proxies' folders. What is
// not secret is found in all of these, so the search can find.
func TestSecrets(t *testing.T) {
	t.Parallel()
	etcd := servers.SharedEtcd(t)
	m := prepareMesh(t, etcd)
	flags := m.nacosFlags()
	m.startControlPlane(append(flags, "--log-level", "debug")...)
	key, identity := m.key("shop")
	p := m.proxy("p1", "--log-level", "debug", "--advertise", "127.0.0.1")
	m.apply(onDisk + topicYAML("orders") + policyYAML("shop") + identity)
	m.settled(1)
	good := m.read(key)
	wrong := good + "0"
	m.secrets["a wrong API key"] = wrong
	for _, tc := range []struct {
		header, query string
		code          int
	}{
		{"Bearer " + good, "", http.StatusOK}, {"Bearer " + wrong, "", http.StatusUnauthorized},
		{"Basic " + good, "", http.StatusUnauthorized}, {good, "", http.StatusUnauthorized},
		{"", "?access_token=" + good, http.StatusUnauthorized},
	} {
		if code, body := m.post(http.DefaultClient, "http://"+p.http, "orders"+tc.query, tc.header, textEvent("e1", "x")); code != tc.code || strings.Contains(body, good) {
			t.Errorf("%s%s: %d %s", tc.header, tc.query, code, body)
		}
	}
	if _, err := m.weft("", "publish", "orders", "-n", m.ns, "--proxy", p.grpc, "--api-key-file", key, "--data", "1"); err != nil {
		t.Error(err)
	}
	m.awaitRegistered(m.finder(), p)
	keyID := strings.Split(good, "_")[1]
	where, err := m.spilled(keyID)
	m.must(err)
	all := strings.Join(where, "\n")
	for _, place := range []string{"etcd", p.dataDir()} {
		if !strings.Contains(all, place) {
			t.Errorf("the key's id, which is not secret, is found in\n%s\nbut not in %s", all, place)
		}
	}
	if where, err := m.spilled("level="); err != nil || len(where) < 2 {
		t.Errorf("logs are in %v, %v", where, err)
	}
}

// signedStore is an EventStore whose requests are signed: with the keys in folder
// for the proxies, with root's for the control plane.
func signedStore(nameServer, folder string) string {
	return fmt.Sprintf(`
apiVersion: weft/v1alpha1
kind: EventStore
metadata: {namespace: NS, name: signed}
spec:
  rocketmq:
    name_servers: ["%s"]
    credentials: {access_key: {env: WEFT_TEST_ACCESS_KEY}, secret_key: {file: %s/proxy}}
    admin_credentials: {access_key: {file: %[2]s/admin-user}, secret_key: {file: %[2]s/admin}}
---
apiVersion: weft/v1alpha1
kind: Topic
metadata: {namespace: NS, name: payments}
spec: {store: signed, partitions: 2}
---`, nameServer, folder)
}

// storeIs waits until the control plane says of EventStore signed, and the proxy
// of itself, why it cannot be used; "" is that it can. Which one is asked is in
// who.
func (m *mesh) storeIs(who, reason string) {
	m.Helper()
	m.await("the "+who+" to say "+reason+" of the store", func() error {
		out, err := m.administer("", "status", "-o", "json")
		if err != nil {
			return err
		}
		var st struct {
			Proxies []struct {
				Report struct {
					Stores []struct{ Name, Reason string }
				}
			}
			Resources []struct {
				Name       string
				Conditions []struct{ Type, State, Reason string }
			}
		}
		if err := json.Unmarshal([]byte(out), &st); err != nil {
			return err
		}
		name, said := "eventstore/"+m.ns+"/signed", ""
		for _, p := range st.Proxies {
			for _, s := range p.Report.Stores {
				if who == "proxy" && s.Name == name {
					said = s.Reason
				}
			}
		}
		for _, r := range st.Resources {
			for _, c := range r.Conditions {
				if who == "control plane" && r.Name == name && c.Type == "Reachable" && c.State != "STATE_TRUE" {
					said = c.Reason
				}
			}
		}
		if said != reason || len(st.Proxies) != 1 {
			return fmt.Errorf("it says %q: %s", said, out)
		}
		return nil
	})
}

// TestStoreCredentials: a broker takes signed requests alone. Each plane reads its
// own keys by reference where it uses them; one that is missing or wrong is that
// store's status there, its topics answer so, and other stores are untouched;
// what is put right, and what is replaced while the store is open, is taken.
// No key is anywhere but in its file.
func TestStoreCredentials(t *testing.T) {
	t.Parallel()
	etcd := servers.SharedEtcd(t)
	m := prepareMesh(t, etcd)
	const rootUser, root, user, first, second, wrong = "weft-root-4c1d", "r00t-Secret-77aa", "weft-proxy-9e2f", "f1rst-Secret-88bb", "s3cond-Secret-99cc", "wr0ng-Secret-66dd"
	for what, secret := range map[string]string{"the admin's access key": rootUser, "the admin's secret key": root, "the proxy's access key": user,
		"the proxy's secret key": first, "the proxy's next secret key": second, "a wrong secret key": wrong} {
		m.secrets[what] = secret
	}
	broker, err := servers.StartRocketMQ(m.ctx, servers.RocketMQOptions{AccessKey: rootUser, SecretKey: root})
	m.must(err)
	t.Cleanup(func() {
		if err := broker.Stop(); err != nil {
			t.Error(err)
		}
	})
	// The proxies' user may publish, subscribe and ask, and nothing else.
	m.must(broker.SetUser(m.ctx, user, first))
	m.must(broker.Allow(m.ctx, user, "Topic:*", "Group:*"))
	folder := m.TempDir()
	put := func(name, content string) {
		t.Helper()
		m.must(os.WriteFile(filepath.Join(folder, name), []byte(content+"\n"), 0o600))
	}

	m.startControlPlane("--log-level", "debug")
	key, identity := m.key("shop")
	p := m.newProxy("p1", "--log-level", "debug")
	p.Env = []string{"WEFT_TEST_ACCESS_KEY=" + user}
	p.start()
	m.apply(onDisk + topicYAML("orders") + signedStore(broker.NameServer, folder) + subscriptionYAML("billing", "payments", "") + policyYAML("shop") + identity)
	n := 0
	publish := func(topic string) (int, string) {
		t.Helper()
		n++
		return m.post(http.DefaultClient, "http://"+p.http, topic, "Bearer "+m.read(key), textEvent(fmt.Sprint("e", n), "x"))
	}
	answered := func(topic string, code int, reason string) {
		t.Helper()
		m.await(topic+" to answer "+reason, func() error {
			if got, body := publish(topic); got != code || !strings.Contains(body, reason) {
				return fmt.Errorf("%d %s", got, body)
			}
			return nil
		})
	}

	// The control plane: no key, a wrong one, the right one.
	m.storeIs("control plane", "SecretMissing")
	put("admin-user", rootUser)
	put("admin", wrong)
	m.storeIs("control plane", "AccessDenied")
	put("admin", root)
	m.storeIs("control plane", "")

	// The proxy: likewise. The other store works all the time.
	m.storeIs("proxy", "SecretMissing")
	answered("payments", http.StatusServiceUnavailable, "store-secret-missing")
	answered("orders", http.StatusOK, "")
	put("proxy", wrong)
	m.storeIs("proxy", "AccessDenied")
	answered("payments", http.StatusServiceUnavailable, "store-access-denied")
	answered("orders", http.StatusOK, "")
	put("proxy", first)
	m.storeIs("proxy", "")
	answered("payments", http.StatusOK, "")
	m.settled(1)

	// A key is replaced under open streams: at the broker, then in the file.
	box := newBox("subscription billing")
	ended := m.dial(p.grpc, m.read(key), nil).into(box, subscription("billing"))
	tail := m.events(http.DefaultClient, "http://"+p.http, "payments", "Bearer "+m.read(key))
	arrives := func() {
		t.Helper()
		answered("payments", http.StatusOK, "")
		id := fmt.Sprint("e", n)
		m.await(id+" at both streams", func() error {
			_, one := box.get(id)
			_, two := tail.box.get(id)
			if !one || !two {
				return fmt.Errorf("the subscription has it: %t, the tail: %t", one, two)
			}
			return nil
		})
	}
	arrives()
	m.must(broker.SetUser(m.ctx, user, second))
	answered("payments", http.StatusServiceUnavailable, "store-access-denied")
	m.storeIs("proxy", "AccessDenied")
	put("proxy", second)
	m.storeIs("proxy", "")
	arrives()
	select {
	case err := <-ended:
		t.Errorf("the subscription has ended: %v", err)
	case <-tail.ended:
		t.Errorf("the tail has ended: %s", tail.last)
	default:
	}

	// One topic is denied: that is the Topic's status, not the store's.
	denies := func(want bool) {
		t.Helper()
		m.await("the Topic's status", func() error {
			out, err := m.administer("", "status", "topic/"+m.ns+"/payments")
			if err == nil && strings.Contains(out, "StoreDenies") != want {
				err = errors.New(out)
			}
			return err
		})
	}
	denies(false)
	physical := "Topic:" + names.Physical(m.ns, "payments")
	m.must(broker.Deny(m.ctx, user, physical))
	answered("payments", http.StatusServiceUnavailable, "store-access-denied")
	answered("orders", http.StatusOK, "")
	denies(true)
	m.storeIs("proxy", "")
	m.must(broker.Allow(m.ctx, user, physical))
	answered("payments", http.StatusOK, "")
	arrives()
	denies(false)
	select {
	case err := <-ended:
		t.Errorf("the subscription has ended: %v", err)
	case <-tail.ended:
		t.Errorf("the tail has ended: %s", tail.last)
	default:
	}

	// What is looked through at the end is files and etcd; this is the rest.
	pages := map[string]string{"the status": "", "the resources": ""}
	pages["the status"], err = m.administer("", "status", "-o", "json")
	m.must(err)
	pages["the resources"], err = m.administer("", "get", "eventstores", "-n", m.ns, "-o", "yaml")
	m.must(err)
	for _, url := range []string{"http://" + p.ops + "/metrics", "http://" + p.ops + "/debug/config", "http://" + m.ops + "/metrics"} {
		resp, err := http.Get(url)
		m.must(err)
		b, err := io.ReadAll(resp.Body)
		m.must(errors.Join(err, resp.Body.Close()))
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s answers %s", url, resp.Status)
		}
		pages[url] = string(b)
	}
	if !strings.Contains(pages["the resources"], folder) {
		t.Errorf("the reference is not in\n%s", pages["the resources"])
	}
	for page, content := range pages {
		for what, secret := range m.secrets {
			if strings.Contains(content, secret) {
				t.Errorf("%s is in %s", what, page)
			}
		}
	}
}
