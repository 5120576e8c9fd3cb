package frontend_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	cev1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/frontend"
	grpcfront "github.com/weft-mesh/weft/dataplane/frontend/grpc"
	httpfront "github.com/weft-mesh/weft/dataplane/frontend/http"
	"github.com/weft-mesh/weft/dataplane/inspect"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Where the mesh fails; elsewhere it is well.
const (
	atTheDoor = iota + 1 // who is it
	inTheCall
	inTheStream // once the stream is open
	ofEach      // of each event or delivery
)

// failing is a mesh that fails at one place with one error.
type failing struct {
	err error
	at  int
}

func (m *failing) fail(at int) error {
	if m.at == at {
		return m.err
	}
	return nil
}

// refusing is what frontends have before them.
type refusing struct{ atomic.Pointer[failing] }

func (m *refusing) Authenticate(context.Context, policy.Credentials) (*policy.Principal, error) {
	if err := m.Load().fail(atTheDoor); err != nil {
		return nil, err
	}
	return &policy.Principal{}, nil
}

func (m *refusing) Current(who *policy.Principal) (*policy.Principal, <-chan struct{}, error) {
	return who, make(chan struct{}), nil
}

func (m *refusing) Publish(_ context.Context, _ *policy.Principal, _, _ string, _ []event.Event, res []frontend.Result) error {
	for i := range res {
		res[i].Err = m.Load().fail(inTheCall)
	}
	return res[0].Err
}

func (m *refusing) Begin(ctx context.Context, who *policy.Principal, namespace, topic string, events []event.Event, res []frontend.Result) (func(context.Context) error, error) {
	return func(ctx context.Context) error { return m.Publish(ctx, who, namespace, topic, events, res) }, nil
}

func (m *refusing) Binds(string) bool { return false }

func (m *refusing) Bound(*policy.Principal, frontend.Call) (frontend.Bound, error) {
	return frontend.Bound{}, m.Load().fail(inTheCall)
}

func (m *refusing) Hold(*policy.Principal, string, string) (frontend.Holding, error) { return nil, nil }

func (m *refusing) Join(context.Context, *policy.Principal, string, string) (delivery.Member, error) {
	if err := m.Load().fail(inTheCall); err != nil {
		return nil, err
	}
	return session{m.Load()}, nil
}

func (m *refusing) Pull(context.Context, *policy.Principal, string, string, delivery.PullRequest) (delivery.Pulled, error) {
	return delivery.Pulled{}, m.Load().fail(inTheCall)
}

func (m *refusing) Settle(_ context.Context, _ *policy.Principal, _, _ string, x delivery.Settlement) (out []delivery.Unsettled, err error) {
	if err := m.Load().fail(ofEach); err != nil {
		return []delivery.Unsettled{{Handle: x.Ack[0], Err: err}}, nil
	}
	return nil, m.Load().fail(inTheCall)
}

func (m *refusing) Tail(context.Context, *policy.Principal, delivery.TailRequest) (delivery.Tail, error) {
	if err := m.Load().fail(inTheCall); err != nil {
		return nil, err
	}
	return session{m.Load()}, nil
}

func (m *refusing) Request(context.Context, *policy.Principal, string, string, event.Event, time.Duration) (event.Event, error) {
	return event.Event{}, m.Load().fail(inTheCall)
}

func (m *refusing) Reply(context.Context, *policy.Principal, string, event.Event) error {
	return m.Load().fail(inTheCall)
}

func (m *refusing) Ready() error { return nil }

func (m *refusing) Trace(context.Context, *policy.Principal, string, string, string) (inspect.Trace, error) {
	return inspect.Trace{}, m.Load().fail(inTheCall)
}

func (m *refusing) Why(context.Context, *policy.Principal, inspect.Question) (inspect.Answer, error) {
	return inspect.Answer{}, m.Load().fail(inTheCall)
}

func (m *refusing) DeadLetters(context.Context, *policy.Principal, delivery.DeadLetterQuery, func(*delivery.DeadLetter) error) (delivery.DeadLetterSummary, error) {
	return delivery.DeadLetterSummary{}, m.Load().fail(inTheCall)
}

func (m *refusing) Redrive(context.Context, *policy.Principal, delivery.Redrive, func(delivery.Redriven)) (delivery.Redriven, error) {
	return delivery.Redriven{}, m.Load().fail(inTheCall)
}

// session is a member or a tail that ends at once.
type session struct{ m *failing }

