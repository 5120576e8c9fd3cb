package rest

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"
)

// CheckSegment tells whether a decoded segment is one that everybody reads alike.
func CheckSegment(s string) error {
	bare, _, _ := strings.Cut(s, ";")
	switch {
	case bare == "":
		return errors.New("has an empty segment")
	case bare == "." || bare == "..":
		return errors.New(`has a segment "." or ".."`)
	case strings.ContainsAny(s, `/\`):
		return errors.New("has an escaped slash or a backslash in a segment")
	case !utf8.ValidString(s):
		return errors.New("is not UTF-8")
	case strings.IndexFunc(s, func(r rune) bool { return r < 0x20 || r >= 0x7f && r < 0xa0 }) >= 0:
		return errors.New("has a control character")
	}
	return nil
}

// Path is a path of a call as everything reads it: its segments, decoded once. "/" has
// none.
type Path struct {
	n        int
	segments [MaxSegments]string
}

// ReadPath reads a path in its escaped form, which begins with a slash. Errors tell
// callers what it has.
func ReadPath(escaped string) (*Path, error) {
	p := &Path{}
	rest, ok := strings.CutPrefix(escaped, "/")
	if !ok {
		return nil, errors.New("does not begin with /")
	}
	for more := rest != ""; more; {
		var s string
		s, rest, more = strings.Cut(rest, "/")
		s, err := url.PathUnescape(s)
		if err != nil {
			return nil, errors.New("has an escape that is none")
		}
		if err := CheckSegment(s); err != nil {
			return nil, err
		}
		if p.n == MaxSegments {
			return nil, fmt.Errorf("has more than %d segments", MaxSegments)
		}
		p.segments[p.n] = s
		p.n++
	}
	return p, nil
}

// Segments are the decoded segments; they are not to be changed.
func (p *Path) Segments() []string { return p.segments[:p.n] }
