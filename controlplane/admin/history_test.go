package admin

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/resource"
)

// content is what users wrote of all resources, by name: all but what is drawn
// when a resource is created.
func (w *world) content() map[string]string {
	w.Helper()
	snap, err := w.stores[0].Current()
	w.must(err)
	out := map[string]string{}
	for e := range snap.All("") {
		if info, _ := resource.Lookup(string(e.Kind)); info.System {
			continue
		}
		r := proto.Clone(e.Resource).(*configv1.Resource)
		r.Metadata.Uid, r.Metadata.CreatedAt = "", nil
		b, err := resource.Marshal(r)
		w.must(err)
		out[e.Name] = string(b)
	}
	return out
}

func labelled(r *configv1.Resource, v int) *configv1.Resource {
	r.Metadata.Labels = map[string]string{"v": fmt.Sprint(v)}
	return r
}

// TestRollback: whatever was changed since, and compacted, a rollback makes a
// selection what it was and leaves the rest; what had been deleted comes back as
// another resource, with a binding of its own.
func TestRollback(t *testing.T) {
	w := newWorld(t, 1)
	w.apply(eventStore("demo", "main", ""), eventStore("other", "main", ""))
	rnd := rand.New(rand.NewPCG(5, 6))
	was := map[int64]map[string]string{}
	var revs []int64
	for i := range 60 {
		req := &adminv1.ApplyRequest{AllowMassRemoval: true}
		for n := range 6 {
			ns := []string{"demo", "other"}[n%2]
			r := labelled(topic(ns, fmt.Sprintf("t%d", n)), i)
			there := w.content()[resource.NameOf(r)] != ""
			switch rnd.IntN(4) {
			case 0:
				req.Resources = append(req.Resources, r)
			case 1:
				if there {
					req.Delete = append(req.Delete, &adminv1.DeleteTarget{Name: resource.NameOf(r)})
				}
			}
		}
		if len(req.Resources)+len(req.Delete) == 0 {
			continue
		}
		resp, err := w.api[0].Apply(w.ctx, req)
		w.must(err)
		was[resp.Revision] = w.content()
		revs = append(revs, resp.Revision)
	}
	snap, err := w.stores[0].Current()
	w.must(err)
	_, err = w.stores[0].Client().Compact(w.ctx, snap.Revision)
	w.must(err)
	for range 40 {
		rev := revs[rnd.IntN(len(revs))]
		req := &adminv1.RollbackRequest{ToRevision: rev, AllowMassRemoval: true, DryRun: true}
		in := func(string) bool { return true }
		switch rnd.IntN(4) {
		case 0:
			req.Namespace = "demo"
			in = func(name string) bool { return strings.Contains(name, "/demo/") }
		case 1:
			req.Name = "topic/other/t1"
			in = func(name string) bool { return name == req.Name }
		case 2:
			req.Kind = "route"
			in = func(string) bool { return false }
		}
		before, uids := w.content(), map[string]string{}
		snap, err := w.stores[0].Current()
		w.must(err)
		for e := range snap.All("") {
			uids[e.Name] = e.Resource.Metadata.Uid
		}
		dry, err := w.api[0].Rollback(w.ctx, req)
		w.must(err)
		if !maps.Equal(w.content(), before) {
			t.Fatal("a dry run writes")
		}
		req.DryRun = false
		resp, err := w.api[0].Rollback(w.ctx, req)
		w.must(err)
		if len(resp.Changes) != len(dry.Changes) {
			t.Errorf("the dry run had %d changes, there were %d", len(dry.Changes), len(resp.Changes))
		}
		for name := range was[rev] {
			if !in(name) {
				continue
			}
			r := w.get(name)
			if uid := r.Metadata.Uid; uids[name] != "" && uid != uids[name] {
				t.Errorf("%s has another uid", name)
			}
			if r.GetTopic() != nil && w.get("topicbinding/"+strings.TrimPrefix(name, "topic/")).GetTopicBinding().TopicUid != r.Metadata.Uid {
				t.Errorf("%s came back, its binding is of another topic", name)
			}
		}
		now := w.content()
		for name := range merged(before, was[rev]) {
			want := before[name]
			if in(name) {
				want = was[rev][name]
			}
			if now[name] != want {
				t.Fatalf("revision %d, %v: %s is not what it was", rev, req, name)
			}
		}
		if len(resp.Changes) > 0 {
			h := w.history(&adminv1.ListHistoryRequest{PageSize: 1})
			if h[0].Method != "Rollback" || h[0].Revision != resp.Revision {
				t.Errorf("the last record is %v", h[0])
			}
		}
	}
}

