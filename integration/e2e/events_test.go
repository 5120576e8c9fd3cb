package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	cloudeventsv1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/registry"
	"github.com/weft-mesh/weft/registry/nacos"
)

// topicYAML declares topics in the store main.
func topicYAML(names ...string) string {
	var b strings.Builder
	for _, n := range names {
		fmt.Fprintf(&b, "\napiVersion: weft/v1alpha1\nkind: Topic\nmetadata: {namespace: NS, name: %s}\nspec: {store: main, partitions: 2}\n---", n)
	}
	return b.String()
}

// subscriptionYAML declares a subscription from the beginning; more is the rest
// of its spec.
func subscriptionYAML(name, topic, more string) string {
	if more != "" {
		more = ", " + more
	}
	return fmt.Sprintf("\napiVersion: weft/v1alpha1\nkind: Subscription\nmetadata: {namespace: NS, name: %s}\nspec: {topics: [%s], start: beginning, ack_timeout: 60s%s}\n---", name, topic, more)
}

// policyYAML allows principals everything, but for what the rules deny.
func policyYAML(principals string, rules ...string) string {
	all := fmt.Sprintf(`{name: all, effect: allow, principals: [%s], actions: [publish, subscribe, consume], topics: [">"], subscriptions: [">"]}`, principals)
	return "\napiVersion: weft/v1alpha1\nkind: AccessPolicy\nmetadata: {namespace: NS, name: access}\nspec:\n  rules:\n    - " +
		strings.Join(append([]string{all}, rules...), "\n    - ") + "\n"
}

// published is the source of events that tests publish.
const published = "/shop"

func textEvent(id, data string) event.Event {
	return event.Event{ID: id, Source: published, Type: "order.created", DataContentType: "text/plain", Data: []byte(data)}
}

// wire is an event as it crosses gRPC.
func (m *mesh) wire(e event.Event) *cloudeventsv1.CloudEvent {
	m.Helper()
	out := &cloudeventsv1.CloudEvent{}
	m.must(proto.Unmarshal(cloudevents.AppendProto(nil, &e), out))
	return out
}

// post publishes an event over HTTP, in binary mode.
func (m *mesh) post(c *http.Client, base, topic, authorization string, e event.Event) (code int, body string) {
	m.Helper()
	h := http.Header{}
	cloudevents.EncodeBinary(h, &e)
	code, body, err := m.postBytes(c, base, topic, authorization, h, e.Data)
	m.must(err)
	return code, body
}

func (m *mesh) postBytes(c *http.Client, base, topic, authorization string, h http.Header, data []byte) (int, string, error) {
	req, err := http.NewRequestWithContext(m.ctx, http.MethodPost, base+"/v1/"+m.ns+"/topics/"+topic, bytes.NewReader(data))
	if err != nil {
		return 0, "", err
	}
	req.Header = h
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// box collects what arrives somewhere.
type box struct {
	name string
	mu   sync.Mutex
	got  map[string]event.Event
	all  int // repeats included
}

func newBox(name string) *box { return &box{name: name, got: map[string]event.Event{}} }

func (b *box) put(e event.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e.Data = bytes.Clone(e.Data)
	b.got[e.ID] = e
	b.all++
}

// count is how many came, repeats included.
func (b *box) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all
}

func (b *box) get(id string) (event.Event, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e, ok := b.got[id]
	return e, ok
}

