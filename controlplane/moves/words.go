package moves

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/protobuf/proto"

	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
)

// said is where the status keys of what proxies say begin: then come the topic's uid and
// the node, and the value is a Held.
const said = "move/"

// wordsTTL is for how many seconds what proxies have said outlives the replica that they
// said it to.
const wordsTTL = 15

// Of one transaction of words.
const (
	maxPuts     = 50
	maxPutBytes = 1 << 20
)

// words writes down in etcd what proxies that hold here say, when it changes. A word
// stands until the move ends, the replica dies, or the node says another one, at
// whatever replica: what is not of this replica any more is left alone.
type words struct {
	store *configstore.Store
	log   *slog.Logger
	news  chan struct{}

	mu sync.Mutex
	// now has what is to be in etcd, by key: of the nodes that are here.
	now map[string]*word
	// nodes has the keys of each.
	nodes map[string]map[string]bool
	// visits counts streams.
	visits int
}

// word is what is to be written under a key.
type word struct {
	held *discoveryv1.Held // nil: it is to be removed
	// first: nothing was written under the key since the node came, for the visit-th
	// time that any did.
	first bool
	visit int
	// written is whether held is what etcd has, by this replica's lease of now.
	written bool
	// left: the node is not here any more; forgotten when it is written.
	left bool
	// foreign: etcd has one of another lease, and keeps it; see again.
	foreign bool
}

func newWords(s *configstore.Store, log *slog.Logger) words {
	return words{store: s, log: log, news: make(chan struct{}, 1), now: map[string]*word{}, nodes: map[string]map[string]bool{}}
}

// come notes that a node has a stream here: what it says from now on takes the place of
// what it said elsewhere.
func (w *words) come(node string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key := range w.nodes[node] {
		delete(w.now, key)
	}
	w.nodes[node] = map[string]bool{}
	w.visits++
}

// say takes all that a node says, by topic uid.
func (w *words) say(node string, by map[string]*discoveryv1.Held) {
	w.mu.Lock()
	defer w.mu.Unlock()
	keys := w.nodes[node]
	if keys == nil {
		return
	}
	for uid, held := range by {
		key := w.store.StatusKey(said + uid + "/" + node)
		switch old := w.now[key]; {
		case old == nil || old.left:
			w.now[key] = &word{held: held, first: true, visit: w.visits}
		case !proto.Equal(old.held, held):
			w.now[key] = &word{held: held, first: old.first, visit: old.visit}
		default:
			continue
		}
		keys[key] = true
		w.wake()
	}
	for key := range keys {
		uid, _, _ := strings.Cut(strings.TrimPrefix(key, w.store.StatusKey(said)), "/")
		if by[uid] == nil && w.now[key].held != nil {
			w.now[key] = &word{first: w.now[key].first, visit: w.now[key].visit}
			w.wake()
		}
	}
}

// gone notes that a node has no stream here: what it has said still holds, but it can
// write no markers. Where that was not written yet, it takes the place of nothing: the node
// may have said more elsewhere since.
func (w *words) gone(node string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key := range w.nodes[node] {
		old := w.now[key]
		next := &word{held: old.held, visit: old.visit, written: old.written, left: true}
		if old.held.GetAble() {
			next.held, next.written = proto.Clone(old.held).(*discoveryv1.Held), false
			next.held.Able = false
		}
		w.now[key] = next
	}
	delete(w.nodes, node)
	w.wake()
}

func (w *words) wake() {
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// run writes until ctx ends.
func (w *words) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := w.session(ctx); err != nil && ctx.Err() == nil {
			w.log.Warn("what proxies say of topics that move cannot be written down; trying again", "error", err)
		}
		timer := time.NewTimer(time.Second)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
	return nil
}

// session writes under one lease of etcd while it lasts.
func (w *words) session(ctx context.Context) error {
	s, err := concurrency.NewSession(w.store.Client(), concurrency.WithTTL(wordsTTL), concurrency.WithContext(ctx))
	if err != nil {
		return err
	}
	defer s.Close()
	w.again(func(*word) bool { return true })
	tick := time.NewTicker(foreignEvery)
	defer tick.Stop()
	for {
		more, err := w.flush(ctx, s.Lease())
		if err != nil {
			return err
		}
		if more {
			continue
		}
		select {
		case <-w.news:
		case <-tick.C:
			w.again(func(x *word) bool { return x.foreign })
		case <-s.Done():
			return concurrency.ErrSessionExpired
		case <-ctx.Done():
			return nil
		}
	}
}

// foreignEvery is how often words are written again that etcd has from another lease.
const foreignEvery = time.Second

// again has some words written again. Those which etcd has from another lease may be of
// this replica's last one, which etcd knew for longer: they go with it.
func (w *words) again(some func(*word) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range w.now {
		if some(x) {
			x.written, x.foreign = false, false
		}
	}
}

// flush writes some of what is not written; more tells whether there may be others.
func (w *words) flush(ctx context.Context, lease clientv3.LeaseID) (more bool, err error) {
	var ops []clientv3.Op
	var keys []string // of ops
	size := 0
	taken := map[string]*word{}
	w.mu.Lock()
	for key, x := range w.now {
		if x.written {
			if x.left {
				delete(w.now, key)
			}
			continue
		}
		b, err := proto.Marshal(x.held)
		if err != nil {
			w.mu.Unlock()
			return false, err
		}
		if len(ops) == maxPuts || len(ops) > 0 && size+len(b) > maxPutBytes {
			break // the rest comes next
		}
		size += len(b)
		ops = append(ops, x.op(key, string(b), lease))
		keys, taken[key] = append(keys, key), x
	}
	w.mu.Unlock()
	if len(ops) == 0 {
		return false, nil
	}
	tctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := w.store.Client().Txn(tctx).Then(ops...).Commit()
	if err != nil {
		return false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, key := range keys {
		x := taken[key]
		x.written, x.foreign = true, x.held != nil && !x.left && !took(resp.Responses[i])
		now := w.now[key]
		if now == nil || now.visit != x.visit {
			continue // the node came again
		}
		now.first = false
		if now != x {
			continue // another word meanwhile
		}
		if x.left || x.held == nil {
			delete(w.now, key)
			delete(w.nodes[key[strings.LastIndexByte(key, '/')+1:]], key)
		}
	}
	return true, nil
}

// took reports whether an op of a word that is not to be removed has written it.
func took(resp *etcdserverpb.ResponseOp) bool {
	for {
		txn := resp.GetResponseTxn()
		switch {
		case txn == nil:
			return true // it is the put
		case len(txn.Responses) == 0:
			return false
		}
		resp = txn.Responses[0]
	}
}

// op writes a word, unless the node has said something at another replica since.
func (x *word) op(key, value string, lease clientv3.LeaseID) clientv3.Op {
	mine := []clientv3.Cmp{clientv3.Compare(clientv3.LeaseValue(key), "=", lease)}
	if x.held == nil {
		return clientv3.OpTxn(mine, []clientv3.Op{clientv3.OpDelete(key)}, nil)
	}
	put := []clientv3.Op{clientv3.OpPut(key, value, clientv3.WithLease(lease))}
	if x.first {
		return put[0]
	}
	none := []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0)}
	return clientv3.OpTxn(mine, put, []clientv3.Op{clientv3.OpTxn(none, put, nil)})
}
