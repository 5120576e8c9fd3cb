package rocketmq

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/rocketmq/remoting"
)

// nameLink leads to a name server. Frozen, it takes connections and requests, and holds
// requests back until it thaws.
type nameLink struct {
	addr string

	mu     sync.Mutex
	asked  map[int]int   // how many requests there were, by code
	frozen chan struct{} // closed when it thaws; nil where it is not frozen
	closed bool
	conns  []net.Conn
	work   sync.WaitGroup
}

func newNameLink(t *testing.T, to string) *nameLink {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &nameLink{addr: l.Addr().String(), asked: map[int]int{}}
	k.work.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			k.mu.Lock()
			k.conns = append(k.conns, in, out)
			closed := k.closed
			k.mu.Unlock()
			if closed {
				_, _ = in.Close(), out.Close()
			}
			k.work.Go(func() { _, _ = io.Copy(in, out); _ = in.Close() })
			frames := make(chan held, 1<<10)
			k.work.Go(func() { k.read(in, frames); close(frames); _ = out.Close() })
			k.work.Go(func() {
				for f := range frames {
					if f.until != nil {
						<-f.until
					}
					_, _ = out.Write(f.frame)
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		k.thaw()
		k.mu.Lock()
		k.closed = true
		for _, c := range k.conns {
			_ = c.Close()
		}
		k.mu.Unlock()
		k.work.Wait()
	})
	return k
}

// held is a request, and until when it is held back; for no time where that is nil.
type held struct {
	frame []byte
	until chan struct{}
}

// read reads requests.
func (k *nameLink) read(r io.Reader, to chan<- held) {
	for {
		frame := make([]byte, 4)
		if _, err := io.ReadFull(r, frame); err != nil {
			return
		}
		frame = append(frame, make([]byte, binary.BigEndian.Uint32(frame))...)
		if _, err := io.ReadFull(r, frame[4:]); err != nil {
			return
		}
		cmd, err := remoting.Decode(frame[4:])
		if err != nil {
			return
		}
		k.mu.Lock()
		k.asked[cmd.Code]++
		until := k.frozen
		k.mu.Unlock()
		to <- held{frame, until}
	}
}

func (k *nameLink) freeze() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.frozen = make(chan struct{})
}

func (k *nameLink) thaw() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.frozen != nil {
		close(k.frozen)
		k.frozen = nil
	}
}

// routes is how often it was asked for a route.
func (k *nameLink) routes() int { return k.times(reqRoute) }

// times is how often a request of a code was sent.
func (k *nameLink) times(code int) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.asked[code]
}

// lookedFor prepares a topic with a store that reaches its name servers by links and
// waits for their answers for ever, unless the context ends.
func lookedFor(ctx context.Context, t *testing.T, nameServers ...string) (s *Store, topic string) {
	t.Helper()
	made, topic := prepare(ctx, t, servers.SharedRocketMQ(t), 2)
	shut(t, made.Close)
	st, err := Driver{}.Open(ctx, store.Config{Name: "test", ClientID: uuid.NewString(), Options: Options{NameServers: nameServers}})
	if err != nil {
		t.Fatal(err)
	}
	shut(t, st.Close)
	s = st.(*Store)
	s.c.times.answer, s.c.times.again = time.Hour, time.Hour
	return s, topic
}

// age makes a topic's route so old that it is looked up again.
func age(s *Store, topic string) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	old := *s.c.places[topic].route
	old.at = old.at.Add(-2 * routeAge)
	s.c.places[topic].route = &old
}

// underWay is the look for a topic that is under way; nil where none is.
func underWay(s *Store, topic string) *look {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if p := s.c.places[topic]; p != nil {
		return p.look
	}
	return nil
}

func publishOne(ctx context.Context, s *Store, topic string) error {
	return s.Publish(ctx, topic, []store.Outgoing{{Event: &event.Event{ID: uuid.NewString(), Source: "/s", Type: "t"}, Key: uuid.NewString()}}, make([]store.Result, 1))
}

