package configstore

import (
	"bytes"
	"compress/flate"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"math"
	mrand "math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weft-mesh/weft/pkg/fault"
)

// AuditRetention is how long audit records are kept.
const AuditRetention = 90 * 24 * time.Hour

// DefaultAuditBytes is how much room audit records take by default, in bytes.
const DefaultAuditBytes = 512 << 20

// trimEvery is the time between two looks for audit records that are too old, or
// too many; the latter are looked for more often where many are written.
const trimEvery = time.Hour

// AuditRecord says who did, or was refused, what.
//
// The records of changes are a chain: each names the revision of the change
// before it. So whoever walks it backwards knows whether one is missing, and
// what he undoes on the way leads to the configuration of any revision since the
// oldest record, whatever etcd has compacted.
type AuditRecord struct {
	// Revision is that of the change, or of the record itself where nothing of
	// the configuration changed.
	Revision int64 `json:"-"`
	// Parent is the revision of the change before.
	Parent int64 `json:"-"`
	// Change: the record is that of a change, not of a refusal or another act.
	Change bool `json:"-"`

	Time   time.Time `json:"time"`
	Actor  string    `json:"actor"`
	Peer   string    `json:"peer"`
	Method string    `json:"method,omitempty"`
	// Detail is what was done beside changing resources.
	Detail string `json:"detail,omitempty"`
	// Refused is why nothing was done; empty for what was done.
	Refused string `json:"refused,omitempty"`
	// Repeats counts refusals of the same caller before this one that have no
	// records.
	Repeats uint32 `json:"repeats,omitempty"`
	// AllowMassRemoval: it was said that more than a share of what exists may go.
	AllowMassRemoval bool `json:"allow_mass_removal,omitempty"`
	// Changes are what was changed or, without contents, was to be changed.
	Changes []AuditChange `json:"changes,omitempty"`
}

// AuditChange is one resource as it was and as it became, marshalled; without
// Old it was created, without New deleted.
type AuditChange struct {
	Name string `json:"name"`
	Old  []byte `json:"old,omitempty"`
	New  []byte `json:"new,omitempty"`
}

// A record's key begins with the revision of the change before it, counted down:
// etcd reads a range upwards in parts, but downwards only as a whole, and the
// newest records are asked for. A change compares that revision, so that one key
// is its alone; beside it stand the refusals that were decided at the same time.

func (s *Store) auditDir() string { return s.prefix + dirAudit }

func (s *Store) auditKey(parent int64) string {
	return fmt.Sprintf("%s%016x/", s.auditDir(), uint64(math.MaxInt64-parent))
}

// changeKey is that of the record of the change that follows parent.
func (s *Store) changeKey(parent int64) string { return s.auditKey(parent) + "change" }

// noteKey is where the records begin that are of no change and from a time, or
// before; the latest come first. They stand after "change", which came later.
func (s *Store) noteKey(parent int64, t time.Time) string {
	return fmt.Sprintf("%snote-%016x-", s.auditKey(parent), uint64(math.MaxInt64-t.UnixNano()))
}

// Note writes the record of something that changed nothing of the configuration:
// a refusal, or another act. It sets the record's time.
func (s *Store) Note(ctx context.Context, r AuditRecord) error {
	op, err := s.note(r)
	if err != nil {
		return err
	}
	if _, err := s.client.Do(ctx, op); err != nil {
		return fault.Wrap(fault.Unavailable, "configstore.note", "etcd", err)
	}
	s.wrote(len(op.ValueBytes()))
	return nil
}

func (s *Store) note(r AuditRecord) (clientv3.Op, error) {
	parent := int64(0)
	if snap := s.now.Get(); snap != nil {
		parent = snap.Generation
	}
	r.Time = s.clock.Now().UTC()
	b, err := deflate(r)
	if err != nil {
		return clientv3.Op{}, fault.Wrap(fault.Internal, "configstore.note", "audit", err)
	}
	id := make([]byte, 4)
	if _, err := rand.Read(id); err != nil {
		return clientv3.Op{}, fault.Wrap(fault.Internal, "configstore.note", "audit", err)
	}
	return clientv3.OpPut(s.noteKey(parent, r.Time)+hex.EncodeToString(id), string(b)), nil
}

// auditPage is how many records one read takes.
const auditPage = 64

