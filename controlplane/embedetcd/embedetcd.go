// Package embedetcd runs an etcd server inside the process, for one machine.
package embedetcd

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
)

// Server is a running etcd.
type Server struct {
	etcd   *embed.Etcd
	client *clientv3.Client
}

// Start starts etcd with its data in dir and waits until it serves. It listens
// nowhere: only this process reaches it.
func Start(ctx context.Context, dir string) (*Server, error) {
	cfg := embed.NewConfig()
	cfg.Dir = dir
	cfg.Name = "weft"
	cfg.LogLevel = "error"
	cfg.LogOutputs = []string{filepath.Join(filepath.Dir(dir), "etcd.log")}
	// No listener: the client below calls the server directly.
	cfg.ListenClientUrls, cfg.ListenClientHttpUrls, cfg.ListenPeerUrls = nil, nil, nil
	nowhere := []url.URL{{Scheme: "http", Host: "localhost:1"}}
	cfg.AdvertiseClientUrls, cfg.AdvertisePeerUrls = nowhere, nowhere
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = "revision", "10000"
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("embedded etcd in %s: %w", dir, err)
	}
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		e.Close()
		return nil, fmt.Errorf("embedded etcd in %s: %w", dir, err)
	case <-ctx.Done():
		e.Close()
		return nil, errors.New("embedded etcd did not get ready in time")
	}
	return &Server{etcd: e, client: v3client.New(e.Server)}, nil
}

// Client is a client of the server, without a network between.
func (s *Server) Client() *clientv3.Client { return s.client }

// Close stops the server.
func (s *Server) Close() {
	_ = s.client.Close()
	s.etcd.Close()
}
