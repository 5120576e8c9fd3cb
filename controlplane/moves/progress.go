package moves

import (
	"cmp"
	"context"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/election"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/resource"
)

// progresses is where the status keys of how far moves are begin: then comes the
// Migration's name, and the value is a MoveProgress.
const progresses = "moving/"

// Most of what is told of one move; partitions are those of all its groups.
const (
	maxGroups     = 100
	maxPartitions = 500
	maxProxies    = 100
)

// wrote is progress that was written, and when.
type wrote struct {
	bytes string
	at    time.Duration // since boot
}

// progress is how far everyone is with a move.
func (m *move) progress() *adminv1.MoveProgress {
	p := &adminv1.MoveProgress{}
	version := m.entry.Version()
	for _, node := range m.nodes {
		w := m.words[node]
		p.Proxies = append(p.Proxies, &adminv1.MoveProxy{NodeId: node, Says: w != nil, Heard: w.GetVersion() == version, Idle: w.GetIdle(),
			Marked: uint32(len(w.GetCut())), Settled: uint32(len(w.GetSettled())), Trouble: w.GetTrouble()})
	}
	if m.phase < cutover.Draining {
		return bounded(p) // nothing is cut that would have to be read
	}
	all, _ := items(m.snap, m.topic, m.b)
	m.seen.look.mu.Lock()
	for _, at := range all {
		_, _, name, _ := resource.Split(at.subscription)
		g := &adminv1.MoveGroup{Subscription: name, Epoch: at.epoch, Store: storeName(at), Group: at.group}
		if why, looked := m.seen.look.behind[at]; at.local {
			g.Read = len(m.unsettled(at)) == 0
		} else {
			g.Read, g.Reason, g.Partitions = looked && why == "", why, slices.Clone(m.seen.look.parts[at])
		}
		p.Groups = append(p.Groups, g)
	}
	m.seen.look.mu.Unlock()
	return bounded(p)
}

// bounded has first what holds a move up most, and leaves out what is too much.
func bounded(p *adminv1.MoveProgress) *adminv1.MoveProgress {
	slices.SortStableFunc(p.Proxies, func(a, b *adminv1.MoveProxy) int { return order(a.Heard) - order(b.Heard) })
	if n := len(p.Proxies) - maxProxies; n > 0 {
		p.Proxies, p.ProxiesLeftOut = p.Proxies[:maxProxies], uint32(n)
	}
	slices.SortStableFunc(p.Groups, func(a, b *adminv1.MoveGroup) int {
		return cmp.Or(order(a.Read)-order(b.Read), cmp.Compare(left(b), left(a)))
	})
	if n := len(p.Groups) - maxGroups; n > 0 {
		p.Groups, p.GroupsLeftOut = p.Groups[:maxGroups], uint32(n)
	}
	room := maxPartitions
	for _, g := range p.Groups {
		slices.SortStableFunc(g.Partitions, func(a, b *adminv1.MovePartition) int { return cmp.Compare(b.End-b.Settled, a.End-a.Settled) })
		if n := len(g.Partitions) - room; n > 0 {
			g.Partitions, g.PartitionsLeftOut = g.Partitions[:room], uint32(n)
		}
		room -= len(g.Partitions)
	}
	return p
}

// order has what is done last.
func order(done bool) int {
	if done {
		return 1
	}
	return 0
}

// left is how much a group has to read.
func left(g *adminv1.MoveGroup) (n uint64) {
	for _, p := range g.Partitions {
		n += p.End - p.Settled
	}
	return n
}

// tellProgress writes down how far everyone is, when it changed, and not too often.
// Failing is no harm: the next pass writes it.
func (o *Office) tellProgress(ctx context.Context, term election.Term, m *move) {
	name, now := resource.NameOf(m.migration), o.cfg.SinceBoot()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.progress())
	if old, was := o.wrote[name]; err != nil || was && (old.bytes == string(b) || now-old.at < tellEvery) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if term.Write(ctx, o.cfg.Store.Client(), clientv3.OpPut(o.cfg.Store.StatusKey(progresses+name), string(b))) == nil {
		o.wrote[name] = wrote{string(b), now}
	}
}

// Progress tells how far the move of a Migration is that is under way; nil where nobody
// knows.
func Progress(s *configstore.Store) func(ctx context.Context, migration string) *adminv1.MoveProgress {
	return func(ctx context.Context, migration string) *adminv1.MoveProgress {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		resp, err := s.Client().Get(ctx, s.StatusKey(progresses+migration), clientv3.WithSerializable())
		if err != nil || len(resp.Kvs) == 0 {
			return nil
		}
		p := &adminv1.MoveProgress{}
		if proto.Unmarshal(resp.Kvs[0].Value, p) != nil {
			return nil
		}
		return p
	}
}
