package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	cev1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"
)

// transport compares the proxy without a store with the bare transports: what an
// event costs the server's process, whose CPU is told apart from the client's.
func transport(ctx context.Context, r *run) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	b, err := r.startBare(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if err := b.stop(); err != nil {
			r.printf("  stopping: %v\n", err)
		}
	}()
	m, err := r.startMesh(ctx, "transport", filepath.Join(r.dir, "transport"), self, withoutStoreCommand)
	if err != nil {
		return err
	}
	defer m.end()
	if err := m.apply(ctx, embeddedYAML+subscriptionsYAML(1)); err != nil {
		return err
	}
	bareMesh := &mesh{r: r, http: b.http, grpc: b.grpc, conn: b.conn, key: m.key}
	pid := func(m *mesh) map[string]int {
		if m == bareMesh {
			return map[string]int{"server": b.process.PID()}
		}
		return map[string]int{"server": m.proxy.PID()}
	}
	for _, c := range []struct {
		name, id string
		aim      float64
		make     func(m *mesh, name string) (*contender, error)
	}{
		{"HTTP, one event a request, 64 clients", "http-single", 1.7, func(m *mesh, name string) (*contender, error) { return m.singleHTTP(name, "mesh", 64, pid(m)), nil }},
		{"gRPC, one event a call, 64 clients", "unary", 1.8, func(m *mesh, name string) (*contender, error) { return m.unary(name, "mesh", 64, pid(m)), nil }},
		{"gRPC, 16 streams, batches of 16", "16", 1.5, func(m *mesh, name string) (*contender, error) {
			return m.overGRPC(name, "mesh", load{16, 16}, pid(m)), nil
		}},
		{"gRPC, 16 streams, batches of 100", "100", 1.5, func(m *mesh, name string) (*contender, error) {
			return m.overGRPC(name, "mesh", load{16, 100}, pid(m)), nil
		}},
		{"gRPC, a member, every event acknowledged", "member", 1.5, func(m *mesh, name string) (*contender, error) { return m.receivers(name, "round0", 1, credit, pid(m)) }},
		{"gRPC, a tail", "tail", 1.5, func(m *mesh, name string) (*contender, error) { return m.receivers(name, "", 1, credit, pid(m)) }},
		{"gRPC, 1,000 members, one event in flight each", "members", 1.5, func(m *mesh, name string) (*contender, error) { return m.receivers(name, "round0", 1000, 1, pid(m)) }},
		{"gRPC, 1,000 tails, one event in flight each", "tails", 1.5, func(m *mesh, name string) (*contender, error) { return m.receivers(name, "", 1000, 1, pid(m)) }},
	} {
		r.printf(" %s\n", c.name)
		alone, err := c.make(bareMesh, "bare")
		if err != nil {
			return err
		}
		weft, err := c.make(m, "weft without a store")
		if err != nil {
			return err
		}
		weft.id = c.id
		if err := r.compare(ctx, alone, weft); err != nil {
			return err
		}
		r.note("%s: %s times the CPU of the bare transport's server (aim: at most %.1f), %s µs an event against %s; %s of its rate",
			c.name, spread(times(weft, alone, "server"), "%.2f"), c.aim, spread(weft.cpu["server"], "%.2f"), spread(alone.cpu["server"], "%.2f"), spread(ratio(weft, alone), "%.2f"))
	}
	return nil
}

// times is how many times the CPU of b an event costs in process p of a, round by
// round.
func times(a, b *contender, p string) []float64 {
	out := make([]float64, min(len(a.cpu[p]), len(b.cpu[p])))
	for i := range out {
		out[i] = a.cpu[p][i] / b.cpu[p][i]
	}
	return out
}

// singleHTTP publishes one event a request in binary mode, a kept connection a
// publisher.
func (m *mesh) singleHTTP(name, topic string, publishers int, pids map[string]int) *contender {
	c := posts(name, "http://"+m.http+"/v1/"+m.r.ns+"/topics/"+topic, m.r.size, publishers, pids, http.Header{"Content-Type": {"application/octet-stream"}, "Authorization": {"Bearer " + m.key},
		"Ce-Specversion": {"1.0"}, "Ce-Id": {"h"}, "Ce-Source": {source}, "Ce-Type": {"bench"}})
	c.ops = m.ops
	return c
}

