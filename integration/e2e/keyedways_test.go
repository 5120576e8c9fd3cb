package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/integration/history"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store/position"
)

// keyedPublisher is one publisher: a connection of its own to each proxy over HTTP, and a
// stream to each on the shared one over gRPC. It has one event at a time on its way.
type keyedPublisher struct {
	k       *keyed
	rnd     *rand.Rand
	http    *web
	streams map[*entrance]*keyedStream
	// left are the entrances and ways that it uses next in this round, in turn.
	left  []keyedTurn
	round int64
}

// keyedTurn is one way at one proxy.
type keyedTurn struct {
	at  *entrance
	how keyedWay
}

// keyedStream is an open publish stream.
type keyedStream struct {
	grpc.BidiStreamingClient[eventsv1.PublishStreamRequest, eventsv1.PublishStreamResponse]
	end func()
}

// keyedWay is a way to publish.
type keyedWay struct {
	name string
	by   func(*keyedPublisher, context.Context, *entrance, event.Event) error
}

func keyedWays() []keyedWay {
	return []keyedWay{{"a gRPC stream", (*keyedPublisher).byStream}, {"gRPC", (*keyedPublisher).byCall}, {"HTTP", (*keyedPublisher).byHTTP}}
}

func (k *keyed) newPublisher(rnd *rand.Rand) *keyedPublisher {
	return &keyedPublisher{k: k, rnd: rnd, http: k.newWeb(), streams: map[*entrance]*keyedStream{}}
}

func (p *keyedPublisher) close() {
	p.http.CloseIdleConnections()
	for _, s := range p.streams {
		s.end()
	}
}

// choose takes every proxy and way in turn at the beginning of a round, so that all
// connections are there, and then what comes.
func (p *keyedPublisher) choose() (*entrance, keyedWay) {
	serving, ways := p.k.entrances(), keyedWays()
	if n := p.k.round.Load(); n != p.round {
		p.round, p.left = n, nil
		for _, at := range serving {
			for _, how := range ways {
				p.left = append(p.left, keyedTurn{at, how})
			}
		}
	}
	if len(p.left) > 0 {
		return p.left[0].at, p.left[0].how
	}
	return serving[p.rnd.IntN(len(serving))], ways[p.rnd.IntN(len(ways))]
}

// acknowledged goes on in the round.
func (p *keyedPublisher) acknowledged() {
	if len(p.left) == 0 {
		return
	}
	if p.left = p.left[1:]; len(p.left) == 0 {
		p.k.done.Add(1)
	}
}

// httpAnswer is an answer that is no success.
type httpAnswer struct {
	status int
	body   string
	again  string // when to try again
}

func (e *httpAnswer) Error() string { return fmt.Sprintf("%d %s", e.status, e.body) }

// outcome is what an error says of a publish: whether to publish again, and whether
// nobody knows if the event was kept.
func outcome(err error) (again, unknown bool) {
	if h, ok := errors.AsType[*httpAnswer](err); ok {
		known := h.status == http.StatusServiceUnavailable || h.status == http.StatusTooManyRequests
		return known || h.status == http.StatusGatewayTimeout, !known
	}
	st, ok := status.FromError(err)
	switch st.Code() {
	case codes.Unavailable, codes.ResourceExhausted:
		return true, len(st.Details()) == 0 // only a proxy has details
	case codes.DeadlineExceeded, codes.Canceled:
		return true, true
	}
	return !ok, true // a connection over HTTP
}

// answer is what an error says, in a few words.
func answer(err error) string {
	if h, ok := errors.AsType[*httpAnswer](err); ok {
		if h.again != "" {
			return fmt.Sprintf("%d, again", h.status)
		}
		return fmt.Sprint(h.status)
	}
	st, ok := status.FromError(err)
	if !ok {
		return err.Error()
	}
	out := st.Code().String()
	for _, d := range st.Details() {
		if r, ok := d.(*errdetails.RetryInfo); ok && r.RetryDelay.AsDuration() > 0 {
			return out + ", again"
		}
	}
	if len(st.Details()) == 0 {
		out += ", which no proxy has said: " + st.Message()
	}
	return out
}

func (p *keyedPublisher) byCall(ctx context.Context, at *entrance, e event.Event) error {
	rctx, cancel := joined(ctx, at.rpc.ctx)
	defer cancel()
	_, err := at.rpc.Publish(rctx, &eventsv1.PublishRequest{Namespace: p.k.ns, Topic: p.k.topic, Event: p.k.wire(e)})
	return err
}

