package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"
)

// waiting is how many subscribers wait at a time, each on a connection of its own: a
// listener takes 10,000, and the bench has one besides.
const waiting = 9990

// idle measures what the proxy holds for subscribers that wait for events which do
// not come: its resident memory with them above that without.
func idle(ctx context.Context, r *run) error {
	certs, err := newFleetTLS(filepath.Join(r.dir, "idle"))
	if err != nil {
		return err
	}
	server := certs.client.Clone()
	server.Certificates = nil // who calls has a key
	plain, secure := insecure.NewCredentials(), credentials.NewTLS(server)
	tail := func() *eventsv1.SubscribeOpen {
		return &eventsv1.SubscribeOpen{Source: &eventsv1.SubscribeOpen_Tail{Tail: &eventsv1.Tail{Topics: []string{"mesh"}}}}
	}
	for i, c := range []struct {
		name  string
		aim   int
		proxy []string
		open  func(context.Context, *mesh) (end func(), err error)
	}{
		{"SSE, a tail each", 30, nil, idleSSE},
		{"gRPC, a tail each", 35, nil, func(ctx context.Context, m *mesh) (func(), error) { return idleGRPC(ctx, m, plain, tail()) }},
		{"gRPC, members of one Subscription", 35, nil, func(ctx context.Context, m *mesh) (func(), error) {
			return idleGRPC(ctx, m, plain, &eventsv1.SubscribeOpen{Source: &eventsv1.SubscribeOpen_Subscription{Subscription: "round0"}})
		}},
		{"gRPC with TLS, a tail each", 0, []string{filepath.Join(r.dir, "weft-proxy"), "--cert", certs.serverCert, "--key", certs.serverKey}, func(ctx context.Context, m *mesh) (func(), error) {
			return idleGRPC(ctx, m, secure, tail())
		}},
	} {
		name := "idle" + strconv.Itoa(i)
		m, err := r.startMesh(ctx, name, filepath.Join(r.dir, name), c.proxy...)
		if err != nil {
			return err
		}
		if err := r.idlers(ctx, m, name, c.name, c.aim, c.open); err != nil {
			return errors.Join(err, m.stop())
		}
		m.end()
	}
	return nil
}

func (r *run) idlers(ctx context.Context, m *mesh, c, name string, aim int, open func(context.Context, *mesh) (func(), error)) error {
	if err := m.apply(ctx, embeddedYAML+subscriptionsYAML(1)); err != nil {
		return err
	}
	before := residentOf(m.proxy.PID())
	end, err := open(ctx, m)
	if err != nil {
		return err
	}
	defer end()
	each := float64(residentOf(m.proxy.PID())-before) / waiting / 1024
	if r.profiles != "" {
		heap, err := get(ctx, "http://"+m.ops+"/debug/pprof/heap?gc=1")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(r.profiles, "heap-"+c+".pprof"), []byte(heap), 0o600); err != nil {
			return err
		}
	}
	r.printf("  %s, %d connections: %.1f KiB each; %d MiB without any\n", name, waiting, each, before>>20)
	aimed := ""
	if aim > 0 {
		aimed = fmt.Sprintf(" (aim: at most %d)", aim)
	}
	r.note("idle, %s: %.1f KiB each at %d%s", name, each, waiting, aimed)
	return nil
}

// opened opens all of them, 64 at a time, and ends those that were opened.
func opened(ctx context.Context, one func(context.Context) (end func(), err error)) (end func(), err error) {
	var mu sync.Mutex
	var ends []func()
	var errs []error
	var running sync.WaitGroup
	left := make(chan struct{}, waiting)
	for range waiting {
		left <- struct{}{}
	}
	close(left)
	for range 64 {
		running.Go(func() {
			for range left {
				e, err := one(ctx)
				mu.Lock()
				if err != nil {
					errs = append(errs, err)
				} else {
					ends = append(ends, e)
				}
				stop := len(errs) > 0
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	running.Wait()
	end = func() {
		for _, e := range ends {
			e()
		}
	}
	if err := errors.Join(errs...); err != nil {
		end()
		return nil, err
	}
	return end, nil
}

func idleSSE(ctx context.Context, m *mesh) (func(), error) {
	return opened(ctx, func(ctx context.Context) (func(), error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", m.http)
		if err != nil {
			return nil, err
		}
		if _, err = fmt.Fprintf(c, "GET /v1/%s/topics/mesh/events HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nAccept: text/event-stream\r\n\r\n", m.r.ns, m.http, m.key); err == nil {
			var resp *http.Response
			if resp, err = http.ReadResponse(bufio.NewReaderSize(c, 512), nil); err == nil && resp.StatusCode != http.StatusOK { //nolint:bodyclose // it is a stream: its connection is closed
				err = errors.New(resp.Status)
			}
		}
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		return func() { _ = c.Close() }, nil
	})
}

func idleGRPC(ctx context.Context, m *mesh, creds credentials.TransportCredentials, open *eventsv1.SubscribeOpen) (func(), error) {
	open.Namespace, open.Credit = m.r.ns, 16
	return opened(ctx, func(ctx context.Context) (func(), error) {
		conn, err := grpc.NewClient(m.grpc, grpc.WithTransportCredentials(creds))
		if err != nil {
			return nil, err
		}
		st, err := eventsv1.NewEventServiceClient(conn).Subscribe(m.credentials(ctx))
		if err == nil {
			if err = st.Send(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Open{Open: open}}); err == nil {
				_, err = st.Recv() // it is open
			}
		}
		if err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		return func() { _ = conn.Close() }, nil
	})
}
