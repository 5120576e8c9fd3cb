// Package eventcel judges and rewrites events by expressions of CEL, the Common
// Expression Language (https://cel.dev): the conditions of access rules and the
// transforms of Subscriptions. An expression is compiled once, type-checked, and
// costs a bounded amount for each event.
package eventcel

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/checker"
	"cel.dev/cel-go/ext"

	"github.com/weft-mesh/weft/pkg/event"
)

// Bounds of an expression.
const (
	// MaxLength is the longest expression, in bytes.
	MaxLength = 4 << 10
	// maxDepth is how deep it nests, maxNodes its parts with what macros make of it.
	maxDepth = 32
	maxNodes = 2048
	// maxRegexp bounds the compiled size of a pattern of matches().
	maxRegexp = 256
)

// Cost is in CEL's units, each about 250 ns where it is dearest. An expression whose least cost is
// beyond what one event may cost is refused; one that costs more for an event ends
// with an error.
const (
	maxConditionCost = 500
	maxTransformCost = 20_000
)

// language is what all expressions share: the standard library and functions on
// strings, a map of an event's attributes.
func language(more ...cel.EnvOption) (*cel.Env, error) {
	bounded, err := bounds(ext.Strings(ext.StringsVersion(5)))
	if err != nil {
		return nil, err
	}
	return cel.NewEnv(slices.Concat([]cel.EnvOption{
		cel.Variable("event", cel.MapType(cel.StringType, cel.StringType)),
		ext.Strings(ext.StringsVersion(5)),
		cel.ParserExpressionSizeLimit(MaxLength), cel.ParserRecursionLimit(maxDepth), cel.ExpressionNodeLimit(maxNodes), cel.RegexProgramSizeLimit(maxRegexp),
		cel.ASTValidators(cel.ValidateRegexLiterals(), cel.ValidateTimestampLiterals(), cel.ValidateDurationLiterals()),
		cel.DefaultUTCTimeZone(true),
	}, bounded, more)...)
}

// conditions and transforms are the two environments, made when the first
// expression needs them: a proxy without any pays nothing for them.
var (
	conditions = sync.OnceValues(func() (*cel.Env, error) {
		return language(cel.Variable("principal", cel.StringType), cel.Variable("groups", cel.ListType(cel.StringType)),
			cel.Variable("action", cel.StringType), cel.Variable("topic", cel.StringType))
	})
	transforms = sync.OnceValues(func() (*cel.Env, error) {
		return language(cel.Variable("data", cel.DynType))
	})
)

// compile makes a program of src that gives one of the types.
func compile(of func() (*cel.Env, error), src string, cost uint64, types ...*cel.Type) (cel.Program, *cel.Ast, error) {
	if len(src) > MaxLength {
		return nil, nil, fmt.Errorf("has %d bytes, an expression may have %d", len(src), MaxLength)
	}
	env, err := of()
	if err != nil {
		return nil, nil, err
	}
	ast, issues := env.Compile(src)
	if issues != nil && issues.Err() != nil {
		return nil, nil, places(issues)
	}
	ok := len(types) == 0
	for _, t := range types {
		ok = ok || ast.OutputType().IsExactType(t)
	}
	if !ok {
		return nil, nil, fmt.Errorf("is a %s, must be a %s", ast.OutputType(), types[0])
	}
	least, err := env.EstimateCost(ast, sizes{})
	if err != nil {
		return nil, nil, err
	}
	if least.Min > cost {
		return nil, nil, fmt.Errorf("costs at least %d for each event, the most is %d", least.Min, cost)
	}
	p, err := env.Program(ast, append(costOptions(), weighed(cost), cel.EvalOptions(cel.OptOptimize), cel.CostLimit(cost))...)
	return p, ast, err
}

// places is what is wrong, and where.
func places(issues *cel.Issues) error {
	var out []string
	for _, e := range issues.Errors() {
		out = append(out, fmt.Sprintf("line %d, column %d: %s", e.Location.Line(), e.Location.Column()+1, e.Message))
		if len(out) == 3 {
			break
		}
	}
	return errors.New(strings.Join(out, "; "))
}

// sizes tells how large the variables may be.
type sizes struct{}

// EstimateSize is the size of what comes from outside.
func (sizes) EstimateSize(n checker.AstNode) *checker.SizeEstimate {
	switch path := n.Path(); {
	case len(path) > 1 && path[0] == "event", len(path) > 0 && path[0] == "topic", len(path) > 0 && path[0] == "principal":
		return &checker.SizeEstimate{Min: 0, Max: event.MaxAttributeValue}
	case len(path) > 0 && (path[0] == "event" || path[0] == "groups"):
		return &checker.SizeEstimate{Min: 0, Max: event.MaxAttributes + 8}
	}
	return nil
}

// EstimateCallCost leaves calls to CEL.
func (sizes) EstimateCallCost(string, string, *checker.AstNode, []checker.AstNode) *checker.CallEstimate {
	return nil
}