func merged(a, b map[string]string) map[string]string {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

func (w *world) get(name string) *configv1.Resource {
	w.Helper()
	got, err := w.api[0].Get(w.ctx, &adminv1.GetRequest{Name: name})
	if err != nil {
		w.Fatalf("%s: %v", name, err)
	}
	return got.Resource
}

// history are all records of a selection, at most those of one page.
func (w *world) history(req *adminv1.ListHistoryRequest) []*adminv1.AuditRecord {
	w.Helper()
	resp, err := w.api[0].ListHistory(w.ctx, req)
	w.must(err)
	return resp.Records
}

// TestRollbackRefused: a rollback is judged like any change, by what is now.
func TestRollbackRefused(t *testing.T) {
	w := newWorld(t, 1)
	sub := func(topics ...string) *configv1.Resource {
		return &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: "billing"}, Spec: &configv1.Resource_Subscription{Subscription: &configv1.Subscription{Topics: topics}}}
	}
	grown := func(n uint32) *configv1.Resource {
		r := topic("demo", "orders")
		r.GetTopic().Partitions = n
		return r
	}
	first := w.apply(eventStore("demo", "main", ""), grown(4), topic("demo", "other")).Revision
	withSub := w.apply(sub("other")).Revision
	third, err := w.api[0].Apply(w.ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{sub("orders"), grown(6)}, Delete: targets("topic/demo/other").Targets})
	w.must(err)
	var many []*configv1.Resource
	for i := range 60 {
		many = append(many, topic("demo", fmt.Sprintf("m%d", i)))
	}
	w.apply(many...)
	before := w.content()
	for name, tc := range map[string]struct {
		req  *adminv1.RollbackRequest
		code codes.Code
		says string
	}{
		"partitions that grew":        {&adminv1.RollbackRequest{ToRevision: withSub, Name: "topic/demo/orders"}, codes.InvalidArgument, "cannot shrink"},
		"a topic that is not there":   {&adminv1.RollbackRequest{ToRevision: withSub, Name: "subscription/demo/billing"}, codes.FailedPrecondition, "there is no Topic other"},
		"more than the guard lets go": {&adminv1.RollbackRequest{ToRevision: third.Revision}, codes.FailedPrecondition, "removes 60 of the 63 resources"},
		"a revision to come":          {&adminv1.RollbackRequest{ToRevision: 1 << 40}, codes.InvalidArgument, "is not"},
		"no revision":                 {&adminv1.RollbackRequest{}, codes.InvalidArgument, "above 0"},
		"a kind of the system":        {&adminv1.RollbackRequest{ToRevision: first, Kind: "topicbinding"}, codes.InvalidArgument, "follows from the rest"},
		"no kind":                     {&adminv1.RollbackRequest{ToRevision: first, Kind: "topik"}, codes.InvalidArgument, "not a kind"},
		"no name":                     {&adminv1.RollbackRequest{ToRevision: first, Name: "topic/../x"}, codes.InvalidArgument, "namespace"},
	} {
		if _, err := w.api[0].Rollback(w.ctx, tc.req); status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !maps.Equal(before, w.content()) {
		t.Error("something was written")
	}
	// Without its records a revision is not told.
	_, err = w.stores[0].TrimAudit(w.ctx, time.Now())
	w.must(err)
	for _, call := range []func() error{
		func() error {
			_, err := w.api[0].Rollback(w.ctx, &adminv1.RollbackRequest{ToRevision: first})
			return err
		},
		func() error { _, err := w.api[0].Diff(w.ctx, &adminv1.DiffRequest{FromRevision: first}); return err },
	} {
		if err := call(); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "kept for 90 days") {
			t.Errorf("without records: %v", err)
		}
	}
}

