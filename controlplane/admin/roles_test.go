package admin

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
)

// policyOf and routeOf are small resources.
func policyOf(ns string) *configv1.Resource {
	return &configv1.Resource{Metadata: &configv1.Metadata{Namespace: ns, Name: "p"}, Spec: &configv1.Resource_AccessPolicy{AccessPolicy: &configv1.AccessPolicy{
		Rules: []*configv1.AccessRule{{Name: "r", Effect: configv1.Effect_EFFECT_ALLOW, Principals: []string{"x"}, Actions: []configv1.Action{configv1.Action_ACTION_PUBLISH}, Topics: []string{"t"}}}}}}
}

func identityOf(ns string) *configv1.Resource {
	return &configv1.Resource{Metadata: &configv1.Metadata{Namespace: ns, Name: "i"}, Spec: &configv1.Resource_Identity{Identity: &configv1.Identity{Method: &configv1.Identity_ApiKeys{ApiKeys: &configv1.ApiKeys{
		Keys: []*configv1.ApiKey{{Id: "aaaaaaaaaaa" + ns, Hash: "sha256:" + strings.Repeat("0", 64), Principal: "p"}}}}}}}
}

// calls are what may be asked, and the least role that may ask it. Where of is
// mesh the role is needed for all of the mesh.
func calls(rev int64) []struct {
	name string
	role Role
	of   string
	call func(ctx context.Context, c adminv1.AdminServiceClient, ns string) error
} {
	type api = adminv1.AdminServiceClient
	apply := func(rs ...func(ns string) *configv1.Resource) func(context.Context, api, string) error {
		return func(ctx context.Context, c api, ns string) error {
			req := &adminv1.ApplyRequest{DryRun: true}
			for _, r := range rs {
				req.Resources = append(req.Resources, r(ns))
			}
			_, err := c.Apply(ctx, req)
			return err
		}
	}
	remove := func(kind string) func(context.Context, api, string) error {
		return func(ctx context.Context, c api, ns string) error {
			req := targets(kind + "/" + ns + "/none")
			req.DryRun = true
			_, err := c.Delete(ctx, req)
			return err
		}
	}
	newTopic := func(ns string) *configv1.Resource { return topic(ns, "new") }
	store := func(ns string) *configv1.Resource { return eventStore(ns, "new", "") }
	return []struct {
		name string
		role Role
		of   string
		call func(ctx context.Context, c adminv1.AdminServiceClient, ns string) error
	}{
		{"apply a Topic", Editor, "", apply(newTopic)},
		{"apply an EventStore", Admin, "", apply(store)},
		{"apply an AccessPolicy", Admin, "", apply(policyOf)},
		{"apply an Identity", Admin, "", apply(identityOf)},
		{"apply a Topic and an EventStore", Admin, "", apply(newTopic, store)},
		{"delete in an Apply", Admin, "", func(ctx context.Context, c api, ns string) error {
			_, err := c.Apply(ctx, &adminv1.ApplyRequest{DryRun: true, Resources: []*configv1.Resource{topic("a", "new")}, Delete: targets("eventstore/" + ns + "/none").Targets})
			return err
		}},
		{"delete a Topic", Editor, "", remove("topic")},
		{"delete a Route", Editor, "", remove("route")},
		{"delete a Subscription", Editor, "", remove("subscription")},
		{"delete an EventStore", Admin, "", remove("eventstore")},
		{"delete an AccessPolicy", Admin, "", remove("accesspolicy")},
		{"delete an Identity", Admin, "", remove("identity")},
		{"delete a TopicBinding", Admin, "", remove("topicbinding")},
		{"delete what is no name", Admin, mesh, func(ctx context.Context, c api, _ string) error {
			_, err := c.Delete(ctx, targets("nothing"))
			return err
		}},
		{"get", Viewer, "", func(ctx context.Context, c api, ns string) error {
			_, err := c.Get(ctx, &adminv1.GetRequest{Name: "topic/" + ns + "/none"})
			return err
		}},
		{"list", Viewer, "", func(ctx context.Context, c api, ns string) error {
			_, err := c.List(ctx, &adminv1.ListRequest{Namespace: ns})
			return err
		}},
		{"watch", Viewer, "", func(ctx context.Context, c api, ns string) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			st, err := c.Watch(ctx, &adminv1.WatchRequest{Namespace: ns})
			if err == nil {
				_, err = st.Recv()
			}
			return err
		}},
		{"status", Viewer, "", func(ctx context.Context, c api, ns string) error {
			_, err := c.GetStatus(ctx, &adminv1.GetStatusRequest{Namespace: ns})
			return err
		}},
		{"history", Viewer, "", func(ctx context.Context, c api, ns string) error {
			_, err := c.ListHistory(ctx, &adminv1.ListHistoryRequest{Namespace: ns})
			return err
		}},
		{"history of one", Viewer, "", func(ctx context.Context, c api, ns string) error {
			_, err := c.ListHistory(ctx, &adminv1.ListHistoryRequest{Name: "topic/" + ns + "/t"})
			return err
		}},
		{"diff", Viewer, "", func(ctx context.Context, c api, ns string) error {
			_, err := c.Diff(ctx, &adminv1.DiffRequest{FromRevision: rev, Namespace: ns})
			return err
		}},
		{"diff of one", Viewer, "", func(ctx context.Context, c api, ns string) error {
			_, err := c.Diff(ctx, &adminv1.DiffRequest{FromRevision: rev, Name: "topic/" + ns + "/t"})
			return err
		}},
		{"roll a topic back", Editor, "", func(ctx context.Context, c api, ns string) error {
			_, err := c.Rollback(ctx, &adminv1.RollbackRequest{ToRevision: rev, Name: "topic/" + ns + "/t", DryRun: true})
			return err
		}},
		{"roll a store back", Admin, "", func(ctx context.Context, c api, ns string) error {
			_, err := c.Rollback(ctx, &adminv1.RollbackRequest{ToRevision: rev, Name: "eventstore/" + ns + "/main", DryRun: true})
			return err
		}},
		{"roll back a namespace with a store in it", Admin, "", func(ctx context.Context, c api, ns string) error {
			_, err := c.Rollback(ctx, &adminv1.RollbackRequest{ToRevision: rev, Namespace: ns, DryRun: true})
			return err
		}},
		{"roll back all", Admin, mesh, func(ctx context.Context, c api, _ string) error {
			_, err := c.Rollback(ctx, &adminv1.RollbackRequest{ToRevision: rev, DryRun: true})
			return err
		}},
		{"export", Admin, "", func(ctx context.Context, c api, ns string) error {
			st, err := c.ExportSnapshot(ctx, &adminv1.ExportSnapshotRequest{Namespaces: []string{ns}})
			if err == nil {
				_, err = st.Recv()
			}
			return err
		}},
		{"export all", Admin, mesh, func(ctx context.Context, c api, _ string) error {
			st, err := c.ExportSnapshot(ctx, &adminv1.ExportSnapshotRequest{})
			if err == nil {
				_, err = st.Recv()
			}
			return err
		}},
		{"declare a restore", Admin, mesh, func(ctx context.Context, c api, _ string) error {
			_, err := c.DeclareRestore(ctx, &adminv1.DeclareRestoreRequest{})
			return err
		}},
		{"command proxies", Admin, mesh, func(ctx context.Context, c api, _ string) error {
			_, err := c.CommandProxies(ctx, &adminv1.CommandProxiesRequest{Command: adminv1.CommandProxiesRequest_COMMAND_RESYNC})
			return err
		}},
		{"command proxies of this replica", Admin, mesh, func(ctx context.Context, c api, _ string) error {
			_, err := c.CommandProxies(ctx, &adminv1.CommandProxiesRequest{Command: adminv1.CommandProxiesRequest_COMMAND_RESYNC, Local: true})
			return err
		}},
		{"list proxies", Viewer, mesh, func(ctx context.Context, c api, _ string) error {
			_, err := c.ListNodes(ctx, &adminv1.ListNodesRequest{})
			return err
		}},
		{"declare a proxy dead", Admin, mesh, func(ctx context.Context, c api, _ string) error {
			_, err := c.DeclareNodeDead(ctx, &adminv1.DeclareNodeDeadRequest{NodeId: "x", Reason: "why"})
			return err
		}},
		{"revive a proxy", Admin, mesh, func(ctx context.Context, c api, _ string) error {
			_, err := c.ReviveNode(ctx, &adminv1.ReviveNodeRequest{NodeId: "x"})
			return err
		}},
		{"forget proxies", Admin, mesh, func(ctx context.Context, c api, _ string) error {
			_, err := c.ForgetNodes(ctx, &adminv1.ForgetNodesRequest{NodeIds: []string{"x"}})
			return err
		}},
		{"make a join token", Admin, mesh, func(ctx context.Context, c api, _ string) error {
			_, err := c.CreateJoinToken(ctx, &adminv1.CreateJoinTokenRequest{NodeId: "x"})
			return err
		}},
		{"list join tokens", Admin, mesh, func(ctx context.Context, c api, _ string) error {
			_, err := c.ListJoinTokens(ctx, &adminv1.ListJoinTokensRequest{})
			return err
		}},
		{"revoke join tokens", Admin, mesh, func(ctx context.Context, c api, _ string) error {
			_, err := c.RevokeJoinTokens(ctx, &adminv1.RevokeJoinTokensRequest{Ids: []string{"x"}})
			return err
		}},
	}
}

