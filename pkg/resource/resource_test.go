package resource

import (
	"strings"
	"testing"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
)

// TestKindsAreWhole: every field of the oneof is a kind here, and the other way
// round.
func TestKindsAreWhole(t *testing.T) {
	fields := (&configv1.Resource{}).ProtoReflect().Descriptor().Oneofs().ByName("spec").Fields()
	byField := map[string]Info{}
	for _, k := range Kinds() {
		byField[k.Field] = k
		if strings.ToLower(k.Title) != string(k.Kind) {
			t.Errorf("kind %q is titled %q", k.Kind, k.Title)
		}
	}
	for i := range fields.Len() {
		f := fields.Get(i)
		r := &configv1.Resource{}
		r.ProtoReflect().Set(f, r.ProtoReflect().NewField(f))
		kind := KindOf(r)
		if kind == "" {
			t.Errorf("KindOf does not know %s", f.Name())
		}
		if kind != Manifest && byField[string(f.Name())].Kind != kind {
			t.Errorf("%s is %q, the table says %q", f.Name(), kind, byField[string(f.Name())].Kind)
		}
	}
	if fields.Len() != len(Kinds())+1 {
		t.Errorf("%d kinds in the proto, %d in the table and the manifest", fields.Len(), len(Kinds()))
	}
}

func TestSplit(t *testing.T) {
	kind, ns, name, err := Split("topic/demo/orders.created")
	if err != nil || kind != Topic || ns != "demo" || name != "orders.created" {
		t.Errorf("%v %v %v %v", kind, ns, name, err)
	}
	for _, s := range []string{"", "topic", "topic/demo", "topics/demo/a", "Topic/demo/a", "nope/demo/a", "topic//a", "topic/demo/", "topic/demo/a/b", "topic/../a", "topic/demo/..", "manifest/a/b"} {
		if _, _, _, err := Split(s); err == nil {
			t.Errorf("%q is accepted", s)
		}
	}
}

// FuzzSplit: a name that is taken apart is put together again the same, and is
// the only one of its parts.
func FuzzSplit(f *testing.F) {
	for _, s := range []string{"topic/demo/orders", "topic/demo/../x", "Topic/demo/x", "topics/demo/x", "manifest", "topic/demo/a/b", "topic//x", "topic/demo/a\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		kind, ns, name, err := Split(s)
		if err == nil && (Name(kind, ns, name) != s || strings.Contains(ns+name, "/")) {
			t.Errorf("%q is %q, %q, %q", s, kind, ns, name)
		}
	})
}
