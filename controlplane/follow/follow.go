// Package follow reads keys of etcd and what becomes of them, and notices where etcd is
// not what it was: it was restored from a backup, say. A watch does not tell of that: it
// waits in silence until etcd, which went back, comes to that revision again.
package follow

import (
	"cmp"
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// lookEvery is how often etcd is asked whether it is what it was.
	lookEvery = 2 * time.Second
	// lookTime bounds one such question.
	lookTime = 2 * time.Second
)

var errOther = errors.New("etcd is not what it was: it went back, is of another lineage, or has dropped what came meanwhile; reading everything again")

// Keys are all keys below a prefix. One goroutine at a time follows them.
type Keys struct {
	Etcd   *clientv3.Client
	Prefix string
	// Lineage is the key of the lineage that etcd is of.
	Lineage string

	seen    int64         // up to here etcd was this one; 0 before it was read
	lineage string        // "" before there was one
	every   time.Duration // lookEvery when 0
}

// Run gives begin all keys, and then note what becomes of them, until the watch ends or
// ctx does. other is set where etcd cannot tell what became of the keys since they were
// read before: what is not there any more may have been lost, and not deleted.
func (k *Keys) Run(ctx context.Context, begin func(resp *clientv3.GetResponse, other bool) error, note func([]*clientv3.Event)) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	txn, lineage, other, err := k.ask(ctx, clientv3.OpGet(k.Prefix, clientv3.WithPrefix()))
	if err != nil {
		return err
	}
	resp := (*clientv3.GetResponse)(txn.Responses[0].GetResponseRange())
	resp.Header = txn.Header
	if err := begin(resp, other); err != nil {
		return err
	}
	k.seen, k.lineage = txn.Header.Revision, lineage
	watch := k.Etcd.Watch(ctx, k.Prefix, clientv3.WithPrefix(), clientv3.WithRev(k.seen+1))
	look := time.NewTicker(cmp.Or(k.every, lookEvery))
	defer look.Stop()
	for {
		select {
		case events, ok := <-watch:
			if !ok {
				return nil
			}
			if err := events.Err(); err != nil {
				return err
			}
			for _, e := range events.Events {
				k.seen = max(k.seen, e.Kv.ModRevision)
			}
			note(events.Events)
		case <-look.C:
			if k.look(ctx) {
				return errOther
			}
		}
	}
}

// look reports whether etcd is not what it was. That it is away the watch notices.
func (k *Keys) look(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	txn, lineage, other, err := k.ask(ctx)
	if err == nil && !other {
		k.seen, k.lineage = txn.Header.Revision, lineage
	}
	return other
}

// ask reads, and tells which lineage etcd is of and whether it is not what it was: it no
// longer has the revision up to which it was read, or not yet again. Only an etcd that is
// the same moves that revision on.
func (k *Keys) ask(ctx context.Context, ops ...clientv3.Op) (txn *clientv3.TxnResponse, lineage string, other bool, err error) {
	ops = append(ops, clientv3.OpGet(k.Lineage))
	txn, err = k.Etcd.Txn(ctx).Then(append(ops, clientv3.OpGet(k.Lineage, clientv3.WithRev(k.seen)))...).Commit()
	if errors.Is(err, rpctypes.ErrCompacted) || errors.Is(err, rpctypes.ErrFutureRev) {
		other = true
		txn, err = k.Etcd.Txn(ctx).Then(ops...).Commit()
	}
	if err != nil {
		return nil, "", other, err
	}
	for _, kv := range txn.Responses[len(ops)-1].GetResponseRange().Kvs {
		lineage = string(kv.Value)
	}
	return txn, lineage, other || k.lineage != "" && lineage != k.lineage, nil // a mesh that begins has none yet
}
