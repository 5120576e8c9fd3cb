package delivery

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// dead makes dead letters of events, each for a reason of its own.
func (w *world) dead(ids ...string) {
	w.Helper()
	w.publish(ids...)
	m := w.join(len(ids))
	defer m.Close()
	for n := 0; n < 3*len(ids); {
		for _, d := range w.next(m, 1) {
			m.Nack("no room for "+d.Event.ID, 0, d.ID)
			n++
		}
	}
	w.settled()
}

// letters are the ids of the dead letters that q selects.
func (w *world) letters(q DeadLetterQuery) []string {
	w.Helper()
	q.Namespace = "demo"
	var out []string
	_, err := w.m.DeadLetters(w.ctx, local, q, func(l *DeadLetter) error {
		out = append(out, l.Event.ID)
		return nil
	})
	w.must(err)
	slices.Sort(out)
	return out
}

func (w *world) redrive(req Redrive) Redriven {
	w.Helper()
	req.Query.Namespace, req.Query.Subscription = "demo", "billing"
	if req.Rate == 0 {
		req.Rate = MaxRedriveRate
	}
	out, err := w.m.Redrive(w.ctx, local, req, func(Redriven) {})
	w.must(err)
	return out
}

func deadWorld(t *testing.T) *world {
	return newWorld(t, func(s *snapshot.Subscription) { s.DeadLetter = "dead" })
}

// TestDeadLettersAreListed: by every cause, with the event as it was.
func TestDeadLettersAreListed(t *testing.T) {
	w := deadWorld(t)
	if got := w.letters(DeadLetterQuery{Subscription: "billing"}); len(got) != 0 {
		t.Errorf("an empty topic has %v", got)
	}
	began := time.Now().Add(-time.Minute)
	w.dead("a", "b", "c")
	// What a client publishes there is no dead letter.
	var res [1]store.Result
	w.must(w.st.Publish(w.ctx, "dead", []store.Outgoing{{Event: &event.Event{ID: "x", Source: "/x", Type: "t"}}}, res[:]))
	all := []string{"a", "b", "c"}
	for what, c := range map[string]struct {
		q    DeadLetterQuery
		want []string
	}{
		"all":                  {DeadLetterQuery{Subscription: "billing"}, all},
		"by the topic's name":  {DeadLetterQuery{Topic: "dead"}, all},
		"of another":           {DeadLetterQuery{Topic: "dead", Subscription: "other"}, nil},
		"from a topic":         {DeadLetterQuery{Topic: "dead", From: "orders"}, all},
		"from another":         {DeadLetterQuery{Topic: "dead", From: "other"}, nil},
		"by reason":            {DeadLetterQuery{Topic: "dead", Reason: "room for b"}, []string{"b"}},
		"by id":                {DeadLetterQuery{Topic: "dead", IDs: map[string]struct{}{"a": {}, "c": {}}}, []string{"a", "c"}},
		"by source":            {DeadLetterQuery{Topic: "dead", Source: "/test"}, all},
		"by another source":    {DeadLetterQuery{Topic: "dead", Source: "/other"}, nil},
		"since":                {DeadLetterQuery{Topic: "dead", Since: began}, all},
		"since later":          {DeadLetterQuery{Topic: "dead", Since: began.Add(time.Hour)}, nil},
		"until":                {DeadLetterQuery{Topic: "dead", Until: began}, nil},
		"with enough attempts": {DeadLetterQuery{Topic: "dead", MinAttempts: 3}, all},
		"with more attempts":   {DeadLetterQuery{Topic: "dead", MinAttempts: 4}, nil},
	} {
		if got := w.letters(c.q); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", what, got, c.want)
		}
	}
	sum, err := w.m.DeadLetters(w.ctx, local, DeadLetterQuery{Namespace: "demo", Subscription: "billing"}, func(l *DeadLetter) error {
		if l.Subscription != "billing" || l.Topic != "orders" || l.Attempts != 3 || !strings.HasPrefix(l.Reason, "no room for ") || l.NotRedrivable != "" || l.Redriven ||
			l.Time.IsZero() || l.TopicPosition == "" || len(l.Event.Ext) != 0 || string(l.Event.Data) != "data of "+l.Event.ID {
			t.Errorf("%+v", l)
		}
		return nil
	})
	if w.must(err); sum != (DeadLetterSummary{Scanned: 4, Matched: 3}) {
		t.Errorf("%+v", sum)
	}
}

