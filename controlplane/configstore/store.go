package configstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/lineage"
	"github.com/weft-mesh/weft/pkg/outage"
	"github.com/weft-mesh/weft/pkg/resource"
)

// Keys below the prefix:
//
//	r/<kind>/<namespace>/<name>  a resource, marshalled
//	m/lineage                    the lineage, text
//	m/generation                 compared and written by every change: an id
//	                             and that of the change before, so that a
//	                             history which is not this one is noticed
//	a/<revision>/…               an audit record, kept for AuditRetention and while there
//	                             is room
//	s/…                          status; never part of a snapshot
const (
	dirResources = "r/"
	dirMeta      = "m/"
	dirAudit     = "a/"
	dirStatus    = "s/"
)

// DefaultPrefix is where the mesh's keys begin.
const DefaultPrefix = "/weft/v1/"

// Config says where the configuration is.
type Config struct {
	Client *clientv3.Client
	// Prefix ends with a slash; DefaultPrefix when empty.
	Prefix string
	// MaxRetry is the longest wait, or half as much again, before etcd is read
	// again; 5 s when 0.
	MaxRetry time.Duration
	// ProbeEvery is how often etcd is asked for its head: a watch does not tell
	// that etcd went back. MaxRetry when 0.
	ProbeEvery time.Duration
	// AuditBytes is how much room audit records take in etcd, about; the oldest are
	// removed before there are more. DefaultAuditBytes when 0.
	AuditBytes int64
	// Clock dates audit records and tells which are too old.
	Clock   clock.Clock
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// Store follows the configuration in etcd. Its methods are safe for concurrent
// use.
type Store struct {
	client *clientv3.Client
	prefix string
	most   time.Duration
	probe  time.Duration
	clock  clock.Clock
	log    *slog.Logger
	// now is nil until everything was read.
	now *latest.Value[*Snapshot]
	// reread has a token where everything is to be read again at once.
	reread chan struct{}
	// behind has a token where etcd is to tell how far the watch is.
	behind chan struct{}
	// suspected is set while etcd shows another history than before.
	suspected atomic.Pointer[suspicion]
	metrics   metrics
	// auditBytes is Config.AuditBytes.
	auditBytes int64
	audited    audited
}

// suspicion is that etcd was restored and nobody has said so.
type suspicion struct {
	lineage, what string
	since         time.Time
}

func (x *suspicion) message() string {
	return x.what + `: it was emptied, restored from a backup, or written around the control plane. The last configuration stays in force and nothing can be changed; "weft admin restore" declares that what etcd has is in force`
}

func (s *Store) suspect(x *suspicion) {
	s.suspected.Store(x)
	if x == nil {
		s.metrics.suspected.Set(0)
		return
	}
	s.metrics.suspected.Set(1)
	s.log.Error("etcd shows another history than before", "reason", x.message())
}

// Suspected tells why and since when this replica believes that etcd was restored
// without "weft admin restore"; "" where it does not. It then keeps the last
// snapshot in force, until the lineage changes.
func (s *Store) Suspected() (message string, since time.Time) {
	if x := s.suspected.Load(); x != nil {
		return x.message(), x.since
	}
	return "", time.Time{}
}

// otherHistory is the error of a watch whose changes do not follow what was read.
type otherHistory struct{ what string }

func (e *otherHistory) Error() string { return e.what + "; reading everything again" }

// Head asks etcd, and not only the member that this replica reads from, for its
// revision now and the lineage that it is of.
func (s *Store) Head(ctx context.Context) (lineage string, revision int64, err error) {
	h, err := s.head(ctx)
	return h.lineage, h.revision, err
}

// head is what etcd has now.
type head struct {
	lineage  string
	revision int64
	// changed and chain are of the last change.
	changed int64
	chain   string
}

// Changed asks etcd, as Head does, for the revision of the last change of the
// configuration: a Snapshot of that lineage with this revision or a later one lacks
// nothing that was written before the question.
func (s *Store) Changed(ctx context.Context) (lineage string, revision int64, err error) {
	h, err := s.head(ctx)
	return h.lineage, h.changed, err
}

// headTime bounds one question for the head.
const headTime = 5 * time.Second

func (s *Store) head(ctx context.Context) (head, error) {
	ctx, cancel := context.WithTimeout(ctx, headTime)
	defer cancel()
	resp, err := s.client.Get(ctx, s.prefix+dirMeta, clientv3.WithPrefix())
	if err != nil {
		return head{}, err
	}
	h := head{revision: resp.Header.Revision}
	for _, kv := range resp.Kvs {
		switch strings.TrimPrefix(string(kv.Key), s.prefix+dirMeta) {
		case "lineage":
			h.lineage = string(kv.Value)
		case "generation":
			h.changed = kv.ModRevision
			h.chain, _, _ = strings.Cut(string(kv.Value), " ")
		}
	}
	return h, nil
}

type metrics struct {
	lost      prometheus.Counter
	suspected prometheus.Gauge
	seconds   prometheus.Histogram
	audit     prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) metrics {
	m := metrics{
		audit:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_controlplane_audit_bytes", Help: "Room that audit records take in etcd, in bytes, when this replica looked last."}),
		suspected: prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_controlplane_restore_suspected", Help: "1 while etcd shows another history than before and nobody has declared a restore, else 0."}),
		lost:      prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_controlplane_etcd_failures_total", Help: "Times that etcd could not be followed any more; each is followed by reading everything again."}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "weft_controlplane_etcd_commit_duration_seconds", Help: "Time that etcd takes for one change of the configuration.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8)}),
	}
	if reg != nil {
		reg.MustRegister(m.audit, m.lost, m.suspected, m.seconds)
	}
	return m
}

