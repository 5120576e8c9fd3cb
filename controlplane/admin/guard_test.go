package admin

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/fault"
)

// fill makes a store and n topics.
func (w *world) fill(ns string, n int) {
	w.Helper()
	for from := 0; from < n; from += 50 {
		rs := []*configv1.Resource{eventStore(ns, "main", "")}
		for i := from; i < min(n, from+50); i++ {
			rs = append(rs, topic(ns, fmt.Sprintf("t%d", i)))
		}
		w.apply(rs...)
	}
}

// topicsOf are the first n topics of what fill made.
func topicsOf(ns string, n int) []*adminv1.DeleteTarget { return topicsFrom(ns, 0, n) }

func topicsFrom(ns string, from, n int) []*adminv1.DeleteTarget {
	var out []*adminv1.DeleteTarget
	for i := range n {
		out = append(out, &adminv1.DeleteTarget{Name: fmt.Sprintf("topic/%s/t%d", ns, from+i)})
	}
	return out
}

// TestGuard: a change that removes more than a share is refused, unless that is
// said to be meant; small ones always pass.
func TestGuard(t *testing.T) {
	w := newWorld(t, 1)
	w.fill("small", 10)
	w.fill("large", 100)
	names := topicsOf
	before := w.content()
	for name, tc := range map[string]struct {
		gone    []*adminv1.DeleteTarget
		refused string
	}{
		"all of few":                {names("small", 10), ""},
		"a fifth":                   {names("large", 20), ""},
		"more than a fifth":         {names("large", 21), "removes 21 of the 101 resources of namespace large, more than 20 %"},
		"nearly all":                {names("large", 100), "removes 100 of"},
		"a fifth of each":           {append(names("large", 16), names("small", 10)...), "removes 26 of the 112 resources of the mesh"},
		"a fifth of the namespace":  {names("large", 20), ""},
		"more, that is not there":   {append(names("large", 10), names("none", 20)...), "does not exist"},
		"more than it has, of none": {names("none", 11), "does not exist"},
	} {
		for _, call := range []func() error{
			func() error {
				_, err := w.api[0].Delete(w.ctx, &adminv1.DeleteRequest{Targets: tc.gone, DryRun: true})
				return err
			},
			func() error {
				_, err := w.api[0].Apply(w.ctx, &adminv1.ApplyRequest{Delete: tc.gone, DryRun: true})
				return err
			},
		} {
			err := call()
			if tc.refused == "" && err != nil || tc.refused != "" && (status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), tc.refused)) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if !maps.Equal(before, w.content()) {
		t.Error("something was written")
	}
	resp, err := w.api[0].Apply(w.ctx, &adminv1.ApplyRequest{Delete: names("large", 60), AllowMassRemoval: true})
	w.must(err)
	if len(resp.Results) != 60 || resp.Results[0].Outcome != adminv1.ApplyResult_OUTCOME_DELETED || resp.Results[0].Before.GetTopic() == nil {
		t.Errorf("%v", resp.Results[0])
	}
	// Putting and deleting in one transaction; each is seen as the other is done.
	_, err = w.api[0].Apply(w.ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{topic("small", "new")}, Delete: append(names("small", 10), targets("eventstore/small/main").Targets...), AllowMassRemoval: true})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a store goes and its new topic comes: %v", err)
	}
	for _, g := range []Guard{{Share: -1}, {Share: 1.1}, {Least: -1}, {Window: -1}, {Window: 25 * time.Hour}} {
		if g.Check() == nil {
			t.Errorf("%v is a guard", g)
		}
	}
}

// guarded checks what a call says: nothing, or a refusal with a text.
func (w *world) guarded(what string, err error, refused string) {
	w.Helper()
	if refused == "" && err != nil || refused != "" && (status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), refused)) {
		w.Errorf("%s: %v, want %q", what, err, refused)
	}
}

// TestGuardJudgesStagesAsAWhole: what several calls remove together is judged with
// the first of them already, also where that one removes nothing.
func TestGuardJudgesStagesAsAWhole(t *testing.T) {
	w := newWorld(t, 1)
	w.fill("large", 200)
	apply := func(planned uint32, put []*configv1.Resource, gone []*adminv1.DeleteTarget) error {
		_, err := w.api[0].Apply(w.ctx, &adminv1.ApplyRequest{Resources: put, Delete: gone, PlannedRemovals: map[string]uint32{"large": planned, "none": 5000}})
		return err
	}
	before := w.content()
	put := []*configv1.Resource{topic("large", "more")}
	w.guarded("a stage that removes nothing", apply(41, put, nil), "the change, of which this is a part, removes 41 of the 201 resources of namespace large, more than 20 %: nothing was changed")
	w.guarded("a stage that removes few", apply(150, nil, topicsOf("large", 10)), "removes 150 of the 201 resources")
	if !maps.Equal(before, w.content()) {
		t.Error("something was written")
	}
	// What says of itself that it is less than it is counts as what it is.
	w.guarded("more than was said", apply(1, nil, topicsOf("large", 50)), "removes 50 of the 201")
	w.guarded("first stage of what may go", apply(40, put, topicsOf("large", 20)), "")
	w.guarded("second stage of what may go", apply(20, nil, topicsFrom("large", 20, 20)), "")
	if _, err := w.api[0].Apply(w.ctx, &adminv1.ApplyRequest{Delete: topicsFrom("large", 40, 50), PlannedRemovals: map[string]uint32{"large": 150}, AllowMassRemoval: true}); err != nil {
		t.Error(err)
	}
}