// TestRoles: every call, by every role, in every namespace.
func TestRoles(t *testing.T) {
	w := newWorld(t, 1)
	// The last change is one of stores alone: rolled back, it needs an admin.
	rev := w.apply(eventStore("a", "main", "1"), eventStore("b", "main", "1"), topic("a", "t"), topic("b", "t")).Revision
	w.apply(eventStore("a", "main", "2"), eventStore("b", "main", "2"))
	c := w.dial(w.serve(w.access(roles()), nil), nil)
	check := func(call, who, ns string, want codes.Code, err error) {
		t.Helper()
		got := status.Code(err)
		if want == codes.OK {
			// What the handler says is not the matter here.
			if got == codes.PermissionDenied || got == codes.Unauthenticated {
				t.Errorf("%s in %s by %s: %v", call, ns, who, err)
			}
		} else if got != want {
			t.Errorf("%s in %s by %s: %v, want %v", call, ns, who, err, want)
		}
	}
	for _, tc := range calls(rev) {
		for _, ns := range []string{"a", "b"} {
			for who, code := range map[string]codes.Code{"": codes.PermissionDenied, "nobody": codes.Unauthenticated, "late": codes.Unauthenticated, "unbound": codes.PermissionDenied} {
				check(tc.name, who, ns, code, tc.call(as(w.ctx, who), c, ns))
			}
			for role := Viewer; role <= Admin; role++ {
				for _, where := range []string{"a", "mesh"} {
					want := codes.PermissionDenied
					if role >= tc.role && (where == "mesh" || where == ns && tc.of != mesh) {
						want = codes.OK
					}
					who := role.String() + "-" + where
					check(tc.name, who, ns, want, tc.call(as(w.ctx, who), c, ns))
				}
			}
			want := codes.PermissionDenied
			if tc.of != mesh && (ns == "a" && tc.role <= Editor || ns == "b" && tc.role <= Viewer) {
				want = codes.OK
			}
			check(tc.name, "grouped", ns, want, tc.call(as(w.ctx, "grouped"), c, ns))
		}
	}
}

