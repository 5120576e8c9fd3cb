// Package validate judges a change of the configuration: each resource alone,
// then against all the others. It is pure: what it is given decides, and it
// reports every problem at once.
package validate

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
)

// Problem is one rule that a resource breaks.
type Problem struct {
	// Resource is the canonical name.
	Resource string
	// Field is the path of the field ("spec.rules[0].topics[1]").
	Field string
	// Rule is a stable id ("reference", "string.pattern").
	Rule string
	// Message is for people.
	Message string
}

func (p Problem) String() string { return p.Resource + ": " + p.Field + ": " + p.Message }

// View is a configuration.
type View interface {
	// Resource returns the resource with a canonical name; nil without one.
	Resource(name string) *configv1.Resource
	// Find yields the resources that have key among their Keys.
	Find(key string) iter.Seq[*configv1.Resource]
}

// Validator judges. It is safe for concurrent use.
type Validator struct{ rules protovalidate.Validator }

// New makes a Validator.
func New() (*Validator, error) {
	v, err := protovalidate.New(protovalidate.WithMessages(&configv1.Resource{}))
	if err != nil {
		return nil, err
	}
	return &Validator{v}, nil
}

// Alone judges one resource that a user wants to apply, without looking at
// others.
func (v *Validator) Alone(r *configv1.Resource) []Problem {
	c := &collector{name: names.Text(resource.NameOf(r), maxField)}
	if r.GetMetadata() == nil {
		c.name = "resource"
	}
	if info, ok := resource.Lookup(string(resource.KindOf(r))); resource.KindOf(r) == "" {
		c.add("spec", "kind", "has no kind that this version knows")
	} else if !ok || info.System {
		c.add("spec", "system-kind", "is of a kind that only the control plane writes")
	}
	if path := resource.UnknownField(r); path != "" {
		c.add(path, "unknown-field", "has a field that this version does not know; nothing would enforce it")
	}
	if err := v.rules.Validate(r); err != nil {
		var ve *protovalidate.ValidationError
		if !errors.As(err, &ve) {
			c.add("spec", "rules", err.Error())
		} else {
			for _, violation := range ve.Violations {
				p := violation.Proto
				c.add(specPath(protovalidate.FieldPathString(p.GetField())), p.GetRuleId(), cmp.Or(mustBeSet(violation), broken(violation), p.GetMessage(), "breaks the rule "+p.GetRuleId()))
			}
		}
	}
	if strings.HasPrefix(r.GetMetadata().GetNamespace(), "weft-") {
		c.add("metadata.namespace", "system-namespace", `must not begin with "weft-": these are the system's`)
	}
	if name := r.GetName(); name != "" && name != resource.NameOf(r) {
		c.add("name", "name", fmt.Sprintf("is %q, kind and metadata say %q", name, resource.NameOf(r)))
	}
	if r.GetMetadata() != nil {
		if err := names.CheckName("name", r.Metadata.Name); err != nil {
			c.add("metadata.name", "name", err.Error())
		}
		if err := names.CheckNamespace(r.Metadata.Namespace); err != nil {
			c.add("metadata.namespace", "namespace", err.Error())
		}
	}
	c.durations(r.ProtoReflect(), "")
	c.spec(r)
	return c.problems
}

// mustBeSet is the message of a word that must be said and is not, with those that
// there are; empty of another violation.
func mustBeSet(v *protovalidate.Violation) string {
	if v.Proto.GetRuleId() != "enum.not_in" || v.FieldDescriptor == nil || v.FieldDescriptor.Enum() == nil {
		return ""
	}
	return "must be set to one of " + strings.Join(resource.Words(v.FieldDescriptor.Enum()), ", ")
}

// durations finds those that are none: the rules compare what they read as.
func (c *collector) durations(m protoreflect.Message, path string) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at := string(f.Name())
		if path != "" {
			at = path + "." + at
		}
		switch {
		case f.Message() == nil || f.IsMap():
		case f.IsList():
			for i := range v.List().Len() {
				c.durations(v.List().Get(i).Message(), fmt.Sprintf("%s[%d]", at, i))
			}
		default:
			if d, ok := v.Message().Interface().(*durationpb.Duration); ok && !d.IsValid() {
				c.add(specPath(at), "duration", "is no duration: seconds and nanoseconds are out of range or of different signs")
			}
			c.durations(v.Message(), at)
		}
		return true
	})
}

// specPath turns the name of the oneof field into "spec".
func specPath(p string) string {
	head, rest, more := strings.Cut(p, ".")
	bare, _, _ := strings.Cut(head, "[")
	for _, k := range resource.Kinds() {
		if k.Field == bare {
			head = "spec"
		}
	}
	if more {
		return head + "." + rest
	}
	return cmp.Or(head, "spec")
}

// collector gathers the problems of one resource.
type collector struct {
	name     string
	problems []Problem
}

// Most problems that are told of one resource, and bytes of what is told of each:
// that must reach the caller, and be found in reasonable time.
const (
	maxProblems = 100
	maxField    = 512
	maxMessage  = 1024
)

func (c *collector) add(field, rule, message string) {
	if len(c.problems) == maxProblems {
		return
	}
	p := Problem{c.name, names.Text(field, maxField), rule, names.Text(message, maxMessage)}
	if !slices.Contains(c.problems, p) {
		c.problems = append(c.problems, p)
	}
}
