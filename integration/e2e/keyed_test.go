package e2e

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-mesh/weft/integration/history"
	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
)

// keyed publishes events of many keys in every way that is answered, of each key one
// after the other, and again until it is acknowledged; and it notes what readers of every
// sort get of them.
type keyed struct {
	*mesh
	topic, key string
	keys       int
	at         []*entrance
	replicas   []*replica
	sidecar    *proxy // nil where there is none
	readers    []*keyedReader
	// keyless is how many of the publishers give their events no key.
	keyless int
	// pace is what publishers take turns by.
	pace *time.Ticker
	// serving is how many of the entrances publishers use, the first ones; round has
	// each use all of them in every way again, and done counts who has.
	serving, round, done atomic.Int64
	// published counts events that are acknowledged, free those of them without a key,
	// repeated attempts of which nobody knows what has become.
	published, free, repeated atomic.Int64

	ctx        context.Context // of the publishers
	stop       func()
	subs       context.Context
	stopSubs   func()
	publishers int
	publish    sync.WaitGroup
	read       sync.WaitGroup
	reading    sync.RWMutex // held for writing while nobody is to read
	mu         sync.Mutex
	pauses     []pause
	waiting    map[string]time.Time // events that are on their way, and since when
	told       map[string]int       // how often publishers were told what, but for success
	ended      map[string]int       // how often a stream ended with what, or a call of a reader failed
}

// pause is a time for which a publisher waited until its event was acknowledged.
type pause struct {
	from time.Time
	time.Duration
	of string
}

func (p pause) String() string {
	return fmt.Sprintf("%s, from %s on: %s", p.Round(time.Millisecond), p.from.Format(time.TimeOnly+".000"), p.of)
}

// notedPause is from when on a pause is noted.
const notedPause = 20 * time.Millisecond

// entrance is a proxy as clients reach it, so that their connections are counted.
type entrance struct {
	*proxy
	grpcIn, httpIn *relay
	rpc            *rpc
	// control are its ways to the control planes.
	control []*relay
	// lost: its clients may have lost connections.
	lost atomic.Bool
	// givenUp are connections over HTTP that clients closed without a reason here.
	givenUp atomic.Int64
}

// accepted is how many connections clients have made to it, but for those in the place of
// what they have given up by themselves.
func (e *entrance) accepted() int64 {
	return e.grpcIn.accepted.Load() + e.httpIn.accepted.Load() - e.givenUp.Load()
}

// keyedReader is what readers of one sort got.
type keyedReader struct {
	name string
	log  *history.Log
	// ordered: no event of a key comes first behind a later one.
	ordered bool
	// settles: it is of a Subscription, which repeats what is not settled.
	settles bool
	// late: it gives every fourth delivery back at first, and so may get more than one.
	late bool
}

// newKeyed makes a load of a topic; publishers and readers are started by itself.
func newKeyed(m *mesh, topic, key string, keys int, proxies ...*proxy) *keyed {
	k := &keyed{mesh: m, topic: topic, key: m.read(key), keys: keys, pace: time.NewTicker(time.Millisecond), waiting: map[string]time.Time{}, told: map[string]int{}, ended: map[string]int{}}
	k.ctx, k.stop = context.WithCancel(m.ctx)
	k.subs, k.stopSubs = context.WithCancel(m.ctx)
	for _, p := range proxies {
		e := &entrance{proxy: p, grpcIn: newRelay(m.T, p.grpc), httpIn: newRelay(m.T, p.http)}
		e.rpc = m.dial(e.grpcIn.addr, k.key, nil)
		k.at = append(k.at, e)
	}
	k.serving.Store(int64(len(k.at)))
	m.Cleanup(func() {
		k.stop()
		k.publish.Wait()
		k.stopSubs()
		k.read.Wait()
		k.pace.Stop()
	})
	return k
}

// reader makes a log that publishers write into too; before any publisher starts.
func (k *keyed) reader(name string, ordered, settles bool) *keyedReader {
	r := &keyedReader{name: name, log: history.New(), ordered: ordered, settles: settles}
	k.readers = append(k.readers, r)
	return r
}

