package e2e

import (
	"bytes"
	"context"
	bigendian "encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/weft-mesh/weft/integration/history"
	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/event"
)

// fate is what a link does with bytes.
type fate int32

const (
	carried   fate = iota
	swallowed      // gone, while the connection stays: what was lost never comes
	late           // come later
)

// storeLink lies between proxies and brokers: of RocketMQ, whose name server it gives
// links for the addresses of brokers, or of Kafka, which are told to give links.
type storeLink struct {
	t     *testing.T
	later time.Duration // by how much a slow store answers later
	there atomic.Int32  // the fate of what goes to brokers
	back  atomic.Int32  // and of what comes back

	mu      sync.Mutex
	brokers map[string]string // link by the broker's address
	closers []io.Closer
	work    sync.WaitGroup
}

func newStoreLink(t *testing.T) *storeLink {
	t.Helper()
	l := &storeLink{t: t, brokers: map[string]string{}}
	t.Cleanup(func() {
		l.mu.Lock()
		for _, c := range l.closers {
			_ = c.Close()
		}
		l.closers = nil
		l.mu.Unlock()
		l.work.Wait()
	})
	return l
}

// names is a name server's address that leads to another one, with links for brokers.
func (l *storeLink) names(nameServer string) string {
	return l.listen(nameServer, l.rename, func(w io.Writer, r io.Reader) error { _, err := io.Copy(w, r); return err })
}

// listen serves an address that leads to another one.
func (l *storeLink) listen(to string, back, there func(io.Writer, io.Reader) error) string {
	addr := port(l.t)
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		l.t.Error(err)
		return addr
	}
	l.keep(ln)
	l.work.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.DialTimeout("tcp", to, 5*time.Second)
			if err != nil {
				_ = in.Close()
				continue
			}
			l.keep(in)
			l.keep(out)
			for _, way := range []func() error{func() error { return there(out, in) }, func() error { return back(in, out) }} {
				l.work.Go(func() {
					_ = way()
					_, _ = in.Close(), out.Close()
				})
			}
		}
	})
	return addr
}

func (l *storeLink) keep(c io.Closer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closers = append(l.closers, c)
}

// address is one of a broker, as a name server gives it. A link has one of the same
// length.
var address = regexp.MustCompile(`127\.0\.0\.1:\d{5}`)

// rename carries the frames of a name server, with links in place of brokers.
func (l *storeLink) rename(w io.Writer, r io.Reader) error {
	for {
		var head [4]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return err
		}
		frame := make([]byte, bigendian.BigEndian.Uint32(head[:]))
		if _, err := io.ReadFull(r, frame); err != nil {
			return err
		}
		frame = address.ReplaceAllFunc(frame, func(b []byte) []byte { return []byte(l.broker(string(b))) })
		if _, err := w.Write(slices.Concat(head[:], frame)); err != nil {
			return err
		}
	}
}

func (l *storeLink) broker(addr string) string {
	l.mu.Lock()
	link := l.brokers[addr]
	l.mu.Unlock()
	if link == "" {
		link = l.listen(addr, l.way(&l.back), l.way(&l.there))
		l.mu.Lock()
		l.brokers[addr] = link
		l.mu.Unlock()
	}
	return link
}

// way carries bytes to their fate.
func (l *storeLink) way(f *atomic.Int32) func(io.Writer, io.Reader) error {
	return func(w io.Writer, r io.Reader) error {
		type chunk struct {
			b   []byte
			due time.Time
		}
		queue := make(chan chunk, 1<<16)
		defer close(queue)
		l.work.Go(func() {
			for c := range queue {
				<-time.After(time.Until(c.due))
				_, _ = w.Write(c.b)
			}
		})
		dead := false
		buf := make([]byte, 64<<10)
		for {
			n, err := r.Read(buf)
			if err != nil {
				return err
			}
			switch dead = dead || fate(f.Load()) == swallowed; {
			case dead:
			case fate(f.Load()) == late:
				queue <- chunk{bytes.Clone(buf[:n]), time.Now().Add(l.later)}
			default:
				queue <- chunk{bytes.Clone(buf[:n]), time.Time{}}
			}
		}
	}
}

// become gives the bytes of both directions a fate.
func (l *storeLink) become(there, back fate) {
	l.there.Store(int32(there))
	l.back.Store(int32(back))
}

// linked are EventStores behind a link, by driver.
var linked = map[string]func(*testing.T, *storeLink) string{
	"rocketmq": func(t *testing.T, l *storeLink) string {
		l.later = 5 * time.Second
		return "\napiVersion: weft/v1alpha1\nkind: EventStore\nmetadata: {namespace: NS, name: main}\nspec: {rocketmq: {name_servers: [\"" + l.names(servers.SharedRocketMQ(t)) + "\"]}}\n---"
	},
	"kafka": func(t *testing.T, l *storeLink) string {
		l.later = 3 * time.Second // an answer that takes 5 s is none
		ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
		defer cancel()
		k, err := servers.StartKafka(ctx, servers.KafkaOptions{Advertise: l.broker})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := k.Stop(); err != nil {
				t.Error(err)
			}
		})
		return kafkaYAML([]string{l.broker(k.Brokers[0])}, "")
	},
}

