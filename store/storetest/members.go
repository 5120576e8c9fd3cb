package storetest

import (
	"context"
	"sync"
	"time"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

func (s *suite) groupStart() {
	st := s.open()
	topic := s.topic(st, "start", 2)
	s.publishIDs(st, topic, ids("old", 10)...)
	s.group(st, topic, "begin", store.Start{})
	s.group(st, topic, "end", store.Start{End: true})
	s.publishIDs(st, topic, ids("new", 10)...)
	// Asking again, with another start, moves nothing.
	s.group(st, topic, "begin", store.Start{End: true})
	s.group(st, topic, "end", store.Start{})
	for group, want := range map[string][]string{"begin": append(ids("old", 10), ids("new", 10)...), "end": ids("new", 10)} {
		sub := s.subscribe(st, topic, group)
		got := s.fetch(sub, len(want))
		s.same(group, idsOf(got), want)
		sub.Settle(got)
		s.nothing(sub, group)
		s.closeSub(sub)
	}
}

func (s *suite) groups() {
	st := s.open()
	topic := s.topic(st, "groups", 1)
	s.group(st, topic, "g1", store.Start{})
	s.group(st, topic, "g2", store.Start{})
	s.publishIDs(st, topic, "a")
	for _, g := range []string{"g1", "g2"} {
		sub := s.subscribe(st, topic, g)
		msgs := s.fetch(sub, 1)
		sub.Settle(msgs)
		s.closeSub(sub)
	}
	_, err := st.Subscribe(s.ctx, store.SubscribeRequest{Topic: topic, Group: "none"})
	s.class("Subscribe to a group that does not exist", err, fault.NotFound)
}

// members joins and leaves while events flow: nothing is lost, and while
// membership is quiet each event goes to one member.
func (s *suite) members() {
	st := s.open()
	topic := s.topic(st, "members", 4)
	s.group(st, topic, groupOf(topic), store.Start{})
	want := ids("m", 400)
	var mu sync.Mutex
	got := map[string]int{}
	arrived := make(chan struct{}, len(want)*4)
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	var wg sync.WaitGroup
	join := func(leave <-chan struct{}) {
		sub, err := st.Subscribe(s.ctx, store.SubscribeRequest{Topic: topic, Group: groupOf(topic)})
		if err != nil {
			s.Errorf("Subscribe: %v", err)
			return
		}
		wg.Go(func() {
			fctx, fcancel := context.WithCancel(ctx)
			defer fcancel()
			stop := context.AfterFunc(fctx, func() {})
			defer stop()
			go func() {
				select {
				case <-leave:
					fcancel()
				case <-fctx.Done():
				}
			}()
			dst := make([]store.Message, 8)
			for fctx.Err() == nil {
				n, err := sub.Fetch(fctx, dst)
				if err != nil && fault.ClassOf(err) != fault.Unavailable {
					break
				}
				for i := range dst[:n] {
					mu.Lock()
					got[dst[i].ID]++
					mu.Unlock()
					sub.Settle([]*store.Message{&dst[i]})
					arrived <- struct{}{}
				}
			}
			if err := sub.Close(s.ctx); err != nil {
				s.Errorf("Subscription.Close: %v", err)
			}
		})
	}
	leave := make(chan struct{})
	join(leave)
	join(nil)
	for i := 0; i < len(want); i += 50 {
		s.publishIDs(st, topic, want[i:i+50]...)
		if i == 100 {
			join(nil)
		}
		if i == 200 {
			close(leave)
		}
	}
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		mu.Lock()
		n := len(got)
		mu.Unlock()
		if n == len(want) {
			break
		}
		select {
		case <-arrived:
		case <-deadline.C:
			cancel()
			wg.Wait()
			var missing []string
			for _, id := range want {
				if got[id] == 0 {
					missing = append(missing, id)
				}
			}
			s.Fatalf("%d of %d came; missing %v", n, len(want), missing)
		}
	}
	cancel()
	wg.Wait()
}

func (s *suite) fetchEnds() {
	st := s.open()
	topic := s.topic(st, "ends", 1)
	s.group(st, topic, groupOf(topic), store.Start{})
	sub := s.subscribe(st, topic, groupOf(topic))
	ctx, cancel := context.WithCancel(s.ctx)
	ended := make(chan error, 1)
	go func() {
		_, err := sub.Fetch(ctx, make([]store.Message, 1))
		ended <- err
	}()
	cancel()
	s.class("Fetch whose context ended", <-ended, fault.Canceled)
	s.publishIDs(st, topic, "a")
	sub.Settle(s.fetch(sub, 1))
	s.closeSub(sub)
	s.closeSub(sub)
}
