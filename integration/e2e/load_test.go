package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/integration/history"
	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store/position"
)

// credit is what a subscriber may have unsettled.
const credit = 64

// load publishes and receives while proxies come and go, and keeps the history.
type load struct {
	*mesh
	log *history.Log
	key string // file
	// published counts acknowledged events, repeated those that were sent again
	// because nobody knew what became of them.
	published, repeated atomic.Int64
	// hold tells which events the subscribers leave unsettled; nil is none.
	hold func(event.Event, history.Place) bool

	ctx      context.Context // of the publishers
	stopPub  func()
	subs     context.Context
	stopSubs func()
}

func newLoad(m *mesh, key string) *load {
	l := &load{mesh: m, log: history.New(), key: key}
	var pubs, subs context.CancelFunc
	l.ctx, pubs = context.WithCancel(m.ctx)
	l.subs, subs = context.WithCancel(m.ctx)
	l.stopPub, l.stopSubs = pubs, subs
	return l
}

// publishers start n publishers of a topic, each with one event at a time.
func (l *load) publishers(name string, n int, c *client.Client, topic string) *sync.WaitGroup {
	return l.publishersBy(name, n, func(ctx context.Context, e event.Event) error {
		_, err := c.Publish(ctx, l.ns, topic, e)
		return err
	})
}

// publishersBy start n publishers that publish so.
func (l *load) publishersBy(name string, n int, by func(context.Context, event.Event) error) *sync.WaitGroup {
	var running sync.WaitGroup
	for w := range n {
		running.Go(func() {
			for k := 0; l.ctx.Err() == nil; k++ {
				id := fmt.Sprintf("%s%d-%d", name, w, k)
				l.publishBy(l.ctx, textEvent(id, "data of "+id), by)
			}
		})
	}
	stop := l.stopPub
	l.stopPub = func() { stop(); running.Wait() }
	l.Cleanup(func() { l.stopPub() })
	return &running
}

// publish publishes one event, with the same id until it is certain that it is
// kept, or ctx ends.
func (l *load) publish(ctx context.Context, c *client.Client, topic string, e event.Event) {
	l.publishBy(ctx, e, func(ctx context.Context, e event.Event) error {
		_, err := c.Publish(ctx, l.ns, topic, e)
		return err
	})
}

func (l *load) publishBy(ctx context.Context, e event.Event, by func(context.Context, event.Event) error) {
	l.log.Intend(e.ID, "", 0, e.Data)
	for ctx.Err() == nil {
		cctx, cancel := context.WithTimeout(ctx, 15*time.Second)
		err := by(cctx, e)
		cancel()
		if err == nil {
			l.log.Told(e.ID, history.Acked)
			l.published.Add(1)
			return
		}
		l.repeated.Add(1)
	}
}

// more waits until n more events are acknowledged.
func (l *load) more(n int64) {
	l.Helper()
	goal := l.published.Load() + n
	l.await("events that flow", func() error {
		if got := l.published.Load(); got < goal {
			return fmt.Errorf("%d are acknowledged, wanted are %d", got, goal)
		}
		return nil
	})
}

// subscriber is a member of the subscription at one proxy, whenever that is
// there.
func (l *load) subscriber(p *proxy, name string) {
	r := l.dial(p.grpc, l.read(l.key), nil)
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for l.subs.Err() == nil {
			// The life must be known before the stream is open: one that ends
			// meanwhile opens none.
			owner := p.life()
			err := l.consume(r, name, owner)
			if c := status.Code(err); c != codes.Unavailable && l.subs.Err() == nil {
				l.Errorf("a subscriber of %s ended: %v", p.name, err)
				return
			}
			<-tick.C
		}
	})
	stop := l.stopSubs
	l.stopSubs = func() { stop(); running.Wait() }
	l.Cleanup(func() { l.stopSubs() })
}

