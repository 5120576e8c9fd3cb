package admin

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/resource"
)

// TestTopicWithMigration: a Migration goes with its Topic, named or not.
func TestTopicWithMigration(t *testing.T) {
	w := newWorld(t, 1)
	for _, gone := range [][]string{{"topic/demo/t"}, {"topic/demo/t", "migration/demo/t"}} {
		_, err := w.api[0].Apply(w.ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{eventStore("demo", "main", ""), topic("demo", "t")}})
		w.must(err)
		m := migration("main")
		m.Metadata.Uid, m.Name = "m", resource.NameOf(m)
		snap, err := w.stores[0].Current()
		w.must(err)
		rev, err := w.stores[0].Commit(w.ctx, snap, configstore.Change{Put: []*configv1.Resource{m}})
		w.must(err)
		_, err = w.stores[0].WaitFor(w.ctx, rev)
		w.must(err)
		req := &adminv1.DeleteRequest{}
		for _, name := range gone {
			req.Targets = append(req.Targets, &adminv1.DeleteTarget{Name: name})
		}
		resp, err := w.api[0].Delete(w.ctx, req)
		w.must(err)
		snap, err = w.stores[0].WaitFor(w.ctx, resp.Revision)
		w.must(err)
		for _, name := range []string{"topic/demo/t", "topicbinding/demo/t", "migration/demo/t"} {
			if snap.Get(name) != nil {
				t.Errorf("after %v went, %s is there", gone, name)
			}
		}
	}
}

// migration is that of demo's topic t.
func migration(to string) *configv1.Resource {
	return &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: "t"}, Spec: &configv1.Resource_Migration{Migration: &configv1.Migration{To: to}}}
}

// TestRollbackLeavesMigrations: a rollback over the end of a Migration does not bring it
// back, and one over its beginning does not end it.
func TestRollbackLeavesMigrations(t *testing.T) {
	w := newWorld(t, 1)
	before := w.apply(eventStore("demo", "main", ""), eventStore("demo", "next", ""), topic("demo", "t")).Revision
	with := w.apply(migration("next")).Revision
	w.apply(labelled(topic("demo", "t"), 1))
	for _, is := range []bool{true, false} {
		to := before
		if !is {
			_, err := w.api[0].Delete(w.ctx, targets("migration/demo/t"))
			w.must(err)
			w.apply(labelled(topic("demo", "t"), 2))
			to = with
		}
		for _, req := range []*adminv1.RollbackRequest{{ToRevision: to, Kind: "migration"}, {ToRevision: to, Name: "migration/demo/t"}} {
			if _, err := w.api[0].Rollback(w.ctx, req); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "weft migrate") {
				t.Errorf("%v: %v", req, err)
			}
		}
		resp, err := w.api[0].Rollback(w.ctx, &adminv1.RollbackRequest{ToRevision: to, Namespace: "demo"})
		w.must(err)
		if len(resp.Changes) != 1 || resp.Changes[0].Name != "topic/demo/t" {
			t.Errorf("changed: %v", resp.Changes)
		}
		snap, err := w.stores[0].WaitFor(w.ctx, resp.Revision)
		w.must(err)
		if snap.Get("migration/demo/t") != nil != is {
			t.Errorf("the Migration is there: %v, want %v", !is, is)
		}
	}
}

// TestMovedTopic: of a topic that has moved the status says where it is, and that store that
// it is used; its file may say so, and a rollback to what it said before leaves that.
func TestMovedTopic(t *testing.T) {
	w := newWorld(t, 1)
	before := w.apply(eventStore("demo", "main", ""), eventStore("demo", "next", ""), topic("demo", "t"), topic("demo", "stays")).Revision
	snap, err := w.stores[0].Current()
	w.must(err)
	b := proto.Clone(snap.Resource("topicbinding/demo/t")).(*configv1.Resource)
	b.GetTopicBinding().Epochs = []*configv1.Epoch{{Number: 2, Store: "next", PhysicalName: "demo_t_e2"}}
	adm := &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: "t"}, Spec: &configv1.Resource_TopicAdmission{
		TopicAdmission: &configv1.TopicAdmission{TopicUid: b.GetTopicBinding().TopicUid, Admitted: true, Epochs: []uint32{2}}}}
	adm.Name = resource.NameOf(adm)
	rev, err := w.stores[0].Commit(w.ctx, snap, configstore.Change{Put: []*configv1.Resource{b, adm}})
	w.must(err)
	_, err = w.stores[0].WaitFor(w.ctx, rev)
	w.must(err)
	about := func(name string) *adminv1.ResourceStatus {
		st, err := w.api[0].GetStatus(w.ctx, &adminv1.GetStatusRequest{Name: name})
		w.must(err)
		return st.Resources[0]
	}
	if c := about("topic/demo/t").Conditions; len(c) != 1 || c[0].Reason != "Provisioned" || c[0].Message != "in EventStore next" {
		t.Errorf("the topic is told as %v", c)
	}
	for store, want := range map[string][]string{"main": {"topic/demo/stays"}, "next": {"topic/demo/t"}} {
		if got := about("eventstore/demo/" + store).UsedBy; !slices.Equal(got, want) {
			t.Errorf("%s is used by %v, want %v", store, got, want)
		}
	}

	w.apply(labelled(topic("demo", "t"), 1)) // as it was made
	told := topic("demo", "t")
	told.GetTopic().Store = "next"
	w.apply(told)
	resp, err := w.api[0].Rollback(w.ctx, &adminv1.RollbackRequest{ToRevision: before, Namespace: "demo"})
	w.must(err)
	snap, err = w.stores[0].WaitFor(w.ctx, resp.Revision)
	w.must(err)
	if got := snap.Resource("topic/demo/t").GetTopic().Store; got != "next" {
		t.Errorf("after a rollback the file says %s", got)
	}
	if _, err := w.api[0].Apply(w.ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{topic("demo", "t")}}); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "spec.store") {
		t.Errorf("a file of before the move: %v", err)
	}
}
