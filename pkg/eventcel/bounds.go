package eventcel

import (
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"

	"github.com/weft-mesh/weft/pkg/regex"
)

// CEL counts what a call took once it is over, and takes several that grow with what
// they are given for one unit. Here what a call would make is bounded before it is made,
// and what it reads is counted.

// maxText bounds what one call may make, in bytes, maxSearch how many times characters are
// compared for it.
const (
	maxText   = MaxData
	maxSearch = 1 << 24
)

// bounds are the functions that may make far more than they are given, with a bound, and
// patterns that are not in the expression itself.
func bounds(functions ...cel.EnvOption) ([]cel.EnvOption, error) {
	env, err := cel.NewEnv(functions...)
	if err != nil {
		return nil, err
	}
	var out []cel.EnvOption
	for name, fits := range map[string]func([]ref.Val) bool{
		"replace": func(args []ref.Val) bool { return sizeOfReplace(args) <= maxText },
		"join":    func(args []ref.Val) bool { return sizeOfJoin(args) <= maxText },
		"format":  func(args []ref.Val) bool { return sizeOfFormat(args) <= maxText },
		"indexOf": searches, "lastIndexOf": searches,
	} {
		of := env.Functions()[name]
		bindings, err := of.Bindings()
		if err != nil {
			return nil, err
		}
		for _, o := range of.OverloadDecls() {
			for _, b := range bindings {
				if b.Operator != o.ID() {
					continue
				}
				call := func(args ...ref.Val) ref.Val {
					if !fits(args) {
						return types.NewErr("%s would make more than 1 MiB of text, or compare very long texts", name)
					}
					switch {
					case b.Function != nil:
						return b.Function(args...)
					case b.Binary != nil:
						return b.Binary(args[0], args[1])
					}
					return b.Unary(args[0])
				}
				binding := cel.FunctionBinding(call)
				switch len(o.ArgTypes()) {
				case 1:
					binding = cel.UnaryBinding(func(a ref.Val) ref.Val { return call(a) })
				case 2:
					binding = cel.BinaryBinding(func(a, b ref.Val) ref.Val { return call(a, b) })
				}
				out = append(out, cel.Function(name, cel.MemberOverload(o.ID(), o.ArgTypes(), o.ResultType(), binding)))
			}
		}
	}
	return append(out,
		cel.Function(shortPattern, cel.Overload("short_pattern", []*cel.Type{cel.StringType}, cel.StringType, cel.UnaryBinding(func(v ref.Val) ref.Val {
			if s, ok := v.(types.String); ok {
				if n, err := regex.Instructions(string(s)); len(s) > maxPattern || err == nil && n > maxRegexp {
					return types.NewErr("a pattern has more than %d instructions", maxRegexp)
				}
			}
			return v
		}))),
		cel.Macros(cel.ReceiverMacro(overloads.Matches, 1, func(f cel.MacroExprFactory, target ast.Expr, args []ast.Expr) (ast.Expr, *cel.Error) {
			if args[0].Kind() == ast.LiteralKind {
				return nil, nil // it is judged when the expression is compiled
			}
			return f.NewMemberCall(overloads.Matches, target, f.NewCall(shortPattern, args[0])), nil
		}), cel.GlobalMacro(overloads.Matches, 2, func(f cel.MacroExprFactory, _ ast.Expr, args []ast.Expr) (ast.Expr, *cel.Error) {
			if args[1].Kind() == ast.LiteralKind {
				return nil, nil
			}
			return f.NewCall(overloads.Matches, args[0], f.NewCall(shortPattern, args[1])), nil
		})),
	), nil
}

// shortPattern is a function that no expression can name: it lets patterns pass which
// may be compiled for an event; maxPattern bounds their length, in bytes.
const (
	shortPattern = "@pattern"
	maxPattern   = 1 << 10
)

func length(v ref.Val) int64 {
	s, _ := v.(types.String)
	return int64(len(s))
}

// searches reports whether a text may be looked for in another: each of its characters
// may be held against each.
func searches(args []ref.Val) bool { return length(args[0])*length(args[1]) <= maxSearch }

func sizeOfReplace(args []ref.Val) int64 {
	s, _ := args[0].(types.String)
	old, _ := args[1].(types.String)
	return length(s) + int64(strings.Count(string(s), string(old)))*length(args[2])
}

func sizeOfJoin(args []ref.Val) int64 {
	n := extent(args[0], 1, 2*maxText)
	if l, ok := args[0].(traits.Sizer); ok && len(args) == 2 {
		if size, ok := l.Size().(types.Int); ok {
			n += int64(size) * length(args[1])
		}
	}
	return n
}

