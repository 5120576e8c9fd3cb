package configstore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/resource"
)

// Limits of one change, below etcd's own (128 operations, 1.5 MiB).
const (
	MaxWrites     = 120
	MaxWriteBytes = 1 << 20
	maxTxnBytes   = 1400 << 10
)

// Change is one transaction: all or nothing.
type Change struct {
	// Put are resources with their final content; their metadata.version is
	// left out of what is stored.
	Put []*configv1.Resource
	// Delete are canonical names.
	Delete []string
	// Only are further conditions: an office that must still be held.
	Only []clientv3.Cmp
	// Actor is who does it, Peer from where and Method by which call, for the
	// audit record.
	Actor, Peer, Method string
	// AllowMassRemoval: it was said that more than a share may go; for the audit
	// record.
	AllowMassRemoval bool
}

// Fits tells whether one transaction takes as many writes.
func (c Change) Fits() error {
	if n := len(c.Put) + len(c.Delete); n > MaxWrites {
		return fault.New(fault.TooLarge, "configstore.commit", "too-many-writes",
			"the change takes %d writes (a new Topic takes two), the most is %d: split it", n, MaxWrites)
	}
	return nil
}

// commitTime bounds the wait for etcd's answer to one change. It is longer than an
// election takes.
const commitTime = 5 * time.Second

// ErrConflict is returned by Commit where the configuration changed since the
// snapshot, or a condition of Only did not hold: look again and decide again.
var ErrConflict = errors.New("the configuration changed meanwhile")

// Commit writes c if nothing changed since at. It returns the revision of the
// change. ErrConflict, Unavailable: nothing was written. Ambiguous: it may have been.
func (s *Store) Commit(ctx context.Context, at *Snapshot, c Change) (int64, error) {
	if message, _ := s.Suspected(); message != "" {
		return 0, fault.New(fault.Unavailable, "configstore.commit", "restore-suspected", "%s", message)
	}
	c.Delete = append(slices.Clone(c.Delete), outdated(at, c)...)
	audit := AuditRecord{Time: s.clock.Now().UTC(), Actor: c.Actor, Peer: c.Peer, Method: c.Method, AllowMassRemoval: c.AllowMassRemoval}
	var ops []clientv3.Op
	size := 0
	for _, r := range c.Put {
		b, err := marshalStored(r)
		if err != nil {
			return 0, fault.Wrap(fault.Internal, "configstore.commit", "marshal", err)
		}
		size += len(b)
		ops = append(ops, clientv3.OpPut(s.prefix+dirResources+r.Name, string(b)))
		entry := AuditChange{Name: r.Name, New: b}
		if e := at.Get(r.Name); e != nil {
			entry.Old = e.Bytes
		}
		audit.Changes = append(audit.Changes, entry)
	}
	for _, name := range c.Delete {
		ops = append(ops, clientv3.OpDelete(s.prefix+dirResources+name))
		if e := at.Get(name); e != nil {
			audit.Changes = append(audit.Changes, AuditChange{Name: name, Old: e.Bytes})
		}
	}
	if err := c.Fits(); err != nil {
		return 0, err
	}
	record, err := deflate(audit)
	if err != nil {
		return 0, fault.Wrap(fault.Internal, "configstore.commit", "audit", err)
	}
	if size > MaxWriteBytes || size+len(record) > maxTxnBytes {
		return 0, fault.New(fault.TooLarge, "configstore.commit", "too-large",
			"the change is %d bytes, %d with its audit record; the most is %d and %d: split it", size, size+len(record), MaxWriteBytes, maxTxnBytes)
	}
	id := make([]byte, 4)
	if _, err := rand.Read(id); err != nil {
		return 0, err
	}
	generation := s.prefix + dirMeta + "generation"
	ops = append(ops,
		clientv3.OpPut(generation, hex.EncodeToString(id)+" "+at.chain),
		clientv3.OpPut(s.changeKey(at.Generation), string(record)))
	began := time.Now()
	tctx, cancel := context.WithTimeout(ctx, commitTime)
	defer cancel()
	resp, err := s.client.Txn(tctx).
		If(append([]clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(generation), "=", at.Generation),
			clientv3.Compare(clientv3.Value(s.prefix+dirMeta+"lineage"), "=", at.Lineage)}, c.Only...)...).
		Then(ops...).Commit()
	s.metrics.seconds.Observe(time.Since(began).Seconds())
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return 0, &fault.Error{Class: fault.Unavailable, Op: "configstore.commit", Reason: "etcd-full", Err: err,
			Msg: "etcd has used up its space and takes no writes; nothing was changed: compact and defragment it, then disarm its alarm"}
	case refuses(err):
		return 0, &fault.Error{Class: fault.Unavailable, Op: "configstore.commit", Reason: "etcd-refuses", Err: err,
			Msg: "etcd refuses the change, and nothing was changed: " + err.Error()}
	case err != nil:
		return 0, &fault.Error{Class: fault.Ambiguous, Op: "configstore.commit", Reason: "etcd", Err: err,
			Msg: "etcd did not answer; the change may have been made: read and repeat"}
	case !resp.Succeeded:
		return 0, ErrConflict
	}
	s.wrote(len(record))
	return resp.Header.Revision, nil
}

// refuses reports whether err is etcd's own word that it does not do what it was asked for.
func refuses(err error) bool {
	var said rpctypes.EtcdError
	if !errors.As(err, &said) {
		return false
	}
	switch said.Code() {
	case codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated, codes.FailedPrecondition, codes.ResourceExhausted:
		return true
	}
	return false
}

// marshalStored marshals r as it is stored and streamed: without its version.
func marshalStored(r *configv1.Resource) ([]byte, error) {
	version := r.GetMetadata().GetVersion()
	if version != "" {
		r.Metadata.Version = ""
		defer func() { r.Metadata.Version = version }()
	}
	return resource.Marshal(r)
}
