package delivery

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/embedded"
)

const uidNext = "55555555-5555-4555-8555-555555555555"

// moving is a topic that moves from one real store to another, and proxies on both.
type moving struct {
	*world
	second  store.Store
	proxies []*world
	sub     func(*snapshot.Subscription)
	cut     store.Position
}

// nextTopic is the topic in its second store.
const nextTopic = "orders-e2"

// counted is a store that counts how often it is asked for a group's lag, and refuses
// while it is down.
type counted struct {
	store.Store
	store.Admin
	asked atomic.Int64
	down  atomic.Bool
	kept  atomic.Uint64 // what is before is removed, and groups are behind it
}

func (c *counted) Lag(ctx context.Context, topic, group string) ([]store.PartitionLag, error) {
	c.asked.Add(1)
	if c.down.Load() {
		return nil, context.DeadlineExceeded
	}
	lag, err := c.Admin.Lag(ctx, topic, group)
	for i := range lag {
		lag[i].Committed = max(lag[i].Committed, c.kept.Load())
	}
	return lag, err
}

func (c *counted) PublishDelayed(ctx context.Context, topic string, events []store.Outgoing, due []time.Time, res []store.Result) error {
	return c.Store.(store.Delayer).PublishDelayed(ctx, topic, events, due, res)
}

func (c *counted) Extents(ctx context.Context, topic string) ([]store.Extent, error) {
	if c.down.Load() {
		return nil, fault.New(fault.Unavailable, "test", "down", "the store is down")
	}
	return c.Store.(store.Measurer).Extents(ctx, topic)
}

// newMoving has the topic in its first store, and n proxies that know of no other.
func newMoving(t *testing.T, n int, change func(*snapshot.Subscription)) *moving {
	t.Helper()
	w := newWorld(t, change)
	w.stop()
	st, err := embedded.Driver{}.Open(w.ctx, store.Config{Name: "next", Dir: "store", Options: embedded.Options{FS: vfs.NewMem()}})
	w.must(err)
	t.Cleanup(func() { w.must(st.Close(context.Background())) })
	admin := st.(store.Admin)
	for _, topic := range []string{nextTopic, names.RetryTopic(uidSub)} {
		w.must(admin.EnsureTopic(w.ctx, store.TopicSpec{Name: topic}))
	}
	w.must(admin.EnsureGroup(w.ctx, nextTopic, "g", store.Start{}))
	w.must(admin.EnsureGroup(w.ctx, names.RetryTopic(uidSub), "rg", store.Start{}))
	o := &moving{world: w, second: st, sub: change}
	w.st = &counted{Store: w.st, Admin: w.st.(store.Admin)}
	w.others = map[string]store.Store{uidNext: st}
	w.start()
	o.proxies = []*world{w}
	for len(o.proxies) < n {
		p := *w
		p.snaps = latest.New(w.snapshot(change))
		p.start()
		t.Cleanup(p.stop)
		o.proxies = append(o.proxies, &p)
	}
	return o
}

// put writes events to an epoch, in order, and gives the position of the last.
func (o *moving) put(epoch int, events ...*event.Event) store.Position {
	o.Helper()
	st, topic := o.st, "orders"
	if epoch == 2 {
		st, topic = o.second, nextTopic
	}
	var at store.Position
	for _, e := range events {
		var res [1]store.Result
		o.must(st.Publish(o.ctx, topic, []store.Outgoing{{Event: e, Key: e.Key("")}}, res[:]))
		at = res[0].Pos
	}
	return at
}

// seal writes a marker, which is the cut that draining has.
func (o *moving) seal(attempt uint32) { o.cut = o.put(1, cutover.Marker(uidOrders, 1, attempt)) }

// config is what proxies get in a phase.
func (o *moving) config(p cutover.Phase) *snapshot.Snapshot {
	snap := o.snapshot(o.sub)
	t, sub := snap.Topics[snapshot.Key{Namespace: "demo", Name: "orders"}], snap.Subscriptions[snapshot.Key{Namespace: "demo", Name: "billing"}]
	t.Epochs = append(t.Epochs, snapshot.Epoch{Number: 2, StoreUID: uidNext, Physical: nextTopic})
	t.Move = &snapshot.Move{Phase: p}
	if p >= cutover.Draining {
		t.Cuts = map[uint32]map[string]store.Position{1: {o.cut.Partition: o.cut}}
	}
	sub.Sources = append(sub.Sources, snapshot.Source{Topic: t, Epoch: t.Epochs[1], Group: "g", RetryTopic: names.RetryTopic(uidSub), RetryGroup: "rg"})
	if p == cutover.Finished {
		t.Epochs, t.Cuts, t.Move, sub.Sources = t.Epochs[1:], nil, nil, sub.Sources[1:]
	}
	return snap
}