// posts sends so many bytes a request to url.
func posts(name, url string, size, publishers int, pids map[string]int, header http.Header) *contender {
	c := &contender{name: name, pids: pids}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: publishers}}
	data := bytes.Repeat([]byte{'x'}, size)
	for range publishers {
		c.workers = append(c.workers, func(ctx context.Context) (int, error) {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(data))
			if err != nil {
				return 0, err
			}
			req.Header = header
			resp, err := client.Do(req)
			if err != nil {
				return 0, err
			}
			defer resp.Body.Close()
			answer, err := io.ReadAll(resp.Body)
			if err != nil {
				return 0, err
			}
			switch {
			case resp.StatusCode/100 == 2:
				return 1, nil
			case resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode == http.StatusServiceUnavailable:
				wait(ctx, afterBusy)
				return 0, nil
			}
			return 0, fmt.Errorf("%s: %s", resp.Status, answer)
		})
	}
	return c
}

// unary publishes one event a call.
func (m *mesh) unary(name, topic string, publishers int, pids map[string]int) *contender {
	c := &contender{name: name, pids: pids, ops: m.ops}
	api := eventsv1.NewEventServiceClient(m.conn)
	for p := range publishers {
		req := &eventsv1.PublishRequest{Namespace: m.r.ns, Topic: topic, Event: &cev1.CloudEvent{Id: fmt.Sprintf("u%d", p), Source: source, SpecVersion: "1.0", Type: "bench",
			Data: &cev1.CloudEvent_BinaryData{BinaryData: bytes.Repeat([]byte{'x'}, m.r.size)}}}
		c.workers = append(c.workers, func(ctx context.Context) (int, error) {
			switch _, err := api.Publish(m.credentials(ctx), req); status.Code(err) {
			case codes.OK:
				return 1, nil
			case codes.Unavailable, codes.ResourceExhausted:
				wait(ctx, afterBusy)
				return 0, nil
			default:
				return 0, err
			}
		})
	}
	return c
}

// perConn is how many streams share a connection.
const perConn = 100

// receivers receive, each over a stream of its own, as members of the subscription,
// or as tails where that is "".
func (m *mesh) receivers(name, subscription string, streams int, credit uint32, pids map[string]int) (*contender, error) {
	c := &contender{name: name, pids: pids, ops: m.ops}
	open := &eventsv1.SubscribeOpen{Namespace: m.r.ns, Credit: credit, Source: &eventsv1.SubscribeOpen_Subscription{Subscription: subscription}}
	if subscription == "" {
		open.Source = &eventsv1.SubscribeOpen_Tail{Tail: &eventsv1.Tail{Topics: []string{"mesh"}}}
	}
	conn := m.conn
	for i := range streams {
		if i%perConn == 0 && i > 0 {
			var err error
			if conn, err = dial(m.grpc); err != nil {
				return nil, err
			}
		}
		c.workers = append(c.workers, m.receive(eventsv1.NewEventServiceClient(conn), open))
	}
	return c, nil
}

// receive takes what one stream brings, and settles it.
func (m *mesh) receive(api eventsv1.EventServiceClient, open *eventsv1.SubscribeOpen) func(context.Context) (int, error) {
	var st grpc.BidiStreamingClient[eventsv1.SubscribeRequest, eventsv1.SubscribeResponse]
	return func(ctx context.Context) (int, error) {
		if st == nil || st.Context().Err() != nil {
			var err error
			if st, err = api.Subscribe(m.credentials(ctx)); err != nil {
				return 0, err
			}
			if err := st.Send(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Open{Open: open}}); err != nil && !errors.Is(err, io.EOF) {
				return 0, err
			}
		}
		resp, err := st.Recv()
		if err != nil {
			return 0, err
		}
		list := resp.GetDeliveries().GetDeliveries()
		if len(list) == 0 {
			return 0, nil
		}
		again := &eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Credit{Credit: &eventsv1.Credit{Deliveries: uint32(len(list))}}} //nolint:gosec // small
		if open.GetTail() == nil {
			ack := &eventsv1.Ack{Ids: make([]uint64, len(list))}
			for i, d := range list {
				ack.Ids[i] = d.Id
			}
			again.Message = &eventsv1.SubscribeRequest_Ack{Ack: ack}
		}
		if err := st.Send(again); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		return len(list), nil
	}
}
