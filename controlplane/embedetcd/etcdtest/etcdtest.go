// Package etcdtest runs an etcd for tests inside their process that, unlike embedetcd's,
// listens: it can be reached by a way that is cut, or leads to another one.
package etcdtest

import (
	"net/url"
	"path/filepath"
	"sync"
	"testing"

	"go.etcd.io/etcd/server/v3/embed"
)

// Start runs one until stop or the test's end, and gives its address, "host:port".
func Start(t testing.TB) (addr string, stop func()) {
	t.Helper()
	cfg := embed.NewConfig()
	cfg.Dir, cfg.LogLevel, cfg.LogOutputs = filepath.Join(t.TempDir(), "etcd"), "fatal", []string{filepath.Join(t.TempDir(), "log")}
	cfg.ListenClientUrls, cfg.ListenPeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}, nil
	cfg.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "localhost:1"}}
	cfg.AdvertiseClientUrls = cfg.AdvertisePeerUrls
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(e.Close)
	t.Cleanup(stop)
	<-e.Server.ReadyNotify()
	return e.Clients[0].Addr().String(), stop
}
