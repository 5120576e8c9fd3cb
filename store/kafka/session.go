package kafka

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store/ackwindow"
)

// Times of a member; tests shorten them.
var (
	// sessionTimeout is after how long without a word a member is taken for dead.
	sessionTimeout = 10 * time.Second
	heartbeatEvery = 2500 * time.Millisecond
)

const (
	// heartbeatAgain is how soon a member without a lease asks for one again.
	heartbeatAgain = 100 * time.Millisecond
	// rebalanceTimeout is how long members may take to give up what another gets. It
	// is not below sessionTimeout, or a lease could outlast it.
	rebalanceTimeout = 30 * time.Second
	// offsetsFor is how long brokers keep an offset that nothing follows.
	offsetsFor = 10 * 365 * 24 * time.Hour
)

// session is one membership: a client, which brokers know one member by.
type session struct {
	sub   *subscription
	c     *kgo.Client
	lease lease
	beat  chan struct{} // look after the lease now; capacity 1
	// hungry: a partition may want more than there is here; capacity 1.
	hungry chan struct{}
	life   context.Context
	end    context.CancelFunc
	left   sync.Once

	steering   sync.Mutex // held while the client is told what to fetch
	committing sync.Mutex // held while offsets are committed, so that no commit overtakes another
	bare       bool       // brokers take no metadata as long as ours; guarded by it
}

// join begins a membership.
func (x *subscription) join() (*session, error) {
	n := &session{sub: x, beat: make(chan struct{}, 1), hungry: make(chan struct{}, 1)}
	n.life, n.end = context.WithCancel(x.life)
	var err error
	n.c, err = x.s.op.client(x.s.clientID(),
		kgo.ConsumerGroup(x.group), kgo.ConsumeTopics(x.topic), kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll(),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.SessionTimeout(sessionTimeout), kgo.HeartbeatInterval(heartbeatEvery), kgo.RebalanceTimeout(rebalanceTimeout),
		// A partition that came after the group, or whose events at the offset have gone.
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.FetchMaxBytes(8<<20), kgo.FetchMaxPartitionBytes(fetchBytes),
		kgo.OnOffsetsFetched(n.fetched), kgo.OnPartitionsAssigned(func(context.Context, *kgo.Client, map[string][]int32) {}),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, lost map[string][]int32) { n.gone(lost[x.topic], true) }),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, lost map[string][]int32) { n.gone(lost[x.topic], false) }))
	if err != nil {
		n.end()
		return nil, err
	}
	return n, nil
}

// sessions has one session after the other until the subscription ends.
func (x *subscription) sessions(n *session) {
	retry := minRetry
	for {
		x.mu.Lock()
		if !x.closed {
			x.now = n
		}
		x.mu.Unlock()
		var work sync.WaitGroup
		if x.ordered {
			work.Go(n.renew)
		}
		n.poll()
		work.Wait()
		gone := x.giveUp(func(o *ownership) bool { return o.x == n })
		n.commit(context.WithoutCancel(x.life), gone)
		n.leave(context.WithoutCancel(x.life))
		x.mu.Lock()
		x.now = nil
		x.mu.Unlock()
		for again := true; again; {
			if x.life.Err() != nil {
				return
			}
			pause(x.life, &retry)
			var err error
			if n, err = x.join(); err != nil {
				x.fail(err)
			}
			again = err != nil
		}
	}
}

// leave ends the membership; brokers are told, at most until ctx ends.
func (n *session) leave(ctx context.Context) {
	n.end()
	n.left.Do(func() {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		n.c.AllowRebalance()
		_ = n.c.LeaveGroupContext(ctx) // else they notice by themselves
		n.c.CloseAllowingRebalance()
	})
}