// New makes a Store; Run must run.
func New(cfg Config) *Store {
	if cfg.Prefix == "" {
		cfg.Prefix = DefaultPrefix
	}
	if cfg.MaxRetry == 0 {
		cfg.MaxRetry = 5 * time.Second
	}
	if cfg.ProbeEvery == 0 {
		cfg.ProbeEvery = cfg.MaxRetry
	}
	return &Store{client: cfg.Client, prefix: cfg.Prefix, most: cfg.MaxRetry, probe: cfg.ProbeEvery, clock: cfg.Clock, log: cfg.Log,
		now: latest.New[*Snapshot](nil), reread: make(chan struct{}, 1), behind: make(chan struct{}, 1), metrics: newMetrics(cfg.Metrics),
		auditBytes: cmp.Or(cfg.AuditBytes, DefaultAuditBytes), audited: audited{due: make(chan struct{}, 1)}}
}

// Client is the etcd client that the Store uses.
func (s *Store) Client() *clientv3.Client { return s.client }

// JoinTokens is where the keys of join tokens begin.
func (s *Store) JoinTokens() string { return s.prefix + "join-tokens/" }

// LineageKey is the key of the lineage that etcd is of.
func (s *Store) LineageKey() string { return s.prefix + dirMeta + "lineage" }

// StatusKey is the key for a status record.
func (s *Store) StatusKey(name string) string { return s.prefix + dirStatus + name }

// Snapshot returns the newest snapshot, nil before everything was read, and a
// channel that is closed once there is a newer one.
func (s *Store) Snapshot() (*Snapshot, <-chan struct{}) { return s.now.Load() }

// Current returns the newest snapshot; Unavailable before everything was read.
func (s *Store) Current() (*Snapshot, error) {
	if snap := s.now.Get(); snap != nil {
		return snap, nil
	}
	return nil, fault.New(fault.Unavailable, "configstore", "not-synced", "this control plane has not read the configuration from etcd yet: is etcd at the addresses of its --etcd? try again")
}

