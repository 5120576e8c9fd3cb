package grpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
)

// halves is a mesh that begins at once, and ends as it is told.
type halves struct {
	frontend.Mesh
	begun  []string     // the ids of each call
	ends   []chan error // of each call
	waited int          // calls of which the second half is over
	broken bool         // a call panics
}

func (*halves) Current(who *policy.Principal) (*policy.Principal, <-chan struct{}, error) {
	return who, nil, nil
}

func (*halves) Hold(*policy.Principal, string, string) (frontend.Holding, error) { return nil, nil }

func (h *halves) Begin(_ context.Context, _ *policy.Principal, _, _ string, events []event.Event, res []frontend.Result) (func(context.Context) error, error) {
	if h.broken {
		panic("broken")
	}
	ids := ""
	for i := range events {
		ids += events[i].ID
	}
	end := make(chan error, 1)
	h.begun, h.ends = append(h.begun, ids), append(h.ends, end)
	return func(ctx context.Context) error {
		var err error
		select {
		case err = <-end:
		case <-ctx.Done():
			err = fault.From(ctx.Err())
		}
		for i := range res {
			res[i].Err = err
		}
		h.waited++
		return err
	}, nil
}

// answered is a stream that notes the answers.
type answered struct {
	grpc.BidiStreamingServer[eventsv1.PublishStreamRequest, eventsv1.PublishStreamResponse]
	sent []string // "first sequence+count-failed"
	fail error
}

func (a *answered) Send(r *eventsv1.PublishStreamResponse) error {
	if a.fail == nil {
		a.sent = append(a.sent, fmt.Sprintf("%d+%d-%d", r.FirstSequence, r.Count, len(r.Failed)))
	}
	return a.fail
}

