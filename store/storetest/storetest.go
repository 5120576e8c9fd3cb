// Package storetest is the suite that every store driver passes: each behaviour
// of the contract in package store, against the real server.
package storetest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// Harness is what a driver gives the suite.
type Harness struct {
	// Open opens the store anew, as another process would: window is
	// Config.Window. Stores of one test see the same data.
	Open func(t *testing.T, window int) store.Store
	// Exclusive: only one store may be open at a time; the suite closes one
	// before it opens the next.
	Exclusive bool
	// Topic makes a physical topic name that no other test has.
	Topic func(t *testing.T, name string) string
	// Expect are the capabilities that this server must be observed to have;
	// Version and MaxEventBytes are not compared.
	Expect store.Capabilities
	// Hander: the store is a store.Hander.
	Hander bool
	// Skip lists the cases that cannot be run, with the reason. A case that
	// is listed and exists, but is not run, is the only one that may be
	// skipped.
	Skip map[string]string
}

// patience bounds what a case waits for; only a broken store takes so long.
const patience = 60 * time.Second

// cases are the behaviours, by name.
var cases = []struct {
	name string
	run  func(*suite)
}{
	{"Capabilities", (*suite).capabilities},
	{"RoundTrip", (*suite).roundTrip},
	{"Order", (*suite).order},
	{"Batch", (*suite).batch},
	{"TooLarge", (*suite).tooLarge},
	{"UnknownTopic", (*suite).unknownTopic},
	{"PublishCanceled", (*suite).publishCanceled},
	{"Hand", (*suite).hand},
	{"SettleAnyOrder", (*suite).settleAnyOrder},
	{"UnsettledComesAgain", (*suite).unsettledComesAgain},
	{"Window", (*suite).window},
	{"StaleSettle", (*suite).staleSettle},
	{"GroupStart", (*suite).groupStart},
	{"GroupStartAt", (*suite).groupStartAt},
	{"GroupStartAfter", (*suite).groupStartAfter},
	{"GroupStartRefused", (*suite).groupStartRefused},
	{"Groups", (*suite).groups},
	{"Members", (*suite).members},
	{"Ordered", (*suite).ordered},
	{"OrderedHandOver", (*suite).orderedHandOver},
	{"FetchEnds", (*suite).fetchEnds},
	{"Tail", (*suite).tail},
	{"TailResumes", (*suite).tailResumes},
	{"TailMark", (*suite).tailMark},
	{"Delay", (*suite).delay},
	{"Lag", (*suite).lag},
	{"Extents", (*suite).extents},
	{"Empty", (*suite).empty},
	{"Seal", (*suite).seal},
	{"SealGrown", (*suite).sealGrown},
	{"SealFails", (*suite).sealFails},
	{"AdminConverges", (*suite).adminConverges},
	{"Hammer", (*suite).hammer},
}

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	known := map[string]bool{}
	for _, c := range cases {
		known[c.name] = true
		if reason, skip := h.Skip[c.name]; skip {
			t.Logf("%s is not run: %s", c.name, reason)
			continue
		}
		t.Run(c.name, func(t *testing.T) { h.run(t, c.run) })
	}
	for name := range h.Skip {
		if !known[name] {
			t.Errorf("the list of skipped cases has %q, which is none", name)
		}
	}
}

// HalfWindow tests that delivery goes on as half of a window is settled, whatever time
// goes by between two commits: the caller has the driver commit once an hour.
func HalfWindow(t *testing.T, h Harness) { h.run(t, (*suite).halfWindow) }

// run runs one case.
func (h Harness) run(t *testing.T, it func(*suite)) {
	before := goleak.IgnoreCurrent()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	s := &suite{T: t, h: h, ctx: ctx}
	defer func() {
		s.closeAll()
		if err := goleak.Find(before, goleak.IgnoreAnyFunction("testing.(*T).Run")); err != nil && !t.Failed() {
			t.Errorf("goroutines are left behind: %v", err)
		}
	}()
	it(s)
}

// suite is one case at work.
type suite struct {
	*testing.T
	h      Harness
	ctx    context.Context
	opened []store.Store
}

func (s *suite) closeAll() {
	for _, st := range s.opened {
		if err := st.Close(s.ctx); err != nil {
			s.Errorf("Close: %v", err)
		}
	}
	s.opened = nil
}

func (s *suite) open() store.Store { return s.openWindow(0) }

func (s *suite) openWindow(window int) store.Store {
	s.Helper()
	if s.h.Exclusive {
		s.closeAll()
	}
	st := s.h.Open(s.T, window)
	s.opened = append(s.opened, st)
	return st
}

