package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/resource"
)

// linearCommand, as the first argument, makes this program the contender.
const linearCommand = "linear-cache"

// startLinear starts go-control-plane's LinearCache and its server with so many
// resources, in a process of its own.
func (r *run) startLinear(ctx context.Context, resources int) (*configServer, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(r.dir, "linear")
	certs, err := newFleetTLS(dir)
	if err != nil {
		return nil, err
	}
	var disco, ops string
	if err := addresses(&disco, &ops); err != nil {
		return nil, err
	}
	p := &servers.Process{Name: "LinearCache", Log: filepath.Join(r.dir, "linear.log"), Ready: answers("http://" + ops + "/readyz"),
		Args: []string{self, linearCommand, disco, ops, dir, strconv.Itoa(resources)}}
	if err := p.Start(ctx); err != nil {
		return nil, err
	}
	return &configServer{name: "LinearCache", disco: disco, pid: p.PID(), tls: certs, stop: p.Stop, change: func(ctx context.Context, space, name, version string) error {
		_, err := get(ctx, "http://"+ops+"/put?"+url.Values{"space": {space}, "name": {name}, "v": {version}}.Encode())
		return err
	}}, nil
}

// serveLinear is the contender's process: args are where discovery and commands are
// listened for, the folder with the certificates, and the number of resources.
func serveLinear(ctx context.Context, args []string) error {
	if len(args) != 4 {
		return errors.New("four arguments are needed")
	}
	n, err := strconv.Atoi(args[3])
	if err != nil {
		return err
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(args[2], "server.crt"), filepath.Join(args[2], "server.key"))
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(filepath.Join(args[2], "ca.crt"))
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	initial := map[string]types.Resource{}
	for i := range n {
		res := eventStore(fleetSpace(i), fmt.Sprintf("s%d", i), "0")
		res.Name = resource.NameOf(res)
		initial[res.Name] = res
	}
	cache := cachev3.NewLinearCache(resource.TypeURL, cachev3.WithInitialResources(initial))
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, NextProtos: []string{"h2"}})))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(srv, serverv3.NewServer(ctx, cache, nil))
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /put", func(w http.ResponseWriter, req *http.Request) {
		q := req.URL.Query()
		res := eventStore(q.Get("space"), q.Get("name"), q.Get("v"))
		res.Name = resource.NameOf(res)
		if err := cache.UpdateResource(res.Name, res); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	failed := make(chan error, 2)
	go func() { failed <- srv.Serve(l) }()
	go func() { failed <- http.ListenAndServe(args[1], mux) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}
