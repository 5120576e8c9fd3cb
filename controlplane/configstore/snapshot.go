// Package configstore keeps the configuration in etcd and in memory: every
// replica reads all of it, follows it with one watch, and has it as one
// immutable snapshot with a log of what changed. Writes are compare-and-swap
// transactions.
package configstore

import (
	"crypto/sha256"
	"encoding/binary"
	"iter"
	"math/bits"
	"sort"
	"strconv"

	iradix "github.com/hashicorp/go-immutable-radix/v2"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/validate"
	"github.com/weft-mesh/weft/pkg/resource"
)

// Entry is one stored resource. It is immutable, and so are the resource and
// its bytes, which are shared by everyone.
type Entry struct {
	// Name is the canonical name.
	Name      string
	Kind      resource.Kind
	Namespace string
	Resource  *configv1.Resource
	// Bytes are what etcd has and proxies get.
	Bytes []byte
	// ModRevision is the version.
	ModRevision int64
}

// Version is the version as clients see it.
func (e *Entry) Version() string { return strconv.FormatInt(e.ModRevision, 10) }

// Snapshot is the configuration at one revision. It is immutable.
type Snapshot struct {
	// Lineage names the history that revisions count in.
	Lineage string
	// Revision of etcd up to which everything is in here.
	Revision int64
	// Generation is the mod revision of the key that every write compares.
	Generation int64

	tree *iradix.Tree[*Entry]
	// found has the entries by what validate.Keys tells of them: a key, a zero
	// byte, the canonical name.
	found *iradix.Tree[*Entry]
	// changes, oldest first; all that happened after floor.
	changes []change
	floor   int64
	digests *iradix.Tree[Digest]
}

type change struct {
	revision int64
	name     string
}

// maxChanges bounds the log of changes. A reader that is further behind reads
// everything.
const maxChanges = 16384

// Get returns the entry called name; nil if there is none.
func (s *Snapshot) Get(name string) *Entry {
	e, _ := s.tree.Get([]byte(name))
	return e
}

// Resource returns the resource called name; nil if there is none.
func (s *Snapshot) Resource(name string) *configv1.Resource {
	if e := s.Get(name); e != nil {
		return e.Resource
	}
	return nil
}

// Len is the number of resources.
func (s *Snapshot) Len() int { return s.tree.Len() }

// All yields the entries whose names begin with prefix ("topic/demo/"), sorted.
func (s *Snapshot) All(prefix string) iter.Seq[*Entry] { return s.From(prefix, "") }

// From yields the entries whose names begin with prefix and come at or after
// start, sorted.
func (s *Snapshot) From(prefix, start string) iter.Seq[*Entry] {
	return func(yield func(*Entry) bool) {
		it := s.tree.Root().Iterator()
		if start == "" {
			it.SeekPrefix([]byte(prefix))
			for _, e, ok := it.Next(); ok; _, e, ok = it.Next() {
				if !yield(e) {
					return
				}
			}
			return
		}
		it.SeekLowerBound([]byte(max(start, prefix)))
		for k, e, ok := it.Next(); ok; k, e, ok = it.Next() {
			if len(k) < len(prefix) || string(k[:len(prefix)]) != prefix || !yield(e) {
				return
			}
		}
	}
}

// Find yields the resources that have key among their validate.Keys, by name.
func (s *Snapshot) Find(key string) iter.Seq[*configv1.Resource] {
	return func(yield func(*configv1.Resource) bool) {
		it := s.found.Root().Iterator()
		it.SeekPrefix(append([]byte(key), 0))
		for _, e, ok := it.Next(); ok; _, e, ok = it.Next() {
			if !yield(e.Resource) {
				return
			}
		}
	}
}

// Since names what changed after revision, each name once, sorted; ok is false
// where the log does not reach back so far.
func (s *Snapshot) Since(revision int64) (names []string, ok bool) {
	if revision < s.floor {
		return nil, false
	}
	i := sort.Search(len(s.changes), func(i int) bool { return s.changes[i].revision > revision })
	seen := make(map[string]struct{}, len(s.changes)-i)
	for _, c := range s.changes[i:] {
		if _, dup := seen[c.name]; !dup {
			seen[c.name] = struct{}{}
			names = append(names, c.name)
		}
	}
	sort.Strings(names)
	return names, true
}

// Digest sums up resources; see configv1.KindDigest.
type Digest struct {
	Count  uint32
	hi, lo uint64
}

// DigestOf is the digest of one resource.
func DigestOf(name, version string) Digest {
	b := make([]byte, 0, len(name)+1+len(version))
	b = append(append(append(b, name...), 0), version...)
	sum := sha256.Sum256(b)
	return Digest{1, binary.BigEndian.Uint64(sum[:8]), binary.BigEndian.Uint64(sum[8:16])}
}

