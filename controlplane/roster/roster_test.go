package roster

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/weft-mesh/weft/controlplane/embedetcd"
	"github.com/weft-mesh/weft/controlplane/follow"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/latest"
)

type world struct {
	*testing.T
	ctx    context.Context
	etcd   *embedetcd.Server
	closed func() // etcd
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	e, err := embedetcd.Start(ctx, filepath.Join(t.TempDir(), "etcd"))
	if err != nil {
		t.Fatal(err)
	}
	closed := sync.OnceFunc(e.Close)
	t.Cleanup(closed)
	return &world{t, ctx, e, closed}
}

// TestHangs: whoever asks something of the roster hears, before long, that etcd does not
// answer, where it hangs.
func TestHangs(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") // it takes connections, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://" + l.Addr().String()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	r := New(Config{Etcd: client, Prefix: "/weft/s/node/", Log: slog.New(slog.DiscardHandler)})
	var all sync.WaitGroup
	for what, ask := range map[string]func() error{
		"list":         func() error { _, err := r.All(ctx); return err },
		"declare dead": func() error { return r.DeclareDead(ctx, "a", "ops") },
		"revive":       func() error { return r.Revive(ctx, "a") },
		"forget":       func() error { return r.Forget(ctx, []string{"a"}) },
	} {
		all.Go(func() {
			if err := ask(); !strings.Contains(fmt.Sprint(err), "etcd does not answer") || ctx.Err() != nil {
				t.Errorf("%s: %v, %v", what, err, ctx.Err())
			}
		})
	}
	all.Wait()
}

func (w *world) config(died func(string, error)) Config {
	return Config{Etcd: w.etcd.Client(), Prefix: "/weft/s/node/", Lineage: "/weft/m/lineage", End: died, Log: slog.New(slog.DiscardHandler),
		Head: func(ctx context.Context) (string, int64, error) {
			resp, err := w.etcd.Client().Get(ctx, "x")
			if err != nil {
				return "", 0, err
			}
			return "1-a", resp.Header.Revision, nil
		}}
}

// replica is one that runs.
func (w *world) replica(died func(string, error)) *Roster {
	r := New(w.config(died))
	ctx, cancel := context.WithCancel(w.ctx)
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	w.Cleanup(func() { cancel(); <-ended })
	return r
}

func (w *world) join(r *Roster, node string, fresh bool, namespaces ...string) At {
	w.Helper()
	at, err := r.Join(w.ctx, Joining{Node: node, Namespaces: namespaces, Fresh: fresh})
	if err != nil {
		w.Fatal(node, err)
	}
	return at
}

func (w *world) revision() int64 {
	w.Helper()
	resp, err := w.etcd.Client().Get(w.ctx, "x")
	if err != nil {
		w.Fatal(err)
	}
	return resp.Header.Revision
}

func (w *world) nodes(r *Roster, namespace string, want ...string) {
	w.Helper()
	list, err := r.Nodes(w.ctx, namespace)
	var got []string
	for _, n := range list {
		got = append(got, n.ID)
	}
	if err != nil || !slices.Equal(got, want) {
		w.Errorf("%s has %v, %v, want %v", namespace, got, err, want)
	}
}

