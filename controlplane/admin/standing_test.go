package admin

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"
)

// TestStanding: of every kind it is told who has a resource, who refuses it or is
// not sent it, and what refers to it; a namespace's own proxies count only there.
func TestStanding(t *testing.T) {
	w := newWorld(t, 1)
	route := &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: "big"}, Spec: &configv1.Resource_Route{Route: &configv1.Route{Topic: "orders",
		Rules: []*configv1.RouteRule{{To: []*configv1.Destination{{Topic: "returns"}}}}}}}
	reads := &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: "all"}, Spec: &configv1.Resource_Subscription{Subscription: &configv1.Subscription{Topics: []string{"*"}}}}
	keys := &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: "keys"}, Spec: &configv1.Resource_Identity{Identity: &configv1.Identity{Method: &configv1.Identity_ApiKeys{ApiKeys: &configv1.ApiKeys{
		Keys: []*configv1.ApiKey{{Id: "aaaaaaaaaaaa", Hash: "sha256:" + strings.Repeat("0", 64), Principal: "ann", Groups: []string{"ops"}}}}}}}}
	policy := func(ns, name, principal, group string) *configv1.Resource {
		rule := &configv1.AccessRule{Name: "r", Effect: configv1.Effect_EFFECT_ALLOW, Actions: []configv1.Action{configv1.Action_ACTION_PUBLISH}, Topics: []string{">"}}
		if principal != "" {
			rule.Principals = []string{principal}
		}
		if group != "" {
			rule.Groups = []string{group}
		}
		return &configv1.Resource{Metadata: &configv1.Metadata{Namespace: ns, Name: name}, Spec: &configv1.Resource_AccessPolicy{AccessPolicy: &configv1.AccessPolicy{Rules: []*configv1.AccessRule{rule}}}}
	}
	w.apply(eventStore("demo", "main", ""), topic("demo", "orders"), topic("demo", "returns"))
	first := w.apply(reads, route, policy("demo", "ann", "ann", ""), policy("demo", "ops", "", "demo/ops"), policy("demo", "bob", "bob", ""), policy("other", "ann", "demo/ann", ""), policy("other", "local", "ann", ""))
	later := w.apply(keys)
	version := func(rev int64) string { return fmt.Sprint(rev) }
	lineage := w.lineage()
	node := func(id string, acked int64, change func(*adminv1.ProxyStatus)) *adminv1.ProxyStatus {
		p := &adminv1.ProxyStatus{NodeId: id, Connected: true, AckedRevision: acked, Info: &discoveryv1.NodeInfo{},
			Report: &discoveryv1.ReportStatusRequest{Config: &discoveryv1.AppliedConfig{Lineage: lineage}}}
		if change != nil {
			change(p)
		}
		return p
	}
	get := func(name string) *adminv1.ResourceStatus {
		t.Helper()
		st, err := w.api[0].GetStatus(w.ctx, &adminv1.GetStatusRequest{Name: name})
		w.must(err)
		if len(st.Resources) != 1 || st.ResourcesTotal != 1 || st.Resources[0].Name != name {
			t.Fatalf("%s: %v", name, st.Resources)
		}
		return st.Resources[0]
	}
	inForce := func(r *adminv1.ResourceStatus) string {
		for _, c := range r.Conditions {
			if c.Type == "InForce" {
				return c.State.String() + " " + c.Reason + " " + c.Message
			}
		}
		return ""
	}
	if got := inForce(get("route/demo/big")); got != "STATE_TRUE NoProxies no proxy is connected that would be sent it" {
		t.Errorf("without a proxy: %s", got)
	}
	w.connected.Store(&[]*adminv1.ProxyStatus{
		node("good", later.Revision, nil),
		node("late", first.Revision, nil),
		node("strange", later.Revision, func(p *adminv1.ProxyStatus) { p.Report.Config.Lineage = "another" }),
		node("other", later.Revision, func(p *adminv1.ProxyStatus) { p.Info.Namespaces = []string{"other"} }),
		node("picky", later.Revision, func(p *adminv1.ProxyStatus) {
			p.Rejections = []*discoveryv1.Rejection{{Name: "accesspolicy/demo/ann", Version: version(first.Revision), Field: "spec.rules[0]", Reason: "no"}, {Name: "accesspolicy/demo/bob", Version: "1", Reason: "what was before"}}
			p.Withheld = []*configv1.Withheld{{Name: "identity/demo/keys", Version: version(later.Revision), Reason: "lacks identity.api_keys"}}
		}),
	})
	for name, tc := range map[string]struct {
		condition string
		proxies   uint32
		force     uint32
		lacking   []string
		used      []string
	}{
		"route/demo/big":         {"STATE_FALSE Behind at 3 of 4 proxies", 4, 3, []string{"strange has not acknowledged anything of this lineage"}, nil},
		"accesspolicy/demo/ann":  {"STATE_FALSE Refused at 2 of 4 proxies; picky refuses it: spec.rules[0]: no", 4, 2, []string{"picky refuses it: spec.rules[0]: no", "strange has not acknowledged anything of this lineage"}, nil},
		"accesspolicy/demo/bob":  {"STATE_FALSE Behind at 3 of 4 proxies", 4, 3, []string{"strange has not acknowledged anything of this lineage"}, nil},
		"accesspolicy/other/ann": {"STATE_FALSE Behind at 4 of 5 proxies", 5, 4, []string{"strange has not acknowledged anything of this lineage"}, nil},
		"identity/demo/keys": {"STATE_FALSE Withheld at 1 of 4 proxies; picky is not sent it: lacks identity.api_keys", 4, 1, []string{"picky is not sent it: lacks identity.api_keys", "strange has not acknowledged anything of this lineage", "late has revision " + version(first.Revision)},
			[]string{"accesspolicy/demo/ann", "accesspolicy/demo/ops", "accesspolicy/other/ann"}},
		"topic/demo/returns":    {"", 4, 3, []string{"strange has not acknowledged anything of this lineage"}, []string{"route/demo/big", "subscription/demo/all"}},
		"eventstore/demo/main":  {"", 4, 3, []string{"strange has not acknowledged anything of this lineage"}, []string{"topic/demo/orders", "topic/demo/returns"}},
		"subscription/demo/all": {"", 4, 3, []string{"strange has not acknowledged anything of this lineage"}, nil},
	} {
		r := get(name)
		var lacking []string
		for _, l := range r.Lacking {
			lacking = append(lacking, l.NodeId+" "+l.Reason)
		}
		if inForce(r) != tc.condition || r.Proxies != tc.proxies || r.InForce != tc.force || !slices.Equal(lacking, tc.lacking) || !slices.Equal(r.UsedBy, tc.used) || r.Version == "" {
			t.Errorf("%s: %s, %d of %d, %q, %q", name, inForce(r), r.InForce, r.Proxies, lacking, r.UsedBy)
		}
	}
	gone := newStanding([]*adminv1.ProxyStatus{node("gone", 1, func(p *adminv1.ProxyStatus) { p.Connected = false })}, lineage)
	if len(gone.everywhere) != 0 {
		t.Error("a proxy that is not connected counts")
	}
	// The list has them all, with the same, and of a kind only those.
	st, err := w.api[0].GetStatus(w.ctx, &adminv1.GetStatusRequest{})
	w.must(err)
	if st.ResourcesTotal != 11 || len(st.Resources) != 11 || st.Resources[0].Lacking != nil {
		t.Errorf("%d resources: %v", st.ResourcesTotal, st.Resources)
	}
	st, err = w.api[0].GetStatus(w.ctx, &adminv1.GetStatusRequest{Kind: "policies", Namespace: "demo"})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("%v, %v", st, err)
	}
	st, err = w.api[0].GetStatus(w.ctx, &adminv1.GetStatusRequest{Kind: "accesspolicies", Namespace: "demo"})
	w.must(err)
	if st.ResourcesTotal != 3 || st.ResourcesNotReady != 3 {
		t.Errorf("%d of %d", st.ResourcesNotReady, st.ResourcesTotal)
	}
	if _, err := w.api[0].GetStatus(w.ctx, &adminv1.GetStatusRequest{Name: "topic/demo/none"}); status.Code(err) != codes.NotFound {
		t.Error(err)
	}
	if _, err := w.api[0].GetStatus(w.ctx, &adminv1.GetStatusRequest{Name: "none"}); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
}

