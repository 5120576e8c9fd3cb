package config

import (
	"slices"
	"strconv"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/resource"
)

// withholding is a manifest, as closing makes it, that withholds something.
func withholding(t *testing.T, m *discoveryv3.Resource, list ...*configv1.Withheld) *discoveryv3.Resource {
	t.Helper()
	r := &configv1.Resource{}
	if err := proto.Unmarshal(m.Resource.Value, r); err != nil {
		t.Fatal(err)
	}
	r.GetManifest().Withheld, r.GetManifest().View = list, []byte("of a proxy that lacks something")
	return wire(r, strconv.FormatInt(r.GetManifest().Revision, 10))
}

// TestWithheld: what the control plane does not send, because this proxy could not
// enforce it, is withheld here: no older version of it stays in force, also after a
// restart from disk; and it is over once it is sent. Of a kind that is not known and
// says what is allowed, the whole namespace is denied.
func TestWithheld(t *testing.T) {
	srv := startDelta(t, "127.0.0.1:0")
	dir := t.TempDir()
	f := follow(t, dir, srv.addr)
	st := srv.accept(t)
	holds := map[string]string{nameA: "5", nameB: "5"}
	st.send([]*discoveryv3.Resource{wire(storeRes("a", "1", testUID), "5"), wire(storeRes("b", "1", testUID), "5"), closing("1-x", 5, true, holds)})
	list := []*configv1.Withheld{{Name: nameA, Version: "6", Reason: "lacks something"}, {Name: "tariff/demo/q", Version: "6", Governs: true}, {Name: "picture/other/p", Version: "6"}}
	delete(holds, nameA)
	if a := st.send([]*discoveryv3.Resource{withholding(t, closing("1-x", 6, false, holds), list...)}); a.ErrorDetail != nil {
		t.Fatalf("it is refused: %v", a.ErrorDetail)
	}
	check := func(s State) {
		t.Helper()
		if _, there := s.Set[nameA]; there || s.label(nameB) != "1" || !slices.Equal(s.Withheld, []string{nameA, "picture/other/p", "tariff/demo/q"}) ||
			len(s.Denied) != 1 || s.Denied["demo"] != "tariff/demo/q" {
			t.Errorf("%v, withheld %v, denied %v", s.Set, s.Withheld, s.Denied)
		}
	}
	check(f.states.Get())
	f.stop()
	srv.stop()
	f = follow(t, dir, srv.addr)
	check(f.await("the state from disk", func(s State) bool { return s.Revision == 6 }))
	f.stop()
	srv = startDelta(t, srv.addr)
	f = follow(t, dir, srv.addr)
	st = srv.accept(t)
	b, err := resource.Marshal(storeRes("b", "1", testUID))
	if err != nil {
		t.Fatal(err)
	}
	one := resource.DigestOf(nameB, "5", b)
	if d := st.token.GetDigests(); len(d) != 1 || d[0].Kind != "eventstore" || d[0].Count != 1 || string(d[0].Digest) != string(one.Bytes()) {
		t.Errorf("the token says %v", d)
	}
	if got := string(st.token.GetView()); got != "of a proxy that lacks something" {
		t.Errorf("the token is %q", got)
	}
	holds[nameA] = "7"
	st.send([]*discoveryv3.Resource{wire(storeRes("a", "7", testUID), "7"), closing("1-x", 7, false, holds)})
	if s := f.states.Get(); s.label(nameA) != "7" || len(s.Withheld) != 0 || len(s.Denied) != 0 {
		t.Errorf("after it was sent: %v, withheld %v, denied %v", s.Set, s.Withheld, s.Denied)
	}
}

// TestWithheldInParts: where what is withheld comes in several manifests, nothing of it
// counts before the last one, and then all of it.
func TestWithheldInParts(t *testing.T) {
	srv := startDelta(t, "127.0.0.1:0")
	f := follow(t, "", srv.addr)
	st := srv.accept(t)
	holds := map[string]string{nameA: "5", nameB: "5"}
	st.send([]*discoveryv3.Resource{wire(storeRes("a", "1", testUID), "5"), wire(storeRes("b", "1", testUID), "5"), closing("1-x", 5, true, holds)})
	part := func(name string) *discoveryv3.Resource {
		return wire(&configv1.Resource{Name: resource.ManifestName, Spec: &configv1.Resource_Manifest{Manifest: &configv1.Manifest{
			Lineage: "1-x", Revision: 6, Continues: true, Withheld: []*configv1.Withheld{{Name: name, Version: "6"}}}}}, "6")
	}
	for _, name := range []string{nameA, "picture/other/p"} {
		if a := st.send([]*discoveryv3.Resource{part(name)}); a.ErrorDetail != nil {
			t.Fatalf("a part is refused: %v", a.ErrorDetail)
		}
		if s := f.states.Get(); s.Revision != 5 || s.label(nameA) != "1" || len(s.Withheld) != 0 {
			t.Errorf("before the last part: %+v", s)
		}
	}
	delete(holds, nameA)
	st.send([]*discoveryv3.Resource{withholding(t, closing("1-x", 6, false, holds), &configv1.Withheld{Name: "tariff/demo/q", Version: "6"})})
	if s := f.states.Get(); s.Revision != 6 || len(s.Set) != 1 || !slices.Equal(s.Withheld, []string{nameA, "picture/other/p", "tariff/demo/q"}) {
		t.Errorf("%+v", s)
	}
	// The next one begins anew.
	st.send([]*discoveryv3.Resource{withholding(t, closing("1-x", 7, false, holds), &configv1.Withheld{Name: nameA, Version: "6"})})
	if s := f.states.Get(); s.Revision != 7 || !slices.Equal(s.Withheld, []string{nameA}) {
		t.Errorf("%+v", s)
	}
}

// TestEndedInGoodOrder: a stream that its control plane ends with OK is opened again
// at once, by the token, and is no failure.
func TestEndedInGoodOrder(t *testing.T) {
	srv := startDelta(t, "127.0.0.1:0")
	f := follow(t, "", srv.addr)
	holds := map[string]string{nameA: "5"}
	st := srv.accept(t)
	st.send([]*discoveryv3.Resource{wire(storeRes("a", "1", testUID), "5"), closing("1-x", 5, true, holds)})
	for range 20 {
		st.end <- nil
		st = srv.accept(t)
		if st.token.GetRevision() != 5 {
			t.Fatalf("it comes with %v", st.token)
		}
		st.send([]*discoveryv3.Resource{closing("1-x", 5, false, holds)})
	}
	if n := f.metric("weft_proxy_control_plane_failures_total"); n != 0 {
		t.Errorf("%v failures are counted", n)
	}
	// One that ends every stream before it has said anything is a failure.
	st.end <- nil
	st = srv.accept(t)
	st.end <- nil
	srv.accept(t)
	if n := f.metric("weft_proxy_control_plane_failures_total"); n != 1 {
		t.Errorf("%v failures are counted", n)
	}
}