// TestJoin: a node is written down when Join returns, with the namespaces that it may
// have, which grow; nothing is written for one that is known; whoever was written is to
// be shown nothing older than that.
func TestJoin(t *testing.T) {
	w := newWorld(t)
	r, other := w.replica(nil), w.replica(nil)
	if at := w.join(r, "a", false, "shop"); at.Lineage != "1-a" || at.Revision < w.revision() {
		t.Errorf("it is to be shown what is of %v", at)
	}
	w.nodes(r, "shop", "a")
	w.join(r, "b/odd id", false)
	w.join(other, "a", false, "bank") // which may not have seen it yet
	w.nodes(r, "shop", "a", "b/odd id")
	w.nodes(other, "bank", "a", "b/odd id")
	w.nodes(r, "else", "b/odd id")
	before := w.revision()
	for _, known := range [][]string{{"shop"}, {"bank"}, {"shop", "bank"}} {
		if at := w.join(other, "a", false, known...); at != (At{}) {
			t.Errorf("one that is known waits for %v", at)
		}
	}
	if at := w.join(other, "a", true, "shop"); at.Revision != before {
		t.Errorf("one that is known, and fresh, is to be shown what is of %v, want %d", at, before)
	}
	if now := w.revision(); now != before {
		t.Errorf("%d writes for one that is known", now-before)
	}
	for _, knows := range []bool{true, false, true} { // as versions come and go
		if at, err := other.Join(w.ctx, Joining{Node: "a", Namespaces: []string{"shop"}, Moves: knows}); err != nil || at.Revision < w.revision() {
			t.Errorf("one of another version is to be shown what is of %v, %v", at, err)
		}
		if list, err := r.Nodes(w.ctx, "bank"); err != nil || list[0].ID != "a" || list[0].Moves != knows {
			t.Errorf("it said that it knows moves: %v; the roster says %+v, %v", knows, list[0], err)
		}
	}
	many := make([]string, maxNamespaces+1)
	for i := range many {
		many[i] = fmt.Sprintf("ns-%d", i)
	}
	w.join(r, "wide", false, many...)
	w.nodes(r, "else", "b/odd id", "wide")
}

// TestDead: one that was declared dead counts no more and is refused, at every replica
// and for good, until it is revived or forgotten.
func TestDead(t *testing.T) {
	w := newWorld(t)
	died := latest.New("")
	r := w.replica(nil)
	other := w.replica(func(node string, err error) {
		if fault.ClassOf(err) == fault.Precondition {
			died.Store(node)
		}
	})
	w.join(r, "a", false, "shop")
	w.join(r, "b", false, "shop")
	if err := r.DeclareDead(w.ctx, "nobody", "x"); fault.ClassOf(err) != fault.NotFound {
		t.Errorf("one that is not known: %v", err)
	}
	if err := r.DeclareDead(w.ctx, "a", "ops"); err != nil {
		t.Fatal(err)
	}
	w.nodes(r, "shop", "b")
	for now, changed := died.Load(); now != "a"; now, changed = died.Load() {
		select {
		case <-changed:
		case <-w.ctx.Done():
			t.Fatal("the other replica does not hear of it")
		}
	}
	later := w.replica(nil)
	for name, at := range map[string]*Roster{"here": r, "elsewhere": other, "later": later} {
		_, err := at.Join(w.ctx, Joining{Node: "a", Namespaces: []string{"shop"}})
		if fault.ClassOf(err) != fault.Precondition || !strings.Contains(err.Error(), "declared dead by ops") || !strings.Contains(err.Error(), "weft proxies revive a") {
			t.Errorf("%s it joins: %v", name, err)
		}
		if err := at.Refusal("a"); err == nil {
			t.Errorf("%s it is not refused", name)
		}
	}
	// One that joins for more, just as it is declared dead, is not alive again.
	if written := r.put(w.ctx, []*join{{Joining: Joining{Node: "a", Namespaces: []string{"more"}}, ctx: w.ctx, done: make(chan joined, 1)}}); len(written) > 0 {
		t.Error("one that is dead was written")
	}
	if err := r.Revive(w.ctx, "a"); err != nil {
		t.Fatal(err)
	}
	w.join(r, "a", false, "shop")
	w.nodes(r, "shop", "a", "b")
}