// fetched takes partitions, with what was committed for them.
func (n *session) fetched(_ context.Context, _ *kgo.Client, resp *kmsg.OffsetFetchResponse) error {
	x := n.sub
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return nil
	}
	for i := range resp.Topics {
		if resp.Topics[i].Topic != x.topic {
			continue
		}
		for _, p := range resp.Topics[i].Partitions {
			if p.ErrorCode != 0 {
				continue
			}
			// The client may still hold it back from when it was this member's before.
			o := &ownership{x: n, partition: p.Partition, window: ackwindow.New(x.s.cfg.Window, p.Offset), committed: p.Offset, end: -1, paused: true}
			if p.Metadata != nil {
				o.done = decodeDone(*p.Metadata, p.Offset)
			}
			if old := x.owned[p.Partition]; old != nil {
				x.dropLocked(old)
			}
			x.owned[p.Partition] = o
			x.order = append(x.order, o)
		}
	}
	x.wakeLocked()
	poke(n.beat)
	poke(n.hungry)
	return nil
}

// gone gives up partitions that another member gets when it returns. Where they are
// lost it may have them already, and what was settled is not committed.
func (n *session) gone(lost []int32, commit bool) {
	gone := n.sub.giveUp(func(o *ownership) bool {
		for _, p := range lost {
			if o.x == n && o.partition == p {
				return true
			}
		}
		return false
	})
	poke(n.hungry)
	if commit && len(gone) > 0 {
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		defer cancel()
		n.commit(ctx, gone)
	}
}

// poll has records delivered until the session ends. While no partition wants more the
// client keeps what it has fetched, and fetches nothing.
func (n *session) poll() {
	for n.life.Err() == nil {
		if !n.wantsMore() {
			select {
			case <-n.hungry:
			case <-n.life.Done():
			}
			continue
		}
		fetches := n.c.PollFetches(n.life)
		var enough []int32
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			n.sub.s.skip(n.c, &p)
			if p.Err != nil && n.life.Err() == nil {
				n.sub.fail(unreachable(n.life, "kafka.fetch", p.Err))
			}
			if n.push(p) {
				enough = append(enough, p.Partition)
			}
		})
		if len(enough) > 0 {
			n.steer(enough)
		}
		n.c.AllowRebalance()
		if fetches.IsClientClosed() {
			return
		}
	}
}

// wantsMore reports whether a partition wants more than there is here, or there is none.
func (n *session) wantsMore() bool {
	x := n.sub
	x.mu.Lock()
	defer x.mu.Unlock()
	none := true
	for _, o := range x.order {
		if o.x == n {
			if o.wantsMore() {
				return true
			}
			none = false
		}
	}
	return none
}

// steer has the client fetch, or not, what partitions want now. Whoever changes that
// calls it afterwards: of two that change it at the same time the one that comes last
// here finds what both have left.
func (n *session) steer(partitions []int32) {
	x := n.sub
	n.steering.Lock()
	defer n.steering.Unlock()
	var pause, resume []int32
	x.mu.Lock()
	for _, p := range partitions {
		if o := x.owned[p]; o != nil && o.x == n && o.paused {
			pause = append(pause, p)
		} else {
			resume = append(resume, p)
		}
	}
	x.mu.Unlock()
	if len(pause) > 0 {
		n.c.PauseFetchPartitions(map[string][]int32{x.topic: pause})
	}
	if len(resume) > 0 {
		n.c.ResumeFetchPartitions(map[string][]int32{x.topic: resume})
	}
}

// push has a fetch's records delivered, and reports whether no more are to be fetched
// now.
func (n *session) push(p kgo.FetchTopicPartition) (enough bool) {
	x := n.sub
	x.mu.Lock()
	defer x.mu.Unlock()
	o := x.owned[p.Partition]
	if o == nil || o.x != n || p.Topic != x.topic {
		return false
	}
	o.buffer = slices.Grow(o.buffer, len(p.Records))
	for _, r := range p.Records {
		if r.Offset < o.end {
			n.end() // the log has gone back: its end was lost
			return false
		}
		if o.end < 0 && r.Offset < o.committed {
			o.done = nil // it went back before: what was settled there is no more
		}
		o.end = r.Offset + 1
		if r.Attrs.IsControl() {
			continue
		}
		m := message(r)
		o.bytes += m.Held()
		o.buffer = append(o.buffer, m)
	}
	if len(o.buffer) == 0 {
		o.window.Skip(o.end)
		x.commits.Settled(false)
	}
	o.paused = o.paused || len(o.buffer) >= maxBuffered || o.bytes >= maxBufferedBytes
	x.wakeLocked()
	return o.paused
}

