// Package roster keeps, in etcd and for good, which proxies may have configuration of
// which namespaces: every node is written down before it is sent its first resource.
// Whoever must know that nobody is left out, as the move of a topic must, asks it.
//
// A node counts until an operator says otherwise: one that is declared dead is kept, so
// that it is refused from then on, until he has it forgotten. Or until it leaves: it has
// written for the last time, has nothing to start from any more, and so is written down
// again before it could write.
package roster

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weft-mesh/weft/controlplane/follow"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/outage"
)

const (
	// maxNodes bounds how many there may be.
	maxNodes = 100000
	// maxNamespaces bounds those of one that are told apart; a node with more counts
	// as one that may have all.
	maxNamespaces = 200
	// MaxForget bounds how many are forgotten at once: in one transaction.
	MaxForget = maxBatch
	// joinTime bounds the wait of a node that joins.
	joinTime = 5 * time.Second
	// editTime bounds what an operator asks of the roster: he is to hear that etcd hangs.
	editTime = 5 * time.Second
	// headTime bounds one question to etcd for where it is.
	headTime = 2 * time.Second
	// retryAfter is the wait before etcd is read again.
	retryAfter = time.Second
)

// Config of a Roster.
type Config struct {
	Etcd *clientv3.Client
	// Prefix is where the nodes' keys begin; it ends with a slash.
	Prefix string
	// Lineage is the key of the lineage that etcd is of.
	Lineage string
	// Head asks etcd of which revision the last change of the configuration is.
	Head func(ctx context.Context) (lineage string, revision int64, err error)
	// End is called, if set, with each node that may not stay connected, and why: it was
	// declared dead, or has gone from the roster unseen, and is to be written down first.
	End     func(node string, err error)
	Clock   clock.Clock
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// Roster are the nodes of a mesh. Methods are safe for concurrent use.
type Roster struct {
	cfg   Config
	puts  chan *join
	heads chan *join

	mu    sync.Mutex
	known map[string]entry // as far as this replica has seen
	read  chan struct{}    // closed once it has read everything
}

// entry is a node as etcd has it.
type entry struct {
	node *Node
	mod  int64 // its key's mod revision; 0 is of one that is not there, or was lost and is to be written
}

// At is how far a replica must have read before a node is sent anything; the zero
// value is of none.
type At struct {
	Lineage  string
	Revision int64
}

// join is a node that waits.
type join struct {
	Joining
	ctx  context.Context
	done chan joined // capacity 1
}

type joined struct {
	at  At
	err error
}

// New makes a Roster; Run follows it.
func New(cfg Config) *Roster {
	r := &Roster{cfg: cfg, puts: make(chan *join), heads: make(chan *join), known: map[string]entry{}, read: make(chan struct{})}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_controlplane_roster_nodes", Help: "Proxies that may have configuration, with those that were declared dead, as far as this replica has seen."}, func() float64 {
			r.mu.Lock()
			defer r.mu.Unlock()
			return float64(len(r.known))
		}))
	}
	return r
}

// refused is the error of a node that was declared dead.
func refused(n *Node) error {
	return fault.New(fault.Precondition, "roster", "declared-dead", "node %s was declared dead by %s at %s: what it holds may be what others have given up. It joins with an empty data folder, which gives it another node id, or after \"weft proxies revive %s\"",
		n.ID, n.Dead.By, n.Dead.At.UTC().Format(time.RFC3339), n.ID)
}

// Refusal is why a node may not join; nil where it may, as far as this replica has seen.
func (r *Roster) Refusal(node string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := r.known[node].node; n != nil && n.Dead != nil {
		return refused(n)
	}
	return nil
}

// Dead tells who declared a node dead, as far as this replica has seen; nil where nobody has.
func (r *Roster) Dead(node string) *Dead {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := r.known[node].node; n != nil {
		return n.Dead
	}
	return nil
}

// Gone reports whether nobody is to wait for a node that is not connected, as far as this
// replica has seen: it was declared dead, or is not on the roster, as one that left.
func (r *Roster) Gone(node string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.read:
	default:
		return false
	}
	n := r.known[node].node
	return n == nil || n.Dead != nil
}

// May reports whether a node may have configuration of a namespace, as far as this
// replica has seen.
func (r *Roster) May(node, namespace string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.known[node].node
	return n != nil && n.Has(namespace)
}