func (s *suite) must(what string, err error) {
	s.Helper()
	if err != nil {
		s.Fatalf("%s: %v", what, err)
	}
}

// topic makes a topic.
func (s *suite) topic(st store.Store, name string, partitions int) string {
	s.Helper()
	name = s.h.Topic(s.T, name)
	s.must("EnsureTopic", admin(st).EnsureTopic(s.ctx, store.TopicSpec{Name: name, Partitions: partitions}))
	return name
}

func (s *suite) group(st store.Store, topic, group string, from store.Start) {
	s.Helper()
	s.must("EnsureGroup", admin(st).EnsureGroup(s.ctx, topic, group, from))
}

// groupOf is a group of a topic's own: some stores know groups by their name
// alone, and members of one group must not read different topics.
func groupOf(topic string) string { return topic + "-g" }

func (s *suite) subscribe(st store.Store, topic, group string) store.Subscription {
	s.Helper()
	sub, err := st.Subscribe(s.ctx, store.SubscribeRequest{Topic: topic, Group: group})
	s.must("Subscribe", err)
	return sub
}

func (s *suite) closeSub(sub store.Subscription) {
	s.Helper()
	s.must("Subscription.Close", sub.Close(s.ctx))
}

func admin(st store.Store) store.Admin { return st.(store.Admin) }

// ev makes an event.
func ev(id, key string) store.Outgoing {
	return store.Outgoing{Event: &event.Event{ID: id, Source: "/suite", Type: "t", Data: []byte("data of " + id)}, Key: key}
}

// publish publishes events and wants all of them kept.
func (s *suite) publish(st store.Store, topic string, events ...store.Outgoing) []store.Position {
	s.Helper()
	res := make([]store.Result, len(events))
	s.must("Publish", st.Publish(s.ctx, topic, events, res))
	out := make([]store.Position, len(events))
	for i, r := range res {
		s.must("Publish", r.Err)
		out[i] = r.Pos
	}
	return out
}

func (s *suite) publishIDs(st store.Store, topic string, ids ...string) []store.Position {
	s.Helper()
	var events []store.Outgoing
	for _, id := range ids {
		events = append(events, ev(id, ""))
	}
	return s.publish(st, topic, events...)
}

// fetch fetches until n messages are there.
func (s *suite) fetch(sub store.Subscription, n int) []*store.Message {
	s.Helper()
	return s.collect(n, sub.Fetch)
}

func (s *suite) collect(n int, fetch func(context.Context, []store.Message) (int, error)) []*store.Message {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	var out []*store.Message
	for len(out) < n {
		dst := make([]store.Message, n-len(out))
		got, err := fetch(ctx, dst)
		if err != nil && fault.ClassOf(err) == fault.Unavailable && ctx.Err() == nil {
			continue
		}
		if err != nil {
			s.Fatalf("Fetch, %d of %d are there (%v): %v", len(out), n, idsOf(out), err)
		}
		for i := range dst[:got] {
			out = append(out, &dst[i])
		}
	}
	return out
}

// nothing wants that no message comes for a moment: what must not come is what
// was settled, or is beyond a window, and it would come at once.
func (s *suite) nothing(sub store.Subscription, why string) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, 300*time.Millisecond)
	defer cancel()
	var dst [1]store.Message
	if n, err := sub.Fetch(ctx, dst[:]); n > 0 {
		s.Errorf("%s: got %s", why, dst[0].ID)
	} else if err == nil {
		s.Errorf("%s: Fetch returned nothing without an error", why)
	}
}

func idsOf(ms []*store.Message) []string {
	var out []string
	for _, m := range ms {
		out = append(out, m.ID)
	}
	return out
}

func ids(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s%04d", prefix, i)
	}
	return out
}

// same compares sets of ids.
func (s *suite) same(what string, got, want []string) {
	s.Helper()
	count := map[string]int{}
	for _, id := range got {
		count[id]++
	}
	for _, id := range want {
		count[id]--
	}
	var bad []string
	for id, n := range count {
		if n != 0 {
			bad = append(bad, fmt.Sprintf("%s (%+d)", id, n))
		}
	}
	if len(bad) > 0 {
		s.Errorf("%s: differs in %s", what, strings.Join(bad, " "))
	}
}

func (s *suite) class(what string, err error, want ...fault.Class) {
	s.Helper()
	if err == nil {
		s.Errorf("%s: no error", what)
		return
	}
	got := fault.ClassOf(err)
	for _, w := range want {
		if got == w {
			return
		}
	}
	s.Errorf("%s: %v is %v, want %v", what, err, got, want)
}
