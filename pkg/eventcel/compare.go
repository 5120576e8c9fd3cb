package eventcel

import (
	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"
)

// comparison is a call that compares values, which is weighed before it is made: lists
// that have one value eight times, of lists that do, and so on, are made for little, and are
// compared value by value.
type comparison struct {
	interpreter.InterpretableCall
	most int64 // values, or bytes
}

// weighed has comparisons weighed that are beyond what an event may cost.
func weighed(cost uint64) cel.ProgramOption {
	return cel.CustomDecoratorV2(func(i interpreter.InterpretableV2) (interpreter.InterpretableV2, error) {
		call, ok := i.(interpreter.InterpretableCall)
		if !ok {
			return i, nil
		}
		switch call.Function() {
		case operators.Equals, operators.NotEquals:
			if constant(call.Args()[0]) || constant(call.Args()[1]) {
				return i, nil
			}
		case operators.In:
			if constant(call.Args()[1]) {
				return i, nil
			}
		default:
			return i, nil
		}
		return comparison{call, int64(cost) * perUnit}, nil //nolint:gosec // it is small
	})
}

// constant reports whether a value stands in the expression: what is compared with it is
// looked at no further than that.
func constant(i interpreter.InterpretableV2) bool {
	_, ok := i.(interpreter.InterpretableConst)
	return ok
}

// Exec compares.
func (c comparison) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	args := c.Args()
	l := args[0].Exec(frame)
	if types.IsUnknownOrError(l) {
		return l
	}
	r := args[1].Exec(frame)
	if types.IsUnknownOrError(r) {
		return r
	}
	if compared(c.Function(), l, r, c.most) > c.most {
		// As CEL ends what is beyond its limit: no || goes on behind it.
		panic(interpreter.EvalCancelledError{Cause: interpreter.CostLimitExceeded, Message: "operation cancelled: a comparison is beyond the cost limit"})
	}
	switch c.Function() {
	case operators.Equals:
		return types.Equal(l, r)
	case operators.NotEquals:
		return types.Bool(types.Equal(l, r) != types.True)
	}
	in, ok := r.(traits.Container)
	if !ok {
		return types.NewErrWithNodeID(c.ID(), "no such overload: %s", c.Function())
	}
	return types.LabelErrNode(c.ID(), in.Contains(l))
}

// Eval is Exec.
func (c comparison) Eval(vars interpreter.Activation) ref.Val {
	return c.Exec(interpreter.AsFrame(vars))
}

// compared is how many values, or bytes of text, a comparison looks at; 0 for looking up in
// a map. It walks no further than most.
func compared(function string, l, r ref.Val, most int64) int64 {
	n := extent(l, 1, most+1)
	if function != operators.In {
		return min(n, extent(r, 1, n))
	}
	list, ok := r.(traits.Lister)
	if !ok {
		return 0
	}
	size, _ := list.Size().(types.Int)
	return int64(size) * max(perUnit, n)
}