// Join writes a node down that is to be sent configuration, unless it is known as that
// already. At is what the replica must have read before it sends anything: whoever looks
// at the roster after that revision finds the node, and a node that was found before is
// not shown what it may have left behind.
//
// A node that is known and not fresh needs no etcd. One that is known and fresh, or of
// another version, is let in without At while etcd does not answer, as this replica
// cannot know more; but for another process of a node that may have left. The error
// is Precondition for one that was declared dead; Unavailable for one that is not known
// while etcd does not answer; Throttled where there are too many.
func (r *Roster) Join(ctx context.Context, node Joining) (At, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	late := fault.New(fault.Unavailable, "roster", "roster", "node %s cannot be written down in etcd, and is sent nothing before that; try again", node.Node)
	select {
	case <-r.read:
	case <-ctx.Done():
		return At{}, late
	}
	j := &join{Joining: node, ctx: ctx, done: make(chan joined, 1)}
	known, err := r.knows(j)
	if err != nil || known && !node.Fresh {
		return At{}, err
	}
	to := r.puts
	if known {
		to = r.heads
	}
	select {
	case to <- j:
		select {
		case d := <-j.done:
			return d.at, d.err
		case <-ctx.Done():
		}
	case <-ctx.Done():
	}
	if r.lets(node) {
		return At{}, nil
	}
	return At{}, late
}

// lets reports whether a node that cannot be written down may have what it asks for all
// the same: not where it may have left.
func (r *Roster) lets(node Joining) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.known[node.Node].node
	return n != nil && n.Dead == nil && n.covers(node.Namespaces) && n.Incarnation == node.Incarnation
}

// knows reports whether there is nothing to write for a node.
func (r *Roster) knows(j *join) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch n := r.known[j.Node].node; {
	case n == nil && len(r.known) >= maxNodes:
		return false, fault.New(fault.Throttled, "roster", "too-many-nodes", "%d nodes may have configuration, which is the most: those that never come back are declared dead, and forgotten then (\"weft proxies list --absent\", \"declare-dead\", \"forget\")", maxNodes)
	case n == nil:
		return false, nil
	case n.Dead != nil:
		return false, refused(n)
	default:
		return r.known[j.Node].mod > 0 && n.is(j.Joining), nil
	}
}

