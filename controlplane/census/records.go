package census

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/url"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/pkg/names"
)

// Where the records begin.
const (
	replicaKeys = "replica/"
	proxyKeys   = "proxy/"
)

// What one write, and reading all records, may take.
const (
	etcdTimeout = 5 * time.Second
	readTimeout = time.Second
)

// maxOps bounds a transaction.
const maxOps = 100

// replica is the record of a replica. It is rewritten at every heartbeat.
type replica struct {
	ID      string    `json:"id"`
	Address string    `json:"address"`
	Version string    `json:"version"`
	Seen    time.Time `json:"seen"`
	// heard is when this replica first read the record as it is.
	heard time.Time
}

// records are what all replicas have written down.
type records struct {
	replicas []replica
	proxies  []*adminv1.ProxyStatus
	at       time.Time
}

// fresh is for how long records that were read are not read again.
const fresh = time.Second

// read gives the records, those that were read last where etcd does not answer.
func (m *Mesh) read(ctx context.Context) records {
	m.mu.Lock()
	known := m.records
	m.mu.Unlock()
	if !known.at.IsZero() && time.Since(known.at) < fresh {
		return known
	}
	read := records{at: time.Now()}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	get := func(keys string) clientv3.Op {
		return clientv3.OpGet(m.cfg.StatusKey(keys), clientv3.WithPrefix(), clientv3.WithSerializable())
	}
	resp, err := m.cfg.Etcd.Txn(ctx).Then(get(replicaKeys), get(proxyKeys)).Commit()
	if err != nil {
		m.reached(err)
		return known
	}
	for _, kv := range resp.Responses[0].GetResponseRange().Kvs {
		var r replica
		if err := json.Unmarshal(kv.Value, &r); err != nil || r.ID == "" {
			m.cfg.Log.Error("the record of a replica cannot be read", "key", string(kv.Key))
			continue
		}
		r.heard = read.at
		for _, old := range known.replicas {
			if old.ID == r.ID && old.Seen.Equal(r.Seen) {
				r.heard = old.heard
			}
		}
		read.replicas = append(read.replicas, r)
	}
	for _, kv := range resp.Responses[1].GetResponseRange().Kvs {
		p := &adminv1.ProxyStatus{}
		if err := proto.Unmarshal(kv.Value, p); err != nil || p.NodeId == "" {
			m.cfg.Log.Error("the record of a proxy cannot be read", "key", string(kv.Key))
			continue
		}
		read.proxies = append(read.proxies, p)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.records = read
	return read
}

// Run writes down that this replica lives and who is connected to it, until ctx
// ends. What fails is tried again.
func (m *Mesh) Run(ctx context.Context) error {
	defer m.closePeers()
	for ctx.Err() == nil {
		if err := m.session(ctx); err != nil && ctx.Err() == nil {
			m.reached(err)
			m.say.Is(err)
		}
		wait(ctx, m.cfg.Every)
	}
	// Others need not wait for it. Proxies that were here have gone elsewhere, or
	// are shown as gone from here.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_, _ = m.cfg.Etcd.Delete(ctx, m.cfg.StatusKey(replicaKeys+m.id))
	return nil
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d/2 + rand.N(d))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// session writes under one lease. What a replica has written is gone with its
// lease, some time after the replica; a proxy that goes gets a lease of its own.
func (m *Mesh) session(ctx context.Context) error {
	lease, err := concurrency.NewSession(m.cfg.Etcd, concurrency.WithTTL(int(m.cfg.Forget/time.Second)), concurrency.WithContext(ctx))
	if err != nil {
		return err
	}
	defer lease.Orphan() // it ends by itself, and with it what was written
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		for gctx.Err() == nil {
			if err := m.beat(gctx, lease.Lease()); err != nil {
				return err
			}
			wait(gctx, heartbeat*2/3)
		}
		return nil
	})
	g.Go(func() error {
		r := recorder{mesh: m, lease: lease.Lease(), written: map[string]written{}}
		for gctx.Err() == nil {
			if err := r.record(gctx, m.cfg.Connected()); err != nil {
				return err
			}
			select {
			case <-lease.Done():
				return errors.New("the lease of this replica's records has ended")
			default:
			}
			wait(gctx, m.cfg.Every)
		}
		if ctx.Err() == nil {
			return nil
		}
		return r.gone(context.WithoutCancel(ctx), nil) // this replica stops
	})
	return g.Wait()
}