// CatchUp has etcd tell how far this replica is, and does not wait for it: what is no
// change of the configuration, as a status record, has a revision too, and moves no
// Snapshot on by itself.
func (s *Store) CatchUp() {
	select {
	case s.behind <- struct{}{}:
	default:
	}
}

// WaitFor returns the first snapshot at revision or later.
func (s *Store) WaitFor(ctx context.Context, revision int64) (*Snapshot, error) {
	for {
		snap, changed := s.now.Load()
		if snap != nil && snap.Revision >= revision {
			return snap, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fault.Wrap(fault.Unavailable, "configstore", "behind", ctx.Err())
		}
	}
}

// minRetry is Run's wait after the first failure.
const minRetry = 50 * time.Millisecond

// firstAnswer is how long etcd may be silent at the start before the log says so:
// its client waits for a connection and tells of no failure.
const firstAnswer = 10 * time.Second

// Run reads everything and follows it until ctx ends. It survives the loss of
// etcd: the last snapshot stays.
func (s *Store) Run(ctx context.Context) error {
	away := outage.New(s.log, "etcd cannot be followed; the last configuration stays in force", "etcd is followed again")
	unread := time.AfterFunc(firstAnswer, func() {
		s.log.Warn("etcd has not answered since the start; until it does there is no configuration to show", "endpoints", s.client.Endpoints())
	})
	defer unread.Stop()
	retry := minRetry
	var err error
	for {
		err = s.follow(ctx, err, func() { unread.Stop(); retry = minRetry; away.Is(nil) })
		if ctx.Err() != nil {
			return nil
		}
		s.metrics.lost.Inc()
		away.Is(err)
		timer := time.NewTimer(retry/2 + mrand.N(retry))
		select {
		case <-timer.C:
		case <-s.reread:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		retry = min(2*retry, s.most)
	}
}

// follow reads everything once and then watches; it returns when the watch
// breaks. Broke is why it did the last time.
func (s *Store) follow(ctx context.Context, broke error, good func()) error {
	old := s.now.Get()
	snap, err := s.read(ctx, old == nil)
	if err != nil {
		return err
	}
	suspected := s.suspected.Load()
	if suspected != nil && suspected.lineage != snap.Lineage {
		s.suspect(nil)
		suspected = nil
	}
	what := contradicts(old, snap)
	if other := (*otherHistory)(nil); what == "" && errors.As(broke, &other) && old.Lineage == snap.Lineage {
		what = other.what
	}
	if what != "" && suspected == nil {
		suspected = &suspicion{snap.Lineage, what, s.clock.Now()}
		s.suspect(suspected)
	}
	if suspected != nil {
		// Until somebody says that this is the history now, the last snapshot
		// is the truth: it is newer than what etcd has.
		return errors.New(suspected.message())
	}
	snap = keepLog(old, snap)
	s.now.Store(snap)
	good()
	wctx, cancel := context.WithCancelCause(ctx)
	// A progress notification moves the revision on while others write to the
	// same etcd, so that a quiet mesh does not fall behind its compaction.
	watch := s.client.Watch(ownStream(wctx), s.prefix, clientv3.WithPrefix(),
		clientv3.WithRev(snap.Revision+1), clientv3.WithProgressNotify())
	var looking sync.WaitGroup
	defer looking.Wait()
	defer cancel(nil)
	looking.Go(func() { s.lookBack(wctx, cancel) })
	for resp := range watch {
		if err := context.Cause(wctx); err != nil {
			return err
		}
		if err := resp.Err(); err != nil {
			if errors.Is(err, rpctypes.ErrCompacted) {
				return errors.New("the watch fell behind etcd's compaction; reading everything again")
			}
			return err
		}
		next, err := s.apply(s.now.Get(), resp)
		if err != nil {
			return err
		}
		if next != nil {
			s.now.Store(next)
			good()
		}
	}
	return cmp.Or(context.Cause(wctx), errors.New("the watch ended"))
}

// ownStream gives the watch a stream to etcd that other watches of the client do not
// share: etcd does not tell how far a stream is while one of them has yet to begin.
func ownStream(ctx context.Context) context.Context {
	return clientv3.WithRequireLeader(metadata.AppendToOutgoingContext(ctx, "weft-follows", "configuration"))
}

// lookBack cancels the watch where what etcd has now cannot follow what this
// replica has read: a watch would wait in silence until etcd, which went back,
// comes to that revision again. So it does where the watch hangs.
func (s *Store) lookBack(ctx context.Context, cancel context.CancelCauseFunc) {
	probe := time.NewTicker(s.probe)
	defer probe.Stop()
	missed := int64(0)
	for {
		select {
		case <-probe.C:
		case <-s.behind:
			_ = s.client.RequestProgress(ownStream(ctx)) // who asked asks again
			continue
		case <-s.reread:
			cancel(errors.New("a restore was declared; reading everything again"))
			return
		case <-ctx.Done():
			return
		}
		now := s.now.Get()
		h, err := s.head(ctx)
		if err != nil {
			continue // the watch notices that etcd is away
		}
		if h.lineage != now.Lineage || h.revision < now.Revision || h.changed <= now.Revision && h.chain != now.chain {
			cancel(fmt.Errorf("etcd is at %s/%d, and not what it was at %s/%d; reading everything again", h.lineage, h.revision, now.Lineage, now.Revision))
			return
		}
		if missed > s.now.Get().Generation {
			cancel(fmt.Errorf("the watch has not told of revision %d; reading everything again", missed))
			return
		}
		missed = h.changed
	}
}

// readPage is how many keys one read takes.
const readPage = 1000

// read reads everything at one revision. The lineage is "" where etcd has none and
// none may begin.
func (s *Store) read(ctx context.Context, begin bool) (*Snapshot, error) {
	lineage, begun, err := s.lineage(ctx, begin)
	if err != nil {
		return nil, err
	}
	var x *edit
	var rev int64
	from := s.prefix + dirResources
	end := clientv3.GetPrefixRangeEnd(from)
	for {
		opts := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(readPage)}
		if rev > 0 {
			opts = append(opts, clientv3.WithRev(rev))
		}
		resp, err := s.client.Get(ctx, from, opts...)
		if err != nil {
			return nil, err
		}
		if x == nil {
			rev = resp.Header.Revision
			x = Empty(lineage, rev).edit()
			x.logged, x.next.begun = false, begun
		}
		for _, kv := range resp.Kvs {
			if e := s.entry(kv); e != nil {
				x.put(e.Name, e, rev)
			}
		}
		if !resp.More {
			break
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
	gen, err := s.client.Get(ctx, s.prefix+dirMeta+"generation", clientv3.WithRev(rev))
	if err != nil {
		return nil, err
	}
	if len(gen.Kvs) > 0 {
		x.next.Generation = gen.Kvs[0].ModRevision
		x.next.chain, _, _ = strings.Cut(string(gen.Kvs[0].Value), " ")
	}
	return x.commit(rev), nil
}

// lineage reads the lineage. Where there is none it makes the first one, if it may:
// who has a configuration already would give an etcd that was emptied the last word.
func (s *Store) lineage(ctx context.Context, begin bool) (name string, begun int64, err error) {
	key := s.prefix + dirMeta + "lineage"
	// Read before anything is written: an etcd that is full refuses each transaction
	// that might write.
	there, err := s.client.Get(ctx, key)
	switch {
	case err != nil:
		return "", 0, err
	case len(there.Kvs) > 0:
		return string(there.Kvs[0].Value), there.Kvs[0].ModRevision, nil
	case !begin:
		return "", 0, nil
	}
	mine, err := lineage.New()
	if err != nil {
		return "", 0, err
	}
	resp, err := s.client.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, mine)).Else(clientv3.OpGet(key)).Commit()
	switch {
	case err != nil:
		return "", 0, err
	case resp.Succeeded:
		return mine, resp.Header.Revision, nil
	}
	other := resp.Responses[0].GetResponseRange().Kvs[0]
	return string(other.Value), other.ModRevision, nil
}