// awaitAll waits until every event has come, with its attributes and its data,
// and nothing else.
func (m *mesh) awaitAll(b *box, want []event.Event) {
	m.Helper()
	m.await("what comes to "+b.name, func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, w := range want {
			if _, ok := b.got[w.ID]; !ok {
				return fmt.Errorf("%s has not come; there are %v", w.ID, slices.Sorted(maps.Keys(b.got)))
			}
		}
		return nil
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, w := range want {
		got := b.got[w.ID]
		if got.Source != w.Source || got.Type != w.Type || got.DataContentType != w.DataContentType || !bytes.Equal(got.Data, w.Data) {
			m.Errorf("%s: %s came as %s %s %s %q, sent was %s %s %s %q", b.name, w.ID, got.Source, got.Type, got.DataContentType, got.Data, w.Source, w.Type, w.DataContentType, w.Data)
		}
	}
	if len(b.got) != len(want) {
		m.Errorf("%s: %v came, sent were %d", b.name, slices.Sorted(maps.Keys(b.got)), len(want))
	}
}

// webhook is a target of push; refuse tells, for an event, the status to refuse
// it with, or 0.
func webhook(t *testing.T, b *box, refuse func(event.Event) int) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		e, err := cloudevents.DecodeBinary(r.Header, body)
		if err != nil {
			t.Errorf("a webhook got what is no event: %v", err)
			return
		}
		if code := refuse(e); code != 0 {
			w.WriteHeader(code)
			return
		}
		b.put(e)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func takeAll(event.Event) int { return 0 }

// sse is an open stream of server-sent events.
type sse struct {
	box   *box
	resp  *http.Response
	ended chan struct{} // closed when it has ended
	last  string        // the error that it ended with; read after ended
}

// events follows a topic over HTTP from its beginning.
func (m *mesh) events(c *http.Client, base, topic, authorization string) *sse {
	m.Helper()
	s, err := m.tryEvents(c, base, topic, authorization)
	m.must(err)
	return s
}

func (m *mesh) tryEvents(c *http.Client, base, topic, authorization string) (*sse, error) {
	req, err := http.NewRequestWithContext(m.ctx, http.MethodGet, base+"/v1/"+m.ns+"/topics/"+topic+"/events?from=beginning", nil)
	if err != nil {
		return nil, err
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return nil, errors.Join(fmt.Errorf("the stream of %s answers %s %s", topic, resp.Status, body), err)
	}
	s := &sse{box: newBox("server-sent events of " + topic), resp: resp, ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		kind := ""
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			line := lines.Text()
			if v, ok := strings.CutPrefix(line, "event: "); ok {
				kind = v
			}
			data, ok := strings.CutPrefix(line, "data: ")
			switch {
			case ok && kind == "error":
				s.last = data
			case ok:
				if e, err := cloudevents.DecodeJSON([]byte(data)); err == nil {
					s.box.put(e)
				}
			}
		}
	}()
	m.Cleanup(func() {
		_ = resp.Body.Close()
		<-s.ended
	})
	return s, nil
}

// rpc is one gRPC connection to one proxy, with the credentials for its calls.
type rpc struct {
	eventsv1.EventServiceClient
	m   *mesh
	ctx context.Context
}

// dial connects to a proxy; without credentials TLS is not used.
func (m *mesh) dial(addr, key string, creds credentials.TransportCredentials) *rpc {
	m.Helper()
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(creds))
	m.must(err)
	m.Cleanup(func() { _ = conn.Close() })
	ctx := m.ctx
	if key != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+key)
	}
	return &rpc{eventsv1.NewEventServiceClient(conn), m, ctx}
}

func (r *rpc) publish(topic string, e event.Event) error {
	r.m.Helper()
	_, err := r.Publish(r.ctx, &eventsv1.PublishRequest{Namespace: r.m.ns, Topic: topic, Event: r.m.wire(e)})
	return err
}

// member is an open stream of a Subscription, or a tail.
type member struct {
	tail   bool
	stream grpc.BidiStreamingClient[eventsv1.SubscribeRequest, eventsv1.SubscribeResponse]
}

func subscription(name string) *eventsv1.SubscribeOpen {
	return &eventsv1.SubscribeOpen{Source: &eventsv1.SubscribeOpen_Subscription{Subscription: name}}
}

func tailOf(topic string) *eventsv1.SubscribeOpen {
	return &eventsv1.SubscribeOpen{Source: &eventsv1.SubscribeOpen_Tail{Tail: &eventsv1.Tail{Topics: []string{topic}, From: &eventsv1.Tail_Beginning{Beginning: true}}}}
}