// TestPublishStreamHalves: a stream has two groups of messages with a store that takes
// them; others wait for these and go together. It is answered in order, and nothing that
// has begun is left alone, however the stream ends.
func TestPublishStreamHalves(t *testing.T) {
	type stream struct {
		*testing.T
		mesh   *halves
		rpc    *answered
		in     *inbox
		ended  chan error
		cancel context.CancelFunc
		n      int
	}
	run := func(name string, test func(s *stream)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &stream{T: t, mesh: &halves{}, rpc: &answered{}, ended: make(chan error, 1),
					in: &inbox{more: make(chan struct{}, 1), room: make(chan struct{}, 1)}}
				var ctx context.Context
				ctx, s.cancel = context.WithCancel(t.Context())
				defer s.cancel()
				st := publishStream{server: New(Config{Mesh: s.mesh}), who: &policy.Principal{}, next: 1}
				out := &answers{rpc: s.rpc, fail: s.cancel}
				go func() {
					defer func() {
						if p := recover(); p != nil {
							s.ended <- fmt.Errorf("panic: %v", p)
						}
					}()
					s.ended <- st.run(ctx, s.in, out)
				}()
				test(s)
			})
		})
	}
	// send sends n messages of one event, and waits for what becomes of them.
	send := func(s *stream, n int) {
		for range n {
			s.n++
			b, err := proto.Marshal(&eventsv1.PublishStreamRequest{Namespace: "demo", Topic: "orders", Events: ces(1)})
			if err != nil {
				s.Fatal(err)
			}
			r := &publishRequest{}
			if err := r.unmarshal(b); err != nil {
				s.Fatal(err)
			}
			r.events[0].ID = fmt.Sprint(s.n)
			s.in.mu.Lock()
			s.in.list = append(s.in.list, r)
			s.in.mu.Unlock()
			poke(s.in.more)
			if n == 1 {
				synctest.Wait()
			}
		}
		synctest.Wait()
	}
	close := func(s *stream) {
		s.in.mu.Lock()
		s.in.err = io.EOF
		s.in.mu.Unlock()
		poke(s.in.more)
		synctest.Wait()
	}
	end := func(s *stream, call int, err error) {
		s.mesh.ends[call] <- err
		synctest.Wait()
	}
	expect := func(s *stream, when string, begun, sent []string) {
		s.Helper()
		if !slices.Equal(s.mesh.begun, begun) || !slices.Equal(s.rpc.sent, sent) {
			s.Errorf("%s: begun are %q, want %q; answered is %q, want %q", when, s.mesh.begun, begun, s.rpc.sent, sent)
		}
	}
	run("order", func(s *stream) {
		send(s, 1)
		send(s, 1)
		send(s, 1)
		send(s, 1)
		expect(s, "four messages", []string{"1", "2"}, nil)
		end(s, 1, nil)
		expect(s, "the second is kept", []string{"1", "2"}, nil)
		end(s, 0, fault.New(fault.Unavailable, "test", "down", "down"))
		expect(s, "both are answered", []string{"1", "2", "34"}, []string{"1+1-1", "2+1-0"})
		close(s)
		select {
		case err := <-s.ended:
			s.Errorf("the stream ends before it is answered: %v", err)
		default:
		}
		end(s, 2, nil)
		expect(s, "the client has sent all", []string{"1", "2", "34"}, []string{"1+1-1", "2+1-0", "3+2-0"})
		if err := <-s.ended; !errors.Is(err, io.EOF) {
			s.Error(err)
		}
	})
	run("answers cannot be sent", func(s *stream) {
		s.rpc.fail = errors.New("gone")
		send(s, 1)
		send(s, 1)
		end(s, 0, nil)
		if err := <-s.ended; !errors.Is(err, s.rpc.fail) || s.mesh.waited != 2 {
			s.Errorf("%v, %d were waited for", err, s.mesh.waited)
		}
	})
	run("credentials end", func(s *stream) {
		send(s, 1)
		send(s, 1)
		end(s, 0, fault.New(fault.Unauthenticated, "test", "expired", "expired"))
		if err := <-s.ended; status.Code(err) != codes.Unauthenticated || s.mesh.waited != 2 || s.rpc.sent != nil {
			s.Errorf("%v, %d were waited for, answered is %q", err, s.mesh.waited, s.rpc.sent)
		}
	})
	run("the client is gone", func(s *stream) {
		send(s, 1)
		send(s, 1)
		send(s, 1)
		s.cancel()
		if err := <-s.ended; err == nil || s.mesh.waited != len(s.mesh.begun) {
			s.Errorf("%v, %d of %d were waited for", err, s.mesh.waited, len(s.mesh.begun))
		}
	})
	run("the mesh panics", func(s *stream) {
		send(s, 1)
		s.mesh.broken = true
		send(s, 1)
		end(s, 0, nil)
		if err := <-s.ended; err == nil || err.Error() != "panic: broken" || s.mesh.waited != 1 {
			s.Errorf("%v, %d were waited for", err, s.mesh.waited)
		}
	})
}

// TestPublishStreamDrains: a proxy that stops answers what it has read and ends
// the stream, so that a publisher goes on elsewhere at once.
func TestPublishStreamDrains(t *testing.T) {
	c := &counted{}
	serve(t, func(m frontend.Mesh) frontend.Mesh { c.Mesh = m; return m })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- New(Config{Mesh: c, DrainTime: time.Hour}).Serve(ctx, l) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	st, err := eventsv1.NewEventServiceClient(conn).PublishStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(&eventsv1.PublishStreamRequest{Namespace: "demo", Topic: "orders", Events: ces(1)}); err != nil {
		t.Fatal(err)
	}
	if resp, err := st.Recv(); err != nil || resp.Count != 1 || len(resp.Failed) != 0 {
		t.Fatalf("%v, %v", resp, err)
	}
	stop()
	if _, err := st.Recv(); status.Code(err) != codes.Unavailable || reason(err) != "draining" {
		t.Errorf("the stream ends with %v", err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