// lineage is the lineage in force.
func (w *world) lineage() string {
	snap, err := w.stores[0].Current()
	w.must(err)
	return snap.Lineage
}

// TestFailingTargetsOfOthers: a proxy tells of the push targets, blocked keys and denied
// topics of its own namespaces alone.
func TestFailingTargetsOfOthers(t *testing.T) {
	report := &discoveryv1.ReportStatusRequest{Targets: []*discoveryv1.TargetState{{Name: "subscription/demo/own", Reason: "Refused"}, {Name: "subscription/other/not", Reason: "Refused"}, {Name: "nothing"}},
		Blocked: []*discoveryv1.BlockedState{{Name: "subscription/demo/own", Keys: 1}, {Name: "subscription/other/not", Keys: 1}, {Name: "nothing", Keys: 1}},
		Denied:  []*discoveryv1.DeniedState{{Name: "topic/demo/own"}, {Name: "topic/other/not"}, {Name: "nothing"}}}
	said := func(namespaces ...string) string {
		out := told([]*adminv1.ProxyStatus{{NodeId: "n", Connected: true, Info: &discoveryv1.NodeInfo{Namespaces: namespaces}, Report: report}})
		for name, cs := range out {
			if strings.HasPrefix(name, "topic/") {
				if len(cs) != 1 || cs[0].Type != "StoreDenies" {
					t.Errorf("%s has %v", name, cs)
				}
				continue
			}
			if len(cs) != 2 || cs[0].Type != "TargetFailing" || cs[1].Type != "KeysBlocked" {
				t.Errorf("%s has %v", name, cs)
			}
		}
		return strings.Join(slices.Sorted(maps.Keys(out)), " ")
	}
	if got := said("demo"); got != "subscription/demo/own topic/demo/own" {
		t.Errorf("of one namespace: %s", got)
	}
	if got := said(); got != "subscription/demo/own subscription/other/not topic/demo/own topic/other/not" {
		t.Errorf("of all: %s", got)
	}
}