// TestRedrive: what is redriven comes again as at first, to the Subscription alone;
// once, whatever is asked; and what fails again is another dead letter.
func TestRedrive(t *testing.T) {
	w := deadWorld(t)
	w.dead("a", "b", "c")
	tail, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{"orders"}, From: store.Start{End: true}})
	w.must(err)
	defer tail.Close()

	if got := w.redrive(Redrive{Query: DeadLetterQuery{Reason: "room for b"}, DryRun: true}); got.Redriven != 1 {
		t.Errorf("a dry run says %+v", got)
	}
	if got := w.redrive(Redrive{Query: DeadLetterQuery{Reason: "room for b"}}); got.Redriven != 1 || got.Already != 0 {
		t.Errorf("one by its reason: %+v", got)
	}
	if got := w.letters(DeadLetterQuery{Subscription: "billing"}); !slices.Equal(got, []string{"a", "c"}) {
		t.Errorf("%v are left", got)
	}
	if got := w.letters(DeadLetterQuery{Subscription: "billing", Redriven: true}); len(got) != 3 {
		t.Errorf("%v are there in all", got)
	}
	// The rest, twice: the second time there is nothing to do. Then after a restart.
	if got := w.redrive(Redrive{}); got.Redriven != 2 || got.Already != 1 {
		t.Errorf("the rest: %+v", got)
	}
	if got := w.redrive(Redrive{}); got.Redriven != 0 || got.Already != 3 {
		t.Errorf("once more: %+v", got)
	}
	ctx, cancel := context.WithTimeout(w.ctx, 100*time.Millisecond)
	defer cancel()
	var dst [1]Delivery
	if n, err := tail.Next(ctx, dst[:]); n > 0 || err == nil {
		t.Errorf("who reads the topic gets %v again", dst[0].Event.ID)
	}
	w.stop()
	w.start()
	if got := w.redrive(Redrive{}); got.Redriven != 0 || got.Already != 3 {
		t.Errorf("after a restart: %+v", got)
	}
	m := w.join(10)
	ds := w.next(m, 3)
	if got := idsOf(ds); len(got) != 3 {
		t.Errorf("redelivered are %v", got)
	}
	for _, d := range ds {
		if d.Attempt != 1 || d.Topic != "orders" || d.Position.TopicUID != uidOrders || len(d.Event.Ext) != 0 {
			t.Errorf("%s comes as %+v with %v", d.Event.ID, d, d.Event.Ext)
		}
		if d.Event.ID != "a" {
			m.Ack(d.ID)
		}
	}
	w.nothing(m, "each is redriven once")
	// a fails again.
	for d := ds[slices.IndexFunc(ds, func(d Delivery) bool { return d.Event.ID == "a" })]; ; d = w.next(m, 1)[0] {
		m.Nack("still not", 0, d.ID)
		if d.Attempt == 3 {
			break
		}
	}
	for len(w.letters(DeadLetterQuery{Subscription: "billing"})) == 0 {
	}
	m.Close()
	if got := w.redrive(Redrive{}); got.Redriven != 1 || got.Already != 3 {
		t.Errorf("what failed again: %+v", got)
	}
}

// TestRedriveLimit: a limit is kept, and the next redrive goes on behind it.
func TestRedriveLimit(t *testing.T) {
	w := deadWorld(t)
	w.dead(ids(25)...)
	for i, want := range []int{10, 10, 5, 0} {
		if got := w.redrive(Redrive{Rate: 30, Limit: 10}); got.Redriven != want || got.Already != min(10*i, 25) {
			t.Errorf("redrive %d: %+v, want %d", i, got, want)
		}
	}
}