// contradicts tells where a reading of etcd cannot be a later state of what was
// read before; "" where it can. What etcd says was written up to then must be what
// was there then: else etcd was restored from a backup, or written by hand.
func contradicts(old, now *Snapshot) string {
	switch {
	case old == nil:
		return ""
	case now.Lineage == "":
		return fmt.Sprintf("etcd has no mesh any more, and had one at revision %d", old.Revision)
	case !lineage.Follows(now.Lineage, old.Lineage):
		return fmt.Sprintf("etcd is of lineage %s, which does not follow %s, of which it was", now.Lineage, old.Lineage)
	case old.Lineage != now.Lineage:
		return ""
	}
	if now.Revision < old.Revision {
		return fmt.Sprintf("etcd is at revision %d and was at %d", now.Revision, old.Revision)
	}
	if now.Generation <= old.Revision && now.chain != old.chain {
		return fmt.Sprintf("etcd says that the last change up to revision %d is another one than was made", old.Revision)
	}
	for e := range now.All("") {
		if e.ModRevision > old.Revision {
			continue
		}
		if o := old.Get(e.Name); o == nil || o.Mark.Digest != e.Mark.Digest {
			return fmt.Sprintf("etcd says that %s is of revision %d, at which it was not so", e.Name, e.ModRevision)
		}
	}
	return ""
}

