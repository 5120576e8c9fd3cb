// Package cesql judges events by CloudEvents SQL expressions (CESQL 1.0).
//
// The language is the CloudEvents SDK's: its grammar parses an expression here
// too. What is parsed is compiled once into a tree that reads the mesh's own
// events in place: judging an event copies nothing, allocates nothing unless a
// function makes a new string, and costs a bounded number of steps whatever the
// expression and the event are. The SDK's own evaluation stands beside it in tests.
//
// Differences from the SDK: LENGTH, LEFT, RIGHT, SUBSTRING and LIKE's "_" count
// characters, as the specification says, where the SDK counts bytes; a negative
// length of SUBSTRING is an error; a function that does not exist is refused when
// the expression is compiled.
package cesql

import (
	"errors"
	"fmt"
	"sync"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/weakcache"
)

// Bounds of an expression. What is beyond is refused by Compile.
const (
	// MaxLength is the longest expression, in bytes.
	MaxLength = 4 << 10
	// MaxTokens bounds names, literals, operators and punctuation of it.
	MaxTokens = 512
	// MaxDepth is how deep it nests.
	MaxDepth = 32
)

// MaxSteps bounds what judging one event may cost: each operation is a step, and
// so are 16 bytes that are compared and 4 bytes of what a function is given. All of
// them take about 100 µs.
const MaxSteps = 10_000

// Expression is a compiled expression. It is immutable and safe for concurrent use.
type Expression struct {
	root       node
	source     string
	attributes []string
}

// Compile compiles src. The error says what is wrong and where; it is not of any
// particular type.
func Compile(src string) (*Expression, error) {
	return compiled.Get(src, func() (*Expression, error) {
		root, attributes, err := parse(src)
		if err != nil {
			return nil, err
		}
		return &Expression{root: root, source: src, attributes: attributes}, nil
	})
}

var compiled weakcache.Cache[Expression]

// Attributes are the names of the attributes that the expression looks at, each once, in
// the order in which it has them.
func (x *Expression) Attributes() []string { return x.attributes }

// String is the expression as it was written.
func (x *Expression) String() string { return x.source }

// Match reports whether the expression is true of e, cast to a Boolean if it is of
// another type. Where it cannot be evaluated the answer is false, with why: one of
// the errors of this package, by errors.Is. It borrows e.
func (x *Expression) Match(e *event.Event) (bool, error) {
	v, err := x.eval(e)
	if err != nil {
		return false, err
	}
	v, err = v.toBool()
	return v.b && err == nil, err
}

func (x *Expression) eval(e *event.Event) (value, error) {
	s := scopes.Get().(*scope)
	s.event, s.steps = e, MaxSteps
	v, err := x.root.eval(s)
	s.event = nil
	clear(s.args[:cap(s.args)])
	s.args = s.args[:0]
	scopes.Put(s)
	return v, err
}

// scopes keeps what one evaluation needs for the next one.
var scopes = sync.Pool{New: func() any { return new(scope) }}

// Why an expression cannot be evaluated for an event. With an error goes a value,
// as the specification has it; a filter does not match.
var (
	// ErrMissingAttribute: the event does not have an attribute that is compared.
	ErrMissingAttribute = errors.New("the event has no such attribute")
	// ErrCast: a value cannot become of the type that is needed.
	ErrCast = errors.New("a value cannot be cast")
	// ErrMath: a division by zero, or a result beyond 32 bits.
	ErrMath = errors.New("an arithmetic result does not exist")
	// ErrFunction: a function cannot be applied to its arguments.
	ErrFunction = errors.New("a function cannot be applied to its arguments")
	// ErrCost: it costs more than MaxSteps.
	ErrCost = errors.New("the expression costs more than one event may cost")
)

// errMissingFunction is of expressions that call what does not exist.
var errMissingFunction = errors.New("there is no such function")

// syntaxError is what the parser says of a place.
type syntaxError struct {
	line, column int
	msg          string
}

func (e *syntaxError) Error() string {
	return fmt.Sprintf("line %d, column %d: %s", e.line, e.column+1, e.msg)
}