// TestDiff: what differs between any two revisions is what differs between what
// was there.
func TestDiff(t *testing.T) {
	w := newWorld(t, 1)
	w.apply(eventStore("demo", "main", ""))
	rnd := rand.New(rand.NewPCG(7, 8))
	var revs []int64
	var was []map[string]string
	for i := range 25 {
		req := &adminv1.ApplyRequest{AllowMassRemoval: true, Resources: []*configv1.Resource{labelled(topic("demo", fmt.Sprintf("t%d", rnd.IntN(5))), i)}}
		if name := fmt.Sprintf("topic/demo/t%d", rnd.IntN(5)); w.content()[name] != "" && name != resource.NameOf(req.Resources[0]) {
			req.Delete = targets(name).Targets
		}
		resp, err := w.api[0].Apply(w.ctx, req)
		w.must(err)
		revs, was = append(revs, resp.Revision), append(was, w.content())
	}
	for i := range revs {
		for j := i; j < len(revs); j++ {
			to := revs[j]
			if j == len(revs)-1 && rnd.IntN(2) == 0 {
				to = 0
			}
			resp, err := w.api[0].Diff(w.ctx, &adminv1.DiffRequest{FromRevision: revs[i], ToRevision: to})
			w.must(err)
			got := map[string]bool{}
			for _, d := range resp.Changes {
				got[d.Name] = true
				for _, side := range []struct {
					r    *configv1.Resource
					want string
				}{{d.Before, was[i][d.Name]}, {d.After, was[j][d.Name]}} {
					if (side.r == nil) != (side.want == "") {
						t.Errorf("%s is there: %v", d.Name, side.r != nil)
					}
				}
			}
			for name := range merged(was[i], was[j]) {
				if was[i][name] != was[j][name] && !got[name] {
					t.Errorf("%d to %d: %s is not said", revs[i], revs[j], name)
				}
			}
			if i == j && len(got) > 0 {
				t.Errorf("a revision and itself differ: %v", got)
			}
		}
	}
}

