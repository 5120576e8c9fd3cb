package moves

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/config"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/resource"
	"github.com/weft-mesh/weft/store"
)

// settledEvery is how often a proxy looks what was settled of an epoch that is inside it.
const settledEvery = 250 * time.Millisecond

// session is the manager with a connection to a control plane.
type session struct {
	m       *Manager
	ctx     context.Context
	running sync.WaitGroup // writes markers

	snap   *snapshot.Snapshot // of which moving is
	moving []*snapshot.Topic
	// pinned are topics that move, by the names of their bindings, with Pin.
	pinned map[string]func()
	// settled are groups, by uid of the topic, that have settled an epoch: that stays so.
	settled map[string][]*discoveryv1.Settled
}

// Run tells a control plane, over a connection to it, where this proxy is with the topics
// that move, and asks for leases, until ctx ends or the control plane knows no moves.
// It is called by one goroutine at a time.
func (m *Manager) Run(ctx context.Context, conn grpc.ClientConnInterface) {
	ctx, cancel := context.WithCancel(ctx)
	s := &session{m: m, ctx: ctx, settled: map[string][]*discoveryv1.Settled{}, pinned: map[string]func(){}}
	defer s.end(cancel)
	retry := minRetry
	for ctx.Err() == nil {
		if !s.look() && m.cfg.Pin == nil {
			_, replaced := m.cfg.Snapshots.Load()
			if s.look() {
				continue
			}
			select {
			case <-replaced:
			case <-ctx.Done():
			}
			continue
		}
		err := s.stream(discoveryv1.NewMoveServiceClient(conn), func() { retry = minRetry })
		if status.Code(err) == codes.Unimplemented {
			m.cfg.Log.Warn("the control plane knows no moves of topics: those that move cannot be written to here")
			return
		}
		if err == nil || ctx.Err() != nil {
			continue
		}
		m.cfg.Log.Debug("the stream of leases broke off; trying again", "error", err)
		wait(ctx, retry)
		retry = min(2*retry, maxRetry)
	}
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d/2 + rand.N(d))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// end stops what the session has begun; markers that it has not written are another
// session's.
func (s *session) end(cancel context.CancelFunc) {
	cancel()
	s.running.Wait()
	s.pin(nil)
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	for _, mv := range s.m.moves {
		if len(mv.seal.cut) == 0 {
			mv.seal = seal{}
		}
	}
}

// look finds the topics that move, and drops what is kept of others, and markers that are
// not asked for any more. It reports whether there are any.
func (s *session) look() bool {
	snap := s.m.cfg.Snapshots.Get()
	if snap == s.snap {
		return len(s.moving) > 0
	}
	s.snap, s.moving = snap, nil
	by := map[string]*snapshot.Topic{}
	for _, t := range snap.Topics {
		if t.Move != nil {
			s.moving = append(s.moving, t)
			by[t.UID] = t
		}
	}
	slices.SortFunc(s.moving, func(a, b *snapshot.Topic) int { return strings.Compare(a.String(), b.String()) })
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	for uid, mv := range s.m.moves {
		t := by[uid]
		if t == nil || t.Move.Phase != cutover.Marking || t.Move.Version != mv.seal.version {
			mv.seal.stop()
			mv.seal = seal{}
		}
		if t == nil && mv.writes == 0 {
			delete(s.m.moves, uid)
		}
	}
	for uid := range s.settled {
		if by[uid] == nil {
			delete(s.settled, uid)
		}
	}
	return len(s.moving) > 0
}

