package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/integration/history"
	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
)

// TestAccessChangesUnderTraffic: publishers and open streams run while a policy
// changes. What is denied from then on is refused with the rule's name, over HTTP
// and gRPC, and its open streams end with it; what is allowed goes on, on the same
// connections, of which there are as many as before; after the change back what
// was denied is allowed again.
func TestAccessChangesUnderTraffic(t *testing.T) {
	t.Parallel()
	store, etcd := onRocketMQ(t), servers.SharedEtcd(t)
	m := newMesh(t, etcd)
	key, identity := m.key("shop")
	p := m.proxy("p1")
	const rule = "no-orders"
	deny := fmt.Sprintf(`{name: %s, effect: deny, principals: [shop], actions: [publish, subscribe, consume], topics: [orders], subscriptions: [billing]}`, rule)
	m.apply(store + topicYAML("orders", "other") + subscriptionYAML("billing", "orders", "") + subscriptionYAML("audit", "other", "") + policyYAML("shop") + identity)
	m.settled(1)
	secret := m.read(key)

	// One gRPC connection and one HTTP connection carry both topics; each SSE
	// stream has one of its own.
	log := history.New()
	overGRPC := m.dial(p.grpc, secret, nil)
	overHTTP := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	t.Cleanup(overHTTP.CloseIdleConnections)
	traffic := startTraffic(m, log, map[string]func(event.Event, string) error{
		"grpc": func(e event.Event, topic string) error { return overGRPC.publish(topic, e) },
		"http": func(e event.Event, topic string) error {
			if code, body := m.post(overHTTP, "http://"+p.http, topic, "Bearer "+secret, e); code != http.StatusOK {
				return httpRefusal{code, body}
			}
			return nil
		},
	})
	billing := traffic.member(overGRPC, "billing")
	traffic.member(overGRPC, "audit")
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	streams := &http.Client{Transport: transport}
	ordersSSE, otherSSE := m.events(streams, "http://"+p.http, "orders", "Bearer "+secret), m.events(streams, "http://"+p.http, "other", "Bearer "+secret)

	traffic.more("orders", 20)
	traffic.more("other", 20)
	grpcBefore, httpBefore := p.connections("grpc"), p.connections("http")
	if grpcBefore != 1 || httpBefore != 3 {
		t.Errorf("there are %d gRPC and %d HTTP connections", grpcBefore, httpBefore)
	}

	m.apply(policyYAML("shop", deny))
	if err := <-billing; status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), rule) {
		t.Errorf("the open subscription ends with %v", err)
	}
	<-ordersSSE.ended
	if !strings.Contains(ordersSSE.last, rule) {
		t.Errorf("the open stream ends with %q", ordersSSE.last)
	}
	traffic.rises("orders", "refusals", 20, func(l *lane) int { return l.refused })
	traffic.each("orders", func(l *lane) {
		if !strings.Contains(l.reason, rule) {
			t.Errorf("over %s the refusal is %q", l.way, l.reason)
		}
		if l.stray > 0 {
			t.Errorf("over %s %d events were taken after the first refusal", l.way, l.stray)
		}
		l.mayAgain = true
	})
	if _, err := overGRPC.open(m.ctx, subscription("billing"), 1); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), rule) {
		t.Errorf("joining is answered with %v", err)
	}
	if _, err := overGRPC.open(m.ctx, tailOf("orders"), 1); status.Code(err) != codes.PermissionDenied {
		t.Errorf("tailing is answered with %v", err)
	}
	// What is allowed has gone on all the time.
	traffic.more("other", 20)
	select {
	case <-otherSSE.ended:
		t.Errorf("the allowed stream has ended with %q", otherSSE.last)
	default:
	}
	if g, h := p.connections("grpc"), p.connections("http"); g != grpcBefore || h != httpBefore {
		t.Errorf("there are %d gRPC and %d HTTP connections, before the change there were %d and %d", g, h, grpcBefore, httpBefore)
	}

	m.apply(policyYAML("shop"))
	traffic.more("orders", 20)
	traffic.member(overGRPC, "billing")
	traffic.more("other", 20)
	if g := p.connections("grpc"); g != grpcBefore {
		t.Errorf("after the change back there are %d gRPC connections, before there were %d", g, grpcBefore)
	}
	traffic.stop()
	m.came(log)
	report := log.Check()
	t.Log(report)
	// What the subscription had when it was ended may come again.
	for _, v := range report.Violations(64, false) {
		t.Error(v)
	}
	m.await("the allowed stream of events", func() error {
		var missing error
		traffic.each("other", func(l *lane) {
			for _, id := range l.acked {
				if e, ok := otherSSE.box.get(id); !ok || string(e.Data) != "data of "+id {
					missing = fmt.Errorf("%s has not come, or with %q", id, e.Data)
				}
			}
			if l.refused > 0 {
				t.Errorf("of the topic that is always allowed %d were refused over %s: %s", l.refused, l.way, l.reason)
			}
		})
		return missing
	})
}