// start starts n publishers. Each has keys of its own, so that a key has one event
// on its way at most.
func (k *keyed) start(n int, seed uint64) {
	k.publishers = n
	k.disturb(0) // members come to the groups one after the other
	for w := range n {
		k.publish.Go(func() {
			p := k.newPublisher(rand.New(rand.NewPCG(seed, uint64(w)))) //nolint:gosec // which way an event goes
			defer p.close()
			for seq := 1; k.ctx.Err() == nil; seq++ {
				for key := w; key < k.keys && k.ctx.Err() == nil; key += n {
					select {
					case <-k.pace.C:
					case <-k.ctx.Done():
						return
					}
					if w < k.keyless {
						k.one(p, "n"+strconv.Itoa(key), "", seq)
					} else {
						k.one(p, "k"+strconv.Itoa(key), "k"+strconv.Itoa(key), seq)
					}
				}
			}
		})
	}
}

// callTime bounds one attempt of a publisher. It is longer than a cut that goes well.
const callTime = 30 * time.Second

// one publishes one event of a name until it is acknowledged, each time where and how p
// likes; those without a key have no order.
func (k *keyed) one(p *keyedPublisher, name, key string, seq int) {
	e := textEvent(fmt.Sprintf("%s/%d", name, seq), fmt.Sprintf("data of %s/%d", name, seq))
	if key != "" {
		e.Ext = event.With(e.Ext, event.AttrPartitionKey, key)
	}
	for _, r := range k.readers {
		r.log.Intend(e.ID, cmp.Or(key, e.ID), seq, e.Data)
	}
	began := time.Now()
	k.mu.Lock()
	k.waiting[e.ID] = began
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.waiting, e.ID)
	}()
	for k.ctx.Err() == nil {
		at, how := p.choose()
		ctx, cancel := context.WithTimeout(k.ctx, callTime)
		err := how.by(p, ctx, at, e)
		cancel()
		if err == nil {
			for _, r := range k.readers {
				r.log.Told(e.ID, history.Acked)
			}
			k.published.Add(1)
			if key == "" {
				k.free.Add(1)
			}
			if d := time.Since(began); d >= notedPause {
				k.mu.Lock()
				k.pauses = append(k.pauses, pause{began, d, fmt.Sprintf("%s, in the end at %s by %s", e.ID, at.name, how.name)})
				k.mu.Unlock()
			}
			p.acknowledged()
			return
		}
		again, unknown := outcome(err)
		if k.ctx.Err() == nil {
			k.mu.Lock()
			k.told[how.name+": "+answer(err)]++
			k.mu.Unlock()
		}
		if unknown {
			k.repeated.Add(1)
			for _, r := range k.readers {
				r.log.Told(e.ID, history.Unknown)
			}
		}
		if k.ctx.Err() == nil && !again {
			k.Errorf("%s at %s by %s: %v", e.ID, at.name, how.name, err)
			return
		}
		select {
		case <-time.After(time.Duration(p.rnd.Int64N(int64(100 * time.Millisecond)))):
		case <-k.ctx.Done():
		}
	}
}

// longest is the longest pause of a publisher that was between two times.
func (k *keyed) longest(from, to time.Time) (out pause) {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := slices.Clone(k.pauses)
	for id, from := range k.waiting {
		all = append(all, pause{from, time.Since(from), id + ", until now"})
	}
	for _, p := range all {
		if p.from.Before(to) && p.from.Add(p.Duration).After(from) && p.Duration > out.Duration {
			out = p
		}
	}
	return out
}

// more waits until n more events are acknowledged.
func (k *keyed) more(n int64) {
	k.Helper()
	k.moreOf(&k.published, n)
}

// moreOf is more of those that a count has.
func (k *keyed) moreOf(count *atomic.Int64, n int64) {
	k.Helper()
	goal := count.Load() + n
	k.await("events that flow", func() error {
		if got := count.Load(); got < goal {
			return fmt.Errorf("%d are acknowledged, wanted are %d", got, goal)
		}
		return nil
	})
}

// entrances are the proxies that publishers use.
func (k *keyed) entrances() []*entrance { return k.at[:k.serving.Load()] }

// connections are how many the clients have made, by proxy that lost none.
func (k *keyed) connections() map[*entrance]int64 {
	out := map[*entrance]int64{}
	for _, e := range k.at {
		if !e.lost.Load() {
			out[e] = e.accepted()
		}
	}
	return out
}

// steady waits until every client has connected to the proxies that serve, and none
// connects anew.
func (k *keyed) steady() {
	k.Helper()
	k.done.Store(0)
	k.round.Add(1)
	k.await("every publisher to use every way", func() error {
		if n := k.done.Load(); n < int64(k.publishers) {
			return fmt.Errorf("%d of %d have", n, k.publishers)
		}
		return nil
	})
	k.disturb(0)
	for _, e := range k.entrances() {
		e.lost.Store(false)
	}
	for was := k.connections(); ; was = k.connections() {
		k.more(300)
		if maps.Equal(was, k.connections()) {
			return
		}
	}
}