// stream asks and is answered until nothing moves any more, or it breaks.
func (s *session) stream(c discoveryv1.MoveServiceClient, good func()) error {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	rpc, err := c.Hold(ctx)
	if err != nil {
		return err
	}
	for first := true; s.look() || s.m.cfg.Pin != nil; {
		_, replaced := s.m.cfg.Snapshots.Load()
		if s.snap != s.m.cfg.Snapshots.Get() {
			continue
		}
		kept, more := s.m.cfg.Kept()
		req := s.request(kept.Covers(s.snap.Lineage, s.snap.Revision))
		if first {
			req.NodeId, first = s.m.cfg.NodeID, false
		}
		if err := s.ask(rpc, req, cancel); err != nil {
			return err
		}
		good()
		timer := time.NewTimer(s.pause())
		select {
		case <-replaced:
		case <-s.m.poke:
		case <-more:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		timer.Stop()
	}
	return nil
}

// ask makes one request and takes the answer. One that takes as long as a lease lasts is
// worth nothing.
func (s *session) ask(rpc grpc.BidiStreamingClient[discoveryv1.HoldRequest, discoveryv1.HoldResponse], req *discoveryv1.HoldRequest, cancel context.CancelFunc) error {
	defer time.AfterFunc(s.m.cfg.Terms.TTL, cancel).Stop()
	asked := s.m.cfg.Now()
	if err := rpc.Send(req); err != nil {
		_, err = rpc.Recv() // it says why
		return err
	}
	resp, err := rpc.Recv()
	if err != nil {
		return err
	}
	s.pin(resp.Moving)
	epochs := map[string]uint32{}
	for _, t := range s.moving {
		if t.Move.Phase == cutover.Leasing && slices.Contains(resp.Granted, bindingOf(t)) {
			epochs[t.UID] = t.Written().Number
		}
	}
	s.m.grant(epochs, asked)
	return nil
}

func bindingOf(t *snapshot.Topic) string {
	return resource.Name(resource.TopicBinding, t.Namespace, t.Name)
}

// maxMoves is how many topics one request may speak of.
const maxMoves = 1000

// listEvery is how often the control plane is asked what moves while nothing does, more
// or less by half.
const listEvery = 10 * time.Second

// pause is until the next request where nothing happens.
func (s *session) pause() time.Duration {
	if len(s.moving)+len(s.pinned) == 0 {
		return listEvery/2 + rand.N(listEvery)
	}
	for _, t := range s.moving {
		if t.Move.Phase >= cutover.Draining && slices.ContainsFunc(t.Epochs, func(e snapshot.Epoch) bool { return e.Local && t.Cuts[e.Number] != nil }) {
			return min(settledEvery, s.m.cfg.Terms.TTL/3)
		}
	}
	return s.m.cfg.Terms.TTL / 3
}

// request is where this proxy is with the topics that move. It names the versions in
// force only where they are kept: a restart could begin with others.
func (s *session) request(kept bool) *discoveryv1.HoldRequest {
	req := &discoveryv1.HoldRequest{Lists: s.m.cfg.Pin != nil}
	for _, t := range s.moving {
		h := &discoveryv1.Held{Binding: bindingOf(t), Wants: t.Move.Phase == cutover.Leasing}
		if kept {
			h.Version = t.Move.Version
		}
		if h.Wants {
			h.Epoch = t.Written().Number
		}
		if t.Move.Phase < cutover.Draining {
			_, h.Able = s.m.able(t)
		}
		switch t.Move.Phase {
		case cutover.Stopping:
			h.Idle = s.m.idle(s.snap, t)
		case cutover.Marking:
			if t.Move.Marker == s.m.cfg.NodeID {
				h.Cut, h.Trouble = s.mark(t)
				if len(h.Cut) > 0 {
					h.Attempt = t.Move.Attempt
				}
			}
		case cutover.Draining, cutover.Drained: // the old place is given up only while it is so
			h.Settled = s.settledOf(t)
		}
		req.Moves = append(req.Moves, h)
	}
	return req
}

// pin has the topics in the configuration that move, and lets go of those that do not
// any more.
func (s *session) pin(bindings []string) {
	if s.m.cfg.Pin == nil {
		return
	}
	for _, b := range bindings[:min(len(bindings), maxMoves)] {
		if kind, ns, name, err := resource.Split(b); err == nil && kind == resource.TopicBinding && s.pinned[b] == nil {
			s.pinned[b] = s.m.cfg.Pin(config.Name{Kind: resource.Topic, Namespace: ns, Name: name})
		}
	}
	for b, release := range s.pinned {
		if !slices.Contains(bindings, b) {
			release()
			delete(s.pinned, b)
		}
	}
}

// idle reports whether no write is on its way to t, which is in Stopping by snap, and
// none can begin as long as that is in force.
func (m *Manager) idle(snap *snapshot.Snapshot, t *snapshot.Topic) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	mv := m.moves[t.UID]
	return m.cfg.Snapshots.Get() == snap && (mv == nil || mv.writes == 0)
}

// settledOf are the groups that have settled epochs of t which are inside this proxy. One
// that has is one for ever, but where what waits for another attempt is only read on as
// long as its Subscription stays there.
func (s *session) settledOf(t *snapshot.Topic) []*discoveryv1.Settled {
	known := s.settled[t.UID]
	var staying []*discoveryv1.Settled
	for _, sub := range s.snap.Subscriptions {
		for i := range sub.Sources {
			src := &sub.Sources[i]
			if src.Topic != t || !src.Epoch.Local ||
				slices.ContainsFunc(known, func(x *discoveryv1.Settled) bool { return x.Epoch == src.Epoch.Number && x.Group == src.Group }) {
				continue
			}
			one := &discoveryv1.Settled{Epoch: src.Epoch.Number, Group: src.Group}
			switch settled, waits := s.m.settled(s.ctx, src); {
			case settled && !waits:
				known = append(known, one)
			case settled && staysIn(sub, src.Epoch.StoreUID):
				staying = append(staying, one)
			}
		}
	}
	s.settled[t.UID] = known
	slices.SortFunc(staying, func(a, b *discoveryv1.Settled) int {
		return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), strings.Compare(a.Group, b.Group))
	})
	return append(slices.Clip(known), staying...)
}

// staysIn reports whether a Subscription goes on reading in a store: a topic of it is
// written to there. One that is left there may be given up, too.
func staysIn(sub *snapshot.Subscription, storeUID string) bool {
	return slices.ContainsFunc(sub.Sources, func(src snapshot.Source) bool {
		return src.Epoch.StoreUID == storeUID && src.Epoch.Number == src.Topic.Written().Number
	})
}

// settled reports whether a group has settled an epoch which is inside this proxy up to
// its cut; and whether something waits in that store for another attempt, be it held back.
func (m *Manager) settled(ctx context.Context, src *snapshot.Source) (settled, waits bool) {
	st, err := m.cfg.Store(src.Epoch.StoreUID)
	if err != nil {
		return false, true
	}
	admin, ok := st.(store.Admin)
	if !ok {
		return false, true
	}
	lag, err := admin.Lag(ctx, src.Epoch.Physical, src.Group)
	if err != nil || !src.Settled(lag) {
		return false, true
	}
	retry, err := admin.Lag(ctx, src.RetryTopic, src.RetryGroup)
	return err == nil, slices.ContainsFunc(retry, func(p store.PartitionLag) bool { return p.Behind+p.Delayed > 0 })
}