// tell gives a proxy a configuration, and waits until its Subscription has it.
func (o *moving) tell(p *world, snap *snapshot.Snapshot) {
	p.snaps.Store(snap)
	o.until("the configuration is in force", func() bool {
		p.m.mu.Lock()
		r := p.m.runtimes[uidSub]
		p.m.mu.Unlock()
		if r == nil {
			return true
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.sub == snap.Subscriptions[r.key]
	})
}

func (o *moving) until(what string, done func() bool) {
	o.Helper()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for end := time.After(patience); !done(); {
		select {
		case <-ticker.C:
		case <-end:
			o.Fatalf("%s: it never is", what)
		}
	}
}

// TestEpochs: members and pulls at two proxies come and go, settle, fail and time out,
// while the topic moves and each proxy hears of it in its own time. Nothing that was
// acknowledged is lost, and what a proxy knows to be behind the cut is not delivered,
// nor is a marker. No event of the new store is delivered before the group has settled all of the
// old one, and those of a key come in their order.
func TestEpochs(t *testing.T) {
	runs := 24
	if os.Getenv("WEFT_TEST_SOAK") != "" {
		runs = 1000
	}
	for i := range runs {
		seed := uint64(i)
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, 1))
			ordered := r.IntN(2) == 0
			o := &epochModel{r: r, firsts: map[string]int{}, seqs: map[string]int{}, acked: map[string]bool{}, told: map[*world]bool{}}
			o.moving = newMoving(t, 2, func(s *snapshot.Subscription) {
				s.Ordered, s.AckTimeout, s.MaxInFlight = ordered, 50*time.Millisecond, 1+r.IntN(40)
			})
			o.run(ordered)
		})
	}
}

// epochModel is what was published and what came of it.
type epochModel struct {
	*moving
	r       *rand.Rand
	members map[Member]*world
	seqs    map[string]int  // published, by key
	firsts  map[string]int  // delivered, by key
	all     []string        // ids that were acknowledged to the publisher
	old     int             // of them in the first epoch
	acked   map[string]bool // by a member
	told    map[*world]bool // of the cut
	holds   []func(ack bool)
}

func (o *epochModel) run(ordered bool) {
	o.members = map[Member]*world{}
	for range 20 + o.r.IntN(60) {
		o.step(1, ordered)
	}
	for range o.r.IntN(3) { // markings that came to nothing
		o.seal(1)
		o.publish(1)
		o.step(1, ordered)
	}
	o.old = len(o.all)
	o.seal(2)
	for range o.r.IntN(4) { // late writes; some are published again, some are not
		key := o.key()
		if o.r.IntN(2) == 0 {
			o.put(1, keyed(fmt.Sprintf("%s/%d", key, o.seqs[key]+1), key))
			o.publishOf(2, key)
		} else {
			o.put(1, keyed("late/"+key, key))
		}
	}
	snap := o.config(cutover.Draining)
	for i := range 80 + o.r.IntN(60) {
		if p := o.proxies[o.r.IntN(2)]; i%10 == 0 && !o.told[p] {
			o.tell(p, snap)
			o.told[p] = true
		}
		o.step(2, ordered)
	}
	o.finish(snap, ordered)
}

func (o *epochModel) key() string { return "k" + strconv.Itoa(o.r.IntN(4)) }

func (o *epochModel) publish(epoch int) { o.publishOf(epoch, o.key()) }

// publishOf writes the next event of a key, which is acknowledged.
func (o *epochModel) publishOf(epoch int, key string) {
	o.seqs[key]++
	id := fmt.Sprintf("%s/%d", key, o.seqs[key])
	o.put(epoch, keyed(id, key))
	o.all = append(o.all, id)
}

