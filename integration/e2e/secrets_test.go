package e2e

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weft-mesh/weft/integration/servers"
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
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{m.etcd}, DialTimeout: 5 * time.Second})
	if err != nil {
		return where, errors.Join(append(errs, err)...)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
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