// TestRedriveRate: no more in a second than is asked for.
func TestRedriveRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := deadWorld(t)
		w.dead(ids(10)...)
		began := time.Now()
		if got := w.redrive(Redrive{Rate: 20}); got.Redriven != 10 {
			t.Errorf("%+v", got)
		}
		// Two at once, and then two after 100 ms each.
		if took := time.Since(began); took < 390*time.Millisecond || took > time.Second {
			t.Errorf("10 at 20 a second take %s", took)
		}
	})
}

// TestRedriveDeadline: where the deadline comes before the next turn, the redrive ends at
// once as one whose deadline has passed, and tells what it gave back.
func TestRedriveDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := deadWorld(t)
		w.dead("a", "b", "c")
		ctx, cancel := context.WithTimeout(w.ctx, 1500*time.Millisecond) // of the turns at once, after 1 s and 2 s
		defer cancel()
		told := 0
		got, err := w.m.Redrive(ctx, local, Redrive{Query: DeadLetterQuery{Namespace: "demo", Subscription: "billing"}, Rate: 1}, func(r Redriven) { told = r.Redriven })
		if f := fault.From(err); f == nil || f.Class != fault.ClassOf(context.DeadlineExceeded) || ctx.Err() != nil {
			t.Errorf("it ends with %v; the call: %v", f, ctx.Err())
		}
		if got.Redriven != 2 || told != 2 {
			t.Errorf("%+v; told were %d", got, told)
		}
		if got := w.redrive(Redrive{}); got.Redriven != 1 || got.Already != 2 {
			t.Errorf("the next one: %+v", got)
		}
	})
}

// TestRedriveOfWhatClientsWrote: who may publish to a dead-letter topic gets nothing
// into a Subscription by it, and undoes nothing.
func TestRedriveOfWhatClientsWrote(t *testing.T) {
	w := deadWorld(t)
	w.dead("true")
	_, err := w.m.DeadLetters(w.ctx, local, DeadLetterQuery{Namespace: "demo", Topic: "dead"}, func(l *DeadLetter) error {
		forged := []*event.Event{
			{ID: "forged", Source: "/x", Type: "t", Ext: []event.Attr{{Name: AttrDeadSubscription, Value: "billing"}, {Name: AttrDeadTopic, Value: "orders"}}},
			{ID: "marker", Source: "/x", Type: TypeRedriven, Data: fmt.Appendf(nil, "[%q]", l.Position)},
		}
		for _, e := range forged {
			var res [1]store.Result
			w.must(w.st.Publish(w.ctx, "dead", []store.Outgoing{{Event: e}}, res[:]))
		}
		return nil
	})
	w.must(err)
	if got := w.redrive(Redrive{}); got.Redriven != 1 || got.Refused != 1 || got.Already != 0 || !strings.Contains(got.RefusedReason, "did not write it") {
		t.Errorf("%+v", got)
	}
	m := w.join(10)
	defer m.Close()
	if d := w.next(m, 1)[0]; d.Event.ID != "true" {
		t.Errorf("%s came", d.Event.ID)
	}
	w.nothing(m, "a forged dead letter")
}

