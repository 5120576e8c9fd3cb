package configstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/resource"
)

// Keys below the prefix:
//
//	r/<kind>/<namespace>/<name>  a resource, marshalled
//	m/lineage                    the lineage, text
//	m/generation                 compared and written by every change
//	a/<revision>/…               an audit record, kept for AuditRetention
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
	clock  clock.Clock
	log    *slog.Logger
	// now is nil until everything was read.
	now *latest.Value[*Snapshot]
	// reread has a token where everything is to be read again at once.
	reread  chan struct{}
	metrics metrics
}

type metrics struct {
	lost    prometheus.Counter
	seconds prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) metrics {
	m := metrics{
		lost: prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_controlplane_etcd_failures_total", Help: "Times that etcd could not be followed any more; each is followed by reading everything again."}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "weft_controlplane_etcd_commit_duration_seconds", Help: "Time that etcd takes for one change of the configuration.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8)}),
	}
	if reg != nil {
		reg.MustRegister(m.lost, m.seconds)
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
	return &Store{client: cfg.Client, prefix: cfg.Prefix, most: cfg.MaxRetry, clock: cfg.Clock, log: cfg.Log, now: latest.New[*Snapshot](nil), reread: make(chan struct{}, 1), metrics: newMetrics(cfg.Metrics)}
}

// Client is the etcd client that the Store uses.
func (s *Store) Client() *clientv3.Client { return s.client }

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
	return nil, fault.New(fault.Unavailable, "configstore", "not-synced", "this control plane has not read the configuration from etcd yet; try again")
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

// Run reads everything and follows it until ctx ends. It survives the loss of
// etcd: the last snapshot stays.
func (s *Store) Run(ctx context.Context) error {
	retry := minRetry
	for {
		err := s.follow(ctx, func() { retry = minRetry })
		if ctx.Err() != nil {
			return nil
		}
		s.metrics.lost.Inc()
		s.log.Warn("etcd cannot be followed; the last configuration stays in force", "error", err, "retry", retry)
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
// breaks.
func (s *Store) follow(ctx context.Context, good func()) error {
	snap, err := s.read(ctx)
	if err != nil {
		return err
	}
	snap = keepLog(s.now.Get(), snap)
	s.now.Store(snap)
	good()
	wctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go s.watchOver(wctx, cancel)
	// A progress notification moves the revision on while others write to the
	// same etcd, so that a quiet mesh does not fall behind its compaction.
	watch := s.client.Watch(clientv3.WithRequireLeader(wctx), s.prefix, clientv3.WithPrefix(),
		clientv3.WithRev(snap.Revision+1), clientv3.WithProgressNotify())
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
	if err := context.Cause(wctx); err != nil {
		return err
	}
	return errors.New("the watch ended")
}

// readPage is how many keys one read takes.
const readPage = 1000

// read reads everything at one revision.
func (s *Store) read(ctx context.Context) (*Snapshot, error) {
	lineage, err := s.lineage(ctx)
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
		}
		for _, kv := range resp.Kvs {
			if e := s.entry(kv); e != nil {
				x.put(e.Name, e, rev, false)
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
	}
	return x.commit(rev), nil
}

// lineage reads the lineage, or makes the first one.
func (s *Store) lineage(ctx context.Context) (string, error) {
	key := s.prefix + dirMeta + "lineage"
	mine, err := newLineage()
	if err != nil {
		return "", err
	}
	resp, err := s.client.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, mine)).Else(clientv3.OpGet(key)).Commit()
	if err != nil {
		return "", err
	}
	if resp.Succeeded {
		return mine, nil
	}
	return string(resp.Responses[0].GetResponseRange().Kvs[0].Value), nil
}

// keepLog carries the log of changes over a new reading of everything, by
// comparing the two, so that streams need not start again.
func keepLog(old, now *Snapshot) *Snapshot {
	if old == nil || old.Lineage != now.Lineage || old.Revision > now.Revision {
		return now
	}
	next := *now
	next.floor, next.changes = old.floor, old.changes
	log := func(name string) { next.changes = append(next.changes, change{now.Revision, name}) }
	for e := range now.All("") {
		if o := old.Get(e.Name); o == nil || o.ModRevision != e.ModRevision {
			log(e.Name)
		}
	}
	for e := range old.All("") {
		if now.Get(e.Name) == nil {
			log(e.Name)
		}
	}
	return &next
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
	for _, ev := range resp.Events {
		rev = max(rev, ev.Kv.ModRevision)
		key := strings.TrimPrefix(string(ev.Kv.Key), s.prefix)
		switch {
		case strings.HasPrefix(key, dirResources):
			name := strings.TrimPrefix(key, dirResources)
			var e *Entry
			if ev.Type != mvccpb.Event_DELETE {
				// What cannot be read is as if it were not there, to every
				// replica, whether it saw it come or found it.
				e = s.entry(ev.Kv)
			}
			x.put(name, e, ev.Kv.ModRevision, true)
		case key == dirMeta+"generation":
			x.next.Generation = ev.Kv.ModRevision
		case key == dirMeta+"lineage":
			return nil, fmt.Errorf("the lineage changed to %q; reading everything again", ev.Kv.Value)
		}
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
	return &Entry{Name: name, Kind: kind, Namespace: ns, Resource: r, Bytes: kv.Value, ModRevision: kv.ModRevision}
}