func (s session) Next(context.Context, []delivery.Delivery) (int, error) {
	return 0, s.m.fail(inTheStream)
}
func (s session) Take([]delivery.Delivery, func()) (int, error) {
	return 0, s.m.fail(inTheStream)
}
func (session) Topics() map[string]struct{}               { return nil }
func (session) Credit(int)                                {}
func (session) Ack(...uint64) int                         { return 0 }
func (session) Nack(string, time.Duration, ...uint64) int { return 0 }
func (session) Extend(time.Duration, ...uint64) int       { return 0 }
func (session) Reject(string, ...uint64) int              { return 0 }
func (session) AckTimeout() time.Duration                 { return time.Second }
func (session) Lost()                                     {}
func (session) Close()                                    {}

// told is what a client reads of an error.
type told struct {
	http   int
	grpc   codes.Code
	kind   string // the problem's type, over HTTP
	reason string
	detail string
	retry  time.Duration
}

// frontends are the real ones on loopback, before one mesh.
type frontends struct {
	*testing.T
	mesh refusing
	base string
	conn *grpc.ClientConn
	api  eventsv1.EventServiceClient
}

func serve(t *testing.T) *frontends {
	f := &frontends{T: t}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	h := httpfront.New(httpfront.Config{Mesh: &f.mesh, Requests: &f.mesh, Log: slog.New(slog.DiscardHandler)})
	g := grpcfront.New(grpcfront.Config{Mesh: &f.mesh, Requests: &f.mesh, DeadLetters: &f.mesh, Inspector: &f.mesh, Log: slog.New(slog.DiscardHandler)})
	var addrs [2]string
	for i, serve := range []func(context.Context, net.Listener) error{h.Serve, g.Serve} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		f.must(err)
		addrs[i] = l.Addr().String()
		go func() { ended <- serve(ctx, l) }()
	}
	f.base = "http://" + addrs[0] + "/v1/demo/"
	var err error
	f.conn, err = grpc.NewClient(addrs[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	f.must(err)
	f.api = eventsv1.NewEventServiceClient(f.conn)
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		f.must(f.conn.Close())
		stop()
		f.must(<-ended)
		f.must(<-ended)
	})
	return f
}

func (f *frontends) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// problem is problem details, as RFC 9457 has them.
type problem struct {
	Type, Title, Detail, Reason string
	Status                      int
	RetryAfter                  int `json:"retry_after"`
}

func (p problem) told() told {
	return told{http: p.Status, kind: p.Type, reason: p.Reason, detail: p.Detail, retry: time.Duration(p.RetryAfter) * time.Second}
}

// ask asks over HTTP. within finds the problem in an answer that has more in it;
// nil is an answer that is one.
func (f *frontends) ask(method, path, contentType, body string, within func(body []byte) problem) told {
	f.Helper()
	req, err := http.NewRequestWithContext(f.Context(), method, f.base+path, strings.NewReader(body))
	f.must(err)
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	f.must(err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	f.must(err)
	var p problem
	if within != nil {
		p = within(b)
		if resp.StatusCode == http.StatusOK { // a stream, which has no status any more
			return p.told()
		}
	} else {
		f.must(json.Unmarshal(b, &p))
		if got := resp.Header.Get("Content-Type"); got != "application/problem+json" {
			f.Errorf("%s %s: %s", method, path, got)
		}
	}
	if after := resp.Header.Get("Retry-After"); p.Status != resp.StatusCode || after != strings.TrimPrefix(strconv.Itoa(p.RetryAfter), "0") || p.Title == "" {
		f.Errorf("%s %s: %s, Retry-After %q: %s", method, path, resp.Status, after, b)
	}
	if got := resp.Header.Get("WWW-Authenticate"); (got != "") != (resp.StatusCode == http.StatusUnauthorized) && within == nil {
		f.Errorf("%s %s: %s, WWW-Authenticate %q", method, path, resp.Status, got)
	}
	return p.told()
}

// ofCall is what a call over gRPC has answered.
func (f *frontends) ofCall(err error) told {
	st := status.Convert(err)
	x := told{grpc: st.Code(), detail: st.Message()}
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			x.reason = d.Reason
		case *errdetails.RetryInfo:
			x.retry = d.RetryDelay.AsDuration()
		}
	}
	return x
}

func ofEvent(e *eventsv1.Error) told {
	return told{grpc: codes.Code(e.GetCode()), reason: e.GetReason(), detail: e.GetMessage(), retry: e.GetRetryAfter().AsDuration()} //nolint:gosec // a code
}

// way is one way in which a client hears of an error.
type way struct {
	name string
	at   int
	ask  func(f *frontends) told
}