// apply makes the next snapshot; nil where nothing of it changed.
func (s *Store) apply(now *Snapshot, resp clientv3.WatchResponse) (*Snapshot, error) {
	if len(resp.Events) == 0 {
		if resp.Header.Revision <= now.Revision {
			return nil, nil
		}
		return now.edit().commit(resp.Header.Revision), nil
	}
	x := now.edit()
	rev := now.Revision
	status := true // nothing else: who follows the configuration is not woken
	for _, ev := range resp.Events {
		rev = max(rev, ev.Kv.ModRevision)
		key := strings.TrimPrefix(string(ev.Kv.Key), s.prefix)
		status = status && strings.HasPrefix(key, dirStatus)
		switch {
		case strings.HasPrefix(key, dirResources):
			name := strings.TrimPrefix(key, dirResources)
			var e *Entry
			if ev.Type != mvccpb.Event_DELETE {
				// What cannot be read is as if it were not there, to every
				// replica, whether it saw it come or found it.
				e = s.entry(ev.Kv)
			}
			x.put(name, e, ev.Kv.ModRevision)
		case key == dirMeta+"generation":
			id, follows, _ := strings.Cut(string(ev.Kv.Value), " ")
			// One response may tell of several changes.
			if follows != x.next.chain && x.next.chain != "" && id != "" {
				return nil, &otherHistory{fmt.Sprintf("a change at revision %d does not follow the one that was made before it", ev.Kv.ModRevision)}
			}
			x.next.Generation, x.next.chain = ev.Kv.ModRevision, id
		case key == dirMeta+"lineage":
			return nil, fmt.Errorf("the lineage changed to %q; reading everything again", ev.Kv.Value)
		}
	}
	if status {
		return nil, nil
	}
	return x.commit(rev), nil
}

// entry decodes a key; nil, with a log line, for one that is no resource.
func (s *Store) entry(kv *mvccpb.KeyValue) *Entry {
	name := strings.TrimPrefix(string(kv.Key), s.prefix+dirResources)
	kind, ns, _, err := resource.Split(name)
	r := &configv1.Resource{}
	if err == nil {
		err = proto.Unmarshal(kv.Value, r)
	}
	if err != nil {
		s.log.Error("a key in etcd is no resource that this version knows; it is left out", "key", string(kv.Key), "error", err)
		return nil
	}
	return newEntry(name, kind, ns, r, kv.Value, kv.ModRevision)
}
