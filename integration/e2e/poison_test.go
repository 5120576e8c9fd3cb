package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	cloudeventsv1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
)

// asBytes sends a request as the bytes that it is.
type asBytes struct{ encoding.CodecV2 }

func (c asBytes) Marshal(v any) (mem.BufferSlice, error) {
	if b, ok := v.([]byte); ok {
		return mem.BufferSlice{mem.SliceBuffer(b)}, nil
	}
	return c.CodecV2.Marshal(v)
}

// bend changes bytes here and there.
func bend(r *rand.Rand, b []byte) []byte {
	b = bytes.Clone(b)
	for range 1 + r.IntN(3) {
		at := r.IntN(len(b) + 1)
		switch odd := [][]byte{{0}, {0xff}, []byte("\r\n"), []byte(`"`), []byte("\\u0000"), []byte("{"), []byte("%00"), {0x80, 0x80, 0x80}, []byte("1e999"), []byte("\xed\xa0\x80")}; {
		case at < len(b) && r.IntN(3) == 0:
			b[at] ^= 1 << r.IntN(8)
		case r.IntN(8) == 0:
			b = b[:at]
		case r.IntN(8) == 0:
			b = append(b[:at:at], b[at/2:]...)
		default:
			b = append(b[:at:at], append(odd[r.IntN(len(odd))], b[at:]...)...)
		}
	}
	return b
}