// behindLink is a mesh of one proxy whose store is behind a link.
func behindLink(t *testing.T, driver string, partitions int) (*mesh, *storeLink, *proxy, string) {
	t.Helper()
	link := newStoreLink(t)
	store := linked[driver](t, link)
	m := newMesh(t, servers.SharedEtcd(t))
	key, identity := m.key("shop")
	p := m.proxy("p1")
	m.apply(store + strings.ReplaceAll(topicYAML("orders"), "partitions: 2", fmt.Sprint("partitions: ", partitions)) + subscriptionYAML("billing", "orders", "") + policyYAML("shop") + identity)
	m.settled(1)
	return m, link, p, key
}

// TestStoreGone: what lies between a proxy and its brokers loses what comes back, or
// both ways, while connections stay open. Nothing is acknowledged that no broker
// acknowledged, whoever publishes is told in time, and once the way is free again
// events flow: over new connections, since the old ones are silent for ever.
func TestStoreGone(t *testing.T) {
	t.Parallel()
	var both sync.WaitGroup
	for driver := range linked {
		for name, there := range map[string]fate{"one way": carried, "both ways": swallowed} {
			both.Go(func() { t.Run(driver+", "+name, func(t *testing.T) { storeGone(t, driver, there) }) })
		}
	}
	both.Wait()
}

func storeGone(t *testing.T, driver string, there fate) {
	const publishers = 4
	m, link, p, key := behindLink(t, driver, 2)
	l := newLoad(m, key)
	l.publishers("w", publishers, m.client(key, p), "orders")
	l.subscriber(p, "billing")
	l.more(100)
	l.takesPart(p)
	link.become(there, swallowed)
	acked, failed := l.published.Load(), l.repeated.Load()
	m.await("publishers that are told", func() error {
		if got := l.repeated.Load() - failed; got < publishers {
			return fmt.Errorf("%d failed", got)
		}
		return nil
	})
	// Each publisher has one event on its way, whose answer may have come before.
	if got := l.published.Load() - acked; got > publishers {
		t.Errorf("%d events were acknowledged while no broker answered", got)
	}
	link.become(carried, carried)
	l.more(100)
	l.stopPub()
	l.nothingLost()
}

// TestStoreSlow: a store that answers late is published to by many more than fit. What
// waits is bounded, the rest is told to come back later, and with a quick store all
// goes on; everything acknowledged comes.
func TestStoreSlow(t *testing.T) {
	t.Parallel()
	for driver := range linked {
		t.Run(driver, func(t *testing.T) { storeSlow(t, driver) })
	}
}

func storeSlow(t *testing.T, driver string) {
	m, link, p, key := behindLink(t, driver, 1)
	const (
		publishers = 100
		size       = 1 << 20
		// waiting is what the driver lets wait for one queue, and what a request has.
		waiting = 32<<20 + 4<<20
	)
	c := m.client(key, p)
	log := history.New()
	var refused, acked atomic.Int64
	var running sync.WaitGroup
	publish := func(id string) {
		e := event.Event{ID: id, Source: "/shop", Type: "t", Data: bytes.Repeat([]byte(id+" "), size/(len(id)+1)-64)}
		log.Intend(id, "", 0, e.Data)
		for m.ctx.Err() == nil {
			_, err := c.Publish(m.ctx, m.ns, "orders", e)
			if err == nil {
				log.Told(id, history.Acked)
				acked.Add(1)
				return
			}
			if e, ok := errors.AsType[*client.Error](err); ok && e.Code == codes.ResourceExhausted {
				refused.Add(1)
				if fate(link.back.Load()) == late {
					log.Told(id, history.Refused)
					return
				}
			}
		}
	}
	publish("before") // where the topic is is known from then on
	link.become(carried, late)
	for i := range publishers {
		running.Go(func() { publish(fmt.Sprint("slow-", i)) })
	}
	// While events are on their way to the driver, and it refuses them, they count too.
	var wait float64
	m.await("what does not fit to be refused", func() error {
		wait = p.metric("weft_proxy_publish_in_flight_bytes")
		if n := refused.Load(); wait > waiting || n < publishers/4 {
			return fmt.Errorf("%d are, %.0f bytes wait, the bound is %d", n, wait, waiting)
		}
		return nil
	})
	if n := acked.Load(); n > publishers/4 {
		t.Errorf("%d were acknowledged before the rest was refused", n)
	}
	t.Logf("%d of %d were refused, %.0f MiB wait", refused.Load(), publishers, wait/(1<<20))
	link.become(carried, carried)
	running.Wait()
	for i := range 20 {
		publish(fmt.Sprint("quick-", i))
	}
	l := newLoad(m, key)
	l.log = log
	l.subscriber(p, "billing")
	m.came(log)
	l.stopSubs()
	report := log.Check()
	t.Log(report)
	for _, v := range report.Violations(report.Published, false) {
		t.Error(v)
	}
	if report.Acked < 20 {
		t.Errorf("only %d were acknowledged", report.Acked)
	}
}
