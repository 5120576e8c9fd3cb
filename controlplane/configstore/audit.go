package configstore

import (
	"context"
	crand "crypto/rand"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// AuditRetention is how long audit records are kept.
const AuditRetention = 90 * 24 * time.Hour

// trimEvery is the time between two looks for audit records that are too old.
const trimEvery = time.Hour

// auditKey is where the records of a time begin: Commit writes them under it, and
// the keys sort by time.
func (s *Store) auditKey(t time.Time) string {
	return fmt.Sprintf("%s%s%016x", s.prefix, dirAudit, t.UnixNano())
}

// newAuditKey is the key of a new record.
func (s *Store) newAuditKey(t time.Time) (key, id string, err error) {
	b := make([]byte, 4)
	if _, err := crand.Read(b); err != nil {
		return "", "", err
	}
	id = hex.EncodeToString(b)
	return s.auditKey(t) + "-" + id, id, nil
}

// TrimAudit removes the audit records from before a time.
func (s *Store) TrimAudit(ctx context.Context, before time.Time) (removed int64, err error) {
	resp, err := s.client.Delete(ctx, s.prefix+dirAudit, clientv3.WithRange(s.auditKey(before)))
	if err != nil {
		return 0, err
	}
	return resp.Deleted, nil
}

// RunAudit keeps to AuditRetention until ctx ends. Any number of replicas may.
func (s *Store) RunAudit(ctx context.Context) error {
	for {
		removed, err := s.TrimAudit(ctx, s.clock.Now().Add(-AuditRetention))
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			s.log.Warn("old audit records cannot be removed; trying again", "error", err)
		case removed > 0:
			s.log.Info("old audit records were removed", "removed", removed)
		}
		timer := time.NewTimer(trimEvery/2 + rand.N(trimEvery))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}