// TestEveryCallHasARule: a call that is not in the table is one nobody may make.
func TestEveryCallHasARule(t *testing.T) {
	service := adminv1.File_weft_admin_v1alpha1_admin_proto.Services().ByName("AdminService")
	for i := range service.Methods().Len() {
		m := service.Methods().Get(i)
		req, err := messageOf(string(m.Input().FullName()))
		if err != nil {
			t.Fatal(err)
		}
		if all, ok := needs(req); !ok || len(all) == 0 {
			t.Errorf("%s has no rule", m.Name())
		}
	}
	if _, ok := needs(&adminv1.GetResponse{}); ok {
		t.Error("what is no request has a rule")
	}
}

// TestOnlyWhatHeSees: a caller with some namespaces is told of no other, by no
// call.
func TestOnlyWhatHeSees(t *testing.T) {
	w := newWorld(t, 1)
	rev := w.apply(eventStore("a", "main", "1"), eventStore("b", "main", "1")).Revision
	w.apply(eventStore("a", "main", "2"), topic("a", "t"), eventStore("b", "main", "2"), topic("b", "hidden"))
	_, err := w.api[0].Apply(w.ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{topic("a", "x"), {Metadata: &configv1.Metadata{Namespace: "b", Name: "y"}, Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{Store: "secretly"}}}}})
	if status.Code(err) != codes.FailedPrecondition {
		t.Fatal(err)
	}
	// More resources than a record names, and what is wrong is with one of the others.
	var many []*configv1.Resource
	for i := range maxNames {
		many = append(many, topic("a", fmt.Sprint("m", i)))
	}
	many = append(many, &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "b", Name: "y"}, Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{Store: "secretly"}}})
	if _, err := w.api[0].Apply(w.ctx, &adminv1.ApplyRequest{Resources: many}); status.Code(err) != codes.FailedPrecondition {
		t.Fatal(err)
	}
	c := w.dial(w.serve(w.access(roles()), nil), nil)
	ctx, cancel := context.WithCancel(as(w.ctx, "viewer-a"))
	defer cancel()
	watch, err := c.Watch(ctx, &adminv1.WatchRequest{})
	w.must(err)
	var told []fmt.Stringer
	next := func() {
		r, err := watch.Recv()
		w.must(err)
		told = append(told, r)
	}
	next()
	_, err = w.api[0].Apply(w.ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{eventStore("b", "main", "3")}, Delete: targets("topic/b/hidden").Targets})
	w.must(err)
	w.apply(eventStore("a", "main", "3"))
	next()
	for _, call := range []func() (fmt.Stringer, error){
		func() (fmt.Stringer, error) { return c.List(ctx, &adminv1.ListRequest{}) },
		func() (fmt.Stringer, error) { return c.List(ctx, &adminv1.ListRequest{Kind: "topic"}) },
		func() (fmt.Stringer, error) { return c.GetStatus(ctx, &adminv1.GetStatusRequest{}) },
		func() (fmt.Stringer, error) { return c.ListHistory(ctx, &adminv1.ListHistoryRequest{}) },
		func() (fmt.Stringer, error) { return c.Diff(ctx, &adminv1.DiffRequest{FromRevision: rev}) },
	} {
		m, err := call()
		w.must(err)
		told = append(told, m)
	}
	for _, name := range []string{"topic/b/hidden", "eventstore/b/main", "topic/b/none"} {
		if _, err := c.GetStatus(ctx, &adminv1.GetStatusRequest{Name: name, Namespace: "a"}); status.Code(err) != codes.PermissionDenied {
			t.Errorf("the status of %s: %v", name, err)
		}
	}
	for i, m := range told {
		text := m.String()
		if !strings.Contains(text, `"a"`) && !strings.Contains(text, "/a/") {
			t.Errorf("%d tells nothing: %s", i, text)
		}
		for _, hidden := range []string{"hidden", "/b/", `namespace:"b"`, "secretly"} {
			if strings.Contains(text, hidden) {
				t.Errorf("%d tells of %s: %s", i, hidden, text)
			}
		}
	}
}
