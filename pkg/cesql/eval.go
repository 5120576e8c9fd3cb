package cesql

import (
	"math"
	"strconv"
	"strings"

	"github.com/weft-mesh/weft/pkg/event"
)

// kind is one of the three types of the language.
type kind uint8

const (
	kindBool kind = iota // what the zero value is
	kindInt
	kindString
)

// value is of one of the three types.
type value struct {
	kind kind
	b    bool
	i    int32
	s    string
}

func boolean(b bool) value  { return value{kind: kindBool, b: b} }
func integer(i int32) value { return value{kind: kindInt, i: i} }
func text(s string) value   { return value{kind: kindString, s: s} }

// cast makes v of kind k (CESQL, "Type casting").
func (v value) cast(k kind) (value, error) {
	switch k {
	case kindBool:
		return v.toBool()
	case kindInt:
		return v.toInt()
	}
	return v.toString(), nil
}

func (v value) toBool() (value, error) {
	switch v.kind {
	case kindInt:
		return boolean(v.i != 0), nil
	case kindString:
		switch {
		case strings.EqualFold(v.s, "true"):
			return boolean(true), nil
		case strings.EqualFold(v.s, "false"):
			return boolean(false), nil
		}
		return boolean(false), ErrCast
	}
	return v, nil
}

func (v value) toInt() (value, error) {
	switch v.kind {
	case kindBool:
		if v.b {
			return integer(1), nil
		}
		return integer(0), nil
	case kindString:
		i, ok := parseInt(v.s)
		if !ok {
			return integer(i), ErrCast
		}
		return integer(i), nil
	}
	return v, nil
}

// parseInt is strconv.ParseInt(s, 10, 32) without its error, which is allocated.
func parseInt(s string) (int32, bool) {
	digits := strings.TrimLeft(s, "+-")
	if len(s)-len(digits) > 1 || digits == "" {
		return 0, false
	}
	var n int64
	for i := 0; i < len(digits); i++ {
		c := digits[i]
		if c < '0' || c > '9' {
			return 0, false
		}
		if n = n*10 + int64(c-'0'); n > 1<<31 {
			n = 1 << 31 // however many more digits there are
		}
	}
	if s[0] == '-' {
		n = -n
	}
	if n > math.MaxInt32 {
		return math.MaxInt32, false
	}
	if n == -1<<31 && strings.TrimLeft(digits, "0") != "2147483648" {
		return math.MinInt32, false
	}
	return int32(n), true
}

func (v value) toString() value {
	switch v.kind {
	case kindBool:
		return text(strconv.FormatBool(v.b))
	case kindInt:
		return text(strconv.Itoa(int(v.i)))
	}
	return v
}

// scope is one evaluation.
type scope struct {
	event *event.Event
	steps int // that are left
	// args is a stack of the arguments of calls.
	args []value
}

// step pays for one operation on n bytes.
func (s *scope) step(n int) error {
	if s.steps -= 1 + n/16; s.steps < 0 {
		return ErrCost
	}
	return nil
}

// node is one operation. With an error goes the value that the specification asks
// for.
type node interface {
	eval(s *scope) (value, error)
}

type literal struct{ v value }

func (n literal) eval(*scope) (value, error) { return n.v, nil }

type attribute struct {
	name    string
	missing error
}

func (n attribute) eval(s *scope) (value, error) {
	if v, ok := s.event.Attribute(n.name); ok {
		return text(v), nil
	}
	return value{}, n.missing
}

type exists struct{ name string }

func (n exists) eval(s *scope) (value, error) {
	_, ok := s.event.Attribute(n.name)
	return boolean(ok), nil
}

type not struct{ of node }

func (n not) eval(s *scope) (value, error) {
	v, err := as(s, n.of, kindBool)
	return boolean(!v.b && err == nil), err
}

type negate struct{ of node }

func (n negate) eval(s *scope) (value, error) {
	v, err := as(s, n.of, kindInt)
	if err != nil {
		return integer(0), err
	}
	return integer(-v.i), nil
}

// as evaluates n as a kind.
func as(s *scope, n node, k kind) (value, error) {
	if err := s.step(0); err != nil {
		return value{}, err
	}
	v, err := n.eval(s)
	if err != nil {
		return value{}, err
	}
	return v.cast(k)
}

type operator uint8

const (
	opAnd operator = iota
	opOr
	opXor
	opAdd
	opSubtract
	opMultiply
	opDivide
	opModulo
	opLess
	opLessOrEqual
	opGreater
	opGreaterOrEqual
)

