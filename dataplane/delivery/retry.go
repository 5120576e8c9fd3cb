package delivery

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/weft-mesh/weft/dataplane/facts"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
)

// inMemory is the longest delay for which an event waits in memory. Longer ones
// are written to the retry topic, where they survive the process and do not
// hold up the partition.
const inMemory = time.Second

// maxReason bounds the reason that is kept with an event.
const maxReason = 1024

// cause is how an attempt failed.
type cause uint8

const (
	causeFailed        cause = iota // the member gave it back
	causeTimeout                    // it was not settled in time
	causeLost                       // the member went without a word
	causeRejected                   // the member rejected it
	causeUntransformed              // the transform could not be applied
	causeRefused                    // the retry topic did not take it for another one
	causes
)

var causeNames = [causes]string{causeFailed: "failed", causeTimeout: "timeout", causeLost: "lost", causeRejected: "rejected", causeUntransformed: "transform", causeRefused: "refused"}

// last reports whether another attempt would change nothing.
func (c cause) last() bool { return c == causeRejected || c == causeUntransformed }

// failedLocked decides what becomes of an attempt that failed: another one, or
// the dead-letter topic, as after the last one. delay below 0 is the schedule's.
func (r *runtime) failedLocked(it *item, reason string, delay time.Duration, why cause) {
	if it.pastLocked() {
		r.passLocked(it)
		return
	}
	last := why.last()
	reason = reason[:min(len(reason), maxReason)]
	exhausted := it.msg.attempt >= r.sub.MaxAttempts
	if r.sub.DeadLetter != "" && (last || exhausted && !r.sub.Block) {
		r.write(it, func(ctx context.Context, sub *snapshot.Subscription) error {
			if sub.DeadLetter == "" {
				return errNoneAnyMore
			}
			return r.m.deadLetter(ctx, sub, &r.metrics, &it.msg, why, reason)
		}, func(err error) {
			if errors.Is(err, errNoneAnyMore) {
				r.failedLocked(it, reason, delay, why)
				return
			}
			// Nothing else is left to do with it than without a dead-letter topic.
			delay := max(jitter(r.sub.MaxBackoff), maxRetry)
			r.againLocked(it, true, delay, untakenReason(err, reason))
			it.msg.attempt++
			r.waitLocked(it, delay)
		})
		return
	}
	switch {
	case delay < 0 && exhausted:
		delay = jitter(r.sub.MaxBackoff)
	case delay < 0:
		delay = backoff(r.sub, it.msg.attempt)
	}
	r.againLocked(it, exhausted, delay, reason)
	if delay <= inMemory || it.lane != nil { // what is parked is overtaken
		it.msg.attempt++
		r.waitLocked(it, delay)
		return
	}
	due := r.m.cfg.Clock.Now().Add(delay)
	r.write(it, func(ctx context.Context, sub *snapshot.Subscription) error { return r.park(ctx, sub, it, due, reason) },
		func(error) {
			it.msg.attempt++
			r.waitLocked(it, due.Sub(r.m.cfg.Clock.Now()))
		})
}

// againLocked takes note that an attempt failed and another one follows, also where it was
// the last that was asked for.
func (r *runtime) againLocked(it *item, last bool, delay time.Duration, reason string) {
	if last {
		r.metrics.exhausted.Inc()
	}
	if it.msg.since == "" {
		it.msg.since = r.m.cfg.Clock.Now().UTC().Format(time.RFC3339)
	}
	r.metrics.retried.Inc()
	r.remember(r.m.cfg.Facts.Now(), facts.Retried, &it.msg, "again in "+delay.Round(time.Millisecond).String()+": "+reason)
	r.blockLocked(it, last)
}

// waitLocked keeps an item in memory until it is given out again.
func (r *runtime) waitLocked(it *item, delay time.Duration) {
	r.timers.set(it, time.Now().Add(delay))
	r.poke()
}

// backoff is the delay after an attempt: exponential, with jitter of a fifth.
func backoff(sub *snapshot.Subscription, attempt int) time.Duration {
	d := sub.MinBackoff
	for i := 1; i < attempt && d < sub.MaxBackoff; i++ {
		d *= 2
	}
	return jitter(min(d, sub.MaxBackoff))
}

func jitter(d time.Duration) time.Duration { return d - d/10 + rand.N(d/5+1) }

// write runs f, again and again until it succeeds, and then settles the item:
// the event is durable elsewhere before its place here is given up. One that no topic takes
// for what it is (fault.Untakeable) keeps that place: to write it again would change nothing,
// so that kept, which is called with mu held, has it wait in memory and be given out again. So
// does one that there is no topic for any more (errNoneAnyMore).
func (r *runtime) write(it *item, f func(context.Context, *snapshot.Subscription) error, kept func(why error)) {
	r.writing++
	r.writers.Go(func() {
		defer r.written()
		for retry := minRetry; !r.tryWrite(it, f, kept); retry = min(2*retry, maxRetry) {
			// Others have the slot meanwhile.
			timer := time.NewTimer(retry/2 + rand.N(retry))
			<-timer.C
		}
	})
}