// Add is the digest of both.
func (d Digest) Add(o Digest) Digest {
	lo, carry := bits.Add64(d.lo, o.lo, 0)
	hi, _ := bits.Add64(d.hi, o.hi, carry)
	return Digest{d.Count + o.Count, hi, lo}
}

// Sub is the digest without o.
func (d Digest) Sub(o Digest) Digest {
	lo, borrow := bits.Sub64(d.lo, o.lo, 0)
	hi, _ := bits.Sub64(d.hi, o.hi, borrow)
	return Digest{d.Count - o.Count, hi, lo}
}

// Bytes is the digest as it is sent.
func (d Digest) Bytes() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, d.hi), d.lo)
}

// Digests yields the digest of each kind of a namespace.
func (s *Snapshot) Digests(namespace string) iter.Seq2[resource.Kind, Digest] {
	return func(yield func(resource.Kind, Digest) bool) {
		for _, k := range resource.Kinds() {
			if d, ok := s.digests.Get(digestKey(namespace, k.Kind)); ok && d.Count > 0 && !yield(k.Kind, d) {
				return
			}
		}
	}
}

// Namespaces yields the namespaces that have resources, sorted.
func (s *Snapshot) Namespaces() iter.Seq[string] {
	return func(yield func(string) bool) {
		last := ""
		it := s.digests.Root().Iterator()
		for k, d, ok := it.Next(); ok; k, d, ok = it.Next() {
			ns, _, _ := cutByte(k)
			if d.Count > 0 && ns != last {
				if last = ns; !yield(ns) {
					return
				}
			}
		}
	}
}

func digestKey(namespace string, kind resource.Kind) []byte {
	return []byte(namespace + "/" + string(kind))
}

func cutByte(k []byte) (before, after string, ok bool) {
	for i, c := range k {
		if c == '/' {
			return string(k[:i]), string(k[i+1:]), true
		}
	}
	return string(k), "", false
}

// Empty is the snapshot of an etcd without resources.
func Empty(lineage string, revision int64) *Snapshot {
	return &Snapshot{Lineage: lineage, Revision: revision, floor: revision, tree: iradix.New[*Entry](), found: iradix.New[*Entry](), digests: iradix.New[Digest]()}
}

// edit is a set of changes on the way to the next snapshot.
type edit struct {
	next    *Snapshot
	tree    *iradix.Txn[*Entry]
	found   *iradix.Txn[*Entry]
	digests *iradix.Txn[Digest]
}

func (s *Snapshot) edit() *edit {
	next := *s
	return &edit{next: &next, tree: s.tree.Txn(), found: s.found.Txn(), digests: s.digests.Txn()}
}

// put stores e, or removes name where e is nil, at revision.
func (x *edit) put(name string, e *Entry, revision int64, logged bool) {
	if old, ok := x.tree.Get([]byte(name)); ok {
		x.digest(old, false)
		for _, k := range validate.Keys(old.Resource) {
			x.found.Delete(foundKey(k, name))
		}
	}
	if e != nil {
		x.tree.Insert([]byte(name), e)
		x.digest(e, true)
		for _, k := range validate.Keys(e.Resource) {
			x.found.Insert(foundKey(k, name), e)
		}
	} else {
		x.tree.Delete([]byte(name))
	}
	if logged {
		x.next.changes = append(x.next.changes, change{revision, name})
	}
}

func foundKey(key, name string) []byte { return []byte(key + "\x00" + name) }

func (x *edit) digest(e *Entry, add bool) {
	k := digestKey(e.Namespace, e.Kind)
	d, _ := x.digests.Get(k)
	if add {
		d = d.Add(DigestOf(e.Name, e.Version()))
	} else {
		d = d.Sub(DigestOf(e.Name, e.Version()))
	}
	if d.Count == 0 {
		x.digests.Delete(k)
		return
	}
	x.digests.Insert(k, d)
}

// commit is the next snapshot, at revision. The log of changes shares memory
// with older snapshots: one goroutine edits, and it only appends.
func (x *edit) commit(revision int64) *Snapshot {
	x.next.tree, x.next.found, x.next.digests = x.tree.Commit(), x.found.Commit(), x.digests.Commit()
	x.next.Revision = revision
	if over := len(x.next.changes) - maxChanges; over > maxChanges/4 {
		x.next.floor = x.next.changes[over-1].revision
		keep := sort.Search(len(x.next.changes), func(i int) bool { return x.next.changes[i].revision > x.next.floor })
		x.next.changes = append([]change(nil), x.next.changes[keep:]...)
	}
	return x.next
}
