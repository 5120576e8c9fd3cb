package cesql

import (
	"math"
	"strings"
	"unicode/utf8"
)

// function is one of the language's own.
type function struct {
	// args are the kinds of the arguments; where it takes any number, the last
	// one is that of all that follow.
	args     []kind
	variadic bool
	any      bool // takes its argument as it is
	result   kind
	run      func(args []value) (value, error)
}

func (f *function) arg(i int) kind { return f.args[min(i, len(f.args)-1)] }

// zero is the value that goes with an error of evaluating the arguments.
func (f *function) zero() value { return value{kind: f.result} }

// functionOf finds a function by its name and number of arguments; nil without one.
func functionOf(name string, args int) *function {
	str, num := kindString, kindInt
	switch {
	case name == "CONCAT":
		return &function{args: []kind{str}, variadic: true, result: str, run: concat}
	case name == "CONCAT_WS" && args > 0:
		return &function{args: []kind{str}, variadic: true, result: str, run: concatWS}
	case name == "SUBSTRING" && args == 2, name == "SUBSTRING" && args == 3:
		return &function{args: []kind{str, num, num}, result: str, run: substring}
	case name == "LEFT" && args == 2:
		return &function{args: []kind{str, num}, result: str, run: left}
	case name == "RIGHT" && args == 2:
		return &function{args: []kind{str, num}, result: str, run: right}
	case args != 1:
		return nil
	}
	switch name {
	case "INT":
		return &function{any: true, result: num, run: func(a []value) (value, error) { return a[0].toInt() }}
	case "BOOL":
		return &function{any: true, result: kindBool, run: func(a []value) (value, error) { return a[0].toBool() }}
	case "STRING":
		return &function{any: true, result: str, run: func(a []value) (value, error) { return a[0].toString(), nil }}
	case "IS_INT":
		return &function{any: true, result: kindBool, run: func(a []value) (value, error) {
			_, err := a[0].toInt()
			return boolean(err == nil), nil
		}}
	case "IS_BOOL":
		return &function{any: true, result: kindBool, run: func(a []value) (value, error) {
			_, err := a[0].toBool()
			return boolean(err == nil), nil
		}}
	case "ABS":
		return &function{args: []kind{num}, result: num, run: abs}
	case "LENGTH":
		return &function{args: []kind{str}, result: num, run: func(a []value) (value, error) {
			return integer(int32(utf8.RuneCountInString(a[0].s))), nil
		}}
	case "LOWER":
		return &function{args: []kind{str}, result: str, run: func(a []value) (value, error) { return text(strings.ToLower(a[0].s)), nil }}
	case "UPPER":
		return &function{args: []kind{str}, result: str, run: func(a []value) (value, error) { return text(strings.ToUpper(a[0].s)), nil }}
	case "TRIM":
		return &function{args: []kind{str}, result: str, run: func(a []value) (value, error) { return text(strings.TrimSpace(a[0].s)), nil }}
	}
	return nil
}

func abs(a []value) (value, error) {
	switch i := a[0].i; {
	case i == math.MinInt32:
		return integer(math.MaxInt32), ErrMath
	case i < 0:
		return integer(-i), nil
	}
	return a[0], nil
}

func concat(a []value) (value, error) {
	if len(a) == 1 {
		return a[0], nil
	}
	var b strings.Builder
	for _, v := range a {
		b.WriteString(v.s)
	}
	return text(b.String()), nil
}

func concatWS(a []value) (value, error) {
	var b strings.Builder
	for i, v := range a[1:] {
		if i > 0 {
			b.WriteString(a[0].s)
		}
		b.WriteString(v.s)
	}
	return text(b.String()), nil
}

// at is the byte where the character n of s begins; the end of s where it has fewer.
func at(s string, n int) int {
	for i := range s {
		if n == 0 {
			return i
		}
		n--
	}
	return len(s)
}

func left(a []value) (value, error) {
	s, n := a[0].s, int(a[1].i)
	if n < 0 {
		return a[0], ErrFunction
	}
	return text(s[:at(s, n)]), nil
}

func right(a []value) (value, error) {
	s, n := a[0].s, int(a[1].i)
	if n < 0 {
		return a[0], ErrFunction
	}
	return text(s[at(s, max(utf8.RuneCountInString(s)-n, 0)):]), nil
}

// substring counts from 1, or from the end where the position is negative.
func substring(a []value) (value, error) {
	s, pos, chars := a[0].s, int(a[1].i), utf8.RuneCountInString(a[0].s)
	length := chars
	if len(a) == 3 {
		length = int(a[2].i)
	}
	switch {
	case pos == 0:
		return text(""), nil
	case pos < -chars || pos > chars || length < 0:
		return text(""), ErrFunction
	case pos < 0:
		pos += chars
	default:
		pos--
	}
	s = s[at(s, pos):]
	return text(s[:at(s, length)]), nil
}