// open opens a stream with credit.
func (r *rpc) open(ctx context.Context, open *eventsv1.SubscribeOpen, credit uint32) (*member, error) {
	if md, ok := metadata.FromOutgoingContext(r.ctx); ok {
		ctx = metadata.NewOutgoingContext(ctx, md)
	}
	stream, err := r.Subscribe(ctx)
	if err != nil {
		return nil, err
	}
	open.Namespace, open.Credit = r.m.ns, credit
	if err := stream.Send(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Open{Open: open}}); err != nil {
		_, err = stream.Recv()
		return nil, err
	}
	if _, err := stream.Recv(); err != nil { // it is open
		return nil, err
	}
	return &member{open.GetTail() != nil, stream}, nil
}

// receive calls f for each delivery, and settles it where f says so, until the
// stream ends. On a tail there is nothing to settle, only credit to grant again.
func (s *member) receive(f func(*eventsv1.Delivery) (settle bool)) error {
	for {
		resp, err := s.stream.Recv()
		if err != nil {
			return err
		}
		var ids []uint64
		answer := &eventsv1.SubscribeRequest{}
		for _, d := range resp.GetDeliveries().GetDeliveries() {
			if f(d) {
				ids = append(ids, d.Id)
			}
		}
		switch {
		case s.tail:
			answer.Message = &eventsv1.SubscribeRequest_Credit{Credit: &eventsv1.Credit{Deliveries: uint32(len(resp.GetDeliveries().GetDeliveries()))}} //nolint:gosec // small
		case len(ids) > 0:
			answer.Message = &eventsv1.SubscribeRequest_Ack{Ack: &eventsv1.Ack{Ids: ids}}
		default:
			continue
		}
		if err := s.stream.Send(answer); err != nil {
			// The stream has ended; what came before its status is not taken.
			for {
				if _, err := s.stream.Recv(); err != nil {
					return err
				}
			}
		}
	}
}

// received is the event of a delivery.
func received(d *eventsv1.Delivery) (event.Event, error) {
	b, err := proto.Marshal(d.Event)
	if err != nil {
		return event.Event{}, err
	}
	return cloudevents.DecodeProto(b)
}

// into opens a stream, puts what it brings into a box and settles it. The
// channel gets what the stream ends with.
func (r *rpc) into(b *box, open *eventsv1.SubscribeOpen) <-chan error {
	r.m.Helper()
	s, err := r.open(r.m.ctx, open, 64)
	r.m.must(err)
	ended := make(chan error, 1)
	go func() {
		ended <- s.receive(func(d *eventsv1.Delivery) bool {
			if e, err := received(d); err == nil {
				b.put(e)
			}
			return true
		})
	}()
	return ended
}

// finder looks into Nacos.
func (m *mesh) finder() *nacos.Registry {
	m.Helper()
	r, err := nacos.New(nacos.Config{URL: "http://" + servers.SharedNacos(m.T) + "/nacos",
		Credentials: func() (string, string, error) { return servers.NacosUser, servers.NacosPassword, nil }})
	m.must(err)
	m.Cleanup(func() {
		if err := r.Close(context.Background()); err != nil {
			m.Error(err)
		}
	})
	return r
}

// awaitRegistered waits until Nacos says that the proxies are healthy at their
// ports.
func (m *mesh) awaitRegistered(in *nacos.Registry, proxies ...*proxy) {
	m.Helper()
	want := map[string]bool{}
	for _, p := range proxies {
		want[p.name+" "+p.grpc] = true
	}
	var last []registry.Instance
	for set := range in.Watch(m.ctx, m.ns) {
		last = set
		found := 0
		for _, i := range set {
			if i.Healthy && want[i.ID+" "+net.JoinHostPort(i.Host, strconv.Itoa(int(i.Ports["grpc"])))] {
				found++
			}
		}
		if found == len(want) {
			return
		}
	}
	m.Fatalf("in Nacos there is %+v, not %v", last, want)
}
