package inspect

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/weft-mesh/weft/dataplane/facts"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store/position"
)

// Question is why a Subscription has not got an event.
type Question struct {
	Namespace, Source, ID, Subscription string
	// Facts are what other proxies remember.
	Facts []facts.Fact
	// Since is from where on topics are searched where nobody remembers the event; an
	// hour back when zero.
	Since time.Time
}

// Answer is why.
type Answer struct {
	NodeID string
	// Verdict is one word, Message the same for people.
	Verdict, Message string
	Findings         []Finding
}

// Finding is one thing that was looked at.
type Finding struct {
	Check string
	// OK: the event gets past it.
	OK     bool
	Detail string
}

// asking is one question at work.
type asking struct {
	i    *Inspector
	snap *snapshot.Snapshot
	who  *policy.Principal
	q    Question
	sub  *snapshot.Subscription
	out  Answer
	// where the event is: known where topic is not nil.
	topic *snapshot.Topic
	pos   position.Token
	event *event.Event
	key   string // that it is stored with; see store.Message
	short bool   // not all was searched that was to be
}

// Why looks, in the order of an event's way, for what kept an event from a
// Subscription. It needs Consume on the Subscription and Subscribe on what it reads;
// topics that who may not read are not looked into.
func (i *Inspector) Why(ctx context.Context, who *policy.Principal, q Question) (Answer, error) {
	const op = "inspect.why"
	for _, err := range []error{names.CheckNamespace(q.Namespace), names.CheckName("subscription", q.Subscription)} {
		if err != nil {
			return Answer{}, &fault.Error{Class: fault.Invalid, Op: op, Reason: "bad-name", Msg: err.Error()}
		}
	}
	a := &asking{i: i, snap: i.cfg.Snapshots.Get(), who: who, q: q}
	if d := a.snap.Rules.Authorize(who, policy.Consume, q.Namespace, q.Subscription); !d.Allowed {
		return Answer{}, &fault.Error{Class: fault.Denied, Op: op, Reason: "access-denied", Msg: d.Why}
	}
	if err := a.snap.Refusal(q.Namespace); err != nil {
		return Answer{}, err
	}
	if a.sub = a.snap.Subscriptions[snapshot.Key{Namespace: q.Namespace, Name: q.Subscription}]; a.sub == nil {
		return Answer{}, fault.New(fault.NotFound, op, "unknown-subscription", "there is no Subscription %s in namespace %s", q.Subscription, q.Namespace)
	}
	t, err := i.Trace(ctx, who, q.Namespace, q.Source, q.ID)
	if err != nil {
		return Answer{}, err
	}
	a.out.NodeID = i.cfg.NodeID
	known := t.Facts
	for _, f := range q.Facts {
		for what, name := range map[string]string{"topic": f.Topic, "subscription": f.Subscription} {
			if err := names.CheckName(what, name); name != "" && err != nil {
				return Answer{}, &fault.Error{Class: fault.Invalid, Op: op, Reason: "bad-name", Msg: err.Error()}
			}
		}
		if f.Kept != "" && names.CheckName("topic", f.Kept) != nil || f.Topic == "" {
			return Answer{}, fault.New(fault.Invalid, op, "bad-name", "a fact names no topic")
		}
		if f.Namespace = q.Namespace; mayKnow(a.snap, who, &f) {
			known = append(known, f)
		}
	}
	slices.SortStableFunc(known, func(x, y facts.Fact) int { return cmp.Compare(x.At, y.At) })
	err = a.decide(ctx, known)
	return a.out, err
}

func (a *asking) found(check string, ok bool, format string, args ...any) {
	a.out.Findings = append(a.out.Findings, Finding{check, ok, fmt.Sprintf(format, args...)})
}

func (a *asking) verdict(word, format string, args ...any) {
	a.out.Verdict, a.out.Message = word, fmt.Sprintf(format, args...)
}

// decide goes along the event's way until something explains it.
func (a *asking) decide(ctx context.Context, known []facts.Fact) error {
	sub := a.sub
	if sub.NotReady != "" {
		a.found("subscription", false, "it is not ready: %s", sub.NotReady)
		a.verdict("not-ready", "Subscription %s delivers nothing: %s", sub.Name, sub.NotReady)
		return nil
	}
	a.found("subscription", true, "it is ready and reads %v", sub.Topics)
	if done := a.remembered(known); done {
		return nil
	}
	if err := a.locate(ctx, known); err != nil {
		return err
	}
	if a.topic == nil {
		a.lost(known)
		return nil
	}
	i := slices.IndexFunc(sub.Sources, func(s snapshot.Source) bool {
		return s.Topic.UID == a.topic.UID && s.Epoch.Number == a.pos.Epoch
	})
	switch {
	case a.topic.Past(a.pos.Epoch, a.pos.Pos):
		a.found("cut", false, "it came to its store after topic %s had moved on", a.topic.Name)
		a.verdict("publish-failed", "it was not taken: topic %s had left its store when it came there, and its publisher was told so", a.topic.Name)
		return nil
	case i < 0 && slices.ContainsFunc(sub.Sources, func(s snapshot.Source) bool { return s.Topic.UID == a.topic.UID }):
		a.found("place", false, "the Subscription does not read the store that topic %s was in then", a.topic.Name)
		a.verdict("passed", "Subscription %s begins behind it: topic %s has moved since", sub.Name, a.topic.Name)
		return nil
	}
	if i < 0 {
		if entered := enteredElsewhere(known, a.topic.Name); entered != "" {
			a.found("route", false, "the Route of %s took it to %s", entered, a.topic.Name)
			a.verdict("routed-elsewhere", "the Route of topic %s took the event to %s, which Subscription %s does not read", entered, a.topic.Name, sub.Name)
			return nil
		}
		a.found("topic", false, "topic %s is none that it reads", a.topic.Name)
		a.verdict("not-read", "the event is in topic %s, which Subscription %s does not read", a.topic.Name, sub.Name)
		return nil
	}
	a.found("topic", true, "topic %s is read", a.topic.Name)
	if a.event != nil {
		if why := sub.Filter.Refuses(a.event, "spec.filter"); why != "" {
			a.found("filter", false, "%s", why)
			a.verdict("filtered", "the filter of Subscription %s leaves the event out: %s", sub.Name, why)
			return nil
		}
		a.found("filter", true, "it matches")
	}
	return a.place(ctx, &sub.Sources[i])
}

