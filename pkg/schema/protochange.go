package schema

import (
	"cmp"
	"slices"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// protoUnreadable tells why a reader of one message cannot read all that is written
// by another, by the numbers and wire types of fields; where JSON is written, by what they
// are there, too: then there are the descriptors of both, as what is in an Any is judged.
func protoUnreadable(reader, writer protoreflect.MessageDescriptor, readers, writers *protoregistry.Files) []string {
	c := protoChange{seen: map[[2]protoreflect.FullName]bool{}, json: writers != nil}
	c.message("", reader, writer)
	if c.json && c.any {
		c.messages(readers, writers)
	}
	return c.found
}

// messages judges all that an Any may have: whatever is among the descriptors.
func (c *protoChange) messages(readers, writers *protoregistry.Files) {
	var all []protoreflect.MessageDescriptor
	var add func(protoreflect.MessageDescriptors)
	add = func(list protoreflect.MessageDescriptors) {
		for i := range list.Len() {
			all = append(all, list.Get(i))
			add(list.Get(i).Messages())
		}
	}
	writers.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		add(f.Messages())
		return true
	})
	slices.SortFunc(all, func(a, b protoreflect.MessageDescriptor) int { return cmp.Compare(a.FullName(), b.FullName()) })
	for _, w := range all {
		d, _ := readers.FindDescriptorByName(w.FullName())
		if r, ok := d.(protoreflect.MessageDescriptor); ok {
			c.message("/"+string(w.FullName()), r, w)
		} else if !w.IsMapEntry() {
			c.add("", "%s is gone, which an Any may have in JSON", w.FullName())
		}
	}
}

// dropped tells which fields a message lost without keeping their numbers, with json
// their names too, from being used again for something else.
func dropped(now, old protoreflect.MessageDescriptor, json bool) []string {
	c := protoChange{seen: map[[2]protoreflect.FullName]bool{}, json: json, reserve: true}
	c.message("", now, old)
	return c.found
}

type protoChange struct {
	seen    map[[2]protoreflect.FullName]bool
	json    bool
	reserve bool // look for numbers that are not reserved, and nothing else
	any     bool // an Any was written
	found   []string
}

func (c *protoChange) add(at, format string, args ...any) {
	if len(c.found) < maxFound {
		c.found = append(c.found, misfit(at, format, args...).Error())
	}
}

func (c *protoChange) message(at string, r, w protoreflect.MessageDescriptor) {
	k := [2]protoreflect.FullName{r.FullName(), w.FullName()}
	if c.seen[k] || len(c.seen) > maxValues {
		return
	}
	c.seen[k] = true
	c.any = c.any || w.FullName() == "google.protobuf.Any"
	for i := range w.Fields().Len() {
		g := w.Fields().Get(i)
		at := at + "/" + string(g.Name())
		f := r.Fields().ByNumber(g.Number())
		switch {
		case f == nil:
			if c.reserve && !r.ReservedRanges().Has(g.Number()) {
				c.add(at, "field %d is gone, and its number is not reserved", g.Number())
			}
			if c.reserve && c.json && !r.ReservedNames().Has(g.Name()) {
				c.add(at, "field %d is gone, and its name is not reserved", g.Number())
			}
			if other := inJSONAs(r, g); !c.reserve && c.json && other != nil {
				c.add(at, "field %d has the name in JSON of field %d", g.Number(), other.Number())
			}
			continue
		case !c.reserve:
			c.field(at, f, g)
		}
		if f.Message() != nil && g.Message() != nil {
			c.message(at, f.Message(), g.Message())
		}
	}
	if c.reserve {
		c.reservations(at, r, w)
	}
	for i := range r.RequiredNumbers().Len() {
		n := r.RequiredNumbers().Get(i)
		if g := w.Fields().ByNumber(n); !c.reserve && (g == nil || g.Cardinality() != protoreflect.Required) {
			c.add(at, "the field %s is required, and may be missing in what is read", r.Fields().ByNumber(n).Name())
		}
	}
}