// sizeOfFormat takes what is formatted for 100 bytes of each that says how ("%.100f" has
// precisions of at most as many), and each value within for 32.
func sizeOfFormat(args []ref.Val) int64 { return 100*length(args[0]) + 2*extent(args[1], 16, maxText) }

// extent is how large a value is: its bytes of text, and each for every value within. It
// walks no further than most.
func extent(v ref.Val, each, most int64) int64 {
	n := each
	switch v := v.(type) {
	case types.String:
		n += int64(len(v))
	case types.Bytes:
		n += int64(len(v))
	case traits.Mapper:
		for it := v.Iterator(); n < most && it.HasNext() == types.True; {
			key := it.Next()
			n += extent(key, each, most-n) + extent(v.Get(key), each, most-n)
		}
	case traits.Lister:
		for it := v.Iterator(); n < most && it.HasNext() == types.True; {
			n += extent(it.Next(), each, most-n)
		}
	}
	return n
}

// perUnit are the values, or bytes that are compared, in one of CEL's units, as CEL has
// it; perText the bytes that another function reads or makes in one.
const perUnit, perText = 10, 64

// readCost counts what calls read for which CEL has one unit or looks only at the
// outside.
type readCost struct{}

// costOptions count with it, and for functions on strings too: those that CEL has take
// replacing in a text of 64 KiB for more than an event may cost.
func costOptions() []cel.ProgramOption {
	out := []cel.ProgramOption{cel.CostTracking(readCost{})}
	for _, overload := range []string{"string_char_at_int", "string_index_of_string", "string_index_of_string_int", "string_last_index_of_string", "string_last_index_of_string_int", "string_lower_ascii",
		"string_upper_ascii", "string_replace_string_string", "string_replace_string_string_int", "string_split_string", "string_split_string_int", "string_substring_int",
		"string_substring_int_int", "string_trim", "string_reverse", "list_join", "list_join_string"} {
		out = append(out, cel.CostTrackerOptions(interpreter.OverloadCostTracker(overload, func([]ref.Val, ref.Val) *uint64 { return nil })))
	}
	return out
}

// CallCost is nil where CEL knows better.
func (readCost) CallCost(function, overload string, args []ref.Val, result ref.Val) *uint64 {
	var n int64
	list, isList := result.(traits.Lister)
	_, grows := result.(traits.MutableLister) // what a macro makes, item by item
	switch {
	case function == operators.In:
		if _, ok := args[1].(traits.Lister); !ok {
			return nil
		}
		overload = overloads.InList // of what is dynamic there is none
	case function == operators.Add && isList && !grows:
		// It is made at once, but whatever reads it takes as long as it is.
		size, _ := list.Size().(types.Int)
		n = int64(size)
	}
	if (function == "indexOf" || function == "lastIndexOf") && !types.IsError(result) {
		n = length(args[0]) * length(args[1]) / 100
	}
	switch overload {
	case overloads.InList, overloads.Equals, overloads.NotEquals:
		n = compared(function, args[0], args[1], maxText)
	case overloads.StartsWithString, overloads.EndsWithString, overloads.ContainsString, overloads.Matches, overloads.MatchesString, overloads.AddString, overloads.AddBytes,
		overloads.LessString, overloads.GreaterString, overloads.LessEqualsString, overloads.GreaterEqualsString:
		return nil
	case overloads.TimestampToYearWithTz, overloads.TimestampToMonthWithTz, overloads.TimestampToDayOfYearWithTz, overloads.TimestampToDayOfMonthZeroBasedWithTz,
		overloads.TimestampToDayOfMonthOneBasedWithTz, overloads.TimestampToDayOfWeekWithTz, overloads.TimestampToHoursWithTz, overloads.TimestampToMinutesWithTz,
		overloads.TimestampToSecondsWithTz, overloads.TimestampToMillisecondsWithTz:
		n = 100 * perUnit // the zone is read from a file
	default:
		read := text(result)
		for _, a := range args {
			read += text(a)
		}
		n += read * perUnit / perText
	}
	cost := uint64(1 + n/perUnit) //nolint:gosec // not negative
	return &cost
}

// text is the length of what is text.
func text(v ref.Val) int64 {
	switch v := v.(type) {
	case types.String:
		return int64(len(v))
	case types.Bytes:
		return int64(len(v))
	}
	return 0
}
