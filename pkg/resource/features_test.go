package resource

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
)

// TestRequires: what a resource requires is named by what it says.
func TestRequires(t *testing.T) {
	r := &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: "s"}, Spec: &configv1.Resource_Subscription{Subscription: &configv1.Subscription{
		Topics: []string{"orders"}, Start: configv1.Start_START_BEGINNING, Filter: &configv1.Filter{All: []*configv1.Filter{{Not: &configv1.Filter{Exact: map[string]string{"a": "b"}}}}},
		Delivery: &configv1.Subscription_Push{Push: &configv1.PushDelivery{Url: "http://a/"}}}}}
	got := Requires(r).Names()
	want := []string{"filter.all", "filter.exact", "filter.not", "kind/subscription", "pushdelivery.url", "start.beginning", "subscription.filter", "subscription.push", "subscription.start", "subscription.topics"}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if lacks := Requires(r).Without(FeaturesOf(want[1:])); !slices.Equal(lacks.Names(), want[:1]) || lacks.Empty() {
		t.Errorf("without the first it lacks %v", lacks.Names())
	}
	if !FeaturesOf([]string{"kind/later", "x"}).Empty() {
		t.Error("a name that is not known counts")
	}
	if !Requires(&configv1.Resource{Spec: &configv1.Resource_Manifest{Manifest: &configv1.Manifest{Revision: 1}}}).Empty() {
		t.Error("a manifest requires something")
	}
}

// TestFeaturesAreWhole: every kind, every field at any depth and every value of
// every list is a feature of its own, which a resource that has it requires and a
// node that lacks it is found to lack.
func TestFeaturesAreWhole(t *testing.T) {
	all := AllFeatures()
	known, tested := FeaturesOf(all), FeaturesOf(nil)
	check := func(r *configv1.Resource, want string) {
		t.Helper()
		req := Requires(r)
		if !req.Without(known).Empty() || !slices.Contains(req.Names(), want) {
			t.Errorf("%v requires %v, not %s", r, req.Names(), want)
		}
		others := slices.DeleteFunc(slices.Clone(all), func(n string) bool { return n == want })
		if lacks := req.Without(FeaturesOf(others)).Names(); !slices.Equal(lacks, []string{want}) {
			t.Errorf("a node without %s lacks %v", want, lacks)
		}
		for i := range tested.bits {
			tested.bits[i] |= req.bits[i]
		}
	}
	// build makes a resource in which one field of a message is set, and holds
	// the message at its place.
	type place func() (*configv1.Resource, protoreflect.Message)
	seen := map[protoreflect.FullName]bool{}
	var walk func(m protoreflect.MessageDescriptor, at place)
	walk = func(m protoreflect.MessageDescriptor, at place) {
		if seen[m.FullName()] || m.ParentFile().Package() != configPackage {
			return
		}
		seen[m.FullName()] = true
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			name := strings.ToLower(string(m.Name())) + "." + string(f.Name())
			set := func(v protoreflect.Value) *configv1.Resource {
				r, msg := at()
				switch {
				case f.IsList():
					msg.Mutable(f).List().Append(v)
				case f.IsMap():
					msg.Mutable(f).Map().Set(protoreflect.ValueOfString("k").MapKey(), protoreflect.ValueOfString("v"))
				default:
					msg.Set(f, v)
				}
				return proto.Clone(r).(*configv1.Resource)
			}
			switch f.Kind() {
			case protoreflect.EnumKind:
				for j := range f.Enum().Values().Len() {
					if v := f.Enum().Values().Get(j); v.Number() != 0 {
						r := set(protoreflect.ValueOfEnum(v.Number()))
						check(r, name)
						check(r, valueFeature(f.Enum(), v))
					}
				}
			case protoreflect.MessageKind:
				sub := func() (*configv1.Resource, protoreflect.Message) {
					r, msg := at()
					if f.IsList() {
						return r, msg.Mutable(f).List().AppendMutable().Message()
					}
					return r, msg.Mutable(f).Message()
				}
				if f.IsMap() {
					check(set(protoreflect.Value{}), name)
					continue
				}
				r, _ := sub()
				check(r, name)
				walk(f.Message(), sub)
			default:
				check(set(nonZero(f)), name)
			}
		}
	}
	spec := (&configv1.Resource{}).ProtoReflect().Descriptor().Oneofs().ByName("spec").Fields()
	for i := range spec.Len() {
		f := spec.Get(i)
		if f.Name() == "manifest" {
			continue
		}
		at := func() (*configv1.Resource, protoreflect.Message) {
			r := &configv1.Resource{}
			return r, r.ProtoReflect().Mutable(f).Message()
		}
		r, _ := at()
		check(r, "kind/"+string(KindOf(r)))
		walk(f.Message(), at)
	}
	if rest := known.Without(tested); !rest.Empty() {
		t.Errorf("never required: %v", rest.Names())
	}
}

func nonZero(f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("x")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("x"))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(1)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(1)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(1)
	}
	panic("nonZero: " + f.Kind().String())
}

// TestDigest: the order does not matter, taking away undoes adding, and name,
// version and content all count.
func TestDigest(t *testing.T) {
	a, b := DigestOf("topic/demo/a", "1", []byte("x")), DigestOf("topic/demo/b", "2", []byte("y"))
	if a.Add(b) != b.Add(a) || a.Add(b).Sub(a) != b || a.Add(b).Count != 2 || (Digest{}) != a.Sub(a) {
		t.Error("the arithmetic is wrong")
	}
	if p, ok := ParseDigest(a.Bytes()); !ok || p != a {
		t.Errorf("%v is read back as %v", a, p)
	}
	if _, ok := ParseDigest([]byte("short")); ok {
		t.Error("5 bytes are a digest")
	}
	for _, other := range []Digest{DigestOf("topic/demo/c", "1", []byte("x")), DigestOf("topic/demo/a", "2", []byte("x")), DigestOf("topic/demo/a", "1", []byte("z")), DigestOf("topic/demo/a", "1x", nil)} {
		if other == a {
			t.Error("what differs has one digest")
		}
	}
}

// TestKnowMoves: a node that lacks anything that topics ask of it while they move, or
// later, knows no moves; what has to do with other things does not count.
func TestKnowMoves(t *testing.T) {
	without := func(name string) Features {
		list := AllFeatures()
		if n := len(list); name != "" && len(slices.DeleteFunc(list, func(f string) bool { return f == name })) != n-1 {
			t.Fatalf("there is no feature %s", name)
		}
		return FeaturesOf(slices.DeleteFunc(AllFeatures(), func(f string) bool { return f == name }))
	}
	for _, name := range []string{"topicbinding.move", "topicbinding.highest", "topicbinding.ended", "epoch.cut", "cut.minor", "move.partitions", "phase.drained", "topicadmission.epochs"} {
		if KnowMoves(without(name)) {
			t.Errorf("a node without %s", name)
		}
	}
	for _, name := range []string{"", "kind/migration", "filter.not", "topicadmission.reasons"} {
		if !KnowMoves(without(name)) {
			t.Errorf("a node without %q", name)
		}
	}
}
