package resource

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/reflect/protoreflect"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
)

// Features is a set of what a resource may ask of a node that enforces it: its
// kind ("kind/identity"), every field that it sets ("identity.jwt",
// "subscription.push", "filter.not"), and every value that it picks from a list
// ("action.publish"). Features are comparable; the zero value is the empty set.
type Features struct{ bits [featureWords]uint64 }

const featureWords = 8

// known are the features of this version, from the descriptors of the kinds: a
// field that is added is a feature by itself.
var known = sync.OnceValue(func() (k struct {
	names []string // sorted
	index map[string]int
	of    map[protoreflect.Descriptor]int
}) {
	named := map[protoreflect.Descriptor]string{}
	var walk func(protoreflect.MessageDescriptor)
	walk = func(m protoreflect.MessageDescriptor) {
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			if named[f] != "" {
				return // this message was seen
			}
			named[f] = fieldFeature(f)
			if e := f.Enum(); e != nil {
				for j := range e.Values().Len() {
					if v := e.Values().Get(j); v.Number() != 0 {
						named[v] = valueFeature(e, v)
					}
				}
			}
			if sub := f.Message(); sub != nil && !f.IsMap() && sub.ParentFile().Package() == configPackage {
				walk(sub)
			}
		}
	}
	spec := (&configv1.Resource{}).ProtoReflect().Descriptor().Oneofs().ByName("spec").Fields()
	for i := range spec.Len() {
		if f := spec.Get(i); f.Name() != protoreflect.Name(Manifest) {
			named[f] = "kind/" + strings.ReplaceAll(string(f.Name()), "_", "")
			walk(f.Message())
		}
	}
	k.names = slices.Compact(slices.Sorted(maps.Values(named)))
	if len(k.names) > featureWords*64 {
		panic("resource: there are more features than a set holds: raise featureWords")
	}
	k.index = make(map[string]int, len(k.names))
	for i, n := range k.names {
		k.index[n] = i
	}
	k.of = make(map[protoreflect.Descriptor]int, len(named))
	for d, n := range named {
		k.of[d] = k.index[n]
	}
	return k
})

const configPackage = "weft.config.v1alpha1"

func fieldFeature(f protoreflect.FieldDescriptor) string {
	return strings.ToLower(string(f.ContainingMessage().Name())) + "." + string(f.Name())
}

func valueFeature(e protoreflect.EnumDescriptor, v protoreflect.EnumValueDescriptor) string {
	return strings.ToLower(string(e.Name())) + "." + word(e, v)
}

// word is the value as YAML has it.
func word(e protoreflect.EnumDescriptor, v protoreflect.EnumValueDescriptor) string {
	prefix := strings.TrimSuffix(string(e.Values().ByNumber(0).Name()), "UNSPECIFIED")
	return strings.ToLower(strings.TrimPrefix(string(v.Name()), prefix))
}

// Words are the values of an enumeration as YAML has them, but for the zero.
func Words(e protoreflect.EnumDescriptor) (out []string) {
	for i := range e.Values().Len() {
		if v := e.Values().Get(i); v.Number() != 0 {
			out = append(out, word(e, v))
		}
	}
	return out
}

// AllFeatures are the names of the features that this version knows, sorted. A
// proxy declares those that it enforces (NodeInfo.capabilities); both planes are
// built from one declaration of the kinds, so that neither can forget one.
func AllFeatures() []string { return slices.Clone(known().names) }

// FeaturesOf is a set by names; names that this version does not know are left out:
// nothing that it has requires them.
func FeaturesOf(names []string) Features {
	var f Features
	index := known().index
	for _, n := range names {
		if i, ok := index[n]; ok {
			f.bits[i/64] |= 1 << (i % 64)
		}
	}
	return f
}

// Requires is what a node must be able to do to enforce r. It is a function of r
// alone.
func Requires(r *configv1.Resource) Features {
	var f Features
	m := r.ProtoReflect()
	field := m.WhichOneof(m.Descriptor().Oneofs().ByName("spec"))
	if field == nil || field.Name() == protoreflect.Name(Manifest) {
		return f
	}
	of := known().of
	f.set(of[field])
	f.require(of, m.Get(field).Message())
	return f
}

func (f *Features) set(i int) { f.bits[i/64] |= 1 << (i % 64) }

func (f *Features) require(of map[protoreflect.Descriptor]int, m protoreflect.Message) {
	m.Range(func(d protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		i, ours := of[d]
		if !ours {
			return true // within a message that is not ours: a Duration, a Timestamp
		}
		f.set(i)
		n := 1
		if d.IsList() {
			n = v.List().Len()
		}
		for j := range n {
			one := v
			if d.IsList() {
				one = v.List().Get(j)
			}
			switch {
			case d.IsMap():
			case d.Message() != nil:
				f.require(of, one.Message())
			case d.Enum() != nil:
				if value := d.Enum().Values().ByNumber(one.Enum()); value != nil && value.Number() != 0 {
					f.set(of[value])
				}
			}
		}
		return true
	})
}

// moves are what the resources of a topic that moves may ask, and later those of one that
// has moved.
var moves = sync.OnceValue(func() (f Features) {
	for d, i := range known().of {
		switch d.Parent().FullName() {
		case configPackage + ".TopicBinding", configPackage + ".Epoch", configPackage + ".Cut", configPackage + ".Move", configPackage + ".Move.Phase":
			f.set(i)
		}
		if d.FullName() == configPackage+".TopicAdmission.epochs" {
			f.set(i)
		}
	}
	return f
})

// KnowMoves reports whether a node that can do this is sent topics that move, or have
// moved.
func KnowMoves(can Features) bool { return moves().Without(can).Empty() }

// Without is what of f is not in g.
func (f Features) Without(g Features) Features {
	for i := range f.bits {
		f.bits[i] &^= g.bits[i]
	}
	return f
}

// Empty reports whether nothing is in f.
func (f Features) Empty() bool { return f == Features{} }

// Names are the names of what is in f, sorted.
func (f Features) Names() []string {
	var out []string
	for i, n := range known().names {
		if f.bits[i/64]&(1<<(i%64)) != 0 {
			out = append(out, n)
		}
	}
	return out
}