// kept checks that no client has connected anew to a proxy that nothing has happened to.
func (k *keyed) kept(before map[*entrance]int64) {
	k.Helper()
	for e, n := range before {
		if now := e.accepted(); !e.lost.Load() && now > n {
			k.Errorf("clients have made %d new connections to %s, to which nothing has happened", now-n, e.name)
		}
		if n := e.givenUp.Load(); n > 0 {
			k.Logf("clients have given up %d connections to %s by themselves", n, e.name)
		}
	}
}

// judge ends the load and judges: nothing that was acknowledged is lost, no key is out of
// order, and no more has come again than the log explains.
func (k *keyed) judge(t tolerance) {
	k.Helper()
	k.stop()
	k.publish.Wait()
	for _, r := range k.readers {
		k.await("what was acknowledged, at "+r.name, func() error {
			if ids := r.log.Missing(5); len(ids) > 0 {
				return fmt.Errorf("%v have not come", ids)
			}
			return nil
		})
	}
	k.stopSubs()
	k.read.Wait()
	t.repeated = int(k.repeated.Load())
	for _, r := range k.readers {
		report, again, wrong := r.judge(t)
		k.Logf("%s: %s; %s", r.name, report, again)
		for _, w := range wrong {
			k.Errorf("%s: %s", r.name, w)
		}
	}
	k.Logf("%d events are acknowledged, of %d attempts nobody knows; the longest pause of a publisher was %s", k.published.Load(), k.repeated.Load(), k.longest(time.Time{}, time.Now()))
}

// tolerance is what explains that events come again.
type tolerance struct {
	// window is how many events of a partition may be unsettled.
	window int
	// repeated are publishes of which nobody knows whether they were kept.
	repeated int
}

// judge is what is wrong with what a reader got.
func (r *keyedReader) judge(t tolerance) (history.Report, history.Redelivery, []string) {
	report, again := r.log.Check(), r.log.Redelivery(t.window)
	bound := t.repeated
	var wrong []string
	if r.settles {
		wrong = append(wrong, again.Violations...)
		if ids := r.log.Copies(); len(ids) > 0 {
			wrong = append(wrong, fmt.Sprintf("%d events are in more places than their attempts explain: %s", len(ids), strings.Join(ids[:min(len(ids), 5)], " ")))
		}
		bound += again.Bound
	}
	if r.late {
		bound = math.MaxInt
	}
	return report, again, append(wrong, report.Violations(bound, r.ordered)...)
}

// TestKeyedNotices: the judgement notices what is lost, inverted, made up and repeated.
func TestKeyedNotices(t *testing.T) {
	t.Parallel()
	const each = 4
	in := func(n int) history.Place {
		return history.Place{Owner: "p1, life 1", Partition: "0", Offset: uint64(n)} //nolint:gosec // small
	}
	for name, tc := range map[string]struct {
		settles  bool
		got      []int // numbers, in the order in which they came; 0: it was disturbed
		repeated int
		want     string // "" is that all is well
	}{
		"all of it":                  {true, []int{1, 2, 3, 4}, 0, ""},
		"one is lost":                {true, []int{1, 2, 4}, 0, "1 acknowledged events were lost: k/3"},
		"two are inverted":           {true, []int{1, 3, 2, 4}, 0, "overtook"},
		"nobody has published one":   {true, []int{1, 2, 3, 4, 5}, 0, "nobody"},
		"one comes again":            {true, []int{1, 2, 2, 3, 4}, 0, "the bound is 0"},
		"and it was disturbed":       {true, []int{1, 2, 0, 2, 3, 4}, 0, ""},
		"more than a window does":    {true, []int{1, 2, 3, 0, 1, 2, 3, 4}, 0, "the bound is 2"},
		"from another place":         {true, []int{1, 2, 3, 4, -1}, 1, "more places"},
		"it was published again":     {false, []int{1, 2, 2, 3, 4}, 1, ""},
		"it was not published again": {false, []int{1, 2, 2, 3, 4}, 0, "the bound is 0"},
	} {
		r := &keyedReader{log: history.New(), ordered: true, settles: tc.settles}
		data := func(n int) []byte { return []byte(strconv.Itoa(n)) }
		for n := 1; n <= each; n++ {
			r.log.Intend(fmt.Sprintf("k/%d", n), "k", n, data(n))
			r.log.Told(fmt.Sprintf("k/%d", n), history.Acked)
		}
		for _, n := range tc.got {
			switch {
			case n > 0:
				r.log.ReceiveAt(fmt.Sprintf("k/%d", n), data(n), in(n))
			case n < 0:
				r.log.ReceiveAt(fmt.Sprintf("k/%d", -n), data(-n), in(each-n))
			default:
				r.log.Disturb(0)
			}
		}
		_, _, wrong := r.judge(tolerance{window: 2, repeated: tc.repeated})
		if (tc.want == "") != (len(wrong) == 0) || !strings.Contains(strings.Join(wrong, "; "), tc.want) {
			t.Errorf("%s: %q, want %q", name, wrong, tc.want)
		}
	}
}

