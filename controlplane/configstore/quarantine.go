package configstore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/resource"
)

// QuarantineName is the canonical name of the Quarantine of the resource called
// name.
func QuarantineName(namespace, name string) string {
	sum := sha256.Sum256([]byte(name))
	return resource.Name(resource.Quarantine, namespace, hex.EncodeToString(sum[:16]))
}

// outdated are the Quarantines of what c changes: another version is judged anew.
func outdated(at *Snapshot, c Change) []string {
	var out []string
	add := func(name string) {
		if _, ns, _, err := resource.Split(name); err == nil {
			if q := QuarantineName(ns, name); at.Get(q) != nil && !slices.Contains(out, q) && !slices.Contains(c.Delete, q) {
				out = append(out, q)
			}
		}
	}
	for _, r := range c.Put {
		add(r.Name)
	}
	for _, name := range c.Delete {
		add(name)
	}
	return out
}

// lastGood is the entry that stands in for e while q is in force; nil where there
// is none that can be read and is of the same resource.
func lastGood(e *Entry, q *configv1.Quarantine) *Entry {
	if len(q.LastGood) == 0 {
		return nil
	}
	r := &configv1.Resource{}
	version, err := strconv.ParseInt(q.LastGoodVersion, 10, 64)
	if err != nil || proto.Unmarshal(q.LastGood, r) != nil || r.Name != e.Name {
		return nil
	}
	return newEntry(e.Name, e.Kind, e.Namespace, r, q.LastGood, version)
}

// Quarantine keeps one version of a resource, which nodes refuse for reason, from
// other proxies. It does nothing where the resource has another version by now, or
// is quarantined.
func (s *Store) Quarantine(ctx context.Context, name, version, reason string, nodes []string) error {
	for {
		snap, err := s.Current()
		if err != nil {
			return err
		}
		e := snap.Get(name)
		if _, why := snap.Served(name); e == nil || e.Version() != version || why != nil {
			return nil
		}
		q := &configv1.Quarantine{Resource: name, Version: version, Reason: reason, Nodes: nodes}
		if err := s.before(ctx, e, q); err != nil {
			return err
		}
		_, _, own, err := resource.Split(QuarantineName(e.Namespace, name))
		if err != nil {
			return err
		}
		_, err = s.Commit(ctx, snap, Change{Actor: "quarantine", Put: []*configv1.Resource{{Name: QuarantineName(e.Namespace, name),
			Metadata: &configv1.Metadata{Namespace: e.Namespace, Name: own, CreatedAt: timestamppb.New(s.clock.Now())}, Spec: &configv1.Resource_Quarantine{Quarantine: q}}}})
		if !errors.Is(err, ErrConflict) {
			return err
		}
		if _, err := s.WaitFor(ctx, snap.Revision+1); err != nil {
			return err
		}
	}
}

// before fills in the version before e, as far as etcd or the audit record still has
// it: of the same resource, not of one of that name which was deleted.
func (s *Store) before(ctx context.Context, e *Entry, q *configv1.Quarantine) error {
	var old *Entry
	resp, err := s.client.Get(ctx, s.prefix+dirResources+e.Name, clientv3.WithRev(e.ModRevision-1))
	switch {
	case errors.Is(err, rpctypes.ErrCompacted):
		if old, err = s.replaced(ctx, e); err != nil {
			return err
		}
	case err != nil:
		return fault.Wrap(fault.Unavailable, "configstore.quarantine", "etcd", err)
	case len(resp.Kvs) > 0:
		old = s.entry(resp.Kvs[0])
	}
	if old == nil || old.Resource.GetMetadata().GetUid() != e.Resource.GetMetadata().GetUid() {
		return nil
	}
	q.LastGood, q.LastGoodVersion = old.Bytes, old.Version()
	return nil
}

// replaced is what e replaced, as the audit record of that change has it; nil where
// there is none. Its version is the revision of the change before that one: it was
// in force then, and nothing else had that name and that version.
func (s *Store) replaced(ctx context.Context, e *Entry) (*Entry, error) {
	from := strings.TrimPrefix(s.auditKey(e.ModRevision-1), s.auditDir()) // no other change's record comes before it
	for r, err := range s.Audit(ctx, from) {
		if err != nil {
			return nil, err
		}
		if !r.Change || r.Revision != e.ModRevision {
			break
		}
		for _, c := range r.Changes {
			if c.Name == e.Name && c.Old != nil {
				return s.entry(&mvccpb.KeyValue{Key: []byte(s.prefix + dirResources + e.Name), Value: c.Old, ModRevision: r.Parent}), nil
			}
		}
		break
	}
	return nil, nil
}