// TestRedriveRights: who reads the dead-letter topic may list; who may be a member
// of the Subscription too may redrive; nobody else hears whether it exists.
func TestRedriveRights(t *testing.T) {
	w := deadWorld(t)
	w.dead("a")
	rule := func(actions []configv1.Action, topics ...string) *configv1.AccessRule {
		r := allowAll()[0]
		r.Name, r.Actions, r.Topics = "r", actions, topics
		return r
	}
	consume, subscribe := configv1.Action_ACTION_CONSUME, configv1.Action_ACTION_SUBSCRIBE
	for what, c := range map[string]struct {
		rules         []*configv1.AccessRule
		list, redrive bool
	}{
		"nothing":                     {[]*configv1.AccessRule{rule([]configv1.Action{configv1.Action_ACTION_PUBLISH}, ">")}, false, false},
		"the Subscription alone":      {[]*configv1.AccessRule{rule([]configv1.Action{consume, subscribe}, "orders")}, false, false},
		"the dead-letter topic alone": {[]*configv1.AccessRule{rule([]configv1.Action{subscribe}, "dead")}, true, false},
		"the topics, but not consume": {[]*configv1.AccessRule{rule([]configv1.Action{subscribe}, ">")}, true, false},
		"consume, but not its topic":  {[]*configv1.AccessRule{rule([]configv1.Action{consume, subscribe}, "dead")}, true, false},
		"all":                         {nil, true, true},
	} {
		w.snaps.Store(w.snapshot(func(s *snapshot.Subscription) { s.DeadLetter = "dead" }, c.rules...))
		_, err := w.m.DeadLetters(w.ctx, local, DeadLetterQuery{Namespace: "demo", Topic: "dead"}, func(*DeadLetter) error { return nil })
		if (err == nil) != c.list || err != nil && fault.ClassOf(err) != fault.Denied {
			t.Errorf("%s: listing gives %v", what, err)
		}
		_, err = w.m.Redrive(w.ctx, local, Redrive{Query: DeadLetterQuery{Namespace: "demo", Topic: "dead", Subscription: "billing"}, Rate: 1, DryRun: true}, func(Redriven) {})
		if (err == nil) != c.redrive || err != nil && fault.ClassOf(err) != fault.Denied {
			t.Errorf("%s: redriving gives %v", what, err)
		}
		if _, err = w.m.DeadLetters(w.ctx, local, DeadLetterQuery{Namespace: "demo", Topic: "no-such"}, func(*DeadLetter) error { return nil }); c.list && !c.redrive && what != "the topics, but not consume" && fault.ClassOf(err) != fault.Denied {
			t.Errorf("%s: a topic that is not there gives %v", what, err)
		}
	}
}

// TestListingEnds: who may not read dead letters any more, or whose credentials have ended,
// is not told the rest of those that a listing was to have.
func TestListingEnds(t *testing.T) {
	for what, end := range map[string]func(w *world, s *snapshot.Snapshot){
		"rules":       func(_ *world, s *snapshot.Snapshot) { s.Rules = policy.CompileRules(nil, nil) },
		"credentials": func(_ *world, s *snapshot.Snapshot) { s.Identities = policy.CompileIdentities(nil, nil, false) },
	} {
		for _, q := range []DeadLetterQuery{{Namespace: "demo", Topic: "dead"}, {Namespace: "demo", Subscription: "billing"}} {
			w := deadWorld(t)
			w.dead("a", "b")
			listed := 0
			_, err := w.m.DeadLetters(w.ctx, local, q, func(*DeadLetter) error {
				if listed++; listed == 1 {
					s := w.snapshot(func(s *snapshot.Subscription) { s.DeadLetter = "dead" })
					end(w, s)
					w.snaps.Store(s)
				}
				return nil
			})
			if listed != 1 || err == nil {
				t.Errorf("%s, %+v: %d were listed, %v", what, q, listed, err)
			}
		}
	}
	// By the clock alone, too.
	w := deadWorld(t)
	w.dead("a", "b")
	now, later := time.Now(), atomic.Int64{}
	w.stop()
	w.clock = func() time.Time { return now.Add(time.Duration(later.Load())) }
	w.start()
	const key = "weft_abcdefgh_s3cret"
	sum := sha256.Sum256([]byte(key))
	s := w.snapshot(func(s *snapshot.Subscription) { s.DeadLetter = "dead" }, &configv1.AccessRule{Name: "r", Effect: configv1.Effect_EFFECT_ALLOW,
		Principals: []string{"alice"}, Actions: []configv1.Action{configv1.Action_ACTION_SUBSCRIBE}, Topics: []string{"dead"}})
	s.Identities = policy.CompileIdentities([]policy.NamedIdentity{{Namespace: "demo", Name: "identity/demo/i", Spec: &configv1.Identity{Method: &configv1.Identity_ApiKeys{ApiKeys: &configv1.ApiKeys{Keys: []*configv1.ApiKey{
		{Id: "abcdefgh", Principal: "alice", Hash: "sha256:" + hex.EncodeToString(sum[:]), ExpiresAt: timestamppb.New(now.Add(time.Hour))}}}}}}}, nil, false)
	w.snaps.Store(s)
	alice, err := s.Identities.Authenticate(w.ctx, policy.Credentials{Bearer: key}, now)
	w.must(err)
	listed := 0
	_, err = w.m.DeadLetters(w.ctx, alice, DeadLetterQuery{Namespace: "demo", Topic: "dead"}, func(*DeadLetter) error {
		listed++
		later.Store(int64(time.Hour))
		return nil
	})
	if listed != 1 || err == nil || fault.From(err).Reason != "credentials-revoked" {
		t.Errorf("an hour later: %d were listed, %v", listed, err)
	}
}

