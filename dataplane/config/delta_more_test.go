package config

import (
	"slices"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/resource"
)

const (
	nameA = "eventstore/demo/a"
	nameB = "eventstore/demo/b"
)

// TestAppliedAtTheManifest: the parts of a delta are put in force together, and
// not before the manifest.
func TestAppliedAtTheManifest(t *testing.T) {
	srv := startDelta(t, "127.0.0.1:0")
	f := follow(t, "", srv.addr)
	st := srv.accept(t)
	if st.token != nil || !slices.Equal(st.first.ResourceNamesSubscribe, []string{"*"}) || st.first.Node.GetId() != "n1" {
		t.Errorf("the first request is %v, token %v", st.first, st.token)
	}
	if a := st.send([]*discoveryv3.Resource{wire(storeRes("a", "1", testUID), "5")}); a.ErrorDetail != nil {
		t.Errorf("a part is refused: %v", a.ErrorDetail)
	}
	if s := f.states.Get(); s.Revision != 0 || len(s.Set) != 0 {
		t.Errorf("a part is in force: %v", s)
	}
	holds := map[string]string{nameA: "5", nameB: "6"}
	if a := st.send([]*discoveryv3.Resource{wire(storeRes("b", "1", testUID), "6"), closing("1-x", 6, true, holds)}); a.ErrorDetail != nil {
		t.Errorf("the delta is refused: %v", a.ErrorDetail)
	}
	s := f.states.Get()
	if s.Revision != 6 || s.Lineage != "1-x" || len(s.Set) != 2 || s.Origin != snapshot.Live {
		t.Errorf("after the acknowledgement the state is %+v", s)
	}
	// A removal, and the half of a change that never ends.
	if a := st.send([]*discoveryv3.Resource{closing("1-x", 7, false, map[string]string{nameA: "5"})}, nameB); a.ErrorDetail != nil {
		t.Errorf("the removal is refused: %v", a.ErrorDetail)
	}
	st.send([]*discoveryv3.Resource{wire(storeRes("a", "half", testUID), "8")}, nameA)
	st.end <- nil
	st = srv.accept(t)
	if s := f.states.Get(); len(s.Set) != 1 || s.label(nameA) != "1" || s.Revision != 7 {
		t.Errorf("after a broken delta the state is %+v", s)
	}
	if st.token.GetRevision() != 7 || st.token.Lineage != "1-x" || !slices.Equal(st.token.Scope, []string{"*"}) || len(st.token.Rejected) != 0 {
		t.Errorf("it resumes with %v", st.token)
	}
}

// TestFence: within a lineage nothing leads back, neither as a change nor as a
// whole.
func TestFence(t *testing.T) {
	for name, complete := range map[string]bool{"a change": false, "a whole": true} {
		t.Run(name, func(t *testing.T) {
			srv := startDelta(t, "127.0.0.1:0")
			f := follow(t, "", srv.addr)
			st := srv.accept(t)
			st.send([]*discoveryv3.Resource{wire(storeRes("a", "new", testUID), "9"), closing("1-x", 9, true, map[string]string{nameA: "9"})})
			st.refused([]*discoveryv3.Resource{wire(storeRes("a", "old", testUID), "5"), closing("1-x", 8, complete, map[string]string{nameA: "5"})})
			st = srv.accept(t)
			if st.token.GetRevision() != 9 {
				t.Errorf("it resumes with %v", st.token)
			}
			if s := f.states.Get(); s.Revision != 9 || s.label(nameA) != "new" {
				t.Errorf("the state went back: %+v", s)
			}
			if n := f.metric("weft_proxy_config_older_refused_total"); n != 1 {
				t.Errorf("%v older deltas are counted", n)
			}
			// The same revision again is no step back.
			if a := st.send([]*discoveryv3.Resource{closing("1-x", 9, false, map[string]string{nameA: "9"})}); a.ErrorDetail != nil {
				t.Errorf("the same revision is refused: %v", a.ErrorDetail)
			}
		})
	}
}

