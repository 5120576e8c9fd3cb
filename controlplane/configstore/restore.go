package configstore

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/lineage"
)

// DeclareRestore begins a new lineage: what etcd has now is the configuration,
// also where a replica or a proxy has seen newer. Every replica reads everything
// again, every proxy syncs from nothing. The revision is the one at which the
// lineage begins. It returns once this replica follows the new lineage, or ctx
// ends. Conflict: somebody else declared one at the same time.
func (s *Store) DeclareRestore(ctx context.Context, actor, peer, reason string) (begins string, revision int64, err error) {
	const op = "configstore.restore"
	key := s.prefix + dirMeta + "lineage"
	resp, err := s.client.Get(ctx, key)
	if err != nil {
		return "", 0, &fault.Error{Class: fault.Unavailable, Op: op, Reason: "etcd", Err: err, Msg: "etcd does not answer yet; nothing was declared"}
	}
	stored, known := "", ""
	same := clientv3.Compare(clientv3.CreateRevision(key), "=", 0) // a backup from before the first start
	if len(resp.Kvs) > 0 {
		stored = string(resp.Kvs[0].Value)
		same = clientv3.Compare(clientv3.Value(key), "=", stored)
	}
	if snap := s.now.Get(); snap != nil {
		known = snap.Lineage
	}
	if begins, err = lineage.New(stored, known); err != nil {
		return "", 0, fault.Wrap(fault.Internal, op, "random", err)
	}
	record, err := s.note(AuditRecord{Actor: actor, Peer: peer, Method: "DeclareRestore",
		Detail: fmt.Sprintf("lineage %s, before %s: %s", begins, stored, reason)})
	if err != nil {
		return "", 0, err
	}
	txn, err := s.client.Txn(ctx).If(same).Then(clientv3.OpPut(key, begins), record).Commit()
	switch {
	case err != nil:
		return "", 0, &fault.Error{Class: fault.Ambiguous, Op: op, Reason: "etcd", Err: err,
			Msg: "etcd did not answer; the restore may have been declared: weft status shows the lineage"}
	case !txn.Succeeded:
		return "", 0, fault.New(fault.Conflict, op, "conflict", "a restore was declared at the same time; weft status shows the lineage")
	}
	s.log.Warn("a restore of etcd was declared: what it has is in force", "lineage", begins, "before", stored, "actor", actor, "reason", reason)
	select {
	case s.reread <- struct{}{}:
	default:
	}
	for {
		snap, changed := s.now.Load()
		if snap != nil && snap.Lineage == begins {
			break
		}
		select {
		case <-changed:
			continue
		case <-ctx.Done():
		}
		break
	}
	return begins, txn.Header.Revision, nil
}
