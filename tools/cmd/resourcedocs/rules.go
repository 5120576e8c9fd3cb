package main

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
)

// rules is what proto/ demands of a field beside what stands in its comment, as one
// sentence; empty where that is nothing. Patterns are not shown.
func rules(f protoreflect.FieldDescriptor, comment string) string {
	r := rulesOf(f)
	if r == nil {
		return ""
	}
	var out []string
	must := required(f, r)
	if must {
		out = append(out, "required")
	}
	for _, text := range bounds(r.ProtoReflect(), "", must) {
		if !said(comment, text) {
			out = append(out, text)
		}
	}
	if len(out) == 0 {
		return ""
	}
	text := strings.Join(out, ", ") + "."
	return " *" + strings.ToUpper(text[:1]) + text[1:] + "*"
}

func rulesOf(f protoreflect.FieldDescriptor) *validate.FieldRules {
	if !proto.HasExtension(f.Options(), validate.E_Field) {
		return nil
	}
	r, _ := proto.GetExtension(f.Options(), validate.E_Field).(*validate.FieldRules)
	return r
}

// required reports whether the field must be there: what is empty breaks a rule that
// is asked of what is absent too.
func required(f protoreflect.FieldDescriptor, r *validate.FieldRules) bool {
	if r.GetRequired() {
		return true
	}
	if f.HasPresence() || r.GetIgnore() != validate.Ignore_IGNORE_UNSPECIFIED {
		return false
	}
	if p := r.GetString().GetPattern(); p != "" && !regexp.MustCompile(p).MatchString("") {
		return true
	}
	return r.GetString().GetMinLen() > 0 || r.GetBytes().GetMinLen() > 0 || r.GetRepeated().GetMinItems() > 0 || r.GetMap().GetMinPairs() > 0 ||
		r.GetUint32().GetGte() > 0 || r.GetUint64().GetGte() > 0 || slices.Contains(r.GetEnum().GetNotIn(), 0)
}

// bounds are the least and the most that rules let through; of what is in a list or map
// too, each behind what it is of. That what must be there is not empty is not said again.
func bounds(rules protoreflect.Message, of string, must bool) (out []string) {
	rules.Range(func(kind protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if kind.Message() == nil {
			return true
		}
		m := v.Message()
		for _, b := range []struct{ least, most, unit string }{
			{"min_len", "max_len", " characters"}, {"min_bytes", "max_bytes", " bytes"}, {"min_items", "max_items", " items"},
			{"min_pairs", "max_pairs", " entries"}, {"gte", "lte", ""},
		} {
			unit := b.unit
			if kind.Name() == "bytes" && b.most == "max_len" {
				unit = " bytes"
			}
			least := number(m, b.least)
			if must && least == "1" {
				least = ""
			}
			if text := bound(least, number(m, b.most), unit); text != "" {
				out = append(out, of+text)
			}
		}
		for _, part := range []struct{ name, of string }{{"items", "each "}, {"keys", "keys "}, {"values", "values "}} {
			if f := m.Descriptor().Fields().ByName(protoreflect.Name(part.name)); f != nil && m.Has(f) {
				out = append(out, bounds(m.Get(f).Message(), part.of, false)...)
			}
		}
		return true
	})
	return out
}

// bound is the text of a least and a most.
func bound(least, most, unit string) string {
	switch {
	case least == "" && most == "":
		return ""
	case most == "" && least == "1" && unit != "":
		return "not empty"
	case most == "":
		return "at least " + least + unit
	case least == "" || least == "0":
		return "at most " + most + unit
	}
	return least + " to " + most + unit
}

// number is what a rule says, for people; empty where it is not there.
func number(m protoreflect.Message, name string) string {
	f := m.Descriptor().Fields().ByName(protoreflect.Name(name))
	if f == nil || !m.Has(f) {
		return ""
	}
	switch v := m.Get(f).Interface().(type) {
	case uint64:
		return grouped(v)
	case uint32:
		return grouped(uint64(v))
	case protoreflect.Message:
		if d, ok := v.Interface().(*durationpb.Duration); ok {
			return short(d)
		}
	}
	return ""
}

// grouped is a number with a comma before each three digits.
func grouped(n uint64) string {
	if n < 1000 {
		return strconv.FormatUint(n, 10)
	}
	return grouped(n/1000) + fmt.Sprintf(",%03d", n%1000)
}

// short is a duration without what is zero at its end.
func short(d *durationpb.Duration) string {
	s := d.AsDuration().String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// said reports whether the comment has the bound already: its most, or for times any.
func said(comment, bound string) bool {
	words := strings.Fields(bound)
	most := words[len(words)-1]
	if strings.HasSuffix(bound, " characters") || strings.HasSuffix(bound, " bytes") || strings.HasSuffix(bound, " items") || strings.HasSuffix(bound, " entries") {
		most = words[len(words)-2]
	}
	if strings.ContainsAny(most, "hms") {
		return strings.ContainsAny(comment, "0123456789")
	}
	if n, err := strconv.ParseUint(strings.ReplaceAll(most, ",", ""), 10, 64); err == nil {
		for _, unit := range []string{" KiB", " MiB", " GiB"} {
			if n == 0 || n%1024 != 0 {
				break
			}
			if n /= 1024; strings.Contains(" "+comment, " "+strconv.FormatUint(n, 10)+unit) {
				return true
			}
		}
	}
	return slices.Contains(strings.FieldsFunc(comment, func(r rune) bool { return r != ',' && (r < '0' || r > '9') }), most)
}
