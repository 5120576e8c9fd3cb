package pipeline

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/duration"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
)

// How long a request waits for its reply.
const (
	DefaultRequestTimeout = 10 * time.Second
	MaxRequestTimeout     = 5 * time.Minute
)

// Request publishes an event as a request and waits for its reply, at most for timeout
// and until ctx's deadline; without either DefaultRequestTimeout. Whoever gets the event
// may reply to it (Reply); the first reply is the answer. What a publish may be refused
// for, a request is too. The error is Ambiguous (no-reply) where none came in time, or
// while the credentials of who were good: the event was published. It keeps e, and the reply is the caller's.
func (p *Pipeline) Request(ctx context.Context, who *policy.Principal, namespace, topic string, e event.Event, timeout time.Duration) (reply event.Event, err error) {
	const op = "request"
	if timeout != 0 && timeout < time.Millisecond || timeout > MaxRequestTimeout {
		return event.Event{}, fault.New(fault.Invalid, op, "bad-timeout", "a request waits 1ms to %s for its reply", duration.Text(MaxRequestTimeout))
	}
	if end, ok := ctx.Deadline(); ok {
		timeout = min(cmp.Or(timeout, MaxRequestTimeout), time.Until(end))
	}
	timeout = cmp.Or(timeout, DefaultRequestTimeout)
	began, deadline := time.Now(), p.cfg.Clock.Now().Add(timeout)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	snap, k := p.cfg.Snapshots.Get(), snapshot.Key{Namespace: namespace, Name: topic}
	events, res := []event.Event{e}, make([]frontend.Result, 1)
	defer func() { p.remember(snap, k, events, res) }()
	if err := p.authorised(snap, who, namespace, topic, events, res); err != nil {
		return event.Event{}, err
	}
	outcome := "failed"
	defer func() {
		if t := snap.Topics[k]; t != nil {
			p.metrics.asked(t, outcome)
		}
	}()
	if t := snap.Topics[k]; usable(t, namespace, topic) != nil || e.Validate() != nil {
		return event.Event{}, p.enter(ctx, snap, who, k, events, res) // says why
	}
	uid := snap.Topics[k].Written().StoreUID
	w, err := p.replies.begin(uid, topic, deadline)
	if err != nil {
		return event.Event{}, failAll(res, err)
	}
	defer p.replies.end(w)
	if !localStore(snap, uid) {
		// What another proxy replies from now on is read. Until then the event is held.
		release, err := p.listen(ctx, uid, int64(e.Size()))
		if err != nil {
			return event.Event{}, failAll(res, err)
		}
		defer release()
	}
	events[0].Ext = event.With(event.With(e.Ext, event.AttrReplyTo, w.token), event.AttrReplyBy, deadline.UTC().Format("2006-01-02T15:04:05.000Z07:00"))
	if err := p.enter(ctx, snap, who, k, events, res); err != nil {
		return event.Event{}, err
	}
	events[0].Data = nil // the store has them
	for {
		changed, good := p.good(who)
		if !good {
			outcome = "no-reply"
			return event.Event{}, fault.New(fault.Ambiguous, op, "no-reply", "the credentials of the request are not valid any more; it was published, its reply will not be heard")
		}
		var judge <-chan time.Time
		if who.Expires != 0 {
			judge = time.After(judgeEvery)
		}
		select {
		case reply := <-w.got:
			outcome = "replied"
			p.replies.metrics.seconds.Observe(time.Since(began).Seconds())
			return reply, nil
		case <-p.replies.over:
			outcome = "no-reply"
			return event.Event{}, fault.New(fault.Ambiguous, op, "no-reply", "the proxy is shutting down; the request was published, its reply will not be heard")
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				outcome = "no-reply"
				return event.Event{}, fault.New(fault.Ambiguous, op, "no-reply", "nobody has replied in time; the request was published")
			}
			outcome = "gone"
			return event.Event{}, fault.From(ctx.Err())
		case <-changed:
		case <-judge:
		}
	}
}

// judgeEvery is how often a request that waits looks whether its credentials have
// expired: by the clock on the wall, which may jump.
const judgeEvery = time.Second

// good reports whether credentials are good still, by the configuration that stands until
// changed is closed. Those that cannot be checked now are, until their end.
func (p *Pipeline) good(who *policy.Principal) (changed <-chan struct{}, good bool) {
	snap, changed := p.cfg.Snapshots.Load()
	now := p.cfg.Clock.Now()
	_, err := snap.Identities.Current(who, now)
	return changed, !who.Expired(now) && (err == nil || fault.ClassOf(err) != fault.Unauthenticated)
}

// listen is tails.listen, which an event of size bytes waits for.
func (p *Pipeline) listen(ctx context.Context, uid string, size int64) (release func(), err error) {
	if err := p.admit(size); err != nil {
		return nil, err
	}
	defer p.inFlight.Add(-size)
	return p.replies.tails.listen(ctx, uid)
}

// localStore reports whether an EventStore is one of this proxy alone: who replies has come
// to this proxy.
func localStore(snap *snapshot.Snapshot, uid string) bool {
	s := snap.Stores[uid]
	return s != nil && s.Spec.GetEmbedded() != nil
}

// lateBy is how long after a request's deadline another proxy gives up on its reply:
// clocks differ, and the proxy that waits knows best.
const lateBy = time.Minute