// joined is with's metadata with ctx's end.
func joined(ctx, with context.Context) (context.Context, context.CancelFunc) {
	out, cancel := context.WithCancel(with)
	stop := context.AfterFunc(ctx, cancel)
	return out, func() { stop(); cancel() }
}

func (p *keyedPublisher) byHTTP(ctx context.Context, at *entrance, e event.Event) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+at.httpIn.addr+"/v1/"+p.k.ns+"/topics/"+p.k.topic, bytes.NewReader(e.Data))
	if err != nil {
		return err
	}
	cloudevents.EncodeBinary(req.Header, &e)
	req.Header.Set("Authorization", "Bearer "+p.k.key)
	resp, err := p.http.Do(req)
	if err != nil {
		p.http.answered(at.httpIn.addr, false)
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	p.http.answered(at.httpIn.addr, err == nil && !resp.Close)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = &httpAnswer{resp.StatusCode, string(b), resp.Header.Get("Retry-After")}
	}
	return err
}

// byStream sends on the publisher's stream to the proxy, which is opened anew where it
// has ended, and waits for the answer.
func (p *keyedPublisher) byStream(ctx context.Context, at *entrance, e event.Event) error {
	s := p.streams[at]
	if s == nil {
		sctx, end := context.WithCancel(at.rpc.ctx)
		rpc, err := at.rpc.PublishStream(sctx)
		if err != nil {
			end()
			return err
		}
		s = &keyedStream{rpc, end}
		p.streams[at] = s
	}
	stop := context.AfterFunc(ctx, s.end)
	failed, err := p.send(s, e)
	if err != nil && ctx.Err() == nil {
		p.k.end("a publish stream to "+at.name, err)
	}
	if !stop() || err != nil {
		s.end()
		delete(p.streams, at)
	}
	if err == nil && failed != nil {
		err = failed
	}
	return err
}

// send sends one event; failed is the answer to it, err is of the stream.
func (p *keyedPublisher) send(s *keyedStream, e event.Event) (failed, err error) {
	req := &eventsv1.PublishStreamRequest{Namespace: p.k.ns, Topic: p.k.topic}
	req.Events = append(req.Events, p.k.wire(e))
	if err := s.Send(req); err != nil && !errors.Is(err, io.EOF) { // Recv tells why
		return nil, err
	}
	resp, err := s.Recv()
	if errors.Is(err, io.EOF) {
		err = status.Error(codes.Unavailable, "the stream has ended")
	}
	for _, f := range resp.GetFailed() {
		details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: f.Error.GetReason()}}
		if again := f.Error.GetRetryAfter(); again != nil {
			details = append(details, &errdetails.RetryInfo{RetryDelay: again})
		}
		st, err := status.New(codes.Code(f.Error.GetCode()), f.Error.GetMessage()).WithDetails(details...) //nolint:gosec // a code
		if err != nil {
			return nil, err
		}
		failed = st.Err()
	}
	return failed, err
}

// again runs f until the readers are to end; an error that trying again does not help
// fails the test.
func (k *keyed) again(what string, f func() error) {
	k.read.Go(func() {
		for k.subs.Err() == nil {
			err := f()
			if err != nil && k.subs.Err() == nil {
				k.end(what, err)
			}
			if again, _ := outcome(err); k.subs.Err() == nil && err != nil && !again && !errors.Is(err, io.EOF) {
				k.Errorf("%s: %v", what, err)
				return
			}
			select {
			case <-time.After(50 * time.Millisecond):
			case <-k.subs.Done():
			}
		}
	})
}

// end notes that a stream has ended, or a call of a reader failed.
func (k *keyed) end(what string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ended[what+": "+answer(err)]++
}

// note records an event that came.
func (k *keyed) note(r *keyedReader, e event.Event, token, owner string) {
	k.reading.RLock()
	defer k.reading.RUnlock()
	if e.Source != published {
		k.Errorf("%s: %s came from %s, which nobody has published: %s", r.name, e.ID, e.Source, e.Type)
		return
	}
	t, err := position.Parse(token)
	if err != nil {
		k.Errorf("%s: the position of %s: %v", r.name, e.ID, err)
	}
	r.log.ReceiveAt(e.ID, e.Data, history.Place{Owner: owner, Partition: fmt.Sprintf("%d/%s", t.Epoch, t.Pos.Partition), Offset: t.Pos.Offset})
}