// TestDrift: what does not agree with the digests is not put in force; the next
// stream begins from nothing and mends it.
func TestDrift(t *testing.T) {
	for name, man := range map[string]*discoveryv3.Resource{
		"a version":      closing("1-x", 6, false, map[string]string{nameA: "4", nameB: "6"}),
		"one more":       closing("1-x", 6, false, map[string]string{nameA: "5", nameB: "6", "eventstore/demo/c": "1"}),
		"one less":       closing("1-x", 6, false, map[string]string{nameB: "6"}),
		"another kind":   closing("1-x", 6, false, map[string]string{nameA: "5", nameB: "6", "topic/demo/c": "1"}),
		"nothing at all": closing("1-x", 6, false, nil),
	} {
		t.Run(name, func(t *testing.T) {
			srv := startDelta(t, "127.0.0.1:0")
			f := follow(t, "", srv.addr)
			st := srv.accept(t)
			st.send([]*discoveryv3.Resource{wire(storeRes("a", "1", testUID), "5"), closing("1-x", 5, true, map[string]string{nameA: "5"})})
			st.refused([]*discoveryv3.Resource{wire(storeRes("b", "1", testUID), "6"), man})
			st = srv.accept(t)
			if st.token != nil {
				t.Errorf("it resumes with %v", st.token)
			}
			if s := f.states.Get(); s.Revision != 5 || len(s.Set) != 1 {
				t.Errorf("what drifted is in force: %+v", s)
			}
			if n := f.metric("weft_proxy_config_drift_total"); n != 1 {
				t.Errorf("%v drifts are counted", n)
			}
			st.send([]*discoveryv3.Resource{wire(storeRes("b", "1", testUID), "6"), closing("1-x", 6, true, map[string]string{nameB: "6"})})
			if s := f.states.Get(); s.Revision != 6 || len(s.Set) != 1 || s.label(nameB) != "1" {
				t.Errorf("after the full sync: %+v", s)
			}
		})
	}
}

// TestLineage: a change of another lineage is not mixed in; a whole replaces
// everything, also where its revision is lower; a lineage of fewer restores is
// refused.
func TestLineage(t *testing.T) {
	srv := startDelta(t, "127.0.0.1:0")
	f := follow(t, "", srv.addr)
	st := srv.accept(t)
	st.send([]*discoveryv3.Resource{wire(storeRes("a", "1", testUID), "50"), closing("1-x", 50, true, map[string]string{nameA: "50"})})
	st.refused([]*discoveryv3.Resource{wire(storeRes("b", "2", testUID), "60"), closing("2-y", 60, false, map[string]string{nameA: "50", nameB: "60"})})
	st = srv.accept(t)
	if st.token != nil {
		t.Errorf("it resumes over lineages with %v", st.token)
	}
	if s := f.states.Get(); s.Lineage != "1-x" || len(s.Set) != 1 {
		t.Errorf("lineages are mixed: %+v", s)
	}
	st.send([]*discoveryv3.Resource{wire(storeRes("b", "2", testUID), "6"), closing("2-y", 6, true, map[string]string{nameB: "6"})})
	if s := f.states.Get(); s.Lineage != "2-y" || s.Revision != 6 || len(s.Set) != 1 || s.label(nameB) != "2" {
		t.Errorf("the new lineage is not in force: %+v", s)
	}
	// A replica that has not heard of the restore.
	st.refused([]*discoveryv3.Resource{wire(storeRes("a", "1", testUID), "90"), closing("1-x", 90, true, map[string]string{nameA: "90"})})
	if s := f.states.Get(); s.Lineage != "2-y" || s.Revision != 6 {
		t.Errorf("it went back to before the restore: %+v", s)
	}
	// One whose etcd was emptied, or is another mesh's.
	st = srv.accept(t)
	st.refused([]*discoveryv3.Resource{closing("2-z", 90, true, nil)})
	if s := f.states.Get(); s.Lineage != "2-y" || len(s.Set) != 1 {
		t.Errorf("it was emptied: %+v", s)
	}
}

