// Package configstore keeps the configuration in etcd and in memory: every
// replica reads all of it, follows it with one watch, and has it as one
// immutable snapshot with a log of what changed. Writes are compare-and-swap
// transactions.
package configstore

import (
	"iter"
	"maps"
	"slices"
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
	// Mark is what is remembered of it when it is replaced.
	Mark *Mark
}

// Mark is what the log of changes remembers of an entry. It is immutable.
type Mark struct {
	Digest   resource.Digest
	Requires resource.Features
}

func newEntry(name string, kind resource.Kind, namespace string, r *configv1.Resource, bytes []byte, modRevision int64) *Entry {
	e := &Entry{Name: name, Kind: kind, Namespace: namespace, Resource: r, Bytes: bytes, ModRevision: modRevision}
	e.Mark = &Mark{resource.DigestOf(name, e.Version(), bytes), resource.Requires(r)}
	return e
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
	// begun is the revision at which the lineage began.
	begun int64
	// chain is the id that the write of the generation drew.
	chain string

	tree *iradix.Tree[*Entry]
	// found has the entries by what validate.Keys tells of them: a key, a zero
	// byte, the canonical name.
	found *iradix.Tree[*Entry]
	// changes, oldest first; all that happened after floor.
	changes []logEntry
	floor   int64
	// gaps, oldest first, are of changes that were read at once: what there was between
	// is not known.
	gaps    []gap
	digests *iradix.Tree[resource.Digest]
	// quarantined is in force now, by the resource's name. It is copied when it
	// changes.
	quarantined map[string]Quarantined
}

// logEntry: something was written under a name, or is served under it, at a
// revision.
type logEntry struct {
	revision int64
	name     string
	before   *Mark // of what was served; nil for nothing
}

// gap is between two revisions at which it is known what there was.
type gap struct{ after, until int64 }

// maxGaps bounds the gaps in the log of changes.
const maxGaps = 64

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

// Within yields the entries of a namespace, kind by kind in the order of
// resource.Kinds, each sorted.
func (s *Snapshot) Within(namespace string) iter.Seq[*Entry] {
	return func(yield func(*Entry) bool) {
		for _, k := range resource.Kinds() {
			for e := range s.All(string(k.Kind) + "/" + namespace + "/") {
				if !yield(e) {
					return
				}
			}
		}
	}
}

// Changed is a name under which something was written, or is served.
type Changed struct {
	Name string
	// Before is what was served then; nil for nothing.
	Before *Mark
}

// Log tells what changed after revision, each name once, sorted; ok is false
// where the log does not reach back so far, or revision is in a gap of it.
func (s *Snapshot) Log(revision int64) (changes []Changed, ok bool) {
	if revision < s.Reach(revision) {
		return nil, false
	}
	i := sort.Search(len(s.changes), func(i int) bool { return s.changes[i].revision > revision })
	seen := make(map[string]struct{}, len(s.changes)-i)
	for _, c := range s.changes[i:] {
		if _, dup := seen[c.name]; !dup {
			seen[c.name] = struct{}{}
			changes = append(changes, Changed{c.name, c.before})
		}
	}
	sort.Slice(changes, func(i, j int) bool { return changes[i].Name < changes[j].Name })
	return changes, true
}

// Reach is the first revision, from one on, at which Log can begin: it reaches back to
// that at which this replica read everything, or a later one of which the log was trimmed,
// and has gaps where everything was read again.
func (s *Snapshot) Reach(revision int64) int64 {
	revision = max(revision, s.floor)
	for _, g := range s.gaps {
		if g.after < revision && revision < g.until {
			return g.until
		}
	}
	return revision
}

// Since names what changed after revision, as Log does.
func (s *Snapshot) Since(revision int64) (names []string, ok bool) {
	changes, ok := s.Log(revision)
	for _, c := range changes {
		names = append(names, c.Name)
	}
	return names, ok
}

// Quarantined is what is served of a resource whose version is quarantined.
type Quarantined struct {
	// Instead is the version before it; nil where there is none.
	Instead *Entry
	// Why is the Quarantine.
	Why *configv1.Quarantine
}

// Served is what proxies are sent under a name: what is stored, or what stands in
// for a quarantined version; nil, with the reason, where that is nothing.
func (s *Snapshot) Served(name string) (*Entry, *configv1.Quarantine) {
	if q, ok := s.quarantined[name]; ok {
		return q.Instead, q.Why
	}
	e := s.Get(name)
	if e != nil && !resource.Streamed(e.Kind) {
		return nil, nil // its effect is what is served
	}
	return e, nil
}

