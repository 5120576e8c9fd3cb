package delivery

import (
	"context"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store"
)

// inMemory is the longest delay for which an event waits in memory. Longer ones
// are written to the retry topic, where they survive the process and do not
// hold up the partition.
const inMemory = time.Second

// maxReason bounds the reason that is kept with an event.
const maxReason = 1024

// failedLocked decides what becomes of an attempt that failed: another one, or
// the dead-letter topic. delay below 0 is the schedule's.
func (r *runtime) failedLocked(it *item, reason string, delay time.Duration) {
	reason = reason[:min(len(reason), maxReason)]
	if it.msg.attempt >= r.sub.MaxAttempts && r.sub.DeadLetter != "" {
		r.write(it, func(ctx context.Context, sub *snapshot.Subscription) error { return r.deadLetter(ctx, sub, it, reason) })
		return
	}
	if delay < 0 {
		delay = backoff(r.sub, it.msg.attempt)
	}
	if it.msg.since == "" {
		it.msg.since = r.m.cfg.Clock.Now().UTC().Format(time.RFC3339)
	}
	r.metrics.retried.Inc()
	if delay <= inMemory {
		it.msg.attempt++
		r.timers.set(it, time.Now().Add(delay))
		r.poke()
		return
	}
	due := r.m.cfg.Clock.Now().Add(delay)
	r.write(it, func(ctx context.Context, _ *snapshot.Subscription) error { return r.park(ctx, it, due, reason) })
}

// backoff is the delay after an attempt: exponential, with jitter of a fifth.
func backoff(sub *snapshot.Subscription, attempt int) time.Duration {
	d := sub.MinBackoff
	for i := 1; i < attempt && d < sub.MaxBackoff; i++ {
		d *= 2
	}
	d = min(d, sub.MaxBackoff)
	return d - d/10 + rand.N(d/5+1)
}

// write runs f, again and again until it succeeds, and then settles the item:
// the event is durable elsewhere before its place here is given up.
func (r *runtime) write(it *item, f func(context.Context, *snapshot.Subscription) error) {
	r.writers.Go(func() {
		r.slots <- struct{}{}
		defer func() { <-r.slots }()
		retry := minRetry
		for {
			r.mu.Lock()
			over, sub := r.over != nil || r.sources[it.src.key()] != it.src, r.sub
			r.mu.Unlock()
			if over {
				r.mu.Lock()
				r.doneLocked(1) // here; it comes again, from the store
				r.mu.Unlock()
				return
			}
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			err := f(ctx, sub)
			cancel()
			if err == nil {
				break
			}
			r.metrics.storeErrors.Inc()
			r.m.cfg.Log.Warn("an event that failed cannot be written away yet; trying again", "subscription", r.key, "error", err)
			timer := time.NewTimer(retry/2 + rand.N(retry))
			<-timer.C
			retry = min(2*retry, maxRetry)
		}
		it.src.settle([]*item{it})
		r.mu.Lock()
		r.doneLocked(1)
		r.mu.Unlock()
	})
}

// park writes the event to the retry topic, to come back at due.
func (r *runtime) park(ctx context.Context, it *item, due time.Time, reason string) error {
	st, err := r.m.cfg.Store(it.src.storeUID)
	if err != nil {
		return err
	}
	d, ok := st.(store.Delayer)
	if !ok {
		return errNoDelay
	}
	e := it.msg.stored.Event
	e.Mesh = nil
	for _, h := range []event.Attr{{Name: headerAttempt, Value: strconv.Itoa(it.msg.attempt)}, {Name: headerReason, Value: clean(reason)}, {Name: headerTopic, Value: it.msg.topic},
		{Name: headerPosition, Value: it.msg.token.String()}, {Name: headerSince, Value: it.msg.since}} {
		e.Mesh = event.With(e.Mesh, h.Name, h.Value)
	}
	var res [1]store.Result
	return d.PublishDelayed(ctx, it.src.retryTopic, []store.Outgoing{{Event: &e}}, []time.Time{due}, res[:])
}

// Extension attributes of a dead letter. Identity, data and all other
// attributes are the event's own.
const (
	AttrDeadReason       = "deadletterreason"
	AttrDeadSubscription = "deadlettersub"
	AttrDeadTopic        = "deadlettertopic"
	AttrDeadPosition     = "deadletterposition"
	AttrDeadAttempts     = "deadletterattempts"
)

// deadLetter writes the event to the dead-letter topic with the reason.
func (r *runtime) deadLetter(ctx context.Context, sub *snapshot.Subscription, it *item, reason string) error {
	t := r.m.cfg.Snapshots.Get().Topics[snapshot.Key{Namespace: sub.Namespace, Name: sub.DeadLetter}]
	if t == nil || t.NotReady != "" {
		return errNoDeadLetter
	}
	e := it.msg.stored.Event
	e.Mesh = nil
	for _, a := range []event.Attr{{Name: AttrDeadReason, Value: clean(reason)}, {Name: AttrDeadSubscription, Value: sub.Name}, {Name: AttrDeadTopic, Value: it.msg.topic},
		{Name: AttrDeadPosition, Value: it.msg.token.String()}, {Name: AttrDeadAttempts, Value: strconv.Itoa(it.msg.attempt)}} {
		if a.Value != "" {
			e.Ext = event.With(e.Ext, a.Name, a.Value)
		}
	}
	if err := r.m.cfg.Write(ctx, t, []event.Event{e}); err != nil {
		return err
	}
	r.metrics.deadLettered.Inc()
	return nil
}

// clean makes text fit for an attribute: no control characters, valid UTF-8.
func clean(s string) string {
	out := make([]rune, 0, len(s))
	for _, c := range s {
		if c < 0x20 || c >= 0x7f && c < 0xa0 || c == 0xfffd || c >= 0xfdd0 && c <= 0xfdef || c&0xfffe == 0xfffe {
			c = ' '
		}
		out = append(out, c)
	}
	return string(out)
}