// Audit yields the records, newest first, and for each the token from which the
// records after it are yielded; "" begins with the newest. A record that cannot
// be read is left out, with a log line.
func (s *Store) Audit(ctx context.Context, from string) iter.Seq2[AuditAt, error] {
	return func(yield func(AuditAt, error) bool) {
		end := clientv3.GetPrefixRangeEnd(s.auditDir())
		next := s.auditDir() + from
		for {
			pctx, cancel := context.WithTimeout(ctx, commitTime)
			resp, err := s.client.Get(pctx, next, clientv3.WithRange(end), clientv3.WithLimit(auditPage))
			cancel()
			if err != nil {
				yield(AuditAt{}, &fault.Error{Class: fault.Unavailable, Op: "configstore.audit", Reason: "etcd", Err: err, Msg: "etcd does not answer, and it alone has the history"})
				return
			}
			for _, kv := range resp.Kvs {
				next = string(kv.Key) + "\x00"
				r, err := s.record(kv)
				if err != nil {
					s.log.Error("an audit record cannot be read; it is left out", "key", string(kv.Key), "error", err)
					continue
				}
				if !yield(AuditAt{r, strings.TrimPrefix(next, s.auditDir())}, nil) {
					return
				}
			}
			if !resp.More {
				return
			}
		}
	}
}

// AuditAt is a record and where those after it begin.
type AuditAt struct {
	AuditRecord
	Next string
}

// record reads a record.
func (s *Store) record(kv *mvccpb.KeyValue) (AuditRecord, error) {
	var r AuditRecord
	down, what, _ := strings.Cut(strings.TrimPrefix(string(kv.Key), s.auditDir()), "/")
	n, err := strconv.ParseUint(down, 16, 64)
	if err != nil || n > math.MaxInt64 {
		return r, fmt.Errorf("%q is no key of a record", down)
	}
	if err := inflate(kv.Value, &r); err != nil {
		return r, err
	}
	r.Revision, r.Parent, r.Change = kv.ModRevision, int64(math.MaxInt64-n), what == "change"
	return r, nil
}

// ChangesSince yields the changes that led from a revision to at, newest first.
// It fails with Precondition where records are missing: they are kept for
// AuditRetention, and as many as have room. Nothing else than its changes is to be trusted before it ends.
func (s *Store) ChangesSince(ctx context.Context, at *Snapshot, revision int64) iter.Seq2[AuditRecord, error] {
	return func(yield func(AuditRecord, error) bool) {
		if revision > at.Revision {
			yield(AuditRecord{}, fault.New(fault.Invalid, "configstore.audit", "future", "revision %d is not there yet, the newest is %d", revision, at.Revision))
			return
		}
		expected := at.Generation
		if expected <= revision {
			return
		}
		// What at does not have yet is passed over.
		for r, err := range s.Audit(ctx, "") {
			switch {
			case err != nil:
				yield(AuditRecord{}, err)
				return
			case !r.Change || r.Revision > expected:
				continue
			case r.Revision < expected:
				yield(AuditRecord{}, s.beyond(revision, expected))
				return
			}
			if !yield(r.AuditRecord, nil) {
				return
			}
			if expected = r.Parent; expected <= revision {
				return
			}
		}
		yield(AuditRecord{}, s.beyond(revision, expected))
	}
}

func (s *Store) beyond(revision, oldest int64) error {
	return fault.New(fault.Precondition, "configstore.audit", "no-records",
		"what was at revision %d cannot be told: audit records, which are kept for %d days and up to %d MiB, reach back to revision %d", revision, int(AuditRetention.Hours()/24), s.auditBytes>>20, oldest)
}

// TrimAudit removes the audit records from before a time.
func (s *Store) TrimAudit(ctx context.Context, before time.Time) (removed int64, err error) {
	end := clientv3.GetPrefixRangeEnd(s.auditDir())
	// The first record at a key or after it is older, the later the key is.
	old := func(key string) (bool, error) {
		for {
			resp, err := s.client.Get(ctx, key, clientv3.WithRange(end), clientv3.WithLimit(1))
			if err != nil || len(resp.Kvs) == 0 {
				return true, err
			}
			r, err := s.record(resp.Kvs[0])
			if err == nil {
				return r.Time.Before(before), nil
			}
			key = string(resp.Kvs[0].Key) + "\x00" // is not ours
		}
	}
	snap, err := s.Current()
	if err != nil {
		return 0, err
	}
	// The greatest parent from which on, downwards, all is old.
	young := snap.Generation + 1
	for from := int64(0); from < young; {
		mid := from + (young-from)/2
		is, err := old(s.auditKey(mid))
		if err != nil {
			return 0, err
		}
		if is {
			from = mid + 1
		} else {
			young = mid
		}
	}
	// Beside a change that is young may stand what was refused before it.
	resp, err := s.client.Txn(ctx).Then(
		clientv3.OpDelete(s.noteKey(young, before), clientv3.WithRange(s.auditKey(young-1))),
		clientv3.OpDelete(s.auditKey(young-1), clientv3.WithRange(end))).Commit()
	if err != nil {
		return 0, err
	}
	for _, r := range resp.Responses {
		removed += r.GetResponseDeleteRange().Deleted
	}
	return removed, nil
}

