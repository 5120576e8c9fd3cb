package eventcel

import (
	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/weakcache"
)

// Condition says whether something may be done with an event. It is immutable and
// safe for concurrent use.
type Condition struct{ program cel.Program }

// Access is what a Condition judges.
type Access struct {
	// Event is borrowed.
	Event *event.Event
	// Principal is "namespace/name"; Groups are as "namespace/group".
	Principal string
	Groups    []string
	// Action is "publish" or "subscribe", Topic the topic's name.
	Action, Topic string
}

var compiledConditions weakcache.Cache[Condition]

// CompileCondition compiles an expression that gives a bool.
func CompileCondition(src string) (*Condition, error) {
	return compiledConditions.Get(src, func() (*Condition, error) {
		p, _, err := compile(conditions, src, maxConditionCost, cel.BoolType)
		if err != nil {
			return nil, err
		}
		return &Condition{p}, nil
	})
}

// Holds reports whether the condition is true. An error says that it cannot be
// evaluated for this event, or would cost too much: it is neither true nor false.
func (c *Condition) Holds(a Access) (bool, error) {
	v, _, err := c.program.Eval(&a)
	if err != nil {
		return false, err
	}
	return v == types.True, nil
}

// ResolveName gives CEL the variables.
func (a *Access) ResolveName(name string) (any, bool) {
	switch name {
	case "event":
		return attributes{a.Event}, true
	case "principal":
		return a.Principal, true
	case "groups":
		return a.Groups, true
	case "action":
		return a.Action, true
	case "topic":
		return a.Topic, true
	}
	return nil, false
}

// Parent is nil: there are no other variables.
func (a *Access) Parent() cel.Activation { return nil }