// TestStatusOfNamespace: with a namespace proxies tell of its resources alone, and later of
// all again.
func TestStatusOfNamespace(t *testing.T) {
	w := newWorld(t, 1)
	w.apply(eventStore("demo", "main", ""))
	w.connected.Store(&[]*adminv1.ProxyStatus{{NodeId: "p", Connected: true, Info: &discoveryv1.NodeInfo{}, Report: &discoveryv1.ReportStatusRequest{
		Stores:  []*discoveryv1.StoreState{{Name: "eventstore/demo/main"}, {Name: "eventstore/other/main"}},
		Targets: []*discoveryv1.TargetState{{Name: "subscription/demo/own", Reason: "Refused"}, {Name: "subscription/other/not", Reason: "Refused"}},
		Denied:  []*discoveryv1.DeniedState{{Name: "topic/demo/own"}, {Name: "topic/other/not"}},
		Blocked: []*discoveryv1.BlockedState{{Name: "subscription/demo/own", Keys: 1}, {Name: "subscription/other/not", Keys: 1}}}}})
	for _, tc := range []struct {
		namespace string
		want      int
	}{{"demo", 1}, {"none", 0}, {"", 2}} {
		st, err := w.api[0].GetStatus(w.ctx, &adminv1.GetStatusRequest{Namespace: tc.namespace})
		w.must(err)
		r := st.Proxies[0].Report
		if len(r.Stores) != tc.want || len(r.Targets) != tc.want || len(r.Denied) != tc.want || len(r.Blocked) != tc.want || tc.want == 1 && r.Targets[0].Name != "subscription/demo/own" {
			t.Errorf("of namespace %q it tells %v", tc.namespace, r)
		}
	}
}

