package delivery

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
)

// A dead-letter topic is an ordinary Topic, which clients may publish to. What the
// mesh itself wrote there is told by these headers, which clients cannot set.
const (
	headerDead     = "dead-letter" // when it was given up, RFC 3339
	headerRedriven = "redriven"    // on a marker: the redrive that wrote it
)

// TypeRedriven is the type of the events that mark dead letters as redriven: their
// data is a JSON array of position tokens. They are in the dead-letter topic
// itself, so that they last as long as what they mark, on every store.
const TypeRedriven = "weft.deadletter.redriven"

// DeadLetterQuery selects dead letters of one topic; all that is set must hold.
type DeadLetterQuery struct {
	Namespace string
	// Topic is the dead-letter topic; when empty, that of Subscription.
	Topic        string
	Subscription string
	// Source is the event's, From the topic that it was in.
	Source, From string
	// Reason is a part of the reason, in lower case.
	Reason string
	// Since and Until bound when it was given up; zero is without.
	Since, Until time.Time
	MinAttempts  int
	// IDs are ids of events; nil is any.
	IDs map[string]struct{}
	// Redriven selects those that were redriven too.
	Redriven bool
}

// DeadLetter is an event that a Subscription could not deliver.
type DeadLetter struct {
	// Position is its place in the dead-letter topic.
	Position                    position.Token
	Time                        time.Time
	Subscription, Topic, Reason string
	// TopicPosition is the token of its place in Topic.
	TopicPosition string
	Attempts      int
	Redriven      bool
	// NotRedrivable says why it cannot be redriven; "" where it can.
	NotRedrivable string
	// Event is as it was, without the attributes of dead letters.
	Event event.Event
}

// DeadLetterSummary counts what a listing met.
type DeadLetterSummary struct {
	// Scanned are all events of the topic, Matched those selected, and Redriven
	// those that were selected but for having been redriven.
	Scanned, Matched, Redriven int
}

// maxScans bounds the listings and redrives of one proxy at a time, and maxOwnScans those
// of one principal: each reads a topic from its beginning, and a slow redrive for days.
const (
	maxScans    = 4
	maxOwnScans = 2
)

// DeadLetters gives the dead letters that q selects to visit, as many as the topic
// has at the call, and counts. It needs Subscribe on the dead-letter topic, and
// Consume on the Subscription where that names the topic, from its beginning to its
// end. An error of visit ends it and is returned.
func (m *Manager) DeadLetters(ctx context.Context, who *policy.Principal, q DeadLetterQuery, visit func(*DeadLetter) error) (DeadLetterSummary, error) {
	var sum DeadLetterSummary
	judged, bySubscription := m.cfg.Snapshots.Get(), q.Topic == ""
	t, err := m.deadLetterTopic(who, &q)
	if err != nil {
		return sum, err
	}
	// A listing is as long as its topic, and as slow as its reader.
	still := func() error {
		snap, now := m.cfg.Snapshots.Get(), m.cfg.Clock.Now()
		if snap == judged && !who.Expired(now) {
			return nil
		}
		p, err := refreshed(snap, who, now)
		if err == nil && bySubscription {
			err = may(snap, p, policy.Consume, q.Namespace, q.Subscription)
		}
		if err == nil {
			err = may(snap, p, policy.Subscribe, q.Namespace, q.Topic)
		}
		if err == nil {
			err = snap.Refusal(q.Namespace)
		}
		if err == nil {
			judged, who = snap, p
		}
		return err
	}
	done, err := m.scanning(who)
	if err != nil {
		return sum, err
	}
	defer done()
	marked, err := m.redriven(ctx, t)
	if err != nil {
		return sum, err
	}
	return sum, m.scan(ctx, t, func(msg *store.Message, at position.Token) (bool, error) {
		if msg == nil {
			return true, nil
		}
		if err := still(); err != nil {
			return false, err
		}
		sum.Scanned++
		l, ok := deadLetterOf(msg, at)
		if !ok || !q.selects(&l) {
			return true, nil
		}
		if l.Redriven = marked.has(at); l.Redriven {
			if sum.Redriven++; !q.Redriven {
				return true, nil
			}
		}
		sum.Matched++
		return true, visit(&l)
	})
}