// beat writes down that this replica lives.
func (m *Mesh) beat(ctx context.Context, lease clientv3.LeaseID) error {
	b, err := json.Marshal(replica{ID: m.id, Address: m.cfg.Address, Version: m.cfg.Version, Seen: m.cfg.Clock.Now()})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	_, err = m.cfg.Etcd.Put(ctx, m.cfg.StatusKey(replicaKeys+m.id), string(b), clientv3.WithLease(lease))
	m.reached(err)
	if err == nil {
		m.say.Is(nil)
	}
	return err
}

// recorder writes down who is connected: when one comes, goes, or, seldom, when
// it has another revision. It belongs to one goroutine.
type recorder struct {
	mesh    *Mesh
	lease   clientv3.LeaseID
	written map[string]written // by node id
}

// written is what this replica wrote down of a proxy.
type written struct {
	record   *adminv1.ProxyStatus
	at       time.Time
	revision int64 // etcd's: the record is ours while it has it
}

// record writes down what has changed.
func (r *recorder) record(ctx context.Context, connected []*adminv1.ProxyStatus) error {
	var put []*adminv1.ProxyStatus
	there := make(map[string]bool, len(connected))
	for _, p := range connected {
		there[p.NodeId] = true
		old, ok := r.written[p.NodeId]
		same := ok && old.record.ConnectedAt.AsTime().Equal(p.ConnectedAt.AsTime())
		if same && (old.record.AckedRevision == p.AckedRevision || time.Since(old.at) < rewrite) {
			continue
		}
		put = append(put, r.mesh.kept(p))
	}
	for part := range slices.Chunk(put, maxOps) {
		if err := r.put(ctx, part); err != nil {
			return err
		}
	}
	return r.gone(ctx, there)
}

func (r *recorder) key(node string) string {
	return r.mesh.cfg.StatusKey(proxyKeys + url.PathEscape(node))
}

func (r *recorder) put(ctx context.Context, list []*adminv1.ProxyStatus) error {
	var ops []clientv3.Op
	for _, p := range list {
		b, err := proto.Marshal(p)
		if err != nil {
			return err
		}
		ops = append(ops, clientv3.OpPut(r.key(p.NodeId), string(b), clientv3.WithLease(r.lease)))
	}
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	resp, err := r.mesh.cfg.Etcd.Txn(ctx).Then(ops...).Commit()
	if err != nil {
		return err
	}
	for _, p := range list {
		r.written[p.NodeId] = written{p, time.Now(), resp.Header.Revision}
	}
	return nil
}

// gone writes down that proxies are not connected any more, unless another
// replica has them.
func (r *recorder) gone(ctx context.Context, there map[string]bool) error {
	var left []string
	for node := range r.written {
		if !there[node] {
			left = append(left, node)
		}
	}
	if len(left) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	lease, err := r.mesh.cfg.Etcd.Grant(ctx, int64(r.mesh.cfg.Forget/time.Second))
	if err != nil {
		return err
	}
	for part := range slices.Chunk(left, maxOps) {
		var ops []clientv3.Op
		for _, node := range part {
			w := r.written[node]
			last := shallow(w.record)
			last.Connected, last.LastSeen = false, r.mesh.now()
			b, err := proto.Marshal(last)
			if err != nil {
				return err
			}
			ours := clientv3.Compare(clientv3.ModRevision(r.key(node)), "=", w.revision)
			ops = append(ops, clientv3.OpTxn([]clientv3.Cmp{ours}, []clientv3.Op{clientv3.OpPut(r.key(node), string(b), clientv3.WithLease(lease.ID))}, nil))
		}
		if _, err := r.mesh.cfg.Etcd.Txn(ctx).Then(ops...).Commit(); err != nil {
			return err
		}
		for _, node := range part {
			delete(r.written, node)
		}
	}
	return nil
}

// kept is what is written down of a proxy: who it is, and what it has.
func (m *Mesh) kept(p *adminv1.ProxyStatus) *adminv1.ProxyStatus {
	const text = 256
	return &adminv1.ProxyStatus{NodeId: p.NodeId, Peer: p.Peer, ConnectedAt: p.ConnectedAt, AckedRevision: p.AckedRevision, Connected: true, LastSeen: m.now(), Replica: m.id,
		Info: &discoveryv1.NodeInfo{Version: names.Text(p.Info.GetVersion(), text), Zone: names.Text(p.Info.GetZone(), text), AdvertiseHost: names.Text(p.Info.GetAdvertiseHost(), text),
			Incarnation: names.Text(p.Info.GetIncarnation(), text), Namespaces: p.Info.GetNamespaces()[:min(len(p.Info.GetNamespaces()), 20)]}}
}