// keyedMesh is proxies and control planes with a topic that three sorts of readers read.
func keyedMesh(t *testing.T, etcd, stores, first string, proxies, keys int) *keyed {
	m := prepareMesh(t, etcd)
	replicas := m.replicas(2, "--provision-every", "200ms", "--election-ttl", "2s")
	key, identity := m.key("shop")
	var all []*proxy
	ways := map[*proxy][]*relay{}
	disco := strings.Split(m.disco, ",")
	for i := range proxies {
		var own []*relay
		var addrs []string
		for _, d := range disco {
			own = append(own, newRelay(t, d))
			addrs = append(addrs, own[len(own)-1].addr)
		}
		m.disco = strings.Join(addrs, ",")
		all = append(all, m.proxy("p"+strconv.Itoa(i+1), "--window", strconv.Itoa(keyedWindow), "--control-plane-max-retry", "500ms"))
		ways[all[i]] = own
	}
	topic := fmt.Sprintf("\napiVersion: weft/v1alpha1\nkind: Topic\nmetadata: {namespace: NS, name: orders}\nspec: {store: %s, partitions: %d}\n---", first, keyedPartitions)
	m.apply(stores + topic + subscriptionYAML("ordered", "orders", "ordering: by_key, on_exhausted: block, "+keyedRetry) + subscriptionYAML("pulled", "orders", keyedRetry) + policyYAML("shop") + identity)
	m.settled(proxies)
	var side *proxy
	if proxies > 1 { // a sidecar that does not use the topic holds nothing up
		side = m.proxy("sidecar", "--on-demand", "--namespaces", m.ns)
	}
	k := newKeyed(m, "orders", key, keys, all...)
	k.replicas, k.sidecar = replicas, side
	for _, e := range k.at {
		e.control = ways[e.proxy]
	}
	members, pulled, tail := k.reader("members", true, true), k.reader("pull", false, true), k.reader("tail", true, false)
	for _, e := range k.at {
		k.member(members, "ordered", e)
		k.pull(pulled, "pulled", e)
	}
	k.tail(tail, k.at[0])
	return k
}

// Of the load of many keys.
const (
	keyedWindow     = 128
	keyedPartitions = 4
	keyedRetry      = "retry: {min_backoff: 0.1s, max_backoff: 0.2s}"
)

// TestKeyedLoad: what TestMigration asks of a topic that moves holds for one that stays
// where it is, while a proxy is killed.
func TestKeyedLoad(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		store   func(*testing.T) string
		proxies int
	}{"embedded": {func(*testing.T) string { return onDisk }, 1}, "kafka": {onKafka, 3}} {
		t.Run(name, func(t *testing.T) {
			k := keyedMesh(t, servers.SharedEtcd(t), tc.store(t), "main", tc.proxies, 100)
			k.start(8, 1)
			k.steady()
			before := k.connections()
			k.must(k.kill(k.at[len(k.at)-1]))
			k.more(600)
			k.kept(before)
			k.judge(tolerance{window: keyedWindow})
		})
	}
}

// kill kills a proxy (kill -9) and starts it again.
func (k *keyed) kill(e *entrance) error {
	e.lost.Store(true)
	defer k.disturb(0)()
	if err := e.Kill(); err != nil {
		return err
	}
	e.lives.Add(1)
	return e.Start(k.mesh.ctx)
}

// disturb notes that what was settled last may come again from now on, and from the end of
// what happens on, which is when the function that it returns is called. What was settled
// within back may be forgotten.
func (k *keyed) disturb(back time.Duration) (end func()) {
	note := func(back time.Duration) {
		for _, r := range k.readers {
			r.log.Disturb(back)
		}
	}
	note(back)
	return func() { note(0) }
}