func overHTTP() []way {
	const (
		ce  = "application/cloudevents+json"
		one = `{"specversion":"1.0","id":"1","source":"/s","type":"t"}`
	)
	publish := func(f *frontends) told { return f.ask("POST", "topics/orders", ce, one, nil) }
	pull := func(f *frontends) told { return f.ask("POST", "subscriptions/billing:pull", "", "", nil) }
	settle := func(f *frontends) told {
		return f.ask("POST", "subscriptions/billing:settle", "", `{"ack":["x"]}`, nil)
	}
	tail := func(f *frontends) told { return f.ask("GET", "topics/orders/events", "", "", nil) }
	return []way{
		{"publish", inTheCall, publish}, {"pull", inTheCall, pull}, {"settle", inTheCall, settle}, {"tail", inTheCall, tail},
		{"publish", atTheDoor, publish}, {"pull", atTheDoor, pull}, {"settle", atTheDoor, settle}, {"tail", atTheDoor, tail},
		{"request", inTheCall, func(f *frontends) told { return f.ask("POST", "topics/orders:request", ce, one, nil) }},
		{"reply", inTheCall, func(f *frontends) told { return f.ask("POST", "replies", ce, one, nil) }},
		{"batch", inTheCall, func(f *frontends) told {
			return f.ask("POST", "topics/orders", "application/cloudevents-batch+json", "["+one+"]", func(b []byte) problem {
				var out struct{ Results []struct{ Error problem } }
				f.must(json.Unmarshal(b, &out))
				return out.Results[0].Error
			})
		}},
		{"a tail that ends", inTheStream, func(f *frontends) told {
			return f.ask("GET", "topics/orders/events", "", "", func(b []byte) (p problem) {
				_, last, _ := strings.Cut(string(b), "event: error\ndata: ")
				f.must(json.Unmarshal([]byte(last), &p))
				return p
			})
		}},
		{"a delivery that is not settled", ofEach, func(f *frontends) told {
			return f.ask("POST", "subscriptions/billing:settle", "", `{"ack":["x"]}`, func(b []byte) problem {
				var out struct{ Unsettled []struct{ Error problem } }
				f.must(json.Unmarshal(b, &out))
				return out.Unsettled[0].Error
			})
		}},
	}
}