// consume is one stream.
func (l *load) consume(r *rpc, name, owner string) error {
	s, err := r.open(l.subs, subscription(name), credit)
	if err != nil {
		return err
	}
	return s.receive(func(d *eventsv1.Delivery) bool {
		e, err := received(d)
		if err != nil {
			l.Error(err)
		}
		if e.Source != published { // who receives it twice knows so by source and id
			l.Errorf("%s came from %s", e.ID, e.Source)
		}
		at, err := place(d.Position, owner)
		if err != nil {
			l.Error(err)
		}
		l.log.ReceiveAt(e.ID, e.Data, at)
		return l.hold == nil || !l.hold(e, at)
	})
}

// place reads a position.
func place(token, owner string) (history.Place, error) {
	t, err := position.Parse(token)
	return history.Place{Owner: owner, Partition: t.TopicUID + "/" + t.Pos.Partition, Offset: t.Pos.Offset}, err
}

// life names the proxy's current life.
func (p *proxy) life() string { return fmt.Sprintf("%s, life %d", p.name, p.lives.Load()) }

// takesPart waits until the proxy's current life has delivered something.
func (l *load) takesPart(p *proxy) {
	l.Helper()
	l.await("deliveries of "+p.life(), func() error {
		if n, _ := l.log.From(p.life()); n == 0 {
			return errors.New("there are none")
		}
		return nil
	})
}

// kill kills a proxy (kill -9) that takes part and tells how many partitions it
// has delivered of.
func (l *load) kill(p *proxy) int {
	l.Helper()
	l.takesPart(p)
	l.must(p.Kill())
	_, partitions := l.log.From(p.life())
	return len(partitions)
}

// came waits until what was acknowledged has come.
func (m *mesh) came(log *history.Log) {
	m.Helper()
	m.await("what was acknowledged", func() error {
		if ids := log.Missing(3); len(ids) > 0 {
			return fmt.Errorf("%v have not come", ids)
		}
		return nil
	})
}

// judge ends the load and judges: everything acknowledged came, and no more came
// again than the window allows.
func (l *load) judge(window int) history.Redelivery {
	l.Helper()
	l.stopPub()
	l.came(l.log)
	l.stopSubs()
	report, again := l.log.Check(), l.log.Redelivery(window)
	l.Logf("%s", report)
	l.Logf("window %d, credit %d: %s; publishers repeated %d", window, credit, again, l.repeated.Load())
	// A publisher's repeat may be in the store beside the first.
	for _, v := range append(report.Violations(again.Bound+int(l.repeated.Load()), false), again.Violations...) {
		l.Error(v)
	}
	return again
}

// tails follow the topic of a load, for as long as it is under way.
type tails struct {
	web    *sse
	stream *box
	ended  <-chan error // of the stream
}

// follow begins a tail over gRPC and one over HTTP, each at a proxy.
func (l *load) follow(overGRPC, overHTTP *proxy, topic string) tails {
	stream := newBox("a gRPC tail")
	return tails{l.events(http.DefaultClient, "http://"+overHTTP.http, topic, "Bearer "+l.read(l.key)), stream,
		l.dial(overGRPC.grpc, l.read(l.key), nil).into(stream, tailOf(topic))}
}

// allCame ends the load: all that publishers were told is kept came to the tails, neither
// of which ended, and to the subscribers.
func (l *load) allCame(at tails) history.Report {
	l.Helper()
	l.stopPub()
	want := int(l.published.Load())
	l.await("all at the tails", func() error {
		if a, b := at.web.box.count(), at.stream.count(); a < want || b < want {
			return fmt.Errorf("of %d events %d and %d came", want, a, b)
		}
		return nil
	})
	select {
	case err := <-at.ended:
		l.Errorf("the gRPC tail has ended: %v", err)
	case <-at.web.ended:
		l.Errorf("the tail over HTTP has ended: %s", at.web.last)
	default:
	}
	return l.nothingLost()
}

// nothingLost ends the subscribers once all came that publishers, who have ended, were told
// is kept.
func (l *load) nothingLost() history.Report {
	l.Helper()
	l.came(l.log)
	l.stopSubs()
	report := l.log.Check()
	l.Logf("%s; publishers repeated %d", report, l.repeated.Load())
	for _, v := range report.Violations(report.Published, false) {
		l.Error(v)
	}
	return report
}