// Quarantined yields what is quarantined, by the resource's name, in no order.
func (s *Snapshot) Quarantined() iter.Seq2[string, Quarantined] { return maps.All(s.quarantined) }

// Digests yields the digest of each kind of a namespace, of what is served.
func (s *Snapshot) Digests(namespace string) iter.Seq2[resource.Kind, resource.Digest] {
	return func(yield func(resource.Kind, resource.Digest) bool) {
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
	return &Snapshot{Lineage: lineage, Revision: revision, floor: revision, tree: iradix.New[*Entry](), found: iradix.New[*Entry](), digests: iradix.New[resource.Digest]()}
}

// Newest is the revision of what was changed last, of which a restore is one. Revision may
// be further, where etcd was when this was read, and differs among replicas.
func (s *Snapshot) Newest() int64 { return max(s.Generation, s.begun) }

// edit is a set of changes on the way to the next snapshot.
type edit struct {
	next    *Snapshot
	tree    *iradix.Txn[*Entry]
	found   *iradix.Txn[*Entry]
	digests *iradix.Txn[resource.Digest]
	// logged: what changes goes to the log.
	logged bool
}

func (s *Snapshot) edit() *edit {
	next := *s
	return &edit{next: &next, tree: s.tree.Txn(), found: s.found.Txn(), digests: s.digests.Txn(), logged: true}
}

// put stores e, or removes name where e is nil, at revision.
func (x *edit) put(name string, e *Entry, revision int64) {
	old, _ := x.tree.Get([]byte(name))
	if old != nil {
		for _, k := range validate.Keys(old.Resource) {
			x.found.Delete(foundKey(k, name))
		}
	}
	if e != nil {
		for _, k := range validate.Keys(e.Resource) {
			x.found.Insert(foundKey(k, name), e)
		}
	}
	x.change(name, revision, func() {
		if e != nil {
			x.tree.Insert([]byte(name), e)
		} else {
			x.tree.Delete([]byte(name))
		}
	})
	// A Quarantine changes what is served of another.
	of := func(e *Entry) string {
		if e == nil {
			return ""
		}
		return e.Resource.GetQuarantine().GetResource()
	}
	for _, target := range slices.Compact([]string{of(old), of(e)}) {
		if target != "" {
			x.change(target, revision, func() {})
		}
	}
}

// change makes a change under one name: what is served, digests and log follow.
func (x *edit) change(name string, revision int64, change func()) {
	before := x.served(name)
	change()
	x.judge(name)
	after := x.served(name)
	entry := logEntry{revision: revision, name: name}
	if before != nil {
		entry.before = before.Mark
		x.digest(before, func(d resource.Digest) resource.Digest { return d.Sub(before.Mark.Digest) })
	}
	if after != nil {
		x.digest(after, func(d resource.Digest) resource.Digest { return d.Add(after.Mark.Digest) })
	}
	if x.logged {
		x.next.changes = append(x.next.changes, entry)
	}
}

func (x *edit) served(name string) *Entry {
	if q, ok := x.next.quarantined[name]; ok {
		return q.Instead
	}
	if e, ok := x.tree.Get([]byte(name)); ok && resource.Streamed(e.Kind) {
		return e
	}
	return nil
}

// judge settles whether a name's version is quarantined.
func (x *edit) judge(name string) {
	e, _ := x.tree.Get([]byte(name))
	var found *configv1.Quarantine
	if e != nil {
		if q, ok := x.tree.Get([]byte(QuarantineName(e.Namespace, name))); ok {
			if why := q.Resource.GetQuarantine(); why.GetResource() == name && why.Version == e.Version() {
				found = why
			}
		}
	}
	if _, was := x.next.quarantined[name]; !was && found == nil {
		return
	}
	x.next.quarantined = maps.Clone(x.next.quarantined)
	if found == nil {
		delete(x.next.quarantined, name)
		return
	}
	if x.next.quarantined == nil {
		x.next.quarantined = map[string]Quarantined{}
	}
	x.next.quarantined[name] = Quarantined{lastGood(e, found), found}
}

func foundKey(key, name string) []byte { return []byte(key + "\x00" + name) }

func (x *edit) digest(e *Entry, change func(resource.Digest) resource.Digest) {
	k := digestKey(e.Namespace, e.Kind)
	d, _ := x.digests.Get(k)
	if d = change(d); d.Count == 0 {
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
		x.next.changes = append([]logEntry(nil), x.next.changes[keep:]...)
	}
	return x.next
}