// TestBlockedKeys: the blocked keys of a Subscription are summed over the proxies that are
// connected, with the event that failed first.
func TestBlockedKeys(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var proxies []*adminv1.ProxyStatus
	for i, n := range []string{"b", "e", "a", "d", "c"} {
		proxies = append(proxies, &adminv1.ProxyStatus{NodeId: n, Connected: n != "e", Report: &discoveryv1.ReportStatusRequest{Blocked: []*discoveryv1.BlockedState{
			{Name: "subscription/demo/s", Keys: uint32(i + 1), Topic: "t-" + n, Position: "at-" + n, Since: timestamppb.New(at.Add(time.Duration(3*i%5) * time.Second))}}}})
	}
	out := told(proxies)
	c := out["subscription/demo/s"][0]
	if want := "a, b, c and 1 more: keys that wait behind events which have failed as often as they may: 13; the first failed in t-b at at-b"; len(out) != 1 || c.Type != "KeysBlocked" || c.Reason != "AttemptsOver" || c.State != adminv1.Condition_STATE_TRUE || c.Message != want || !c.Since.AsTime().Equal(at) {
		t.Errorf("%v", c)
	}
}

// TestNewestRevision: the newest revision is that of what was changed last, of a restore
// too, wherever etcd was when a replica and its proxies read it; nobody has more.
func TestNewestRevision(t *testing.T) {
	w := newWorld(t, 1)
	changed := w.apply(eventStore("demo", "main", "")).Revision
	var at int64
	for range 3 {
		resp, err := w.etcd.Put(w.ctx, "/another", "")
		w.must(err)
		at = resp.Header.Revision
	}
	w.replica()
	w.connected.Store(&[]*adminv1.ProxyStatus{{NodeId: "p", Connected: true, AckedRevision: at, SentRevision: at, Info: &discoveryv1.NodeInfo{}}})
	is := func(when string, want int64) {
		t.Helper()
		for i, api := range w.api {
			st, err := api.GetStatus(w.ctx, &adminv1.GetStatusRequest{})
			w.must(err)
			if p := st.Proxies[0]; st.Revision != want || st.Replicas[0].Revision != want || p.AckedRevision != want || p.SentRevision != want || st.Fleet.Current != 1 {
				t.Errorf("%s, replica %d: %d is the newest, want %d; replica %d, proxy %d of %d", when, i, st.Revision, want, st.Replicas[0].Revision, p.AckedRevision, p.SentRevision)
			}
			resp, err := api.Apply(w.ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{eventStore("demo", "main", "")}})
			w.must(err)
			if resp.Revision != want {
				t.Errorf("%s, replica %d: what changes nothing is of revision %d, want %d", when, i, resp.Revision, want)
			}
		}
	}
	is("read later", changed)

	restored, err := w.api[0].DeclareRestore(w.ctx, &adminv1.DeclareRestoreRequest{Reason: "a fire"})
	w.must(err)
	for _, s := range w.stores {
		for {
			snap, next := s.Snapshot()
			if snap.Lineage == restored.Lineage {
				break
			}
			select {
			case <-next:
			case <-w.ctx.Done():
				t.Fatal("a replica does not follow")
			}
		}
	}
	w.connected.Store(&[]*adminv1.ProxyStatus{{NodeId: "p", Connected: true, AckedRevision: restored.Revision + 1, SentRevision: restored.Revision + 1, Info: &discoveryv1.NodeInfo{}}})
	is("restored", restored.Revision)
}