// commit commits where partitions are; false where that failed and is worth another
// try.
func (n *session) commit(ctx context.Context, all []*ownership) bool {
	if len(all) == 0 {
		return true
	}
	x := n.sub
	n.committing.Lock()
	defer n.committing.Unlock()
	member, generation := n.c.GroupMetadata()
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Group, req.MemberID, req.Generation, req.RetentionTimeMillis = x.group, member, generation, offsetsFor.Milliseconds()
	topic := kmsg.NewOffsetCommitRequestTopic()
	topic.Topic = x.topic
	by := map[int32]*ownership{}
	x.mu.Lock()
	for _, o := range all {
		at := o.window.Commit()
		if o.x != n || o.left || at < 0 || !o.dirty && at == o.committed {
			continue
		}
		o.left = o.dropped
		p := kmsg.NewOffsetCommitRequestTopicPartition()
		p.Partition, p.Offset, p.Metadata = o.partition, at, kmsg.StringPtr("")
		if !n.bare {
			p.Metadata = kmsg.StringPtr(encodeDone(o.window, at, o.done))
		}
		o.dirty = false
		topic.Partitions = append(topic.Partitions, p)
		by[o.partition] = o
	}
	x.mu.Unlock()
	if len(by) == 0 {
		return true
	}
	req.Topics = append(req.Topics, topic)
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := req.RequestWith(ctx, n.c)
	kept := map[int32]bool{}
	if err == nil {
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				switch e := kerr.ErrorForCode(p.ErrorCode); {
				case e == nil:
					kept[p.Partition] = true
				case errors.Is(e, kerr.OffsetMetadataTooLarge):
					n.bare, err = true, e
				default:
					err = e
				}
			}
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range topic.Partitions {
		p := &topic.Partitions[i]
		o := by[p.Partition]
		if !kept[p.Partition] {
			o.dirty = true
			continue
		}
		o.committed = p.Offset
		full := o.window.Room() == 0
		o.window.Kept(p.Offset)
		if full {
			x.wakeLocked()
		}
	}
	if err != nil {
		x.s.cfg.Log.Debug("offsets cannot be committed; trying again", "topic", x.topic, "group", x.group, "error", err)
	}
	return err == nil
}

// renew keeps the lease until the session ends, or ends it where the lease has: then
// another member may have had what this one had.
func (n *session) renew() {
	for {
		err := n.heartbeat()
		if errors.Is(err, errLeaseOver) {
			n.sub.s.cfg.Log.Warn("a group was not heard from for too long; joining it again", "topic", n.sub.topic, "group", n.sub.group)
			n.end()
			return
		}
		wait := heartbeatEvery
		if err != nil || !n.lease.holds() {
			wait = heartbeatAgain
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-n.beat:
			timer.Stop()
		case <-n.life.Done():
			timer.Stop()
			return
		}
	}
}

// heartbeat renews the lease: a member that the coordinator knows now is not taken for
// dead for a session's time from when it asked. While members are being given their
// partitions anew nothing is renewed.
func (n *session) heartbeat() error {
	asked := bootNow()
	member, generation := n.c.GroupMetadata()
	if member == "" || generation < 0 {
		return nil
	}
	req := kmsg.NewPtrHeartbeatRequest()
	req.Group, req.MemberID, req.Generation = n.sub.group, member, generation
	ctx, cancel := context.WithTimeout(n.life, callTimeout)
	defer cancel()
	resp, err := req.RequestWith(ctx, n.c)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err == nil {
		n.lease.renew(asked)
		n.sub.mu.Lock()
		n.sub.wakeLocked()
		n.sub.mu.Unlock()
	}
	if n.lease.over() {
		return errLeaseOver
	}
	return err
}

var errLeaseOver = fault.New(fault.Unavailable, "kafka.fetch", "lease-over", "the member was not heard from for too long")