// TestRejection: the answer names what was refused, the rest is applied, the
// last good version stays, over a new stream, a full sync and a restart; a good
// version, or a removal, ends it.
func TestRejection(t *testing.T) {
	srv := startDelta(t, "127.0.0.1:0")
	dir := t.TempDir()
	f := follow(t, dir, srv.addr)
	st := srv.accept(t)
	st.send([]*discoveryv3.Resource{wire(storeRes("a", "1", testUID), "5"), closing("1-x", 5, true, map[string]string{nameA: "5"})})
	holds := map[string]string{nameA: "7", nameB: "8", "eventstore/demo/c": "9"}
	a := st.send([]*discoveryv3.Resource{wire(storeRes("a", "bad", testUID), "7"), wire(storeRes("b", "bad", testUID), "8"), wire(storeRes("c", "1", testUID), "9"),
		closing("1-x", 9, false, holds)})
	rej := &discoveryv1.Rejections{}
	if a.ErrorDetail == nil || len(a.ErrorDetail.Details) != 1 || a.ErrorDetail.Details[0].UnmarshalTo(rej) != nil || len(rej.Rejections) != 2 {
		t.Fatalf("the refusal says %v", a.ErrorDetail)
	}
	if r := rej.Rejections[0]; r.Name != nameA || r.Version != "7" || r.Field != "metadata.labels" || r.Reason == "" {
		t.Errorf("the refusal says %v", r)
	}
	good := func(s State) bool {
		return s.label(nameA) == "1" && s.label("eventstore/demo/c") == "1" && slices.Equal(s.Withheld, []string{nameB}) && len(s.Set) == 2
	}
	if s := f.states.Get(); !good(s) {
		t.Errorf("after the refusal: %+v", s)
	}
	// Another stream: the token says what is refused.
	st.end <- nil
	st = srv.accept(t)
	if st.token.GetRevision() != 9 || len(st.token.Rejected) != 2 || st.token.Rejected[0].Version != "7" {
		t.Errorf("it resumes with %v", st.token)
	}
	// A full sync that offers the refused versions again.
	a = st.send([]*discoveryv3.Resource{wire(storeRes("a", "bad", testUID), "7"), wire(storeRes("b", "bad", testUID), "8"), wire(storeRes("c", "1", testUID), "9"),
		closing("1-x", 9, true, holds)})
	if s := f.states.Get(); a.ErrorDetail == nil || !good(s) {
		t.Errorf("after the full sync: %+v, answer %v", s, a)
	}
	// A restart, without a control plane.
	f.stop()
	f = follow(t, dir, "127.0.0.1:1")
	if s := f.await("the disk", good); s.Origin != snapshot.FromDisk || s.Revision != 9 {
		t.Errorf("from disk: %+v", s)
	}
	f.stop()
	// And with one.
	f = follow(t, dir, srv.addr)
	st = srv.accept(t)
	st.send([]*discoveryv3.Resource{wire(storeRes("a", "10", testUID), "10"), closing("1-x", 11, false, map[string]string{nameA: "10", "eventstore/demo/c": "9"})}, nameB)
	if s := f.states.Get(); s.label(nameA) != "10" || len(s.Withheld) != 0 || s.Origin != snapshot.Live {
		t.Errorf("the good version and the removal: %+v", s)
	}
	if n := f.metric("weft_proxy_config_rejected_resources"); n != 0 {
		t.Errorf("%v refused resources are counted", n)
	}
}

// TestRefusedOfAnotherUID: what was deleted and created again is another thing,
// of which the old one is not an older version.
func TestRefusedOfAnotherUID(t *testing.T) {
	srv := startDelta(t, "127.0.0.1:0")
	f := follow(t, "", srv.addr)
	st := srv.accept(t)
	st.send([]*discoveryv3.Resource{wire(storeRes("a", "1", testUID), "5"), closing("1-x", 5, true, map[string]string{nameA: "5"})})
	other := "0190a0b0-0000-7000-8000-000000000002"
	st.send([]*discoveryv3.Resource{wire(storeRes("a", "bad", other), "7"), closing("1-x", 7, false, map[string]string{nameA: "7"})})
	if s := f.states.Get(); len(s.Set) != 0 || !slices.Equal(s.Withheld, []string{nameA}) {
		t.Errorf("the state is %+v", s)
	}
}

// TestForeignAnswers: what is not of the protocol ends the stream and changes
// nothing.
func TestForeignAnswers(t *testing.T) {
	notOurs := raw(nameB, "6", nil)
	notOurs.Resource.TypeUrl = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	empty := wire(&configv1.Resource{Name: resource.ManifestName}, "6")
	for name, rs := range map[string][]*discoveryv3.Resource{
		"another type":       {notOurs, closing("1-x", 6, false, map[string]string{nameA: "5", nameB: "6"})},
		"no value":           {{Name: nameB, Version: "6"}},
		"an empty manifest":  {empty},
		"a manifest of junk": {raw(resource.ManifestName, "6", []byte{0xff, 0xff})},
		"too large":          {raw(nameB, "6", make([]byte, maxResponse+1))},
	} {
		t.Run(name, func(t *testing.T) {
			srv := startDelta(t, "127.0.0.1:0")
			f := follow(t, "", srv.addr)
			st := srv.accept(t)
			st.send([]*discoveryv3.Resource{wire(storeRes("a", "1", testUID), "5"), closing("1-x", 5, true, map[string]string{nameA: "5"})})
			st.refused(rs)
			if st = srv.accept(t); st.token.GetRevision() != 5 {
				t.Errorf("it resumes with %v", st.token)
			}
			if s := f.states.Get(); s.Revision != 5 || len(s.Set) != 1 {
				t.Errorf("the state is %+v", s)
			}
		})
	}
}

