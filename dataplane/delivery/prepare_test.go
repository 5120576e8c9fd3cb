package delivery

import (
	"strings"
	"testing"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/eventcel"
	"github.com/weft-mesh/weft/pkg/fault"
)

func mustTransform(t *testing.T, typ string) *eventcel.Transform {
	t.Helper()
	tr, err := eventcel.CompileTransform(&configv1.Transform{Language: &configv1.Transform_Cel{Cel: &configv1.CelTransform{Attributes: map[string]string{"type": typ}}}})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// TestTransform: members get the transformed event, at a repeat too; what cannot be
// transformed is a dead letter at once, as it was published, with the reason.
func TestTransform(t *testing.T) {
	w := newWorld(t, func(s *snapshot.Subscription) {
		s.Transform, s.DeadLetter = mustTransform(t, "event.subject == 'e0001' ? event.missing : event.type + '.new'"), "dead"
	})
	w.publish(ids(3)...)
	m := w.join(10)
	defer m.Close()
	var got []string
	for len(got) < 2 {
		for _, d := range w.next(m, 1) {
			got = append(got, d.Event.ID+" "+d.Event.Type)
			if d.Attempt == 1 && d.Event.ID == "e0000" {
				m.Nack("again", 0, d.ID)
				got = got[:len(got)-1]
				continue
			}
			m.Ack(d.ID)
		}
	}
	if s := strings.Join(got, ", "); s != "e0000 t.new, e0002 t.new" && s != "e0002 t.new, e0000 t.new" {
		t.Error(s)
	}
	w.settled()
	tail, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{"dead"}})
	w.must(err)
	defer tail.Close()
	e := w.next(tail, 1)[0].Event
	if reason, _ := event.Lookup(e.Ext, AttrDeadReason); e.ID != "e0001" || e.Type != "t" || !strings.HasPrefix(reason, "transform: attribute type: no such key") {
		t.Errorf("%+v", e)
	}
}

// TestNewRulesForWhatWaits: a filter and a transform that change apply to what was
// fetched by the old ones and is not given out yet.
func TestNewRulesForWhatWaits(t *testing.T) {
	w := newWorld(t, nil)
	w.publish(ids(4)...)
	m := w.join(4)
	defer m.Close()
	first := w.next(m, 1)[0] // and the others are fetched
	w.snaps.Store(w.snapshot(func(s *snapshot.Subscription) {
		s.Filter, s.Transform, s.DeadLetter = mustFilter("subject", "e0002"), mustTransform(t, "'new'"), "dead"
	}))
	r := m.(*member).r
	for filtered := false; !filtered; {
		r.mu.Lock()
		filtered = r.sub.Filter != nil
		r.mu.Unlock()
		if w.ctx.Err() != nil {
			t.Fatal("the new rules do not come")
		}
	}
	d := w.next(m, 1)[0]
	if first.Event.ID != "e0000" || first.Event.Type != "t" || d.Event.ID != "e0002" || d.Event.Type != "new" {
		t.Errorf("%+v, then %+v", first.Event, d.Event)
	}
	m.Ack(first.ID, d.ID)
	go func() { _, _ = m.Next(w.ctx, make([]Delivery, 1)) }() // the last one is left out while somebody asks
	w.settled()
}

// TestReadersOfSomeEvents: rules that look at each event show a tail what may be read,
// by the newest rules, and let nobody join.
func TestReadersOfSomeEvents(t *testing.T) {
	w := newWorld(t, nil)
	some := allowAll()
	some[0].Actions = []configv1.Action{configv1.Action_ACTION_CONSUME}
	some[0].Topics = nil
	some = append(some, &configv1.AccessRule{Name: "some", Effect: configv1.Effect_EFFECT_ALLOW, Principals: []string{"local"}, Topics: []string{"orders"},
		Actions: []configv1.Action{configv1.Action_ACTION_SUBSCRIBE}, Subjects: []string{"e0001", "e0003"}})
	w.snaps.Store(w.snapshot(nil, some...))
	tail, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{"*"}})
	w.must(err)
	defer tail.Close()
	w.publish(ids(4)...)
	var got []string
	for len(got) < 2 {
		got = append(got, idsOf(w.next(tail, 1))...)
	}
	if strings.Join(got, " ") != "e0001 e0003" {
		t.Errorf("%v", got)
	}
	if _, err := w.m.Join(w.ctx, local, "demo", "billing"); fault.ClassOf(err) != fault.Denied || !strings.Contains(err.Error(), `rule "some" of accesspolicy/demo/p allows local to subscribe only some events of topic orders`) {
		t.Errorf("%v", err)
	}
	if _, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{"dead"}}); fault.ClassOf(err) != fault.Denied {
		t.Errorf("%v", err)
	}
}