// audited is how much room the audit records take, as far as this replica has
// read them: each once.
type audited struct {
	mu sync.Mutex
	// parts are the newest first, and each is at least a hundredth of what is kept.
	// What others remove is at the end, where it does not matter: what stays is
	// counted from the newest on.
	parts []auditPart
	// written counts what this replica has written since the last look, in bytes;
	// due has a token when that is a sixteenth of what is kept.
	written atomic.Int64
	due     chan struct{}
}

// auditPart is the room that some records take which follow each other.
type auditPart struct {
	first string // key
	bytes int64
}

// wrote counts an audit record that was written.
func (s *Store) wrote(bytes int) {
	if s.audited.written.Add(int64(bytes)) < s.auditBytes/16 {
		return
	}
	select {
	case s.audited.due <- struct{}{}:
	default:
	}
}

// BoundAudit removes the oldest audit records where all of them take more room
// than they may.
func (s *Store) BoundAudit(ctx context.Context) (removed int64, err error) {
	a := &s.audited
	a.mu.Lock()
	defer a.mu.Unlock()
	a.written.Store(0)
	end := clientv3.GetPrefixRangeEnd(s.auditDir())
	known := end
	if len(a.parts) > 0 {
		known = a.parts[0].first
	}
	part := s.auditBytes / 100
	var parts []auditPart
	for next := s.auditDir(); ; {
		resp, err := s.client.Get(ctx, next, clientv3.WithRange(known), clientv3.WithLimit(auditPage))
		if err != nil {
			return 0, err
		}
		for _, kv := range resp.Kvs {
			if n := len(parts); n == 0 || parts[n-1].bytes >= part {
				parts = append(parts, auditPart{first: string(kv.Key)})
			}
			parts[len(parts)-1].bytes += int64(len(kv.Key) + len(kv.Value))
			next = string(kv.Key) + "\x00"
		}
		if !resp.More {
			break
		}
	}
	if n := len(parts); n > 0 && len(a.parts) > 0 && parts[n-1].bytes < part && a.parts[0].bytes < part {
		a.parts[0] = auditPart{parts[n-1].first, parts[n-1].bytes + a.parts[0].bytes}
		parts = parts[:n-1]
	}
	a.parts = append(parts, a.parts...)
	total := int64(0)
	for i, p := range a.parts {
		if total += p.bytes; i == 0 || total <= s.auditBytes {
			continue
		}
		resp, err := s.client.Delete(ctx, p.first, clientv3.WithRange(end))
		if err != nil {
			return 0, err
		}
		a.parts, total = a.parts[:i], total-p.bytes
		removed = resp.Deleted
		break
	}
	s.metrics.audit.Set(float64(total))
	return removed, nil
}

// RunAudit keeps to AuditRetention, and to the room that records may take, until
// ctx ends. Any number of replicas may.
func (s *Store) RunAudit(ctx context.Context) error {
	for {
		if _, err := s.WaitFor(ctx, 0); err != nil {
			return nil // ctx has ended
		}
		removed, err := s.TrimAudit(ctx, s.clock.Now().Add(-AuditRetention))
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			s.log.Warn("old audit records cannot be removed; trying again", "error", err)
		case removed > 0:
			s.log.Info("old audit records were removed", "removed", removed)
		}
		removed, err = s.BoundAudit(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			s.log.Warn("it cannot be told whether audit records take more room than they may; trying again", "error", err)
		case removed > 0:
			s.log.Warn("the oldest audit records were removed, since all take more room than they may", "removed", removed, "bytes", s.auditBytes)
		}
		timer := time.NewTimer(trimEvery/2 + mrand.N(trimEvery))
		select {
		case <-timer.C:
		case <-s.audited.due:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// deflaters are writers to be used again: making one costs more than what it
// writes here.
var deflaters = sync.Pool{New: func() any {
	w, err := flate.NewWriter(nil, flate.BestSpeed)
	if err != nil {
		panic(err) // of the level
	}
	return w
}}

func deflate(record AuditRecord) ([]byte, error) {
	var b bytes.Buffer
	w := deflaters.Get().(*flate.Writer)
	defer deflaters.Put(w)
	w.Reset(&b)
	if err := json.NewEncoder(w).Encode(record); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// maxRecord bounds a record that is read: old and new contents of a change, in
// base64, and names.
const maxRecord = 8 << 20

func inflate(b []byte, r *AuditRecord) error {
	return json.NewDecoder(io.LimitReader(flate.NewReader(bytes.NewReader(b)), maxRecord)).Decode(r)
}
