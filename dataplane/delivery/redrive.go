package delivery

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/time/rate"

	"github.com/weft-mesh/weft/dataplane/facts"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
)

// Redrive gives dead letters of one Subscription back to it.
type Redrive struct {
	// Query selects; its Subscription is needed.
	Query DeadLetterQuery
	// Rate is most in a second, 1 to MaxRedriveRate.
	Rate int
	// Limit is most in all; 0 is without.
	Limit int
	// DryRun only counts.
	DryRun bool
}

// Redriven says how far a redrive is.
type Redriven struct {
	// Redriven were given back (with DryRun, would be), Already were before, and
	// Refused cannot be: RefusedReason says why the first of them.
	Redriven, Already, Refused int
	RefusedReason              string
}

// MaxRedriveRate bounds the rate of a redrive. redriveBatch bounds what is given
// back before it is marked: so many come twice where a redrive is cut off between
// the two.
const (
	MaxRedriveRate = 10000
	redriveBatch   = 100
	// giveTime bounds the write of what is given back, and that of its mark.
	giveTime = 30 * time.Second
)

// redrive is one at work.
type redrive struct {
	m      *Manager
	who    *policy.Principal
	req    Redrive
	id     string // of its markers
	topic  *snapshot.Topic
	pace   *rate.Limiter
	size   int // of a batch
	batch  []DeadLetter
	marks  uint64  // markers that were written, which have their ids by it
	unseen numbers // those of them that were not met in the topic
	out    Redriven
	over   bool // all that the topic had at the call was read
	report func(Redriven)
}

// Redrive gives the dead letters that req selects, as many as the topic has at the
// call, back to the Subscription that gave them up: into its own retry topic, so
// that nobody else gets them again, and at their first attempt. What was given back
// is marked in the dead-letter topic, and not given back by a later redrive. report
// is told now and then how far it is.
//
// It needs Subscribe on the dead-letter topic and what joining the Subscription
// needs, from its beginning to its end. Conflict while another redrive of the
// Subscription runs on this proxy.
func (m *Manager) Redrive(ctx context.Context, who *policy.Principal, req Redrive, report func(Redriven)) (Redriven, error) {
	const op = "delivery.redrive"
	r := &redrive{m: m, who: who, req: req, id: uuid.NewString(), report: report, size: min(max(req.Rate/10, 1), redriveBatch), unseen: numbers{}}
	q := &r.req.Query
	q.Redriven = false
	if q.Subscription == "" || req.Rate < 1 || req.Rate > MaxRedriveRate || req.Limit < 0 {
		return Redriven{}, fault.New(fault.Invalid, op, "bad-request", "a redrive names a Subscription, and a rate of 1 to %d events a second", MaxRedriveRate)
	}
	r.pace = rate.NewLimiter(rate.Limit(req.Rate), r.size)
	var err error
	if r.topic, err = m.deadLetterTopic(who, q); err != nil {
		return Redriven{}, err
	}
	sub, err := r.allowed()
	if err != nil {
		return Redriven{}, err
	}
	done, err := m.scanning(who)
	if err != nil {
		return Redriven{}, err
	}
	defer done()
	m.mu.Lock()
	_, busy := m.redriving[sub.UID]
	if !busy {
		m.redriving[sub.UID] = struct{}{}
	}
	m.mu.Unlock()
	if busy {
		return Redriven{}, fault.New(fault.Conflict, op, "redrive-in-progress", "another redrive of Subscription %s runs on this proxy", sub.Name)
	}
	defer func() {
		m.mu.Lock()
		delete(m.redriving, sub.UID)
		m.mu.Unlock()
	}()
	err = r.run(ctx)
	if !req.DryRun {
		m.cfg.Log.Info("dead letters were redriven", "subscription", sub.Key, "topic", r.topic.Key, "by", who, "redriven", r.out.Redriven, "refused", r.out.Refused, "error", err)
	}
	return r.out, err
}