// Reply takes a reply, an event with the attribute replyto of a request, to whoever
// waits for it, here or at another proxy. Who replies needs the right to read the
// request's topic. That it returns nil says that the reply was passed on, not that
// somebody still waits: a duplicate, and what nobody waits for, is dropped and counted.
// It borrows e.
func (p *Pipeline) Reply(ctx context.Context, who *policy.Principal, namespace string, e event.Event) error {
	const op = "reply"
	token, there := event.Lookup(e.Ext, event.AttrReplyTo)
	t, err := parseReplyToken(token)
	if !there {
		return fault.New(fault.Invalid, op, "bad-reply-token", "the reply has no attribute %s: it has that of its request, as it was", event.AttrReplyTo)
	}
	if err != nil {
		return fault.New(fault.Invalid, op, "bad-reply-token", "the attribute %s of a reply is that of its request, as it was", event.AttrReplyTo)
	}
	if err := names.CheckNamespace(namespace); err != nil {
		return &fault.Error{Class: fault.Invalid, Op: op, Reason: "bad-name", Msg: err.Error()}
	}
	snap := p.cfg.Snapshots.Get()
	if grant := snap.Rules.Grant(who, policy.Subscribe, namespace, t.Topic); !grant.Ever() {
		return grant.Refuse(grant.Always())
	}
	outcome, err := p.pass(ctx, snap, who, namespace, token, t, e)
	if err != nil {
		return err
	}
	return answered(outcome)
}

// ReplyFrom is Reply for what the target of a Subscription has answered to a request, to
// which whoever applied the Subscription had the right. An answer that is no event comes
// with why. What cannot be passed on is counted.
func (p *Pipeline) ReplyFrom(ctx context.Context, subscription snapshot.Key, e event.Event, wrong error) error {
	token, _ := event.Lookup(e.Ext, event.AttrReplyTo)
	t, err := parseReplyToken(token)
	if wrong != nil {
		err = wrong
	}
	var outcome string
	if err == nil {
		outcome, err = p.pass(ctx, p.cfg.Snapshots.Get(), nil, subscription.Namespace, token, t, e)
	}
	if err != nil {
		p.replies.metrics.replies.WithLabelValues(replyFailed).Inc()
		return err
	}
	return answered(outcome)
}

// pass takes a reply of a namespace to whoever waits for it, and counts what became of
// it. An error is that it is refused, or cannot be passed on. The quotas of the request's
// topic count it for who, unless that is nil.
func (p *Pipeline) pass(ctx context.Context, snap *snapshot.Snapshot, who *policy.Principal, namespace, token string, t *replyToken, e event.Event) (outcome string, err error) {
	if err := snap.Refusal(namespace); err != nil {
		return "", err
	}
	topic := snap.Topics[snapshot.Key{Namespace: namespace, Name: t.Topic}]
	if err := usable(topic, namespace, t.Topic); err != nil {
		return "", err
	}
	uid := t.Store.String()
	if !slices.ContainsFunc(topic.Epochs, func(e snapshot.Epoch) bool { return e.StoreUID == uid }) {
		return "", fault.New(fault.Invalid, "reply", "bad-reply-token", "the request is of another mesh, or its topic was made anew since")
	}
	if err := checkOne(topic, &e, e.Size()); err != nil {
		return "", err
	}
	if who != nil {
		held, err := p.cfg.Quotas.Publish(topic.Quotas, who, t.Topic, 1, int64(e.Size()))
		if err != nil {
			return "", err
		}
		defer held.Release()
	}
	if t.Incarnation == p.replies.incarnation {
		return p.replies.take(token, t, own(e)), nil
	}
	outcome = replySent
	if now := p.cfg.Clock.Now(); localStore(snap, uid) || now.After(t.Deadline.Add(lateBy)) {
		outcome = replyLate // the proxy that waited has stopped, or gave up long ago
	} else if err := p.send(ctx, uid, e); err != nil {
		return "", err
	}
	p.replies.metrics.replies.WithLabelValues(outcome).Inc()
	return outcome, nil
}

// answered is what who replies hears of the outcome.
func answered(outcome string) error {
	switch outcome {
	case replyLate:
		return fault.New(fault.Precondition, "reply", "reply-late", "nobody waits for this reply any more")
	case replyOverflow:
		return &fault.Error{Class: fault.Throttled, Op: "reply", Reason: "proxy-full", RetryAfter: 200 * time.Millisecond, Msg: "the proxy has no room for the reply"}
	}
	return nil
}

// own is a reply as the client that waits gets it, with memory of its own.
func own(e event.Event) event.Event {
	e.Mesh = nil
	e = e.Clone()
	e.Ext = slices.DeleteFunc(e.Ext, func(a event.Attr) bool { return a.Name == event.AttrReplyTo || a.Name == event.AttrReplyBy })
	return e
}

// send writes a reply to the reply topic of a store.
func (p *Pipeline) send(ctx context.Context, uid string, e event.Event) error {
	size := int64(e.Size())
	if err := p.admit(size); err != nil {
		return err
	}
	defer p.inFlight.Add(-size)
	st, err := p.cfg.Store(uid)
	if err != nil {
		return err
	}
	e.Data, e.Mesh = slices.Clone(e.Data), nil // a store that fails may still read it
	var res [1]store.Result
	if err := st.Publish(ctx, names.ReplyTopic(uid), []store.Outgoing{{Event: &e}}, res[:]); err != nil {
		return noReplyTopic(err)
	}
	return nil
}

// noReplyTopic says of an error that the store has no reply topic, where that is it.
func noReplyTopic(err error) error {
	if f := fault.From(err); f.Class == fault.NotFound {
		return &fault.Error{Class: fault.Unavailable, Op: "request", Reason: "no-reply-topic", RetryAfter: 5 * time.Second, Err: err,
			Msg: "the EventStore has no topic for replies yet: the control plane makes it, or, where its provisioning is verify, its administrator"}
	}
	return err
}