// TestHistory: who changed and who was refused what, from where and why, newest
// first, in pages of any size and by every filter.
func TestHistory(t *testing.T) {
	w := newWorld(t, 1)
	begun := time.Now()
	w.apply(eventStore("demo", "main", "1"), eventStore("other", "main", "1"))
	w.apply(topic("demo", "orders"))
	_, err := w.api[0].Apply(w.ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{topic("demo", "bad"), topic("nowhere", "bad")}})
	if status.Code(err) != codes.FailedPrecondition {
		t.Fatal(err)
	}
	_, err = w.api[0].Apply(w.ctx, &adminv1.ApplyRequest{DryRun: true, Resources: []*configv1.Resource{topic("nowhere", "dry")}})
	if status.Code(err) != codes.FailedPrecondition {
		t.Fatal(err)
	}
	last := w.apply(eventStore("demo", "main", "2"))
	_, err = w.api[0].Delete(w.ctx, targets("topic/demo/orders"))
	w.must(err)
	_, err = w.api[0].Delete(w.ctx, targets("topic/demo/orders"))
	if status.Code(err) != codes.NotFound {
		t.Fatal(err)
	}
	all := w.history(&adminv1.ListHistoryRequest{})
	var got []string
	for _, r := range all {
		line := r.Method
		for _, c := range r.Changes {
			line += " " + c.Name + "=" + strings.ToLower(strings.TrimPrefix(c.Outcome.String(), "OUTCOME_"))
		}
		if r.Refused != "" {
			line += " refused"
		}
		got = append(got, line)
		if r.Actor != localSubject || !strings.HasPrefix(r.Peer, "127.0.0.1:") || r.Time.AsTime().Before(begun.Add(-time.Second)) || r.Revision == 0 {
			t.Errorf("%v", r)
		}
	}
	want := []string{
		"Delete topic/demo/orders=unspecified refused",
		"Delete topic/demo/orders=deleted",
		"Apply eventstore/demo/main=updated",
		"Apply topic/demo/bad=unspecified topic/nowhere/bad=unspecified refused",
		"Apply topic/demo/orders=created",
		"Apply eventstore/demo/main=created eventstore/other/main=created",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if all[2].Revision != last.Revision || !strings.HasPrefix(all[3].Refused, "FailedPrecondition: 1 problem: topic/nowhere/bad: spec.store:") {
		t.Errorf("%v", all[2:4])
	}
	for size := range uint32(7) {
		var paged []string
		req := &adminv1.ListHistoryRequest{PageSize: size + 1}
		for {
			resp, err := w.api[0].ListHistory(w.ctx, req)
			w.must(err)
			if len(resp.Records) > int(size+1) {
				t.Errorf("a page of %d", len(resp.Records))
			}
			for _, r := range resp.Records {
				paged = append(paged, fmt.Sprint(r.Revision))
			}
			if req.PageToken = resp.NextPageToken; req.PageToken == "" {
				break
			}
		}
		for i, r := range all {
			if i >= len(paged) || paged[i] != fmt.Sprint(r.Revision) {
				t.Fatalf("in pages of %d: %v", size+1, paged)
			}
		}
	}
	for i, tc := range []struct {
		req  *adminv1.ListHistoryRequest
		want int
	}{
		{&adminv1.ListHistoryRequest{Kind: "topic"}, 4}, {&adminv1.ListHistoryRequest{Namespace: "other"}, 1}, {&adminv1.ListHistoryRequest{Name: "eventstore/demo/main"}, 2},
		{&adminv1.ListHistoryRequest{ChangesOnly: true}, 4}, {&adminv1.ListHistoryRequest{Kind: "topicbinding"}, 2}, {&adminv1.ListHistoryRequest{Since: timestamppb.New(time.Now().Add(time.Hour))}, 0},
		{&adminv1.ListHistoryRequest{Since: timestamppb.New(begun.Add(-time.Minute))}, 6},
	} {
		if got := w.history(tc.req); len(got) != tc.want {
			t.Errorf("%d: %d records: %v", i, len(got), got)
		}
	}
	for _, req := range []*adminv1.ListHistoryRequest{{Kind: "topik"}, {Namespace: "A"}, {Name: "x"}, {PageToken: "?"}, {PageToken: strings.Repeat("A", 1000)}} {
		if _, err := w.api[0].ListHistory(w.ctx, req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", req, err)
		}
	}
}

// TestRefusalsAreBounded: whoever is refused without end fills nothing; his
// refusals are counted.
func TestRefusalsAreBounded(t *testing.T) {
	w := newWorld(t, 1)
	const refused = callerBurst + 30
	for range refused {
		if _, err := w.api[0].Delete(w.ctx, targets("topic/demo/none")); status.Code(err) != codes.NotFound {
			t.Fatal(err)
		}
	}
	if n := len(w.history(&adminv1.ListHistoryRequest{})); n != callerBurst {
		t.Errorf("%d records", n)
	}

	// What was asked for by whoever it was commands nobody's terminal.
	_, err := w.api[0].Delete(w.ctx, targets("topic/demo/\x1b[2J"))
	if status.Code(err) == codes.OK {
		t.Fatal("a name that cannot be")
	}
	for _, r := range w.history(&adminv1.ListHistoryRequest{}) {
		if strings.Contains(r.String(), `\x1b`) || strings.ContainsRune(r.String(), 0x1b) {
			t.Errorf("%v", r)
		}
	}

	r := newRefusals()
	now := time.Now()
	written := 0
	for i := range 3 * maxCallers {
		for range 3 {
			if _, ok := r.take(fmt.Sprint(i), configstore.AuditRecord{}, now); ok {
				written++
			}
		}
	}
	if written > refusalBurst || len(r.callers) > maxCallers+1 {
		t.Errorf("%d records at once, of %d callers", written, len(r.callers))
	}
	// What was counted is said, once.
	r = newRefusals()
	for range callerBurst + 7 {
		r.take("x", configstore.AuditRecord{}, now)
	}
	if n, ok := r.take("x", configstore.AuditRecord{}, now.Add(callerEvery+time.Second)); n != 7 || !ok {
		t.Errorf("%d, %v", n, ok)
	}
	if n, ok := r.take("x", configstore.AuditRecord{}, now.Add(2*callerEvery+2*time.Second)); n != 0 || !ok {
		t.Errorf("%d, %v", n, ok)
	}
	// Over 90 days.
	r, written = newRefusals(), 0
	for d := time.Duration(0); d < configstore.AuditRetention; d += 20 * time.Second {
		if _, ok := r.take(fmt.Sprint(d%(97*time.Second)), configstore.AuditRecord{}, now.Add(d)); ok {
			written++
		}
	}
	if limit := int(configstore.AuditRetention/refusalEvery) + refusalBurst; written > limit {
		t.Errorf("%d records in 90 days, more than %d", written, limit)
	}
}