// tryWrite is one try of a write. It reports whether there is to be no other one.
func (r *runtime) tryWrite(it *item, f func(context.Context, *snapshot.Subscription) error, kept func(why error)) bool {
	r.slots <- struct{}{}
	defer func() { <-r.slots }()
	r.mu.Lock()
	gone, past, sub := r.goneLocked(it), it.pastLocked(), r.sub
	r.mu.Unlock()
	if gone {
		return true
	}
	if !past {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		err := f(ctx, sub)
		cancel()
		if errors.Is(err, errNoneAnyMore) || err != nil && fault.Untakeable(err) {
			r.metrics.storeErrors.Inc()
			return r.untaken(it, err, kept)
		}
		if r.writes.Is(err); err != nil {
			r.metrics.storeErrors.Inc()
			return false
		}
	}
	it.src.settle([]*item{it})
	r.mu.Lock()
	r.doneLocked(it)
	r.mu.Unlock()
	return true
}

// goneLocked reports whether an item that is being written is not this proxy's any more,
// and is done with it then: it comes again, from the store.
func (r *runtime) goneLocked(it *item) bool {
	gone := r.over != nil || r.sources[it.src.key()] != it.src || !it.src.holds(it)
	if gone {
		r.doneLocked(it)
	}
	return gone
}

// untaken keeps an item that no topic takes. It is false where that does not count any more.
func (r *runtime) untaken(it *item, why error, kept func(why error)) bool {
	r.mu.Lock()
	gone, past, first := r.goneLocked(it), it.pastLocked(), r.unwritable == 0
	none := errors.Is(why, errNoneAnyMore) // then nothing is told of the event
	if !gone && !past {
		if !it.unwritable && !none {
			it.unwritable = true
			r.unwritable++
			r.metrics.unwritable.Inc()
		}
		kept(why)
	}
	r.mu.Unlock()
	if first && !gone && !past && !none { // one line, however many there are
		r.m.cfg.Log.Warn("an event that failed is taken neither by the retry topic nor as a dead letter; it is kept and given out again", "subscription", r.key, "error", why)
	}
	return gone || !past
}

// written is the end of a write.
func (r *runtime) written() {
	r.mu.Lock()
	r.writing--
	alone := r.writing == 0 && len(r.members) == 0
	r.mu.Unlock()
	if alone {
		r.m.left(r) // its last member has left meanwhile
	}
}

// park writes the event to the retry topic, to come back at due.
func (r *runtime) park(ctx context.Context, sub *snapshot.Subscription, it *item, due time.Time, reason string) error {
	e := it.msg.stored.Event
	e.Mesh = Forwarded(Forwards(&e))
	for _, h := range []event.Attr{{Name: headerAttempt, Value: strconv.Itoa(it.msg.attempt)}, {Name: headerReason, Value: clean(reason)}, {Name: headerTopic, Value: it.msg.topic},
		{Name: headerPosition, Value: it.msg.token.String()}, {Name: headerSince, Value: it.msg.since}} {
		e.Mesh = event.With(e.Mesh, h.Name, h.Value)
	}
	if it.msg.suspect {
		e.Mesh = event.With(e.Mesh, headerSuspect, "1")
	}
	return r.hold(ctx, sub, it.src, e, due)
}

// hold has the store hold a parked event back until due. It shows in the retry topic once
// in a while before that: who gives up a place can see no more of what waits there. What
// the store does not take for what it is, without the reason neither, becomes a dead letter,
// if there is a topic for them.
func (r *runtime) hold(ctx context.Context, sub *snapshot.Subscription, src *source, e event.Event, due time.Time) error {
	st, err := r.m.cfg.Store(src.storeUID)
	if err != nil {
		return err
	}
	d, ok := st.(store.Delayer)
	if !ok {
		return errNoDelay
	}
	at := due
	if shows := r.m.cfg.Clock.Now().Add(cutover.Hidden(sub.MaxBackoff)); due.After(shows) {
		at = shows
		e.Mesh = event.With(e.Mesh, headerDue, strconv.FormatInt(due.UnixNano(), 10))
	}
	publish := func(e event.Event) error {
		var res [1]store.Result
		return d.PublishDelayed(ctx, src.retryTopic, []store.Outgoing{{Event: &e}}, []time.Time{at}, res[:])
	}
	if err = publish(e); err == nil || !fault.Untakeable(err) {
		return err
	}
	bare := e
	bare.Mesh = slices.DeleteFunc(slices.Clone(e.Mesh), func(a event.Attr) bool { return a.Name == headerReason })
	if err := publish(bare); err == nil || !fault.Untakeable(err) {
		return err
	}
	if sub.DeadLetter != "" {
		return r.m.refused(ctx, sub, &r.metrics, &e, err)
	}
	return err
}