// reservations tells what a message does not reserve any more: what had the number, or with
// json the name, may be in the topic still.
func (c *protoChange) reservations(at string, now, old protoreflect.MessageDescriptor) {
	for i := range old.ReservedRanges().Len() {
		for n, end := old.ReservedRanges().Get(i)[0], old.ReservedRanges().Get(i)[1]; n < end; {
			from := n
			for j := range now.ReservedRanges().Len() {
				if kept := now.ReservedRanges().Get(j); kept[0] <= n && n < kept[1] {
					n = kept[1]
				}
			}
			if n == from {
				c.add(at, "number %d is reserved no more", n)
				break
			}
		}
	}
	for i := range old.ReservedNames().Len() {
		if name := old.ReservedNames().Get(i); c.json && !now.ReservedNames().Has(name) {
			c.add(at, "name %s is reserved no more", name)
		}
	}
}

// inJSONAs is the field of a message that takes what g is in JSON; nil for none.
func inJSONAs(m protoreflect.MessageDescriptor, g protoreflect.FieldDescriptor) protoreflect.FieldDescriptor {
	for _, name := range []string{g.JSONName(), g.TextName()} {
		if f := m.Fields().ByJSONName(name); f != nil {
			return f
		}
		if f := m.Fields().ByTextName(name); f != nil {
			return f
		}
	}
	return nil
}

// field judges whether f reads what g wrote.
func (c *protoChange) field(at string, f, g protoreflect.FieldDescriptor) {
	switch {
	case f.IsList() != g.IsList() || f.IsMap() != g.IsMap():
		c.add(at, "field %d is repeated in one alone", g.Number())
	case inOneof(f) != inOneof(g):
		c.add(at, "field %d is in another oneof", g.Number())
	case f.Kind() != g.Kind() && !wider(f.Kind(), g.Kind()) && !binaryOnly(f.Kind(), g.Kind()):
		c.add(at, "field %d: %s does not read %s", g.Number(), f.Kind(), g.Kind())
	case c.json:
		c.jsonField(at, f, g)
	}
}

// jsonField judges it of data in JSON.
func (c *protoChange) jsonField(at string, f, g protoreflect.FieldDescriptor) {
	switch {
	case f.JSONName() != g.JSONName() || f.TextName() != g.TextName():
		c.add(at, "field %d has another name, which is what JSON has", g.Number())
	case f.Kind() != g.Kind() && !wider(f.Kind(), g.Kind()):
		c.add(at, "field %d: %s does not read %s in JSON", g.Number(), f.Kind(), g.Kind())
	case f.Enum() != nil:
		for i := range g.Enum().Values().Len() {
			if name := g.Enum().Values().Get(i).Name(); f.Enum().Values().ByName(name) == nil {
				c.add(at, "field %d: %s lacks %s, which is what JSON has", g.Number(), f.Enum().FullName(), name)
			}
		}
	case f.Message() != nil && f.Message().FullName() != g.Message().FullName() && (wellKnown(f.Message()) != nil || wellKnown(g.Message()) != nil):
		c.add(at, "field %d: %s does not read %s in JSON", g.Number(), f.Message().FullName(), g.Message().FullName())
	}
}

// wider reports whether a field of the kind f reads each number of the kind g as it was
// written. A narrower one would drop bits, and another sign make another number of it.
func wider(f, g protoreflect.Kind) bool {
	switch g {
	case protoreflect.Int32Kind:
		return f == protoreflect.Int64Kind
	case protoreflect.Uint32Kind:
		return f == protoreflect.Int64Kind || f == protoreflect.Uint64Kind
	case protoreflect.Sint32Kind:
		return f == protoreflect.Sint64Kind
	}
	return false
}

// binaryOnly reports whether a field of the kind f reads each value of the kind g, of
// kinds that JSON writes in two ways.
func binaryOnly(f, g protoreflect.Kind) bool {
	switch g {
	case protoreflect.BoolKind:
		return f == protoreflect.Int32Kind || f == protoreflect.Int64Kind || f == protoreflect.Uint32Kind || f == protoreflect.Uint64Kind
	case protoreflect.StringKind:
		return f == protoreflect.BytesKind
	}
	return false
}

func inOneof(f protoreflect.FieldDescriptor) protoreflect.Name {
	if o := f.ContainingOneof(); o != nil && !o.IsSynthetic() {
		return o.Name()
	}
	return ""
}