// TestGuardSumsWhatSomebodyRemoves: many small removals are one, at whichever
// replica, until the window is over; not what was allowed, what is there again, or
// what was made only for a while.
func TestGuardSumsWhatSomebodyRemoves(t *testing.T) {
	w := newWorld(t, 2)
	w.fill("large", 100)
	w.fill("other", 100)
	gone := func(replica int, targets []*adminv1.DeleteTarget, mass bool) error {
		_, err := w.api[replica].Delete(w.ctx, &adminv1.DeleteRequest{Targets: targets, AllowMassRemoval: mass})
		return err
	}
	// What was made within the window is not counted.
	w.guarded("young", gone(0, topicsFrom("large", 80, 10), false), "")
	w.guarded("young", gone(1, topicsFrom("large", 90, 10), false), "")
	w.ahead.Add(int64(DefaultRemovalWindow + time.Minute)) // 81 of large are left, and old
	w.guarded("10", gone(0, topicsFrom("large", 0, 10), false), "")
	w.guarded("6 at another", gone(1, topicsFrom("large", 10, 6), false), "")
	w.guarded("one too many", gone(1, topicsFrom("large", 16, 1), false), "the change, with the 16 that local has removed within 10m0s, removes 17 of the 81 resources of namespace large, more than 20 %")
	w.guarded("one too many at the first", gone(0, topicsFrom("large", 16, 1), false), "with the 16 that local has removed")
	if _, err := w.api[0].Delete(w.ctx, &adminv1.DeleteRequest{Targets: topicsFrom("large", 16, 1), DryRun: true}); err == nil {
		t.Error("a dry run says that it would go")
	}
	w.guarded("another namespace", gone(0, topicsFrom("other", 0, 10), false), "")
	// What is there again does not count.
	w.apply(topic("large", "t0"))
	w.guarded("as much as is there again", gone(0, topicsFrom("large", 16, 1), false), "")
	w.guarded("more", gone(0, topicsFrom("large", 17, 1), false), "with the 16")
	// Removing and making again does not make young.
	w.guarded("again", gone(0, topicsFrom("large", 0, 1), false), "with the 16")
	// What is allowed is allowed, and counts for nothing later.
	w.guarded("allowed", gone(0, topicsFrom("large", 17, 20), true), "")
	w.ahead.Add(int64(DefaultRemovalWindow + time.Minute))
	w.guarded("later", gone(1, topicsFrom("large", 40, 8), false), "")
	if r := w.history(&adminv1.ListHistoryRequest{Namespace: "large", ChangesOnly: true}); r[0].AllowMassRemoval || !r[1].AllowMassRemoval {
		t.Errorf("%v", r[:2])
	}
}

// TestGuardCountsEmptiedNamespaces: what somebody has removed counts for the mesh also
// where nothing of its namespace is left.
func TestGuardCountsEmptiedNamespaces(t *testing.T) {
	w := newWorld(t, 1)
	for n := range 6 {
		w.fill(fmt.Sprintf("ns%d", n), 5)
	}
	w.ahead.Add(int64(DefaultRemovalWindow + time.Minute)) // all is old
	empty := func(ns string) error {
		_, err := w.api[0].Delete(w.ctx, &adminv1.DeleteRequest{Targets: append(topicsOf(ns, 5), targets("eventstore/"+ns+"/main").Targets...)})
		return err
	}
	w.guarded("one", empty("ns0"), "")
	w.guarded("another", empty("ns1"), "with the 6 that local has removed within 10m0s, removes 12 of the 36 resources of the mesh, more than 20 %")
}

// TestGuardWithoutAnswer: who removes hears, while he still waits, that etcd does not
// tell what he has removed before; and so do those who wait behind him.
func TestGuardWithoutAnswer(t *testing.T) {
	hung, err := net.Listen("tcp", "127.0.0.1:0") // connections are made, and nobody takes them
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Close()
	etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{hung.Addr().String()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer etcd.Close()
	store := configstore.New(configstore.Config{Client: etcd, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithTimeout(t.Context(), 3*lookTime)
	defer cancel()
	r := removed{turn: make(chan struct{}, 1)}
	look := func() error {
		_, err := r.before(ctx, store, configstore.Empty("1-x", 1), "local", time.Time{})
		return err
	}
	first := make(chan error, 1)
	go func() { first <- look() }()
	for _, err := range []error{look(), <-first} {
		if fault.ClassOf(err) != fault.Unavailable {
			t.Errorf("the answer is %v", err)
		}
	}
	if ctx.Err() != nil {
		t.Error("the caller has stopped waiting")
	}
}