// TestPoisonEvents: bent events come in every way, and what is taken of them goes out; an
// event at which consumers crash, over each way out, is a dead letter after its attempts.
// The proxy goes on, and so do all others.
func TestPoisonEvents(t *testing.T) {
	t.Parallel()
	bent, attempts := 1500, 3
	if soaking {
		bent = 100_000
	}
	m := newMesh(t, servers.SharedEtcd(t))
	key, identity := m.key("shop")
	bearer := "Bearer " + m.read(key)
	// The credentials of requests that are bent as a whole may become data.
	loose, more := m.key("loose")
	identity, other := identity+more, "Bearer "+m.read(loose)
	delete(m.secrets, "the API key of loose")
	p := m.proxy("p1", "--push-allow", "127.0.0.0/8")
	poisonous := func(e *event.Event) bool { return e.Type == "poison" }
	var pushes atomic.Int64
	pushed := newBox("the target")
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		e, err := cloudevents.DecodeBinary(r.Header, body)
		if err != nil {
			t.Errorf("a target got what is no event: %v", err)
		}
		if poisonous(&e) {
			pushes.Add(1)
			panic(http.ErrAbortHandler) // which ends the connection
		}
		pushed.put(e)
	}))
	t.Cleanup(hook.Close)
	yaml := onDisk + topicYAML("orders", "batches", "dead") + restYAML + subscriptionYAML("healthy", "orders", "")
	for name, more := range map[string]string{"crashing": "", "pulled": "", "pushed": `, push: {url: "` + hook.URL + `"}`} {
		yaml += fmt.Sprintf("\napiVersion: weft/v1alpha1\nkind: Subscription\nmetadata: {namespace: NS, name: %s}\nspec: {topics: [orders], start: beginning, ack_timeout: 1s, dead_letter_topic: dead, retry: {max_attempts: %d, min_backoff: 10ms, max_backoff: 10ms}%s}\n---", name, attempts, more)
	}
	m.apply(yaml + policyYAML("shop, loose") + identity)
	m.settled(1)
	pid := p.PID()

	// Bent events. What is taken of them comes to all who look.
	healthy, tail := newBox("subscription healthy"), newBox("a tail")
	m.dial(p.grpc, m.read(key), nil).into(healthy, subscription("healthy"))
	m.dial(p.grpc, m.read(key), nil).into(tail, tailOf("orders"))
	web := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(web.CloseIdleConnections)
	sse := m.events(web, "http://"+p.http, "orders", bearer)
	m.events(web, "http://"+p.http, "batches", bearer)
	good := textEvent("good", "x")
	structured := cloudevents.AppendJSON(nil, &good)
	request, err := proto.Marshal(&eventsv1.PublishRequest{Namespace: m.ns, Topic: "orders", Event: m.wire(good)})
	m.must(err)
	streamed, err := proto.Marshal(&eventsv1.PublishStreamRequest{Namespace: m.ns, Topic: "orders", Events: []*cloudeventsv1.CloudEvent{m.wire(good), m.wire(good)}})
	m.must(err)
	calls := m.calls(other)
	conn, err := grpc.NewClient(p.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(asBytes{encoding.GetCodecV2("proto")})))
	m.must(err)
	t.Cleanup(func() { _ = conn.Close() })
	ctx := metadata.AppendToOutgoingContext(m.ctx, "authorization", bearer)
	r := rand.New(rand.NewPCG(1, 2))
	taken, refused := 0, 0
	answered := func(what string, sent []byte, ok, wrong bool) {
		t.Helper()
		switch {
		case ok:
			taken++
		case wrong:
			t.Fatalf("%s: %q", what, sent)
		default:
			refused++
		}
	}
	for i := range bent {
		b := bend(r, structured)
		code, body, err := m.postBytes(web, "http://"+p.http, "orders", bearer, http.Header{"Content-Type": {cloudevents.TypeJSON}}, b)
		m.must(err)
		answered(fmt.Sprint("structured mode: ", code, " ", body), b, code == http.StatusOK, code < 400 || code >= 500)

		b = bend(r, []byte("["+string(structured)+","+string(structured)+"]"))
		if code, body, err := m.postBytes(web, "http://"+p.http, "batches", bearer, http.Header{"Content-Type": {cloudevents.TypeBatch}}, b); err != nil || code >= 500 {
			t.Fatalf("a batch: %d %s %v: %q", code, body, err, b)
		}

		b = bend(r, request)
		err = conn.Invoke(ctx, "/weft.events.v1alpha1.EventService/Publish", b, &eventsv1.PublishResponse{})
		c := status.Code(err)
		answered(fmt.Sprint("gRPC: ", err), b, c == codes.OK, c == codes.Unavailable || c == codes.Unknown || c == codes.DeadlineExceeded)

		b = bend(r, streamed)
		n, err := m.stream(ctx, conn, b)
		c = status.Code(err)
		answered(fmt.Sprint("a publish stream: ", err), b, n > 0, c == codes.Unavailable || c == codes.Unknown || c == codes.DeadlineExceeded)

		if i%10 > 0 {
			continue // they wait for what does not come
		}
		for what, call := range calls {
			b = bend(r, call)
			code := p.says(b)
			answered(fmt.Sprint(what, ": ", code), b, code == http.StatusOK || code == http.StatusAccepted, misread(code))
		}
	}
	p.replayHTTP(r, other, 1+bent/500)
	p.replayGRPC(ctx, conn, r, 1+bent/500)
	if taken < bent/10 || refused < bent/10 {
		t.Errorf("%d bent events were taken, %d refused", taken, refused)
	}
	m.await("what was taken", func() error {
		for _, b := range []*box{healthy, tail, sse.box} {
			if n := b.count(); n < taken {
				return fmt.Errorf("%d of %d came to %s", n, taken, b.name)
			}
		}
		return nil
	})
	t.Logf("%d bent events were taken, %d refused", taken, refused)

	// Those who crash at the poison: a member whose process ends, one that pulls, and the
	// target, which has ended connections since it is there.
	crashed, pulled := newBox("subscription crashing"), newBox("subscription pulled")
	running, stop := context.WithCancel(m.ctx)
	var consumers sync.WaitGroup
	t.Cleanup(func() { stop(); consumers.Wait() })
	var crashes, drops atomic.Int64
	for range 2 {
		consumers.Go(func() {
			for running.Err() == nil {
				life, end := context.WithCancel(running)
				s, err := m.dial(p.grpc, m.read(key), nil).open(life, subscription("crashing"), 1) // or what it has beside the poison is lost with it
				if err == nil {
					_ = s.receive(func(d *eventsv1.Delivery) bool {
						e, err := received(d)
						if err == nil && poisonous(&e) {
							crashes.Add(1)
							end() // with all that it has
							return false
						}
						crashed.put(e)
						return true
					})
				}
				end()
			}
		})
	}
	c := m.client(key, p)
	consumers.Go(func() {
		for running.Err() == nil {
			got, err := c.Pull(running, m.ns, "pulled", client.PullOptions{MaxEvents: 8, Wait: time.Second})
			if err != nil {
				continue
			}
			var ids []string
			for _, d := range got {
				if poisonous(&d.Event) {
					drops.Add(1)
					continue // whoever pulled it is no more
				}
				pulled.put(d.Event)
				ids = append(ids, d.ID)
			}
			if len(ids) > 0 {
				_, _ = c.Settle(running, m.ns, "pulled", client.Settlement{Ack: ids})
			}
		}
	})
	dead := newBox("dead letters")
	m.dial(p.grpc, m.read(key), nil).into(dead, tailOf("dead"))
	poison := textEvent("poison", "x")
	poison.Type = "poison"
	_, err = c.Publish(m.ctx, m.ns, "orders", poison)
	m.must(err)
	for i := range 50 {
		_, err := c.Publish(m.ctx, m.ns, "orders", textEvent(fmt.Sprint("after-", i), "x"))
		m.must(err)
	}
	m.await("what came after the poison", func() error {
		for _, b := range []*box{crashed, pulled, pushed, healthy} {
			for i := range 50 {
				if _, ok := b.get(fmt.Sprint("after-", i)); !ok {
					return fmt.Errorf("after-%d has not come to %s", i, b.name)
				}
			}
		}
		return nil
	})
	m.await("dead letters of each", func() error {
		if n := dead.count(); n < 3 {
			return fmt.Errorf("there are %d", n)
		}
		return nil
	})
	for what, n := range map[string]int64{"crashes": crashes.Load(), "pulls": drops.Load(), "pushes": pushes.Load()} {
		if n != int64(attempts) {
			t.Errorf("there were %d %s, %d attempts are allowed", n, what, attempts)
		}
	}
	letter, _ := dead.get("poison")
	if reason, _ := event.Lookup(letter.Ext, delivery.AttrDeadReason); dead.count() != 3 || letter.Type != "poison" || reason == "" {
		t.Errorf("%d dead letters; the last is %+v", dead.count(), letter)
	}
	if n, _ := healthy.get("poison"); n.Type != "poison" {
		t.Error("who does not mind the poison has not got it")
	}
	if p.PID() != pid || !p.Alive() {
		t.Error("the proxy has ended")
	}
	if strings.Contains(string(p.Output()), "panic") {
		t.Error("the proxy has panicked")
	}
}