func (o *epochModel) step(epoch int, ordered bool) {
	m, p := o.member()
	switch op := o.r.IntN(12); {
	case op < 4:
		o.publish(epoch)
	case op == 4 && len(o.members) < 4, m == nil:
		p = o.proxies[o.r.IntN(2)]
		o.members[p.join(1+o.r.IntN(20))] = p
	case op == 4:
		if o.r.IntN(3) == 0 {
			m.Lost()
		}
		m.Close()
		delete(o.members, m)
	case op < 8:
		o.take(m, p, ordered)
	case op == 8:
		o.pull(o.proxies[o.r.IntN(2)], ordered)
	default:
		if i := len(o.holds) - 1; i >= 0 {
			j := o.r.IntN(i + 1)
			hold := o.holds[j]
			o.holds[j], o.holds = o.holds[i], o.holds[:i]
			if o.r.IntN(8) > 0 { // else it times out
				hold(o.r.IntN(4) > 0)
			}
		}
	}
}

func (o *epochModel) member() (Member, *world) {
	n := o.r.IntN(max(len(o.members), 1))
	for m, p := range o.members {
		if n--; n < 0 {
			return m, p
		}
	}
	return nil, nil
}

// take has a member take what there is.
func (o *epochModel) take(m Member, p *world, ordered bool) {
	ctx, cancel := context.WithTimeout(o.ctx, 2*time.Millisecond)
	defer cancel()
	var dst [8]Delivery
	n, _ := m.Next(ctx, dst[:1+o.r.IntN(8)])
	for _, d := range dst[:n] {
		o.delivered(p, d, ordered)
		id, name := d.ID, d.Event.ID
		o.holds = append(o.holds, func(ack bool) {
			if !ack {
				m.Nack("no", 0, id)
			} else if m.Ack(id) == 0 {
				o.acked[name] = true
			}
		})
	}
}

// pull is take for who pulls.
func (o *epochModel) pull(p *world, ordered bool) {
	got, err := p.m.Pull(o.ctx, local, "demo", "billing", PullRequest{Max: 4, Wait: 2 * time.Millisecond})
	o.must(err)
	for i, d := range got.Deliveries {
		o.delivered(p, d, ordered)
		h, name := got.Handles[i], d.Event.ID
		o.holds = append(o.holds, func(ack bool) {
			x := Settlement{Ack: []string{h}}
			if !ack {
				x = Settlement{Nack: []Nack{{Handles: []string{h}}}}
			}
			if bad, err := p.m.Settle(o.ctx, local, "demo", "billing", x); err == nil && len(bad) == 0 && ack {
				o.acked[name] = true
			}
		})
	}
}

// delivered checks what a proxy has delivered.
func (o *epochModel) delivered(p *world, d Delivery, ordered bool) {
	o.Helper()
	if cutover.IsMarker(d.Event) {
		o.Errorf("a marker is delivered")
		return
	}
	if d.Position.Epoch == 1 && o.told[p] && !d.Position.Pos.Less(o.cut) {
		o.Errorf("%s is delivered, and it is behind the cut", d.Event.ID)
	}
	if d.Position.Epoch == 2 {
		for _, id := range o.all[:o.old] {
			if !o.acked[id] {
				o.Fatalf("%s of the new store is delivered, and nobody has settled %s of the old one", d.Event.ID, id)
			}
		}
	}
	key, seq := keyOf(d.Event.ID), seqOf(d.Event.ID)
	if key == "late" || !ordered {
		return
	}
	if seq > o.firsts[key]+1 {
		o.Errorf("%s is delivered after %s/%d", d.Event.ID, key, o.firsts[key])
	}
	o.firsts[key] = max(o.firsts[key], seq)
}

// finish has everything delivered and settled.
func (o *epochModel) finish(snap *snapshot.Snapshot, ordered bool) {
	for m := range o.members {
		m.Close()
	}
	for _, p := range o.proxies {
		if !o.told[p] {
			o.tell(p, snap)
			o.told[p] = true
		}
	}
	o.holds, o.members = nil, map[Member]*world{}
	for i := range 4 {
		p := o.proxies[i%2]
		o.members[p.join(1+o.r.IntN(20))] = p
	}
	missing := func() string {
		for _, id := range o.all {
			if !o.acked[id] {
				return id
			}
		}
		return ""
	}
	for end := time.Now().Add(patience); missing() != "" && !o.Failed(); {
		for m, p := range o.members {
			o.take(m, p, ordered)
		}
		o.pull(o.proxies[o.r.IntN(2)], ordered) // a session of before may have some of it
		for _, hold := range o.holds {
			hold(true)
		}
		o.holds = nil
		if time.Now().After(end) {
			o.Fatalf("%s is not delivered", missing())
		}
	}
	for m := range o.members {
		m.Close()
	}
}