// deadLetterTopic is the topic that q is about, once who may read it.
func (m *Manager) deadLetterTopic(who *policy.Principal, q *DeadLetterQuery) (*snapshot.Topic, error) {
	const op = "delivery.dead-letters"
	for _, err := range []error{names.CheckNamespace(q.Namespace), checkNameOr("topic", q.Topic), checkNameOr("subscription", q.Subscription)} {
		if err != nil {
			return nil, &fault.Error{Class: fault.Invalid, Op: op, Reason: "bad-name", Msg: err.Error()}
		}
	}
	snap := m.cfg.Snapshots.Get()
	if q.Topic == "" {
		if q.Subscription == "" {
			return nil, fault.New(fault.Invalid, op, "bad-request", "name the dead-letter topic, or the Subscription")
		}
		if err := may(snap, who, policy.Consume, q.Namespace, q.Subscription); err != nil {
			return nil, err
		}
		sub := snap.Subscriptions[snapshot.Key{Namespace: q.Namespace, Name: q.Subscription}]
		switch {
		case sub == nil:
			return nil, fault.New(fault.NotFound, op, "unknown-subscription", "there is no Subscription %s in namespace %s", q.Subscription, q.Namespace)
		case sub.DeadLetter == "":
			return nil, fault.New(fault.Precondition, op, "no-dead-letter-topic", "Subscription %s has no dead_letter_topic: what it cannot deliver is tried for ever", q.Subscription)
		}
		q.Topic = sub.DeadLetter
	}
	if err := may(snap, who, policy.Subscribe, q.Namespace, q.Topic); err != nil {
		return nil, err
	}
	if err := snap.Refusal(q.Namespace); err != nil {
		return nil, err
	}
	t := snap.Topics[snapshot.Key{Namespace: q.Namespace, Name: q.Topic}]
	switch {
	case t == nil:
		return nil, fault.New(fault.NotFound, op, "unknown-topic", "there is no topic %s in namespace %s", q.Topic, q.Namespace)
	case t.NotReady != "":
		return nil, &fault.Error{Class: fault.Unavailable, Op: op, Reason: "topic-not-ready", RetryAfter: time.Second, Msg: "topic " + t.Name + " is not ready: " + t.NotReady}
	}
	return t, nil
}

func checkNameOr(what, name string) error {
	if name == "" {
		return nil
	}
	return names.CheckName(what, name)
}

// scanning takes a place among those who read whole topics.
func (m *Manager) scanning(who *policy.Principal) (done func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	own := who.String()
	all := 0
	for _, n := range m.scans {
		all += n
	}
	busy := func(most int, whom string) error {
		return &fault.Error{Class: fault.Throttled, Op: "delivery.dead-letters", Reason: "too-many-scans", RetryAfter: time.Second,
			Msg: "the proxy reads dead letters " + strconv.Itoa(most) + " times for " + whom + " already"}
	}
	switch {
	case m.draining:
		return nil, errDraining
	case m.scans[own] >= maxOwnScans:
		return nil, busy(maxOwnScans, own)
	case all >= maxScans:
		return nil, busy(maxScans, "others")
	}
	m.scans[own]++
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.scans[own]--; m.scans[own] == 0 {
			delete(m.scans, own)
		}
	}, nil
}

// redriven are the places of all that was redriven.
func (m *Manager) redriven(ctx context.Context, t *snapshot.Topic) (*marks, error) {
	marked := &marks{}
	return marked, m.scan(ctx, t, func(msg *store.Message, _ position.Token) (bool, error) {
		if msg == nil {
			return true, nil
		}
		if _, ok := event.Lookup(msg.Mesh, headerRedriven); !ok || msg.Type != TypeRedriven {
			return true, nil
		}
		var list []string
		if err := json.Unmarshal(msg.Data, &list); err != nil {
			return true, nil //nolint:nilerr // not one of ours
		}
		for _, s := range list {
			if tok, err := position.Parse(s); err == nil {
				if err := marked.add(tok); err != nil {
					return false, err
				}
			}
		}
		return true, nil
	})
}

// While a scan waits for what must be there, it looks each scanLook whether there still is
// any, and gives up after scanPatience.
const (
	scanLook     = time.Second
	scanPatience = 30 * time.Second
)

// scan gives visit each message that a topic has now and then nil, and goes on
// behind that, where the topic is written to, until visit has enough. What is behind a
// cut, and markers of it, do not count. It ends with an error of visit.
func (m *Manager) scan(ctx context.Context, t *snapshot.Topic, visit func(msg *store.Message, at position.Token) (enough bool, err error)) error {
	written := t.Written().Number
	for _, epoch := range t.Epochs {
		if epoch.Number > written {
			break
		}
		ended := epoch.Number < written // nothing is written there any more
		enough := ended
		visit := func(msg *store.Message, at position.Token) (_ bool, err error) {
			if msg == nil && ended || msg != nil && (cutover.IsMarker(&msg.Event) || t.Past(epoch.Number, msg.Pos)) {
				return enough, nil
			}
			e, err := visit(msg, at)
			enough = e || ended
			return enough, err
		}
		st, err := m.cfg.Store(epoch.StoreUID)
		if err != nil {
			return err
		}
		if err := scanEpoch(ctx, st, position.Token{TopicUID: t.UID, Epoch: epoch.Number}, epoch.Physical, visit); err != nil {
			return err
		}
	}
	return nil
}