// TestRefusalsAreFlushed: what was counted and has no record gets one in time, one
// for all beside the worst; what cannot be written stays counted.
func TestRefusalsAreFlushed(t *testing.T) {
	w := newWorld(t, 1)
	const counted = 30
	refuse := func(n int) {
		for range n {
			if _, err := w.api[0].Delete(w.ctx, targets("topic/demo/none")); status.Code(err) != codes.NotFound {
				t.Fatal(err)
			}
		}
	}
	refuse(callerBurst + counted)
	w.services[0].Flush(w.ctx)
	records := w.history(&adminv1.ListHistoryRequest{})
	if r := records[0]; len(records) != callerBurst+1 || r.Repeats != counted-1 || r.Actor != "local" || r.Method != "Delete" || !strings.HasPrefix(r.Refused, "NotFound: ") || r.Changes[0].Name != "topic/demo/none" || r.Peer == "" {
		t.Errorf("%d records, the last is %v", len(records), r)
	}
	w.services[0].Flush(w.ctx)
	if n := len(w.history(&adminv1.ListHistoryRequest{})); n != callerBurst+1 {
		t.Errorf("nothing to say makes %d records", n)
	}
	// By time.
	refuse(3)
	w.services[0].flushEvery = 10 * time.Millisecond
	ctx, stop := context.WithCancel(w.ctx)
	ended := make(chan error, 1)
	go func() { ended <- w.services[0].Run(ctx) }()
	for len(w.history(&adminv1.ListHistoryRequest{})) == callerBurst+1 {
		w.must(w.ctx.Err())
	}
	stop()
	w.must(<-ended)

	// What cannot be written stays counted.
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://127.0.0.1:1"}, Logger: zap.NewNop()})
	w.must(err)
	defer client.Close()
	dead := New(Config{Store: configstore.New(configstore.Config{Client: client, Log: slog.New(slog.DiscardHandler)}), Log: slog.New(slog.DiscardHandler)})
	dead.refusals.again("x", 7, configstore.AuditRecord{Actor: "x"}, time.Now())
	gone, cancel := context.WithCancel(w.ctx)
	cancel()
	dead.Flush(gone)
	if again := dead.refusals.drain(flushRecords); len(again) != 1 || again[0].record.Repeats != 6 || again[0].record.Actor != "x" {
		t.Errorf("%+v", again)
	}

	// However many there are.
	r, now, refused, written := newRefusals(), time.Now(), 0, 0
	for i := range 2 * maxCallers {
		for range 1 + i%7 {
			refused++
			if _, ok := r.take(fmt.Sprint("caller", i), configstore.AuditRecord{Actor: fmt.Sprint(i)}, now); ok {
				written++
			}
		}
	}
	records2 := r.drain(flushRecords)
	for _, m := range records2 {
		written += int(m.record.Repeats) + 1
		n := 0
		for _, of := range m.of {
			n += int(of)
		}
		if n != int(m.record.Repeats)+1 {
			t.Errorf("%d of %v", n, m.record)
		}
	}
	if len(records2) != flushRecords+1 || written != refused || len(r.drain(flushRecords)) != 0 {
		t.Errorf("%d of %d refusals are told, in %d records", written, refused, len(records2))
	}
	if last := records2[flushRecords].record; last.Actor != "several" || !strings.Contains(last.Refused, "callers, among them caller") {
		t.Errorf("%+v", last)
	}
}