// TestOneRedriveAtATime: a Subscription's redrives do not run beside each other.
func TestOneRedriveAtATime(t *testing.T) {
	w := deadWorld(t)
	w.dead("a", "b")
	_, err := w.m.Redrive(w.ctx, local, Redrive{Query: DeadLetterQuery{Namespace: "demo", Subscription: "billing"}, Rate: 1000, Limit: 2}, func(Redriven) {
		_, err := w.m.Redrive(w.ctx, local, Redrive{Query: DeadLetterQuery{Namespace: "demo", Subscription: "billing"}, Rate: 1}, func(Redriven) {})
		if fault.ClassOf(err) != fault.Conflict {
			t.Errorf("a second one gives %v", err)
		}
	})
	w.must(err)
}

// TestScans: who reads dead letters as often as one may, at a time, leaves room for
// others.
func TestScans(t *testing.T) {
	w := deadWorld(t)
	w.dead("a")
	rules := allowAll()
	for _, name := range []string{"b", "c"} {
		rules[0].Principals = append(rules[0].Principals, "demo/"+name)
	}
	w.snaps.Store(w.snapshot(func(s *snapshot.Subscription) { s.DeadLetter = "dead" }, rules...))
	principal := func(name string) *policy.Principal { return &policy.Principal{Namespace: "demo", Name: name} }
	refused := func(who *policy.Principal) (reason string) {
		_, err := w.m.DeadLetters(w.ctx, who, DeadLetterQuery{Namespace: "demo", Topic: "dead"}, func(*DeadLetter) error { return nil })
		if err != nil {
			reason = fault.From(err).Reason
		}
		return reason
	}
	// Each listing is at its first dead letter while the next one begins.
	var within func(list ...*policy.Principal)
	within = func(list ...*policy.Principal) {
		if len(list) == 0 {
			return
		}
		listed := 0
		_, err := w.m.DeadLetters(w.ctx, list[0], DeadLetterQuery{Namespace: "demo", Topic: "dead"}, func(*DeadLetter) error {
			listed++
			within(list[1:]...)
			if len(list) == 3 { // two listings are under way
				if why := refused(local); why != "too-many-scans" {
					t.Errorf("a third one of the same principal: %q", why)
				}
			}
			if len(list) == 1 { // all
				if why := refused(principal("c")); why != "too-many-scans" {
					t.Errorf("a fifth one: %q", why)
				}
			}
			return nil
		})
		if w.must(err); listed != 1 {
			t.Errorf("%d dead letters are listed", listed)
		}
	}
	within(local, local, principal("b"), principal("b"))
	if why := refused(local); why != "" {
		t.Errorf("afterwards: %q", why)
	}
}