type httpRefusal struct {
	code int
	body string
}

func (e httpRefusal) Error() string { return fmt.Sprintf("%d %s", e.code, e.body) }

func denied(err error) bool {
	if h, ok := errors.AsType[httpRefusal](err); ok {
		return h.code == http.StatusForbidden
	}
	return status.Code(err) == codes.PermissionDenied
}

// traffic publishes to the topics orders and other in several ways at once, and
// keeps the history.
type traffic struct {
	*mesh
	log  *history.Log
	ends chan struct{}
	stop func()

	mu    sync.Mutex
	lanes []*lane
}

// lane is one way to one topic. Its fields are guarded by traffic.mu.
type lane struct {
	way, topic     string
	acked          []string
	refused, stray int
	reason         string
	mayAgain       bool // what was refused may be allowed again
}

func startTraffic(m *mesh, log *history.Log, ways map[string]func(event.Event, string) error) *traffic {
	tr := &traffic{mesh: m, log: log, ends: make(chan struct{})}
	var running sync.WaitGroup
	for way, send := range ways {
		for _, topic := range []string{"orders", "other"} {
			l := &lane{way: way, topic: topic}
			tr.lanes = append(tr.lanes, l)
			running.Go(func() { tr.run(l, send) })
		}
	}
	tr.stop = sync.OnceFunc(func() { close(tr.ends); running.Wait() })
	m.Cleanup(tr.stop)
	return tr
}

// run publishes one event after another, every few milliseconds.
func (tr *traffic) run(l *lane, send func(event.Event, string) error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-tick.C:
		case <-tr.ends:
			return
		}
		id := fmt.Sprintf("%s-%s-%d", l.way, l.topic, n)
		e := textEvent(id, "data of "+id)
		tr.log.Intend(id, "", n, e.Data)
		err := send(e, l.topic)
		tr.mu.Lock()
		switch {
		case err == nil:
			tr.log.Told(id, history.Acked)
			l.acked = append(l.acked, id)
			if l.refused > 0 && !l.mayAgain {
				l.stray++
			}
		case denied(err):
			tr.log.Told(id, history.Refused)
			l.refused++
			l.reason = err.Error()
		default:
			tr.Errorf("%s: %v", id, err)
		}
		tr.mu.Unlock()
		if err != nil && !denied(err) {
			return
		}
	}
}

// each gives the lanes of a topic, one at a time, under the lock.
func (tr *traffic) each(topic string, f func(*lane)) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for _, l := range tr.lanes {
		if l.topic == topic {
			f(l)
		}
	}
}

// rises waits until of, of each lane of a topic, is n higher than it is now.
func (tr *traffic) rises(topic, what string, n int, of func(*lane) int) {
	tr.Helper()
	goal := map[*lane]int{}
	tr.each(topic, func(l *lane) { goal[l] = of(l) + n })
	tr.await(fmt.Sprintf("%d more %s of %s", n, what, topic), func() error {
		var short error
		tr.each(topic, func(l *lane) {
			if of(l) < goal[l] {
				short = fmt.Errorf("over %s there are %d, wanted are %d", l.way, of(l), goal[l])
			}
		})
		return short
	})
}

// more waits until n more events of a topic are acknowledged in each way.
func (tr *traffic) more(topic string, n int) {
	tr.Helper()
	tr.rises(topic, "acknowledgements", n, func(l *lane) int { return len(l.acked) })
}

// member joins a Subscription and keeps what comes in the history. The channel
// gets what its stream ends with.
func (tr *traffic) member(r *rpc, name string) <-chan error {
	tr.Helper()
	s, err := r.open(tr.ctx, subscription(name), 64)
	tr.must(err)
	ended := make(chan error, 1)
	go func() {
		ended <- s.receive(func(d *eventsv1.Delivery) bool {
			e, err := received(d)
			if err != nil {
				tr.Error(err)
			}
			tr.log.Receive(e.ID, e.Data)
			return true
		})
	}()
	return ended
}