type logic struct {
	op          operator
	left, right node
}

func (n logic) eval(s *scope) (value, error) {
	l, err := as(s, n.left, kindBool)
	if err != nil {
		return boolean(false), err
	}
	if n.op == opAnd && !l.b || n.op == opOr && l.b {
		return l, nil
	}
	r, err := as(s, n.right, kindBool)
	if err != nil {
		return boolean(false), err
	}
	if n.op == opXor {
		r.b = l.b != r.b
	}
	return r, nil
}

type arithmetic struct {
	op          operator
	left, right node
}

func (n arithmetic) eval(s *scope) (value, error) {
	l, r, err := integers(s, n.left, n.right)
	if err != nil {
		return integer(0), err
	}
	switch n.op {
	case opAdd:
		return integer(l + r), nil
	case opSubtract:
		return integer(l - r), nil
	case opMultiply:
		return integer(l * r), nil
	}
	if r == 0 {
		return integer(0), ErrMath
	}
	if n.op == opModulo {
		return integer(l % r), nil
	}
	return integer(l / r), nil
}

// integers evaluates both, and then casts both.
func integers(s *scope, left, right node) (l, r int32, err error) {
	if err := s.step(0); err != nil {
		return 0, 0, err
	}
	lv, err := left.eval(s)
	if err != nil {
		return 0, 0, err
	}
	rv, err := right.eval(s)
	if err != nil {
		return 0, 0, err
	}
	if lv, err = lv.toInt(); err != nil {
		return 0, 0, err
	}
	if rv, err = rv.toInt(); err != nil {
		return 0, 0, err
	}
	return lv.i, rv.i, nil
}

type order struct {
	op          operator
	left, right node
}

func (n order) eval(s *scope) (value, error) {
	l, r, err := integers(s, n.left, n.right)
	if err != nil {
		return boolean(false), err
	}
	switch n.op {
	case opLess:
		return boolean(l < r), nil
	case opLessOrEqual:
		return boolean(l <= r), nil
	case opGreater:
		return boolean(l > r), nil
	}
	return boolean(l >= r), nil
}

// equal compares; the left operand becomes of the right one's type.
type equal struct {
	left, right node
	want        bool
}

func (n equal) eval(s *scope) (value, error) {
	if err := s.step(0); err != nil {
		return boolean(false), err
	}
	l, err := n.left.eval(s)
	if err != nil {
		return boolean(false), err
	}
	r, err := n.right.eval(s)
	if err != nil {
		return boolean(false), err
	}
	same, err := equals(s, l, r)
	if err != nil {
		return boolean(false), err
	}
	return boolean(same == n.want), nil
}

// equals compares l, cast to the kind of r, with r.
func equals(s *scope, l, r value) (bool, error) {
	l, err := l.cast(r.kind)
	if err != nil {
		return false, err
	}
	if l.kind == kindString && len(l.s) == len(r.s) {
		if err := s.step(len(l.s)); err != nil {
			return false, err
		}
	}
	return l == r, nil
}

// in compares with one after another; each becomes of the left operand's type.
type in struct {
	left node
	set  []node
}

func (n in) eval(s *scope) (value, error) {
	if err := s.step(0); err != nil {
		return boolean(false), err
	}
	l, err := n.left.eval(s)
	if err != nil {
		return boolean(false), err
	}
	for _, m := range n.set {
		if err := s.step(0); err != nil {
			return boolean(false), err
		}
		r, err := m.eval(s)
		if err != nil {
			return boolean(false), err
		}
		same, err := equals(s, r, l)
		if err != nil || same {
			return boolean(same), err
		}
	}
	return boolean(false), nil
}

type like struct {
	of      node
	pattern pattern
}

func (n like) eval(s *scope) (value, error) {
	v, err := as(s, n.of, kindString)
	if err != nil {
		return boolean(false), err
	}
	ok, err := n.pattern.match(s, v.s)
	return boolean(ok), err
}

type call struct {
	f    *function
	args []node
}

func (n call) eval(s *scope) (value, error) {
	base := len(s.args)
	defer func() { s.args = s.args[:base] }()
	for i, a := range n.args {
		if err := s.step(0); err != nil {
			return n.f.zero(), err
		}
		v, err := a.eval(s)
		if err == nil && !n.f.any {
			v, err = v.cast(n.f.arg(i))
		}
		if err == nil {
			err = s.step(4 * len(v.s))
		}
		if err != nil {
			return n.f.zero(), err
		}
		s.args = append(s.args, v)
	}
	return n.f.run(s.args[base:])
}
