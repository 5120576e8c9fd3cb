package rest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// pattern is the path of a rule: its segments, of which the last may take several.
type pattern []segment

// segment is a text as it reads without escapes, or a variable.
type segment struct {
	text string // of a variable its name
	kind segmentKind
}

type segmentKind int

const (
	literal segmentKind = iota
	one                 // {name}
	several             // {name...}: one or more, to the end
)

// parsePattern parses the path of a rule. Errors read well after "path".
func parsePattern(s string) (pattern, error) {
	rest, ok := strings.CutPrefix(s, "/")
	if !ok {
		return nil, errors.New("must begin with /")
	}
	var p pattern
	for more := rest != ""; more; {
		var text string
		text, rest, more = strings.Cut(rest, "/")
		seg, err := parseSegment(text)
		if err != nil {
			return nil, err
		}
		if seg.kind == several && more {
			return nil, fmt.Errorf("has {%s...} before its end", seg.text)
		}
		if seg.kind != literal && p.variable(seg.text) >= 0 {
			return nil, fmt.Errorf("has the variable {%s} twice", seg.text)
		}
		if p = append(p, seg); len(p) > MaxSegments {
			return nil, fmt.Errorf("has more than %d segments", MaxSegments)
		}
	}
	return p, nil
}

func parseSegment(s string) (segment, error) {
	if name, ok := strings.CutPrefix(s, "{"); ok {
		name, ok = strings.CutSuffix(name, "}")
		name, many := strings.CutSuffix(name, "...")
		if !ok || !validVariable(name) {
			return segment{}, fmt.Errorf("has %q where {name} or {name...} is a segment, of letters, digits and _", s)
		}
		if many {
			return segment{name, several}, nil
		}
		return segment{name, one}, nil
	}
	if strings.ContainsAny(s, "{}") {
		return segment{}, fmt.Errorf("has %q: a variable is a whole segment", s)
	}
	if strings.ContainsAny(s, "?#%") {
		return segment{}, errors.New("must have no query, no fragment and no escapes: it stands as it reads without them")
	}
	return segment{s, literal}, CheckSegment(s)
}

func validVariable(name string) bool {
	return name != "" && len(name) <= 64 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == ""
}

// variable is the index of a variable's segment; -1 without one.
func (p pattern) variable(name string) int {
	return slices.IndexFunc(p, func(s segment) bool { return s.kind != literal && s.text == name })
}

// value is what a variable of the pattern has in a path that fits it.
func (p pattern) value(name string, path *Path) (string, bool) {
	i := p.variable(name)
	if i < 0 {
		return "", false
	}
	if p[i].kind == several {
		return strings.Join(path.Segments()[i:], "/"), true
	}
	return path.segments[i], true
}

// relation is how the paths of one pattern are to those of another.
type relation int

const (
	same relation = iota
	apart
	narrower
	wider
	across // each has what the other has not, and some are of both
)

// and is the relation of patterns of which one part has r and another one o.
func (r relation) and(o relation) relation {
	switch {
	case r == apart || o == apart:
		return apart
	case r == same || r == o:
		return o
	case o == same:
		return r
	}
	return across
}

// compare tells how p is to q, as net/http.ServeMux does.
func compare(p, q pattern) relation {
	r := same
	for i := 0; ; i++ {
		switch {
		case i == len(p) && i == len(q):
			return r
		case i == len(p) || i == len(q):
			return apart
		}
		a, b := p[i], q[i]
		switch {
		case a.kind == several && b.kind == several:
			return r
		case a.kind == several:
			return r.and(wider)
		case b.kind == several:
			return r.and(narrower)
		case a.kind == literal && b.kind == literal:
			if a.text != b.text {
				return apart
			}
		case a.kind == literal:
			r = r.and(narrower)
		case b.kind == literal:
			r = r.and(wider)
		}
	}
}

// Conflict reports whether some path fits two rules of which neither is more
// specific. What cannot be compiled is in no conflict.
func Conflict(methodA, pathA, methodB, pathB string) bool {
	if method(methodA) != method(methodB) {
		return false
	}
	a, errA := parsePattern(pathA)
	b, errB := parsePattern(pathB)
	if errA != nil || errB != nil {
		return false
	}
	r := compare(a, b)
	return r == same || r == across
}