func scanEpoch(ctx context.Context, st store.Store, at position.Token, physical string, visit func(msg *store.Message, at position.Token) (bool, error)) error {
	me, ok := st.(store.Measurer)
	if !ok {
		return fault.New(fault.Precondition, "delivery.scan", "no-extents", "the store cannot tell where a topic ends")
	}
	extents, err := me.Extents(ctx, physical) // an error where a part of the topic is away
	if err != nil {
		return err
	}
	enough, all := false, !slices.ContainsFunc(extents, func(x store.Extent) bool { return x.Begin < x.End })
	if all {
		if enough, err = visit(nil, at); err != nil || enough {
			return err
		}
	}
	tail, err := st.Tail(ctx, store.TailRequest{Topic: physical, Own: true})
	if err != nil {
		return err
	}
	defer func() {
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		_ = tail.Close(cctx)
	}()
	// Not by the extents: the last that a partition has may be none that is given.
	passed, err := tail.Mark(ctx)
	if err != nil {
		return err
	}
	msgs := make([]store.Message, maxFetch)
	waited := time.Duration(0)
	for !enough {
		if !all && passed() {
			all = true
			if enough, err = visit(nil, at); err != nil {
				return err
			}
			continue
		}
		wctx, cancel := context.WithTimeout(ctx, scanLook)
		n, err := tail.Next(wctx, msgs)
		cancel()
		switch {
		case ctx.Err() != nil:
			return fault.From(ctx.Err())
		case err != nil && wctx.Err() != nil && !all && passed():
			continue
		case err != nil && wctx.Err() != nil:
			if waited += scanLook; waited >= scanPatience {
				return fault.New(fault.Unavailable, "delivery.scan", "store-slow", "the store gives nothing more for %s, though there is more", waited)
			}
			if !all { // what was to come may have gone with the topic's retention
				if passed, err = tail.Mark(ctx); err != nil {
					return err
				}
			}
			continue
		case err != nil:
			return err
		}
		waited = 0
		for i := range msgs[:n] {
			msg := &msgs[i]
			at.Pos = msg.Pos
			e, err := visit(msg, at)
			if err != nil {
				return err
			}
			enough = all && e
		}
	}
	return nil
}

// deadLetterOf reads a message of a dead-letter topic; false where it is none.
func deadLetterOf(msg *store.Message, at position.Token) (DeadLetter, bool) {
	sub, ok := event.Lookup(msg.Ext, AttrDeadSubscription)
	if !ok {
		return DeadLetter{}, false
	}
	l := DeadLetter{Position: at, Subscription: sub, Time: msg.Stored, Event: msg.Event}
	l.Topic, _ = event.Lookup(msg.Ext, AttrDeadTopic)
	l.Reason, _ = event.Lookup(msg.Ext, AttrDeadReason)
	l.TopicPosition, _ = event.Lookup(msg.Ext, AttrDeadPosition)
	if v, ok := event.Lookup(msg.Ext, AttrDeadAttempts); ok {
		l.Attempts, _ = strconv.Atoi(v)
	}
	if v, ok := event.Lookup(msg.Mesh, headerDead); !ok {
		l.NotRedrivable = "the mesh did not write it, or a version before this one did"
	} else if when, err := time.Parse(time.RFC3339, v); err == nil {
		l.Time = when
	}
	l.Event.Mesh = nil
	l.Event.Ext = alive(msg.Ext)
	return l, true
}

// alive are extension attributes without those of dead letters.
func alive(ext []event.Attr) []event.Attr {
	return slices.DeleteFunc(slices.Clone(ext), func(a event.Attr) bool {
		switch a.Name {
		case AttrDeadReason, AttrDeadSubscription, AttrDeadTopic, AttrDeadPosition, AttrDeadAttempts:
			return true
		}
		return false
	})
}

// selects reports whether l is asked for.
func (q *DeadLetterQuery) selects(l *DeadLetter) bool {
	_, named := q.IDs[l.Event.ID]
	return (q.Subscription == "" || q.Subscription == l.Subscription) &&
		(q.From == "" || q.From == l.Topic) &&
		(q.Source == "" || q.Source == l.Event.Source) &&
		(q.Reason == "" || strings.Contains(strings.ToLower(l.Reason), q.Reason)) &&
		(q.Since.IsZero() || !l.Time.Before(q.Since)) &&
		(q.Until.IsZero() || l.Time.Before(q.Until)) &&
		l.Attempts >= q.MinAttempts &&
		(named || q.IDs == nil)
}
