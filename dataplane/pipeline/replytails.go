package pipeline

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/outage"
	"github.com/weft-mesh/weft/store"
)

// replyTails read the reply topics of stores, without a group and from the end, while
// requests wait and a while longer.
type replyTails struct {
	r    *replies
	life context.Context // ends with the pipeline
	stop context.CancelFunc

	mu      sync.Mutex
	open    map[string]*replyTail // by EventStore uid
	running sync.WaitGroup
}

// replyTail is the reader of one reply topic.
type replyTail struct {
	uses int
	idle *time.Timer
	// begun is closed once the reader stands at the end of its topic, or err says why
	// it does not.
	begun chan struct{}
	err   error
	end   context.CancelFunc
}

const (
	// tailIdle is how long a reply topic is read on after the last request.
	tailIdle = time.Minute
	// tailBegin bounds the opening of a reader.
	tailBegin = 10 * time.Second
	minReopen = 50 * time.Millisecond
	maxReopen = 2 * time.Second
)

func (s *replyTails) init(r *replies) {
	s.r, s.open = r, map[string]*replyTail{}
	s.life, s.stop = context.WithCancel(context.Background())
}

// listen returns once all that is written to the reply topic of a store from now on is
// read, until release is called.
func (s *replyTails) listen(ctx context.Context, uid string) (release func(), err error) {
	s.mu.Lock()
	if s.life.Err() != nil {
		s.mu.Unlock()
		return nil, fault.New(fault.Unavailable, "request", "draining", "the proxy is shutting down; connect again")
	}
	t := s.open[uid]
	if t == nil {
		t = &replyTail{begun: make(chan struct{})}
		s.open[uid] = t
		tctx, end := context.WithCancel(s.life)
		t.end = end
		s.running.Go(func() { defer end(); s.run(tctx, uid, t) })
	}
	t.uses++
	if t.idle != nil {
		t.idle.Stop()
		t.idle = nil
	}
	s.mu.Unlock()
	select {
	case <-t.begun:
		err = t.err
	case <-ctx.Done():
		if err = fault.From(ctx.Err()); errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fault.New(fault.Unavailable, "request", "store-unreachable", "the topic for replies could not be read in time; nothing was published")
		}
	}
	if err != nil {
		s.release(uid, t)
		return nil, err
	}
	return func() { s.release(uid, t) }, nil
}

// release ends one use. The last one ends the reader, in a while.
func (s *replyTails) release(uid string, t *replyTail) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.uses--; t.uses > 0 || s.life.Err() != nil {
		return
	}
	t.idle = time.AfterFunc(tailIdle, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if t.uses == 0 {
			s.dropLocked(uid, t)
			t.end()
		}
	})
}

// dropLocked forgets a reader, so that the next request begins another one.
func (s *replyTails) dropLocked(uid string, t *replyTail) {
	if s.open[uid] == t {
		delete(s.open, uid)
	}
}

// run reads until ctx ends. A reader that breaks goes on where it was.
func (s *replyTails) run(ctx context.Context, uid string, t *replyTail) {
	began := s.r.cfg.Clock.Now()
	tail, err := s.begin(ctx, uid, store.Start{End: true})
	if err != nil {
		t.err = noReplyTopic(err)
		s.mu.Lock()
		s.dropLocked(uid, t)
		s.mu.Unlock()
		close(t.begun)
		return
	}
	close(t.begun)
	log := outage.New(s.r.cfg.Log.With("store", uid), "replies of other proxies cannot be read; trying again", "replies of other proxies are read again")
	seen, retry := map[string]store.Position{}, minReopen
	for {
		if tail != nil {
			err = s.read(ctx, tail, seen, func() { retry = minReopen; log.Is(nil) })
		}
		if ctx.Err() != nil {
			return
		}
		log.Is(err)
		timer := time.NewTimer(retry/2 + rand.N(retry))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		retry = min(2*retry, maxReopen)
		tail, err = s.begin(ctx, uid, store.Start{At: began, After: slices.Collect(maps.Values(seen))})
	}
}

// begin opens the reply topic.
func (s *replyTails) begin(ctx context.Context, uid string, from store.Start) (store.Tail, error) {
	st, err := s.r.cfg.Store(uid)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, tailBegin)
	defer cancel()
	return st.Tail(ctx, store.TailRequest{Topic: names.ReplyTopic(uid), From: from})
}

// read gives replies to their requests until something fails.
func (s *replyTails) read(ctx context.Context, tail store.Tail, seen map[string]store.Position, good func()) error {
	defer func() {
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tailBegin)
		defer cancel()
		_ = tail.Close(cctx)
	}()
	dst := make([]store.Message, 64)
	for {
		n, err := tail.Next(ctx, dst)
		if err != nil {
			return err
		}
		good()
		for i := range dst[:n] {
			seen[dst[i].Pos.Partition] = dst[i].Pos
			token, _ := event.Lookup(dst[i].Ext, event.AttrReplyTo)
			t, err := parseReplyToken(token)
			if err != nil || t.Incarnation != s.r.incarnation {
				continue // another proxy's
			}
			s.r.metrics.received.Inc()
			s.r.take(token, t, own(dst[i].Event))
		}
		clear(dst[:n])
	}
}

// close ends all readers.
func (s *replyTails) close() {
	s.mu.Lock()
	s.stop()
	for _, t := range s.open {
		if t.idle != nil {
			t.idle.Stop()
		}
	}
	s.mu.Unlock()
	s.running.Wait()
}