// TestFailover: with one control plane gone the other is followed, and back; the
// state stays in force meanwhile.
func TestFailover(t *testing.T) {
	first, second := startDelta(t, "127.0.0.1:0"), startDelta(t, "127.0.0.1:0")
	f := follow(t, "", first.addr, second.addr)
	holds := map[string]string{nameA: "5"}
	servers := []*deltaServer{first, second}
	var st *serverStream
	var at int
	select {
	case st = <-first.streams:
	case st = <-second.streams:
		at = 1
	}
	st.t = t
	st.send([]*discoveryv3.Resource{wire(storeRes("a", "1", testUID), "5"), closing("1-x", 5, true, holds)})
	servers[at].stop()
	st = servers[1-at].accept(t)
	if st.token.GetRevision() != 5 {
		t.Errorf("at the other it resumes with %v", st.token)
	}
	st.send([]*discoveryv3.Resource{closing("1-x", 5, false, holds)})
	if s := f.states.Get(); s.label(nameA) != "1" {
		t.Errorf("the state is %+v", s)
	}
	back := startDelta(t, servers[at].addr)
	servers[1-at].stop()
	st = back.accept(t)
	st.send([]*discoveryv3.Resource{wire(storeRes("a", "2", testUID), "6"), closing("1-x", 6, false, map[string]string{nameA: "6"})})
	if s := f.states.Get(); s.label(nameA) != "2" {
		t.Errorf("the state is %+v", s)
	}
}

// TestUnreadableVersion: a version that cannot be read, or is not whole, does
// not drop the last good one.
func TestUnreadableVersion(t *testing.T) {
	srv := startDelta(t, "127.0.0.1:0")
	f := follow(t, "", srv.addr)
	st := srv.accept(t)
	st.send([]*discoveryv3.Resource{wire(storeRes("a", "1", testUID), "5"), closing("1-x", 5, true, map[string]string{nameA: "5"})})
	noUID := storeRes("a", "bad", "")
	otherName := storeRes("b", "1", testUID)
	b, err := resource.Marshal(otherName)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range []*discoveryv3.Resource{
		raw(nameA, "6", []byte{0xff, 0xff, 0xff}),
		raw(nameA, "7", nil),
		wire(noUID, "8"),
		raw(nameA, "9", b),
	} {
		a := st.send([]*discoveryv3.Resource{r, closing("1-x", int64(6+i), false, map[string]string{nameA: r.Version})})
		if a.ErrorDetail == nil {
			t.Errorf("version %s is accepted", r.Version)
		}
		if s := f.states.Get(); s.label(nameA) != "1" || s.Revision != int64(6+i) || s.Set[nameA].Version != "5" {
			t.Errorf("after version %s: %+v", r.Version, s)
		}
	}
}

// TestUnknownKind: a kind that a newer control plane has is refused, and
// withheld, and everything else goes on.
func TestUnknownKind(t *testing.T) {
	srv := startDelta(t, "127.0.0.1:0")
	f := follow(t, t.TempDir(), srv.addr)
	st := srv.accept(t)
	holds := map[string]string{nameA: "5", "tariff/demo/q": "4"}
	// Field 100 of Resource, a message.
	a := st.send([]*discoveryv3.Resource{raw("tariff/demo/q", "4", []byte{0xa2, 0x06, 0x00}), wire(storeRes("a", "1", testUID), "5"), closing("1-x", 5, true, holds)})
	if a.ErrorDetail == nil {
		t.Error("a kind that nothing enforces is accepted")
	}
	s := f.states.Get()
	if s.label(nameA) != "1" || !slices.Equal(s.Withheld, []string{"tariff/demo/q"}) {
		t.Errorf("the state is %+v", s)
	}
}

// TestUpgrade: what was refused before a restart is offered again after it,
// since another version of the program may accept it.
func TestUpgrade(t *testing.T) {
	srv := startDelta(t, "127.0.0.1:0")
	dir := t.TempDir()
	f := follow(t, dir, srv.addr)
	st := srv.accept(t)
	long := strings.Repeat("ä", 4000) // a reason that must be cut
	refusing := storeRes("a", "bad", testUID)
	refusing.Metadata.Labels["why"] = long
	st.send([]*discoveryv3.Resource{wire(refusing, "5"), closing("1-x", 5, true, map[string]string{nameA: "5"})})
	st.end <- nil
	st = srv.accept(t)
	if len(st.token.GetRejected()) != 1 || !strings.HasPrefix(st.token.Rejected[0].Reason, "is not to this") {
		t.Errorf("within the process it resumes with %v", st.token)
	}
	f.stop()
	follow(t, dir, "127.0.0.1:1", srv.addr)
	if st = srv.accept(t); st.token != nil {
		t.Errorf("after a restart it resumes with %v", st.token)
	}
}

// TestHungControlPlane: one that takes the stream and never answers is left for
// another.
func TestHungControlPlane(t *testing.T) {
	hung, fine := startDelta(t, "127.0.0.1:0"), startDelta(t, "127.0.0.1:0")
	follow(t, "", hung.addr, fine.addr)
	for seen := 0; seen < 2; { // whichever is tried first
		select {
		case <-hung.streams:
			seen++
		case <-fine.streams:
			seen++
		case <-time.After(testPatience):
			t.Fatalf("%d control planes were tried", seen)
		}
	}
}