// allowed is the Subscription by the newest configuration, while the caller may
// redrive.
func (r *redrive) allowed() (*snapshot.Subscription, error) {
	snap, q := r.m.cfg.Snapshots.Get(), &r.req.Query
	who, err := refreshed(snap, r.who, r.m.cfg.Clock.Now())
	if err == nil {
		err = mayConsume(snap, who, q.Namespace, q.Subscription)
	}
	if err != nil {
		return nil, err
	}
	if err := may(snap, who, policy.Subscribe, q.Namespace, q.Topic); err != nil {
		return nil, err
	}
	sub := snap.Subscriptions[snapshot.Key{Namespace: q.Namespace, Name: q.Subscription}]
	switch {
	case sub == nil:
		return nil, fault.New(fault.NotFound, "delivery.redrive", "unknown-subscription", "there is no Subscription %s in namespace %s", q.Subscription, q.Namespace)
	case sub.NotReady != "":
		return nil, &fault.Error{Class: fault.Unavailable, Op: "delivery.redrive", Reason: "subscription-not-ready", RetryAfter: time.Second, Msg: "Subscription " + sub.Name + " is not ready: " + sub.NotReady}
	}
	return sub, nil
}

// run reads what was redriven before, and then gives back the rest.
func (r *redrive) run(ctx context.Context) error {
	marked, err := r.m.redriven(ctx, r.topic)
	if err != nil {
		return err
	}
	return r.m.scan(ctx, r.topic, func(msg *store.Message, at position.Token) (bool, error) {
		if msg == nil {
			r.over = true
			err := r.flush(ctx)
			return r.shown(), err
		}
		if id, _ := event.Lookup(msg.Mesh, headerRedriven); id == r.id {
			if n, err := strconv.ParseUint(strings.TrimPrefix(msg.ID, r.id+"."), 10, 64); err == nil {
				r.unseen.remove(n) // it may be there twice
			}
		}
		l, ok := deadLetterOf(msg, at)
		switch {
		case !ok || !r.req.Query.selects(&l) || r.over:
		case marked.has(at):
			r.out.Already++
		case r.req.Limit > 0 && r.out.Redriven+len(r.batch) >= r.req.Limit:
		default:
			r.batch = append(r.batch, l)
		}
		if len(r.batch) == r.size {
			if err := r.flush(ctx); err != nil {
				return true, err
			}
		}
		// A store may show what it has acknowledged a moment later. Once the markers
		// are seen the next redrive sees them too.
		return r.shown(), nil
	})
}

// shown reports whether all markers were seen. Where the topic has moved meanwhile those of
// now are in the next store, and the next redrive reads that.
func (r *redrive) shown() bool {
	t := r.m.cfg.Snapshots.Get().Topics[r.topic.Key]
	return len(r.unseen) == 0 || t == nil || t.UID != r.topic.UID || t.Written().Number != r.topic.Written().Number
}

// flush gives a batch back, and marks it.
func (r *redrive) flush(ctx context.Context) error {
	batch := r.batch
	r.batch = nil
	if len(batch) == 0 {
		return nil
	}
	sub, err := r.allowed()
	if err != nil {
		return err
	}
	bySource := map[*snapshot.Source][]DeadLetter{}
	for i := range batch {
		src, why := sourceFor(sub, &batch[i])
		if why != "" {
			if r.out.Refused++; r.out.RefusedReason == "" {
				r.out.RefusedReason = why
			}
			continue
		}
		bySource[src] = append(bySource[src], batch[i])
	}
	for i := range sub.Sources { // in their order
		ls := bySource[&sub.Sources[i]]
		if len(ls) == 0 {
			continue
		}
		if r.req.DryRun {
			r.out.Redriven += len(ls)
			continue
		}
		if err := r.pace.WaitN(ctx, len(ls)); err != nil {
			// It fails at once where the call's deadline comes before the turn does.
			return fault.From(cmp.Or(context.Cause(ctx), context.DeadlineExceeded))
		}
		if err := r.give(ctx, &sub.Sources[i], ls); err != nil {
			return err
		}
	}
	r.report(r.out)
	return nil
}

// sourceFor is where a dead letter goes back to, or why it cannot.
func sourceFor(sub *snapshot.Subscription, l *DeadLetter) (*snapshot.Source, string) {
	if l.NotRedrivable != "" {
		return nil, l.NotRedrivable
	}
	at := sourceUpTo(sub, l.Topic, func(s *snapshot.Source) uint32 { return s.Topic.Written().Number })
	if at == nil {
		return nil, "Subscription " + sub.Name + " does not read topic " + l.Topic + " any more"
	}
	return at, ""
}

// sourceUpTo is the source of a topic of which the epoch is written to: others may be given
// up.
func sourceUpTo(sub *snapshot.Subscription, topic string, written func(*snapshot.Source) uint32) (at *snapshot.Source) {
	for i := range sub.Sources {
		s := &sub.Sources[i]
		if s.Topic.Name == topic && (at == nil || s.Epoch.Number <= written(s)) {
			at = s
		}
	}
	return at
}