// TestNamesHang: while the name server hangs, which is found when the topic's route is
// old, it is asked once, and publishes go on by the old route. Once it answers, the
// route is new.
func TestNamesHang(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	link := newNameLink(t, servers.SharedRocketMQ(t))
	s, topic := lookedFor(ctx, t, link.addr)
	if err := publishOne(ctx, s, topic); err != nil {
		t.Fatal(err)
	}
	link.freeze()
	age(s, topic)
	before := link.routes()
	var work sync.WaitGroup
	for range 16 {
		work.Go(func() {
			for range 16 {
				if err := publishOne(ctx, s, topic); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	work.Wait()
	l := underWay(s, topic)
	if n := link.routes() - before; l == nil || n > 1 {
		t.Fatalf("256 publishes while the name server hung: it was asked %d times for the route; under way: %v", n, l != nil)
	}
	other := open(t, servers.SharedRocketMQ(t), 0)
	shut(t, other.Close)
	if err := other.EnsureTopic(ctx, store.TopicSpec{Name: topic, Partitions: 4}); err != nil {
		t.Fatal(err)
	}
	link.thaw()
	if !l.wait(ctx, 0) {
		t.Fatal("the look does not end")
	}
	if r, err := s.c.route(ctx, topic, false); err != nil || len(r.write) != 4 {
		t.Errorf("once the name server answers: %+v, %v", r, err)
	}
	if n := link.routes() - before; n != 1 {
		t.Errorf("the name server was asked %d times", n)
	}
}

// TestNamesFail: after a look that failed, publishes go on by the old route, and the
// name server is left alone for a while.
func TestNamesFail(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	link := newNameLink(t, servers.SharedRocketMQ(t))
	s, topic := lookedFor(ctx, t, link.addr)
	if err := publishOne(ctx, s, topic); err != nil {
		t.Fatal(err)
	}
	link.freeze()
	age(s, topic)
	before := link.routes()
	s.c.times.patience, s.c.times.answer = time.Hour, time.Millisecond
	for range 50 {
		// Not to publish: of brokers, more is expected in a millisecond.
		if r, err := s.c.route(ctx, topic, false); err != nil || len(r.write) != 2 {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	// Nor does it help to doubt the route.
	s.c.doubt(topic)
	if r, err := s.c.route(ctx, topic, false); err != nil || len(r.write) != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	if n := link.routes() - before; n > 1 {
		t.Errorf("the name server was asked %d times", n)
	}
	if _, err := s.c.route(ctx, topic, true); err == nil || fault.ClassOf(err) != fault.Unavailable {
		t.Errorf("who wants an answer of now got %v", err)
	}
	// The next look is not waited for either, as the last one has failed.
	s.c.times.patience, s.c.times.answer, s.c.times.again = time.Nanosecond, time.Hour, 0
	if r, err := s.c.route(ctx, topic, false); err != nil || ctx.Err() != nil || len(r.write) != 2 || underWay(s, topic) == nil {
		t.Errorf("a while later: %+v, %v", r, err)
	}
}

// TestDoubt: who uses a route that a broker has made doubtful waits for what is asked
// after that; what was asked before may be the same that is wrong.
func TestDoubt(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	link := newNameLink(t, servers.SharedRocketMQ(t))
	s, topic := lookedFor(ctx, t, link.addr)
	if err := publishOne(ctx, s, topic); err != nil {
		t.Fatal(err)
	}
	link.freeze()
	age(s, topic)
	s.c.times.patience = time.Nanosecond
	before := link.routes()
	if _, err := s.c.route(ctx, topic, false); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for link.routes() == before {
		<-tick.C
	}
	s.c.doubt(topic)
	doubted := time.Now()
	asks, found := make(chan struct{}), make(chan error, 1)
	go func() {
		close(asks)
		r, err := s.c.route(ctx, topic, false)
		if err == nil && r.at.Before(doubted) {
			err = errors.New("the route is one that was asked for before it was doubted")
		}
		found <- err
	}()
	<-asks // it waits for the first look long before that is answered
	link.thaw()
	if err := <-found; err != nil {
		t.Error(err)
	}
}

// TestOtherNames: where a name server hangs the next one is asked, and first from then on.
func TestOtherNames(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hangs, answers := newNameLink(t, servers.SharedRocketMQ(t)), newNameLink(t, servers.SharedRocketMQ(t))
	s, topic := lookedFor(ctx, t, hangs.addr, answers.addr)
	s.c.times.answer = callTimeout
	hangs.freeze()
	const looks = 20
	for range looks {
		if err := publishOne(ctx, s, topic); err != nil {
			t.Fatal(err)
		}
		age(s, topic)
	}
	if h, a := hangs.routes(), answers.routes(); h != 1 || a != looks {
		t.Errorf("the one that hangs was asked %d times, the other one %d times", h, a)
	}
}

// TestLookForTheRemoved: brokers are asked for while one that had the topic is waited for,
// and no more once it was removed.
func TestLookForTheRemoved(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	link := newNameLink(t, servers.SharedRocketMQ(t))
	s, topic := lookedFor(ctx, t, link.addr)
	for _, c := range []struct {
		away time.Duration
		want int // questions for brokers
	}{{0, 1}, {removedAfter, 0}} {
		s.c.mu.Lock()
		s.c.had[topic] = map[string]had{"gone": {at: time.Now().Add(-c.away), write: 1}}
		s.c.mu.Unlock()
		routes, brokers := link.routes(), link.times(reqCluster)
		if _, err := s.c.route(ctx, topic, true); err != nil {
			t.Fatal(err)
		}
		if r, b := link.routes()-routes, link.times(reqCluster)-brokers; r != 1 || b != c.want {
			t.Errorf("with a broker that is away for %v: %d questions for the route, %d for brokers, want 1 and %d", c.away, r, b, c.want)
		}
	}
}

// TestNoTopic: of a topic that is not there nothing is kept, and who asks once it is
// there is told so though others have asked before.
func TestNoTopic(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	link := newNameLink(t, servers.SharedRocketMQ(t))
	s, known := lookedFor(ctx, t, link.addr)
	topic := names.Physical(servers.Namespace(t), "none"+uuid.NewString()[:4])
	if _, err := s.c.route(ctx, topic, false); err == nil || fault.ClassOf(err) != fault.NotFound {
		t.Fatalf("of a topic that is not there: %v", err)
	}
	// One that goes.
	if err := publishOne(ctx, s, known); err != nil {
		t.Fatal(err)
	}
	other := open(t, servers.SharedRocketMQ(t), 0)
	shut(t, other.Close)
	if err := other.DeleteTopic(ctx, known); err != nil {
		t.Fatal(err)
	}
	age(s, known)
	if _, err := s.c.route(ctx, known, false); err == nil || fault.ClassOf(err) != fault.NotFound {
		t.Errorf("of a topic that was deleted: %v", err)
	}
	s.c.mu.Lock()
	if len(s.c.places) > 0 || len(s.c.had) > 0 {
		t.Errorf("kept of topics that are not there: %v, %v", s.c.places, s.c.had)
	}
	s.c.mu.Unlock()
	if err := other.EnsureTopic(ctx, store.TopicSpec{Name: topic, Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	if err := publishOne(ctx, s, topic); err != nil {
		t.Errorf("to a topic that is there now: %v", err)
	}
}

// TestLookEnds: a look ends with its store, not with who began it.
func TestLookEnds(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	link := newNameLink(t, servers.SharedRocketMQ(t))
	s, topic := lookedFor(ctx, t, link.addr)
	s.c.times.patience = time.Nanosecond
	link.freeze()
	short, end := context.WithCancel(ctx)
	end()
	if _, err := s.c.route(short, topic, false); err == nil || fault.ClassOf(err) != fault.Unavailable {
		t.Errorf("a caller who has gone: %v", err)
	}
	l := underWay(s, topic)
	link.thaw()
	if l == nil || !l.wait(ctx, 0) || l.err != nil {
		t.Fatalf("the look of a caller who has gone: %+v", l)
	}
	link.freeze()
	age(s, topic)
	if _, err := s.c.route(ctx, topic, false); err != nil {
		t.Fatal(err)
	}
	l = underWay(s, topic)
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
	if l == nil || !l.wait(ctx, 0) || l.err == nil {
		t.Errorf("the look of a store that is closed: %+v", l)
	}
	if _, err := s.c.route(ctx, topic+"-other", false); err == nil || fault.ClassOf(err) != fault.Unavailable {
		t.Errorf("of a store that is closed: %v", err)
	}
}