func overGRPC() []way {
	e := &cev1.CloudEvent{Id: "1", Source: "/s", SpecVersion: "1.0", Type: "t"}
	subscribe := func(open *eventsv1.SubscribeOpen) func(f *frontends) told {
		return func(f *frontends) told {
			st, err := f.api.Subscribe(f.Context())
			f.must(err)
			if err = st.Send(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Open{Open: open}}); err == io.EOF { //nolint:errorlint // as grpc says; the status is read
				err = nil
			}
			for err == nil {
				_, err = st.Recv()
			}
			return f.ofCall(err)
		}
	}
	member := subscribe(&eventsv1.SubscribeOpen{Namespace: "demo", Credit: 1, Source: &eventsv1.SubscribeOpen_Subscription{Subscription: "billing"}})
	tail := subscribe(&eventsv1.SubscribeOpen{Namespace: "demo", Credit: 1, Source: &eventsv1.SubscribeOpen_Tail{Tail: &eventsv1.Tail{Topics: []string{"orders"}}}})
	unary := func(name string, call func(f *frontends) error) way {
		return way{name, inTheCall, func(f *frontends) told { return f.ofCall(call(f)) }}
	}
	return []way{
		{"Subscribe", inTheCall, member}, {"Subscribe", inTheStream, member}, {"Subscribe", atTheDoor, member},
		{"Subscribe, a tail", inTheCall, tail}, {"Subscribe, a tail", inTheStream, tail},
		unary("Publish", func(f *frontends) error {
			_, err := f.api.Publish(f.Context(), &eventsv1.PublishRequest{Namespace: "demo", Topic: "orders", Event: e})
			return err
		}),
		unary("Request", func(f *frontends) error {
			_, err := f.api.Request(f.Context(), &eventsv1.RequestRequest{Namespace: "demo", Topic: "orders", Event: e})
			return err
		}),
		unary("Reply", func(f *frontends) error {
			_, err := f.api.Reply(f.Context(), &eventsv1.ReplyRequest{Namespace: "demo", Event: e})
			return err
		}),
		unary("Pull", func(f *frontends) error {
			_, err := f.api.Pull(f.Context(), &eventsv1.PullRequest{Namespace: "demo", Subscription: "billing"})
			return err
		}),
		unary("Settle", func(f *frontends) error {
			_, err := f.api.Settle(f.Context(), &eventsv1.SettleRequest{Namespace: "demo", Subscription: "billing", Ack: []string{"x"}})
			return err
		}),
		unary("Trace", func(f *frontends) error {
			_, err := eventsv1.NewInspectServiceClient(f.conn).Trace(f.Context(), &eventsv1.TraceRequest{Namespace: "demo", Source: "/s", Id: "1"})
			return err
		}),
		unary("Why", func(f *frontends) error {
			_, err := eventsv1.NewInspectServiceClient(f.conn).Why(f.Context(), &eventsv1.WhyRequest{Namespace: "demo", Source: "/s", Id: "1", Subscription: "billing"})
			return err
		}),
		unary("ListDeadLetters", func(f *frontends) error {
			st, err := eventsv1.NewDeadLetterServiceClient(f.conn).ListDeadLetters(f.Context(), &eventsv1.ListDeadLettersRequest{Namespace: "demo", Topic: "dead"})
			f.must(err)
			_, err = st.Recv()
			return err
		}),
		unary("RedriveDeadLetters", func(f *frontends) error {
			st, err := eventsv1.NewDeadLetterServiceClient(f.conn).RedriveDeadLetters(f.Context(), &eventsv1.RedriveDeadLettersRequest{Namespace: "demo", Topic: "dead"})
			f.must(err)
			_, err = st.Recv()
			return err
		}),
		{"PublishBatch", inTheCall, func(f *frontends) told {
			resp, err := f.api.PublishBatch(f.Context(), &eventsv1.PublishBatchRequest{Namespace: "demo", Topic: "orders", Events: []*cev1.CloudEvent{e}})
			f.must(err)
			return ofEvent(resp.Results[0].Error)
		}},
		{"a delivery that is not settled", ofEach, func(f *frontends) told {
			resp, err := f.api.Settle(f.Context(), &eventsv1.SettleRequest{Namespace: "demo", Subscription: "billing", Ack: []string{"x"}})
			f.must(err)
			return ofEvent(resp.Unsettled[0].Error)
		}},
		{"PublishStream", inTheCall, func(f *frontends) told {
			st, err := f.api.PublishStream(f.Context())
			f.must(err)
			f.must(st.Send(&eventsv1.PublishStreamRequest{Namespace: "demo", Topic: "orders", Events: []*cev1.CloudEvent{e}}))
			f.must(st.CloseSend())
			resp, err := st.Recv()
			if err != nil { // whose credentials are not good any more has no stream
				return f.ofCall(err)
			}
			x := ofEvent(resp.Failed[0].Error)
			if _, err := st.Recv(); !errors.Is(err, io.EOF) {
				f.Error(err)
			}
			return x
		}},
	}
}

// TestClasses: whichever way a client hears of an error, it is told the same: what
// the table has for its class, its reason, when to try again, and nothing that is
// for logs.
func TestClasses(t *testing.T) {
	f := serve(t)
	codesOf := map[codes.Code]fault.Class{}
	for _, c := range fault.Classes() {
		a := c.Answer()
		if other, same := codesOf[a.GRPC]; same && c != fault.TooLarge { // too large is invalid
			t.Errorf("%s and %s are both %s", c, other, a.GRPC)
		}
		codesOf[a.GRPC] = c
		if a.HTTP < 400 || a.GRPC == codes.OK || a.GRPC == codes.Unknown || a.Advice == "" {
			t.Errorf("%s has no answer: %+v", c, a)
		}
		for _, after := range []time.Duration{0, 3 * time.Second} {
			e := &fault.Error{Class: c, Op: "secret step", Reason: "some-reason", Msg: "for people", RetryAfter: after, Err: errors.New("secret cause")}
			want := told{reason: e.Reason, detail: e.Msg, retry: e.Retry()}
			if again := c == fault.Throttled || c == fault.Unavailable; again != (want.retry > 0) || again && after > 0 && want.retry != after {
				t.Errorf("%s: again after %s", c, want.retry)
			}
			overH, overG := want, want
			overH.http, overH.kind = a.HTTP, "https://github.com/weft-mesh/weft/blob/main/docs/errors.md#some-reason"
			overG.grpc = a.GRPC
			for i, ways := range [][]way{overHTTP(), overGRPC()} {
				want := [...]told{overH, overG}[i]
				for _, w := range ways {
					f.mesh.Store(&failing{fmt.Errorf("secret wrapping: %w", e), w.at})
					if got := w.ask(f); got != want {
						t.Errorf("%s, %s at %d over %s:\n%+v, want\n%+v", c, w.name, w.at, [...]string{"HTTP", "gRPC"}[i], got, want)
					}
				}
			}
		}
	}
}