// notYet has the store hold back again what has shown before it is due.
func (r *runtime) notYet(s *source, early map[*item]time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over != nil || r.sources[s.key()] != s {
		return // the source gives them back
	}
	for it, due := range early {
		r.heldLocked(it)
		e := it.msg.stored.Event
		e.Mesh = slices.DeleteFunc(slices.Clone(e.Mesh), func(a event.Attr) bool { return a.Name == headerDue })
		r.write(it, func(ctx context.Context, sub *snapshot.Subscription) error { return r.hold(ctx, sub, s, e, due) },
			func(error) { r.waitLocked(it, due.Sub(r.m.cfg.Clock.Now())) })
	}
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

// deadLetter writes the event to the dead-letter topic with the reason. Where that topic does
// not take it so, it goes there with what redriving needs alone.
func (m *Manager) deadLetter(ctx context.Context, sub *snapshot.Subscription, metrics *subMetrics, msg *message, why cause, reason string) error {
	t := m.cfg.Snapshots.Get().Topics[snapshot.Key{Namespace: sub.Namespace, Name: sub.DeadLetter}]
	if t == nil || t.NotReady != "" {
		return errNoDeadLetter
	}
	e := msg.stored.Event
	e.Ext, e.Mesh = alive(e.Ext), event.With(Forwarded(Forwards(&e)), headerDead, m.cfg.Clock.Now().UTC().Format(time.RFC3339))
	write := func(attrs ...event.Attr) error {
		e := e
		for _, a := range attrs {
			if a.Value != "" {
				e.Ext = event.With(e.Ext, a.Name, a.Value)
			}
		}
		return m.cfg.Write(ctx, t, []event.Event{e})
	}
	of, from := event.Attr{Name: AttrDeadSubscription, Value: sub.Name}, event.Attr{Name: AttrDeadTopic, Value: msg.topic}
	err := write(event.Attr{Name: AttrDeadReason, Value: clean(reason)}, of, from,
		event.Attr{Name: AttrDeadPosition, Value: msg.token.String()}, event.Attr{Name: AttrDeadAttempts, Value: strconv.Itoa(msg.attempt)})
	if err != nil && fault.Untakeable(err) {
		err = write(of, from)
	}
	if err != nil {
		return err
	}
	metrics.deadLettered[why].Inc()
	m.remember(m.cfg.Facts.Now(), facts.DeadLettered, sub.Namespace, sub.Name, msg.topic, msg.token, msg.attempt, &msg.stored.Event, "to "+t.Name+": "+reason)
	return nil
}

// Refused makes an event a dead letter that a retry topic does not take, for what it is,
// when it is due for another attempt: no other would change that. The error says why it is
// none: then it is to be kept.
func (m *Manager) Refused(ctx context.Context, topic string, e *event.Event, why error) error {
	var sub *snapshot.Subscription
	for _, s := range m.cfg.Snapshots.Get().Subscriptions {
		if names.RetryTopic(s.UID) == topic {
			sub = s
		}
	}
	if sub == nil || sub.DeadLetter == "" {
		return errNobody
	}
	m.mu.Lock()
	m.counted[sub.Key] = struct{}{}
	m.mu.Unlock()
	metrics := m.metrics.of(sub.Namespace, sub.Name)
	err := m.refused(ctx, sub, &metrics, e, why)
	if err != nil {
		metrics.storeErrors.Inc()
	}
	return err
}

// refused makes an event a dead letter that was parked, or was to be, and is not taken.
func (m *Manager) refused(ctx context.Context, sub *snapshot.Subscription, metrics *subMetrics, e *event.Event, why error) error {
	var msg message
	(&source{retry: true}).message(&store.Message{Event: *e}, &msg)
	msg.attempt-- // this one is none
	return m.deadLetter(ctx, sub, metrics, &msg, causeRefused, refusedReason(e, why))
}

// untakenReason is why an event is given out again that is no dead letter.
func untakenReason(why error, last string) string {
	f := fault.From(why)
	out := "its dead-letter topic does not take it: " + cmp.Or(f.Msg, f.Reason, f.Class.String()) + "; it failed: " + last
	return out[:min(len(out), maxReason)]
}

// refusedReason is why an event is given up that the retry topic does not take.
func refusedReason(e *event.Event, why error) string {
	f := fault.From(why)
	out := "the retry topic does not take it for another attempt: " + cmp.Or(f.Msg, f.Reason, f.Class.String())
	if last, ok := event.Lookup(e.Mesh, headerReason); ok {
		out += "; the last one failed: " + last
	}
	return out[:min(len(out), maxReason)]
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