// Run follows the roster, and writes, until ctx ends.
func (r *Roster) Run(ctx context.Context) error {
	var work sync.WaitGroup
	work.Go(func() { r.write(ctx) })
	work.Go(func() { r.ask(ctx) })
	away := outage.New(r.cfg.Log, "the roster of proxies cannot be followed; those that are known are served", "the roster of proxies is followed again")
	keys := follow.Keys{Etcd: r.cfg.Etcd, Prefix: r.cfg.Prefix, Lineage: r.cfg.Lineage}
	for ctx.Err() == nil {
		if err := r.follow(ctx, &keys, away); err != nil && ctx.Err() == nil {
			away.Is(err)
		}
		timer := time.NewTimer(retryAfter)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
	work.Wait()
	return nil
}

// follow reads the roster and what becomes of it.
func (r *Roster) follow(ctx context.Context, keys *follow.Keys, away *outage.Log) error {
	return keys.Run(ctx, func(resp *clientv3.GetResponse, other bool) error {
		if err := r.keep(ctx, r.begin(resp, other)); err != nil {
			return err
		}
		away.Is(nil)
		return nil
	}, func(events []*clientv3.Event) {
		for _, e := range events {
			r.note(e.Kv, e.Type == clientv3.EventTypeDelete)
		}
	})
}

// begin takes what was read as all there is, at once: whoever asks meanwhile finds every
// node that was there before. lost are those that were there, or had more namespaces, and
// etcd is not what it was, as when it is restored from a backup: they have their
// configuration all the same. Some of them may have left, or were forgotten: one too many
// is declared dead, for one too few events are lost.
func (r *Roster) begin(resp *clientv3.GetResponse, other bool) (lost []*Node) {
	known := make(map[string]entry, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		id := strings.TrimPrefix(string(kv.Key), r.cfg.Prefix)
		known[id] = entry{r.parse(id, kv.Value), kv.ModRevision}
	}
	r.mu.Lock()
	var gone []string
	for id, e := range r.known {
		switch now := known[id].node; {
		case other && (now == nil || !now.covers(e.node.Namespaces)):
			n := e.node
			if now != nil {
				n = now.with(n.Namespaces)
			}
			lost, known[id] = append(lost, n), entry{node: n}
		case !other && e.mod > resp.Header.Revision:
			known[id] = e // it has come since
		case now == nil:
			gone = append(gone, id)
		}
	}
	r.known = known
	told := maps.Clone(known) // others change what is known while who is dead is told
	select {
	case <-r.read:
	default:
		close(r.read)
	}
	r.mu.Unlock()
	for id, e := range told {
		r.died(id, e.node)
	}
	for _, id := range gone {
		if r.cfg.End != nil {
			r.cfg.End(id, fault.New(fault.Unavailable, "roster", "roster", "node %s was taken off the roster; it may join again", id))
		}
	}
	return lost
}

// keep writes nodes that were lost.
func (r *Roster) keep(ctx context.Context, lost []*Node) error {
	for _, n := range lost {
		err := r.edit(ctx, n.ID, func(now *Node) (*Node, error) {
			switch {
			case now == nil:
				return n, nil
			case now.covers(n.Namespaces):
				return now, nil
			}
			return now.with(n.Namespaces), nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// note takes up what etcd has of a node, unless something newer is known.
func (r *Roster) note(kv *mvccpb.KeyValue, gone bool) {
	id := strings.TrimPrefix(string(kv.Key), r.cfg.Prefix)
	n := r.parse(id, kv.Value)
	r.mu.Lock()
	old := r.known[id]
	if old.mod > kv.ModRevision {
		r.mu.Unlock()
		return
	}
	if gone {
		delete(r.known, id)
	} else {
		r.known[id] = entry{n, kv.ModRevision}
	}
	r.mu.Unlock()
	if !gone {
		r.died(id, n)
	}
}

// died tells of a node that was declared dead.
func (r *Roster) died(id string, n *Node) {
	if n.Dead != nil && r.cfg.End != nil {
		r.cfg.End(id, refused(n))
	}
}

// parse reads a record. One that cannot be read is of a node that may have everything.
func (r *Roster) parse(id string, value []byte) *Node {
	n := &Node{}
	if err := json.Unmarshal(value, n); err != nil || n.ID != id {
		if len(value) > 0 {
			r.cfg.Log.Error("what etcd has of a proxy cannot be read; it counts as one that may have all namespaces", "node", id)
		}
		return &Node{ID: id, All: true}
	}
	return n
}

// Nodes are all nodes that may have configuration of a namespace and were not declared
// dead, as etcd has them now, by id.
func (r *Roster) Nodes(ctx context.Context, namespace string) ([]*Node, error) {
	all, err := r.All(ctx)
	return slices.DeleteFunc(all, func(n *Node) bool { return n.Dead != nil || !n.Has(namespace) }), err
}

// All are all nodes as etcd has them now, by id.
func (r *Roster) All(ctx context.Context) ([]*Node, error) {
	ctx, cancel := context.WithTimeout(ctx, editTime)
	defer cancel()
	resp, err := r.cfg.Etcd.Get(ctx, r.cfg.Prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, fault.New(fault.Unavailable, "roster", "etcd", "etcd does not answer")
	}
	out := make([]*Node, len(resp.Kvs))
	for i, kv := range resp.Kvs {
		out[i] = r.parse(strings.TrimPrefix(string(kv.Key), r.cfg.Prefix), kv.Value)
	}
	return out, nil
}

// DeclareDead takes a node from those that count, and has it refused from now on: who
// does it answers for that the node writes nothing any more. The streams that it has end.
func (r *Roster) DeclareDead(ctx context.Context, node, who string) error {
	return r.edit(ctx, node, func(n *Node) (*Node, error) {
		if n == nil {
			return nil, unknown(node)
		}
		if n.Dead != nil {
			return n, nil
		}
		dead := *n
		dead.Dead = &Dead{At: r.cfg.Clock.Now().UTC(), By: who}
		return &dead, nil
	})
}

// Revive takes back that a node was declared dead; it counts again.
func (r *Roster) Revive(ctx context.Context, node string) error {
	return r.edit(ctx, node, func(n *Node) (*Node, error) {
		if n == nil {
			return nil, unknown(node)
		}
		alive := *n
		alive.Dead = nil
		return &alive, nil
	})
}

// Entry is what a process that has joined says when it leaves; 0 where that is not known.
func (r *Roster) Entry(node, incarnation string) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.known[node]; e.node != nil && e.node.Incarnation != "" && e.node.Incarnation == incarnation {
		return e.mod
	}
	return 0
}

// Leave takes a node off the roster: it answers for that it writes nothing any more before
// it has joined again. entry is what Entry said; Precondition where somebody has joined as
// that node since, or it was declared dead.
func (r *Roster) Leave(ctx context.Context, node string, entry int64) error {
	key := r.cfg.Prefix + node
	refusal := fault.New(fault.Precondition, "roster", "joined-since", "node %s has joined again since, or was declared dead: it stays on the roster", node)
	if entry <= 0 {
		return refusal
	}
	resp, err := r.cfg.Etcd.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", entry)).Then(clientv3.OpDelete(key)).Commit()
	if err != nil {
		return fault.New(fault.Unavailable, "roster", "etcd", "etcd does not answer; node %s may or may not be on the roster", node)
	}
	if !resp.Succeeded {
		return refusal
	}
	r.note(&mvccpb.KeyValue{Key: []byte(key), ModRevision: resp.Header.Revision}, true)
	return nil
}

// Forget removes nodes that were declared dead, at most MaxForget, or none of them: from
// then on they may join as any other. Those that are not on the roster are no error; the
// error is Precondition where one was not declared dead.
func (r *Roster) Forget(ctx context.Context, nodes []string) error {
	ctx, cancel := context.WithTimeout(ctx, editTime)
	defer cancel()
	for {
		var gets []clientv3.Op
		for _, id := range nodes {
			gets = append(gets, clientv3.OpGet(r.cfg.Prefix+id))
		}
		away := fault.New(fault.Unavailable, "roster", "etcd", "etcd does not answer; the proxies may or may not be forgotten")
		there, err := r.cfg.Etcd.Txn(ctx).Then(gets...).Commit()
		if err != nil {
			return away
		}
		var (
			same    []clientv3.Cmp
			deletes []clientv3.Op
		)
		for _, op := range there.Responses {
			for _, kv := range op.GetResponseRange().Kvs {
				key := string(kv.Key)
				if n := r.parse(strings.TrimPrefix(key, r.cfg.Prefix), kv.Value); n.Dead == nil {
					return fault.New(fault.Precondition, "roster", "not-dead", "node %s was not declared dead, and counts until it is: \"weft proxies declare-dead\"; nobody was forgotten", n.ID)
				}
				same = append(same, clientv3.Compare(clientv3.ModRevision(key), "=", kv.ModRevision))
				deletes = append(deletes, clientv3.OpDelete(key))
			}
		}
		if len(deletes) == 0 {
			return nil
		}
		resp, err := r.cfg.Etcd.Txn(ctx).If(same...).Then(deletes...).Commit()
		if err != nil {
			return away
		}
		if resp.Succeeded {
			for _, op := range deletes {
				r.note(&mvccpb.KeyValue{Key: op.KeyBytes(), ModRevision: resp.Header.Revision}, true)
			}
			return nil
		}
	}
}

func unknown(node string) error {
	return fault.New(fault.NotFound, "roster", "node-unknown", "no proxy %s was ever sent configuration; \"weft proxies list\" shows those that were", node)
}

// edit changes what etcd has of a node.
func (r *Roster) edit(ctx context.Context, node string, change func(*Node) (*Node, error)) error {
	ctx, cancel := context.WithTimeout(ctx, editTime)
	defer cancel()
	key := r.cfg.Prefix + node
	away := fault.New(fault.Unavailable, "roster", "etcd", "etcd does not answer; node %s may or may not be changed", node)
	for {
		got, err := r.cfg.Etcd.Get(ctx, key)
		if err != nil {
			return away
		}
		var now entry
		if len(got.Kvs) > 0 {
			now = entry{r.parse(node, got.Kvs[0].Value), got.Kvs[0].ModRevision}
		}
		to, err := change(now.node)
		if err != nil || to == now.node {
			return err
		}
		value, err := json.Marshal(to)
		if err != nil {
			return err
		}
		resp, err := r.cfg.Etcd.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", now.mod)).Then(clientv3.OpPut(key, string(value))).Commit()
		if err != nil {
			return away
		}
		if resp.Succeeded {
			r.note(&mvccpb.KeyValue{Key: []byte(key), Value: value, ModRevision: resp.Header.Revision}, false)
			return nil
		}
	}
}