// member is a member of the Subscription at one proxy, whenever that is there.
func (k *keyed) member(r *keyedReader, name string, at *entrance) {
	k.stream("a member at "+at.name, r, at, func() *eventsv1.SubscribeOpen { return subscription(name) })
}

// tailByCall follows the topic over gRPC at one proxy, from its beginning.
func (k *keyed) tailByCall(r *keyedReader, at *entrance) {
	k.stream("a gRPC tail at "+at.name, r, at, func() *eventsv1.SubscribeOpen { return tailOf(k.topic) })
}

// stream reads a stream at one proxy, and opens it again.
func (k *keyed) stream(what string, r *keyedReader, at *entrance, open func() *eventsv1.SubscribeOpen) {
	deliveries := 0
	k.again(what, func() error {
		owner := at.life() // known before the stream is open
		s, err := at.rpc.open(k.subs, open(), credit)
		if err != nil {
			return err
		}
		return s.receive(func(d *eventsv1.Delivery) bool {
			if deliveries++; r.late && d.Attempt == 1 && deliveries%4 == 0 {
				// Why it fails is what the stream ends with.
				_ = s.stream.Send(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Nack{Nack: &eventsv1.Nack{Ids: []uint64{d.Id}}}})
				return false
			}
			e, err := received(d)
			if err != nil {
				k.Error(err)
			}
			k.note(r, e, d.Position, owner)
			return true
		})
	})
}

// pull takes what the Subscription has at one proxy, and settles it.
func (k *keyed) pull(r *keyedReader, name string, at *entrance) {
	k.again("a pull at "+at.name, func() error {
		ctx, cancel := joined(k.subs, at.rpc.ctx)
		defer cancel()
		for {
			owner := at.life()
			resp, err := at.rpc.Pull(ctx, &eventsv1.PullRequest{Namespace: k.ns, Subscription: name, MaxEvents: 32})
			if err != nil || len(resp.Deliveries) == 0 {
				return err
			}
			settle := &eventsv1.SettleRequest{Namespace: k.ns, Subscription: name}
			for _, d := range resp.Deliveries {
				e, err := received(&eventsv1.Delivery{Event: d.Event})
				if err != nil {
					k.Error(err)
				}
				k.note(r, e, d.Position, owner)
				settle.Ack = append(settle.Ack, d.DeliveryId)
			}
			if _, err = at.rpc.Settle(ctx, settle); err != nil {
				return err
			}
		}
	})
}

// tail follows the topic over HTTP at one proxy, from its beginning, and on from where it
// was.
func (k *keyed) tail(r *keyedReader, at *entrance) {
	last, c := "", &http.Client{Transport: &http.Transport{}}
	k.again("a tail at "+at.name, func() error {
		req, err := http.NewRequestWithContext(k.subs, http.MethodGet, "http://"+at.httpIn.addr+"/v1/"+k.ns+"/topics/"+k.topic+"/events?from=beginning", nil)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+k.key)
		if last != "" {
			req.Header.Set("Last-Event-ID", last)
		}
		resp, err := c.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return &httpAnswer{resp.StatusCode, "the tail", resp.Header.Get("Retry-After")}
		}
		var id, kind string
		var got *event.Event
		lines := bufio.NewScanner(resp.Body)
		for lines.Scan() {
			line := lines.Text()
			if v, ok := strings.CutPrefix(line, "id: "); ok {
				id = v
			}
			if v, ok := strings.CutPrefix(line, "event: "); ok {
				kind = v
			}
			if v, ok := strings.CutPrefix(line, "data: "); ok && kind != "error" {
				e, err := cloudevents.DecodeJSON([]byte(v))
				if err != nil {
					k.Errorf("the tail: %v", err)
					continue
				}
				got = &e
			}
			if line != "" {
				continue
			}
			if got != nil {
				if got.Source != published {
					k.Errorf("%s: %s came from %s, which nobody has published: %s", r.name, got.ID, got.Source, got.Type)
				}
				k.reading.RLock()
				r.log.Receive(got.ID, got.Data)
				k.reading.RUnlock()
				got = nil
			}
			if id != "" {
				last = id
			}
			kind = ""
		}
		return cmp.Or(lines.Err(), io.EOF)
	})
}