// give writes dead letters of one topic to the Subscription's retry topic and marks
// those that are there. It is a write like one to the topic itself: a proxy that has not
// heard that the topic has left a store, and may be given up there, gives nothing back.
func (r *redrive) give(ctx context.Context, src *snapshot.Source, ls []DeadLetter) error {
	snap := r.m.cfg.Snapshots.Get()
	t := snap.Topics[src.Topic.Key]
	if t == nil || t.UID != src.Topic.UID {
		return notReadAnyMore(src.Topic.Name)
	}
	under, err := r.m.cfg.Moves.Begin(ctx, snap, t)
	if err != nil {
		return err
	}
	judged := false
	judge := func(err error) error {
		judged = true
		return under.End(err)
	}
	defer func() {
		if !judged {
			_ = judge(errNotGiven)
		}
	}()
	sub, err := r.allowed()
	if err != nil {
		return err
	}
	if src = sourceUpTo(sub, t.Name, func(*snapshot.Source) uint32 { return under.Epoch.Number }); src == nil || src.Topic.UID != t.UID {
		return notReadAnyMore(t.Name)
	}
	st, err := r.m.cfg.Store(src.Epoch.StoreUID)
	if err != nil {
		return err
	}
	out, res := make([]store.Outgoing, len(ls)), make([]store.Result, len(ls))
	for i := range ls {
		e := ls[i].Event
		e.Mesh = event.With(e.Mesh, headerTopic, ls[i].Topic)
		if ls[i].TopicPosition != "" {
			e.Mesh = event.With(e.Mesh, headerPosition, ls[i].TopicPosition)
		}
		out[i].Event = &e
	}
	// What was begun is ended, and what was given back is marked, also where the caller has
	// gone meanwhile: nobody would know whether it was.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveTime)
	defer cancel()
	at := r.m.cfg.Facts.Now() // a member may have it before all are written
	err = st.Publish(ctx, src.RetryTopic, out, res)
	kept := err
	if slices.ContainsFunc(res, func(r store.Result) bool { return r.Err == nil }) {
		kept = nil
	}
	if late := judge(kept); kept == nil && late != nil {
		return late // they are not marked, and given back again
	}
	var given []string
	for i := range res {
		if res[i].Err == nil {
			given = append(given, ls[i].Position.String())
			r.m.remember(at, facts.Redriven, sub.Namespace, sub.Name, ls[i].Topic, position.Token{}, 0, &ls[i].Event, "by "+r.who.String())
		}
	}
	if len(given) == 0 {
		return err
	}
	r.out.Redriven += len(given)
	r.m.metrics.redriven.WithLabelValues(r.m.metrics.names.Of(sub.Namespace, sub.Name)).Add(float64(len(given)))
	mctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveTime)
	defer cancel()
	if merr := r.mark(mctx, sub, given); merr != nil {
		return errors.Join(merr, err)
	}
	return err
}

var errNotGiven = errors.New("nothing was given back")

func notReadAnyMore(topic string) error {
	return &fault.Error{Class: fault.Unavailable, Op: "delivery.redrive", Reason: "topic-not-ready", RetryAfter: time.Second, Msg: "topic " + topic + " is not on this proxy, or not read by the Subscription, any more"}
}

// mark writes down that dead letters were given back.
func (r *redrive) mark(ctx context.Context, sub *snapshot.Subscription, given []string) error {
	data, err := json.Marshal(given)
	if err != nil {
		return err
	}
	r.marks++
	e := event.Event{ID: r.id + "." + strconv.FormatUint(r.marks, 10), Source: "/weft/" + sub.Namespace + "/subscriptions/" + sub.Name, Type: TypeRedriven, Subject: sub.Name,
		Time: r.m.cfg.Clock.Now().UTC().Format(time.RFC3339), DataContentType: "application/json", Data: data,
		Ext:  []event.Attr{{Name: "redrivenby", Value: clean(r.who.String())}},
		Mesh: []event.Attr{{Name: headerRedriven, Value: r.id}}}
	retry := minRetry
	for {
		if err = r.m.cfg.Write(ctx, r.topic, []event.Event{e}); err == nil {
			r.unseen.add(r.marks)
			return nil
		}
		timer := time.NewTimer(retry)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return &fault.Error{Class: fault.Ambiguous, Op: "delivery.redrive", Reason: "not-marked", Msg: "dead letters were given back, but this could not be written down: they would be given back again", Err: err}
		}
		retry = min(2*retry, maxRetry)
	}
}