// TestForget: one that was declared dead is forgotten, and joins then as any other; one
// that counts is not, nor anybody who is named with it.
func TestForget(t *testing.T) {
	w := newWorld(t)
	r, other := w.replica(nil), w.replica(nil)
	for _, id := range []string{"a", "b", "c"} {
		w.join(r, id, false, "shop")
	}
	for _, id := range []string{"a", "b"} {
		if err := r.DeclareDead(w.ctx, id, "ops"); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Forget(w.ctx, []string{"a", "c"}); fault.ClassOf(err) != fault.Precondition || !strings.Contains(err.Error(), "node c was not declared dead") {
		t.Errorf("one that counts is forgotten: %v", err)
	}
	if err := r.Refusal("a"); err == nil {
		t.Error("one is forgotten that was named with one that counts")
	}
	w.nodes(r, "shop", "c")
	if err := r.Forget(w.ctx, []string{"a", "nobody"}); err != nil {
		t.Fatal(err)
	}
	for name, at := range map[string]*Roster{"here": r, "elsewhere": other, "later": w.replica(nil)} {
		for at.Refusal("a") != nil || at.Refusal("b") == nil { // until the watch has it
			if w.ctx.Err() != nil {
				t.Fatalf("%s it is refused for ever (%v), or another one that is dead is not (%v)", name, at.Refusal("a"), at.Refusal("b"))
			}
		}
	}
	if at := w.join(r, "a", false, "bank"); at == (At{}) {
		t.Error("it joins without being written down")
	}
	w.nodes(r, "shop", "c")
	w.nodes(r, "bank", "a")
	if err := r.Forget(w.ctx, []string{"a"}); fault.ClassOf(err) != fault.Precondition {
		t.Errorf("it is forgotten though it has joined again: %v", err)
	}
}

// TestEtcdAway: without etcd those that are known are let in, and nobody else is.
func TestEtcdAway(t *testing.T) {
	w := newWorld(t)
	r := w.replica(nil)
	w.join(r, "a", false, "shop")
	w.closed()
	if at := w.join(r, "a", false, "shop"); at != (At{}) {
		t.Errorf("one that is known waits for %v", at)
	}
	if at := w.join(r, "a", true, "shop"); at != (At{}) {
		t.Errorf("one that is known, and fresh, waits for %v", at)
	}
	if at, err := r.Join(w.ctx, Joining{Node: "a", Namespaces: []string{"shop"}, Moves: true}); err != nil || at != (At{}) {
		t.Errorf("one that is known, and of another version: %v, %v", at, err)
	}
	for name, ask := range map[string]func() error{
		"a new one":           func() error { _, err := r.Join(w.ctx, Joining{Node: "b", Namespaces: []string{"shop"}}); return err },
		"one that wants more": func() error { _, err := r.Join(w.ctx, Joining{Node: "a", Namespaces: []string{"bank"}}); return err },
		"whoever asks for them": func() error {
			ctx, end := context.WithTimeout(w.ctx, time.Second)
			defer end()
			_, err := r.Nodes(ctx, "shop")
			return err
		},
	} {
		if err := ask(); fault.ClassOf(err) != fault.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestManyJoin: nodes that join at once are written together.
func TestManyJoin(t *testing.T) {
	w := newWorld(t)
	r := w.replica(nil)
	w.join(r, "first", false)
	before := w.revision()
	const many, atOnce = 10000, 200
	var wg sync.WaitGroup
	for i := range atOnce {
		wg.Go(func() {
			for n := i; n < many; n += atOnce {
				if _, err := r.Join(w.ctx, Joining{Node: fmt.Sprintf("node-%05d", n), Namespaces: []string{"shop"}, Fresh: true}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if writes := w.revision() - before; writes > many/10 {
		t.Errorf("%d transactions for %d nodes", writes, many)
	}
	if all, err := r.Nodes(w.ctx, "shop"); err != nil || len(all) != many+1 {
		t.Errorf("%d nodes, %v", len(all), err)
	}
}

// TestRestored: what etcd has lost, since it was restored from a backup, is written again,
// at later revisions too, as the runbook has it: a node, and the namespaces that one has
// got. What was forgotten while nobody looked, and etcd can tell, is not.
func TestRestored(t *testing.T) {
	for name, c := range map[string]struct {
		dropped bool // etcd has no more what came since
		want    []string
	}{
		"restored":  {true, []string{"lost", "wider"}},
		"forgotten": {false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			r := New(w.config(nil))
			keys := follow.Keys{Etcd: r.cfg.Etcd, Prefix: r.cfg.Prefix, Lineage: r.cfg.Lineage}
			var work sync.WaitGroup
			defer work.Wait()
			wctx, stop := context.WithCancel(w.ctx)
			defer stop()
			work.Go(func() { r.write(wctx) })
			work.Go(func() { r.ask(wctx) })
			// read follows once; until it has read everything, and more is done.
			read := func(more func()) {
				t.Helper()
				ctx, cancel := context.WithCancel(w.ctx)
				ended := make(chan error, 1)
				began := latest.New(false)
				go func() {
					ended <- keys.Run(ctx, func(resp *clientv3.GetResponse, other bool) error {
						defer began.Store(true)
						return r.keep(ctx, r.begin(resp, other))
					}, func([]*clientv3.Event) {})
				}()
				for now, changed := began.Load(); !now; now, changed = began.Load() {
					select {
					case <-changed:
					case <-w.ctx.Done():
						t.Fatal("it is not read")
					}
				}
				more()
				cancel()
				<-ended
			}
			read(func() {
				w.join(r, "lost", false, "shop")
				w.join(r, "wider", false, "bank")
			})
			backup, err := w.etcd.Client().Get(w.ctx, r.cfg.Prefix+"wider")
			if err != nil {
				t.Fatal(err)
			}
			w.join(r, "wider", false, "shop")
			for _, op := range []clientv3.Op{clientv3.OpDelete(r.cfg.Prefix + "lost"), clientv3.OpPut(r.cfg.Prefix+"wider", string(backup.Kvs[0].Value))} {
				if _, err := w.etcd.Client().Do(w.ctx, op); err != nil {
					t.Fatal(err)
				}
			}
			if c.dropped {
				if _, err := w.etcd.Client().Compact(w.ctx, w.revision()); err != nil {
					t.Fatal(err)
				}
			}
			read(func() {})
			w.nodes(r, "shop", c.want...)
			w.nodes(r, "bank", "wider")
			for _, id := range []string{"lost", "wider"} {
				if r.May(id, "shop") != c.dropped {
					t.Errorf("it is known that %s may have it: %v", id, !c.dropped)
				}
			}
		})
	}
}

// TestLostUnwritten: a node that etcd has lost, and that is not written again yet, is
// written down before it joins.
func TestLostUnwritten(t *testing.T) {
	w := newWorld(t)
	r := w.replica(nil)
	w.join(r, "a", false, "shop")
	r.mu.Lock()
	r.known["lost"] = entry{node: &Node{ID: "lost", Namespaces: []string{"shop"}}}
	r.mu.Unlock()
	w.join(r, "lost", false, "shop")
	w.nodes(r, "shop", "a", "lost")
}

// TestReadAgain: a roster that is read again, as where its watch broke off, has every node
// that it had, while it is read too, and those that have come since.
func TestReadAgain(t *testing.T) {
	var r *Roster
	kv := func(id, more string, mod int64) *mvccpb.KeyValue {
		return &mvccpb.KeyValue{Key: []byte("/p/" + id), Value: fmt.Appendf(nil, `{"id":%q,"namespaces":["ns"]%s}`, id, more), ModRevision: mod}
	}
	has := func(ids ...string) {
		t.Helper()
		for _, id := range ids {
			if !r.May(id, "ns") {
				t.Errorf("node %s is not there", id)
			}
		}
	}
	told := 0
	r = New(Config{Prefix: "/p/", Log: slog.New(slog.DiscardHandler), End: func(string, error) { told++; has("a", "dead", "z") }})
	resp := &clientv3.GetResponse{Header: &etcdserverpb.ResponseHeader{Revision: 5}, Kvs: []*mvccpb.KeyValue{kv("a", "", 1), kv("dead", `,"dead":{}`, 2), kv("z", "", 3)}}
	for i := range 2 {
		if lost := r.begin(resp, false); len(lost) > 0 || told != i+1 {
			t.Errorf("%v are lost, and %d times somebody is dead", lost, told)
		}
		has("a", "dead", "z")
		r.wrote(&clientv3.TxnResponse{Succeeded: true, Header: &etcdserverpb.ResponseHeader{Revision: 6}}, map[string]*Node{"new": {ID: "new", All: true}}, nil)
	}
	r.begin(resp, false)
	has("a", "dead", "z", "new")
	// One that was forgotten while nobody looked must be written down before it has more.
	var ended []string
	r.cfg.End = func(node string, err error) {
		if fault.ClassOf(err) == fault.Unavailable {
			ended = append(ended, node)
		}
	}
	resp.Header.Revision, resp.Kvs = 7, resp.Kvs[1:]
	if lost := r.begin(resp, false); len(lost) > 0 || r.May("a", "ns") {
		t.Errorf("%v are lost; one that was forgotten is there: %v", lost, r.May("a", "ns"))
	}
	if slices.Sort(ended); !slices.Equal(ended, []string{"a", "new"}) {
		t.Errorf("the streams of %v end", ended)
	}
}

// TestJoinsMeanwhile: nodes join while those that are dead are told: that goes on with the
// nodes that were read.
func TestJoinsMeanwhile(t *testing.T) {
	var r *Roster
	var told []string
	r = New(Config{Prefix: "/p/", Log: slog.New(slog.DiscardHandler), End: func(node string, _ error) {
		if told = append(told, node); len(told) > 1 {
			return
		}
		joined := make(chan struct{})
		go func() {
			defer close(joined)
			nodes := map[string]*Node{}
			for i := range 1000 {
				id := fmt.Sprint("node", i)
				nodes[id] = &Node{ID: id, Dead: &Dead{}}
			}
			r.wrote(&clientv3.TxnResponse{Succeeded: true, Header: &etcdserverpb.ResponseHeader{Revision: 6}}, nodes, nil)
		}()
		<-joined
	}})
	resp := &clientv3.GetResponse{Header: &etcdserverpb.ResponseHeader{Revision: 5}}
	for i := range 10 {
		id := fmt.Sprint("dead", i)
		resp.Kvs = append(resp.Kvs, &mvccpb.KeyValue{Key: []byte("/p/" + id), Value: fmt.Appendf(nil, `{"id":%q,"dead":{}}`, id), ModRevision: 1})
	}
	r.begin(resp, false)
	if len(told) != len(resp.Kvs) {
		t.Errorf("%d nodes were told, %d were read: %.20q", len(told), len(resp.Kvs), told)
	}
}

// TestLeave: a node that leaves is on the roster no more, and is written down again before
// its next process is let in, also by a replica that has not heard of it; what an earlier
// process says is too late then.
func TestLeave(t *testing.T) {
	w := newWorld(t)
	r := w.replica(nil)
	as := func(at *Roster, incarnation string) (At, error) {
		return at.Join(w.ctx, Joining{Node: "a", Namespaces: []string{"shop"}, Fresh: true, Incarnation: incarnation})
	}
	if _, err := as(r, "first"); err != nil {
		t.Fatal(err)
	}
	first := r.Entry("a", "first")
	if first == 0 || r.Entry("a", "other") != 0 || r.Entry("a", "") != 0 || r.Entry("b", "first") != 0 {
		t.Errorf("the entry is %d", first)
	}
	// One that still has it as it was.
	late := New(r.cfg)
	r.mu.Lock()
	late.known["a"] = r.known["a"]
	r.mu.Unlock()
	close(late.read)
	ctx, cancel := context.WithCancel(w.ctx)
	var work sync.WaitGroup
	work.Go(func() { late.write(ctx) })
	work.Go(func() { late.ask(ctx) })
	defer work.Wait()
	defer cancel()
	if err := r.Leave(w.ctx, "a", first); err != nil {
		t.Fatal(err)
	}
	w.nodes(r, "shop")
	if at, err := as(late, "second"); err != nil || at.Revision < w.revision() {
		t.Fatalf("it joins again, and is to be shown what is of %v, %v", at, err)
	}
	w.nodes(r, "shop", "a")
	second := late.Entry("a", "second")
	for name, entry := range map[string]int64{"an earlier process": first, "nobody": 0} {
		if err := r.Leave(w.ctx, "a", entry); fault.ClassOf(err) != fault.Precondition {
			t.Errorf("%s leaves as it: %v", name, err)
		}
	}
	w.nodes(r, "shop", "a")
	// The next one joins just as this one leaves.
	if _, err := as(late, "third"); err != nil {
		t.Fatal(err)
	}
	if err := r.Leave(w.ctx, "a", second); fault.ClassOf(err) != fault.Precondition {
		t.Errorf("the one before leaves as it: %v", err)
	}
	w.closed()
	if _, err := as(late, "fourth"); fault.ClassOf(err) != fault.Unavailable {
		t.Errorf("without etcd a process joins of a node that may have left: %v", err)
	}
	if at, err := as(late, "third"); err != nil || at != (At{}) {
		t.Errorf("without etcd the one that is known: %v, %v", at, err)
	}
	if err := r.Leave(w.ctx, "a", late.Entry("a", "third")); fault.ClassOf(err) != fault.Unavailable {
		t.Errorf("without etcd it leaves: %v", err)
	}
}