// remembered decides by what the Subscription did with the event, or its publisher
// heard.
func (a *asking) remembered(known []facts.Fact) bool {
	name := a.sub.Name
	stored := slices.ContainsFunc(known, func(f facts.Fact) bool { return f.Kind == facts.Stored || f.MayBeKept() })
	for _, f := range slices.Backward(known) {
		when := time.Unix(0, f.At).UTC().Format(time.RFC3339)
		switch {
		case f.Subscription != name && f.Subscription != "":
		case f.Kind == facts.Acked:
			a.verdict("acked", "Subscription %s got it: a member settled it at %s, at attempt %d", name, when, f.Attempt)
			return true
		case f.Kind == facts.Delivered:
			a.verdict("in-flight", "it was given to a member at %s, attempt %d, and nothing is remembered of it since: the member has it, or has left, and it waits for another", when, f.Attempt)
			return true
		case f.Kind == facts.Nacked, f.Kind == facts.TimedOut, f.Kind == facts.Retried:
			a.verdict("retrying", "attempt %d failed at %s, and it is tried again (%s)", f.Attempt, when, f.Detail)
			return true
		case f.Kind == facts.DeadLettered:
			a.verdict("dead-lettered", "it was given up at %s after attempt %d, %s; weft dlq has it", when, f.Attempt, f.Detail)
			return true
		case f.Kind == facts.Redriven:
			a.verdict("waiting", "it was redriven at %s %s and waits for a member", when, f.Detail)
			return true
		case f.Kind == facts.Filtered && a.sub.Filter == nil:
			a.verdict("filtered", "the filter that Subscription %s had at %s left it out", name, when)
			return true
		case f.Kind == facts.Refused && !stored:
			a.found("event", false, "its publisher was refused at %s: %s", when, f.Detail)
			a.verdict("publish-refused", "it was never taken: its publisher was refused at %s (%s)", when, f.Detail)
			return true
		case f.Kind == facts.Failed && !stored:
			a.found("event", false, "its publish failed at %s: %s", when, f.Detail)
			a.verdict("publish-failed", "it was not taken: its publish failed at %s (%s)", when, f.Detail)
			return true
		}
	}
	return false
}

// doubtful is the newest publish that failed and may have been kept, where none is known
// to have been; else nil.
func doubtful(known []facts.Fact) (newest *facts.Fact) {
	for i := range known {
		switch f := &known[i]; {
		case f.Kind == facts.Stored:
			return nil
		case f.MayBeKept():
			newest = f
		}
	}
	return newest
}

// enteredElsewhere is the topic that an event was published to, where a Route took it
// from there to the topic called kept.
func enteredElsewhere(known []facts.Fact, kept string) string {
	for _, f := range known {
		if f.Kind == facts.Stored && f.Kept == kept {
			return f.Topic
		}
	}
	return ""
}

// lost says that nobody knows the event.
func (a *asking) lost(known []facts.Fact) {
	of, hint := "the last events of the topics that the Subscription reads", "Are source and id right? --since searches from further back"
	if a.short {
		of, hint = "what was searched of the topics that the Subscription reads", "Not all of them was searched: --since names a later time to search from"
	}
	if f := doubtful(known); f != nil {
		a.found("event", false, "its publish failed, and it is not among %s", of)
		a.verdict("publish-failed", "its publish failed at %s (%s), and it was not found in the topics that Subscription %s reads", time.Unix(0, f.At).UTC().Format(time.RFC3339), f.Detail, a.sub.Name)
		if a.short {
			a.out.Message += ". " + hint
		}
		return
	}
	if len(known) > 0 {
		a.found("event", false, "it was taken, but is not in its topic any more, or may not be read")
		a.verdict("not-found", "the event was taken, but it is not in its topic any more, or you may not read that")
		return
	}
	a.found("event", false, "no proxy that was asked remembers it, and it is not among %s", of)
	a.verdict("not-found", "no such event is known: no proxy that was asked remembers it, and it was not found in the topics that Subscription %s reads. %s", a.sub.Name, hint)
}
