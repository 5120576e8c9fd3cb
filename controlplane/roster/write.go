package roster

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// maxBatch bounds how many nodes one transaction writes: each takes a condition, a put
// and, where it fails, a get, of which etcd takes 128 each; and 1.5 MiB of all.
const maxBatch = 50

// putAgain is the wait before nodes are written whose writing has failed twice.
const putAgain = 50 * time.Millisecond

// write writes nodes down that join, as many at a time as are waiting.
func (r *Roster) write(ctx context.Context) {
	for {
		batch := collect(ctx, r.puts, maxBatch)
		if batch == nil {
			return
		}
		for _, j := range r.put(ctx, batch) {
			select {
			case r.heads <- j:
			case <-ctx.Done():
				return
			}
		}
	}
}

// ask asks etcd where the configuration is, once for all that are waiting when it
// begins.
func (r *Roster) ask(ctx context.Context) {
	for {
		batch := collect(ctx, r.heads, maxNodes)
		if batch == nil {
			return
		}
		hctx, cancel := context.WithTimeout(ctx, headTime)
		lineage, revision, err := r.cfg.Head(hctx)
		cancel()
		for _, j := range batch {
			switch known, refusal := r.knows(j); {
			case refusal != nil:
				j.done <- joined{err: refusal}
			case err == nil:
				j.done <- joined{at: At{lineage, revision}}
			case known:
				j.done <- joined{}
			}
		}
	}
}

// collect waits for one, and takes with it those that are waiting too; nil when ctx
// ends.
func collect(ctx context.Context, from <-chan *join, most int) (batch []*join) {
	select {
	case j := <-from:
		batch = append(batch, j)
	case <-ctx.Done():
		return nil
	}
	for len(batch) < most {
		select {
		case j := <-from:
			batch = append(batch, j)
		default:
			return batch
		}
	}
	return batch
}

// put writes nodes down; those that are written are returned, and the others answered,
// but for those that etcd's silence leaves waiting until they give up.
func (r *Roster) put(ctx context.Context, batch []*join) (written []*join) {
	for tries := 0; ; tries++ {
		var left []*join
		cmps, puts, gets, nodes := []clientv3.Cmp(nil), []clientv3.Op(nil), []clientv3.Op(nil), map[string]*Node{}
		for _, j := range batch {
			known, err := r.knows(j)
			switch {
			case err != nil:
				j.done <- joined{err: err}
			case j.ctx.Err() != nil:
			case known:
				written = append(written, j)
			default:
				left = append(left, j)
			}
		}
		if len(left) == 0 {
			return written
		}
		if tries > 1 { // what etcd has is not what this replica will know before it reads all again
			select {
			case <-time.After(putAgain):
			case <-ctx.Done():
				return written
			}
		}
		r.mu.Lock()
		mods := map[string]int64{}
		for _, j := range left {
			now := r.known[j.Node]
			if nodes[j.Node] == nil {
				if nodes[j.Node] = now.node; now.node == nil {
					nodes[j.Node] = &Node{ID: j.Node, Since: r.cfg.Clock.Now().UTC(), Namespaces: j.Namespaces, All: len(j.Namespaces) == 0}
				}
			}
			nodes[j.Node], mods[j.Node] = nodes[j.Node].joined(j.Joining), now.mod
		}
		r.mu.Unlock()
		for _, id := range slices.Sorted(maps.Keys(nodes)) {
			b, err := json.Marshal(nodes[id])
			if err != nil {
				return written
			}
			key := r.cfg.Prefix + id
			cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(key), "=", mods[id]))
			puts, gets = append(puts, clientv3.OpPut(key, string(b))), append(gets, clientv3.OpGet(key))
		}
		tctx, cancel := context.WithTimeout(ctx, joinTime)
		resp, err := r.cfg.Etcd.Txn(tctx).If(cmps...).Then(puts...).Else(gets...).Commit()
		cancel()
		if err != nil {
			r.cfg.Log.Warn("proxies that join cannot be written down, and are sent nothing", "proxies", len(left), "error", err)
			return written
		}
		r.wrote(resp, nodes, mods)
		batch = left
	}
}

// wrote takes up the outcome of a transaction: what it has written or, where somebody
// else has written meanwhile, what there is.
func (r *Roster) wrote(resp *clientv3.TxnResponse, nodes map[string]*Node, mods map[string]int64) {
	if resp.Succeeded {
		r.mu.Lock()
		defer r.mu.Unlock()
		for id, n := range nodes {
			if r.known[id].mod < resp.Header.Revision {
				r.known[id] = entry{n, resp.Header.Revision}
			}
		}
		return
	}
	there := map[string]bool{}
	for _, op := range resp.Responses {
		for _, kv := range op.GetResponseRange().Kvs {
			r.note(kv, false)
			there[strings.TrimPrefix(string(kv.Key), r.cfg.Prefix)] = true
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range nodes {
		if !there[id] && r.known[id].mod == mods[id] {
			delete(r.known, id)
		}
	}
}
