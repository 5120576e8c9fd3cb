package storetest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// orderly is what the members of a group that keeps order do, all together.
type orderly struct {
	*suite
	st    store.Store
	topic string

	mu      sync.Mutex
	holders map[string]int // member by partition
	last    map[string]int // the highest number settled, by key
	total   int            // distinct messages settled
	came    chan struct{}  // capacity 1
	wrong   []string       // what broke the promise
}

// work reads as one member until ctx ends, checks each message, and settles it, so
// long as the member holds it.
func (o *orderly) work(ctx context.Context, id int) error {
	revoked := func(partition string) {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.holders[partition] == id {
			delete(o.holders, partition)
		}
	}
	sub, err := o.st.Subscribe(o.ctx, store.SubscribeRequest{Topic: o.topic, Group: groupOf(o.topic), Ordered: true, Revoked: revoked})
	if err != nil {
		return err
	}
	dst := make([]store.Message, 5)
	for ctx.Err() == nil {
		n, err := sub.Fetch(ctx, dst)
		if err != nil && fault.ClassOf(err) != fault.Unavailable {
			break
		}
		for i := range dst[:n] {
			o.one(sub, id, &dst[i])
		}
	}
	o.mu.Lock()
	for p, holder := range o.holders {
		if holder == id {
			delete(o.holders, p)
		}
	}
	o.mu.Unlock()
	return sub.Close(o.ctx)
}

func (o *orderly) one(sub store.Subscription, id int, m *store.Message) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !sub.Holds(m) {
		return // it comes again
	}
	if holder, taken := o.holders[m.Pos.Partition]; taken && holder != id {
		o.wrong = append(o.wrong, fmt.Sprintf("%s of partition %q came to member %d while %d holds it", m.ID, m.Pos.Partition, id, holder))
	}
	o.holders[m.Pos.Partition] = id
	key, no, _ := strings.Cut(m.ID, "/")
	k, _ := strconv.Atoi(no)
	switch last := o.last[key]; {
	case k > last+1:
		o.wrong = append(o.wrong, fmt.Sprintf("%s came to member %d after %d of its key", m.ID, id, last))
	case k == last+1:
		o.last[key] = k
		o.total++
	}
	sub.Settle([]*store.Message{m})
	select {
	case o.came <- struct{}{}:
	default:
	}
}

// ordered: members that want order come and go while events of many keys flow. No
// two have a partition at once, and what is settled of a key is so in its order.
func (s *suite) ordered() {
	const keys, each, rounds = 16, 40, 5
	st := s.open()
	topic := s.topic(st, "ordered", 4)
	s.group(st, topic, groupOf(topic), store.Start{})
	o := &orderly{suite: s, st: st, topic: topic, holders: map[string]int{}, last: map[string]int{}, came: make(chan struct{}, 1)}
	var wg sync.WaitGroup
	join := func(id int) context.CancelFunc {
		ctx, cancel := context.WithCancel(s.ctx)
		wg.Go(func() {
			if err := o.work(ctx, id); err != nil {
				s.Errorf("member %d: %v", id, err)
			}
		})
		return cancel
	}
	leave := []context.CancelFunc{join(0)}
	for i := range each {
		var events []store.Outgoing
		for k := range keys {
			key := "k" + strconv.Itoa(k)
			events = append(events, ev(fmt.Sprintf("%s/%d", key, i+1), key))
		}
		s.publish(st, topic, events...)
		if i%(each/rounds) == 0 {
			// One more joins; the oldest leaves once something has come since.
			leave = append(leave, join(1+i))
			if len(leave) > 3 {
				s.until(o.came)
				leave[0]()
				leave = leave[1:]
			}
		}
	}
	for {
		o.mu.Lock()
		total, wrong := o.total, len(o.wrong)
		o.mu.Unlock()
		if total == keys*each || wrong > 0 {
			break
		}
		s.until(o.came)
	}
	for _, l := range leave {
		l()
	}
	wg.Wait()
	for _, w := range o.wrong[:min(len(o.wrong), 10)] {
		s.Errorf("%s", w)
	}
}

// until waits for something that comes.
func (s *suite) until(came <-chan struct{}) {
	s.Helper()
	select {
	case <-came:
	case <-s.ctx.Done():
		s.Fatalf("nothing comes any more: %v", s.ctx.Err())
	}
}

// orderedHandOver: while one member holds the only partition another gets nothing of
// it; what the first has not settled comes to the other when it has gone, in order.
func (s *suite) orderedHandOver() {
	st := s.open()
	topic := s.topic(st, "handover", 1)
	s.group(st, topic, groupOf(topic), store.Start{})
	s.publish(st, topic, ev("a1", "a"), ev("a2", "a"), ev("a3", "a"))
	first, err := st.Subscribe(s.ctx, store.SubscribeRequest{Topic: topic, Group: groupOf(topic), Ordered: true})
	s.must("Subscribe", err)
	got := s.fetch(first, 3)
	for _, m := range got {
		if !first.Holds(m) {
			s.Errorf("%s is not held by who fetched it", m.ID)
		}
	}
	first.Settle(got[:1])
	second, err := st.Subscribe(s.ctx, store.SubscribeRequest{Topic: topic, Group: groupOf(topic), Ordered: true})
	s.must("Subscribe", err)
	type result struct {
		msgs []store.Message
		err  error
	}
	came := make(chan result, 1)
	go func() {
		dst := make([]store.Message, 1)
		n, err := second.Fetch(s.ctx, dst)
		for err != nil && fault.ClassOf(err) == fault.Unavailable && s.ctx.Err() == nil {
			n, err = second.Fetch(s.ctx, dst)
		}
		if err == nil && first.Holds(got[1]) {
			err = errors.New("the first member still holds the partition")
		}
		came <- result{dst[:n], err}
	}()
	s.publish(st, topic, ev("a4", "a"))
	// A store that gives partitions to whoever comes would give it now; one that moves
	// it to the second member, and says so, may.
	var r result
	select {
	case r = <-came:
		came <- r
	case <-time.After(300 * time.Millisecond):
	}
	s.closeSub(first)
	if first.Holds(got[1]) {
		s.Errorf("a member that has left holds %s", got[1].ID)
	}
	r = <-came
	s.must("Fetch of the second", r.err)
	rest := append(idsOf([]*store.Message{&r.msgs[0]}), idsOf(s.fetch(second, 2))...)
	if strings.Join(rest, " ") != "a2 a3 a4" {
		s.Errorf("the second member got %v", rest)
	}
	s.closeSub(second)
}
