package configstore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weft-mesh/weft/pkg/fault"
)

// A lineage is a counter and a random part, "2-91f0…". The counter rises with
// each restore that was declared; the random part tells two of them apart where
// the backup had lost the counter.

// newLineage makes a lineage that follows others; those that cannot be read, and
// "", count as none.
func newLineage(others ...string) (string, error) {
	n := uint64(0)
	for _, o := range others {
		count, _, _ := strings.Cut(o, "-")
		if c, err := strconv.ParseUint(count, 10, 32); err == nil {
			n = max(n, c)
		}
	}
	b := make([]byte, 8)
	if _, err := rand.Read(b); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d-%s", n+1, hex.EncodeToString(b)), nil
}

// DeclareRestore begins a new lineage: what etcd has now is the configuration,
// also where a replica or a proxy has seen newer. Every replica reads everything
// again, every proxy syncs from nothing. The revision is the one at which the
// lineage begins. It returns once this replica follows the new lineage, or ctx
// ends. Conflict: somebody else declared one at the same time.
func (s *Store) DeclareRestore(ctx context.Context, actor, peer, reason string) (lineage string, revision int64, err error) {
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
	if lineage, err = newLineage(stored, known); err != nil {
		return "", 0, fault.Wrap(fault.Internal, op, "random", err)
	}
	record, err := s.note(AuditRecord{Actor: actor, Peer: peer, Method: "DeclareRestore",
		Detail: fmt.Sprintf("lineage %s, before %s: %s", lineage, stored, reason)})
	if err != nil {
		return "", 0, err
	}
	txn, err := s.client.Txn(ctx).If(same).Then(clientv3.OpPut(key, lineage), record).Commit()
	switch {
	case err != nil:
		return "", 0, &fault.Error{Class: fault.Ambiguous, Op: op, Reason: "etcd", Err: err,
			Msg: "etcd did not answer; the restore may have been declared: weft status shows the lineage"}
	case !txn.Succeeded:
		return "", 0, fault.New(fault.Conflict, op, "conflict", "a restore was declared at the same time; weft status shows the lineage")
	}
	s.log.Warn("a restore of etcd was declared: what it has is in force", "lineage", lineage, "before", stored, "actor", actor, "reason", reason)
	select {
	case s.reread <- struct{}{}:
	default:
	}
	for {
		snap, changed := s.now.Load()
		if snap != nil && snap.Lineage == lineage {
			break
		}
		select {
		case <-changed:
			continue
		case <-ctx.Done():
		}
		break
	}
	return lineage, txn.Header.Revision, nil
}
