package cesql

import (
	"strings"
	"unicode/utf8"
)

// pattern is a LIKE pattern: pieces with "%" between them.
type pattern struct {
	pieces []piece
	// open: there is a "%", so that pieces need not meet each other.
	open bool
}

// piece is literals with exactly one character between each of them.
type piece []string

func compileLike(src string) pattern {
	p := pattern{}
	var lit strings.Builder
	cur := piece{}
	for i := 0; i < len(src); i++ {
		switch c := src[i]; {
		case c == '\\' && i+1 < len(src) && (src[i+1] == '_' || src[i+1] == '%'):
			i++
			lit.WriteByte(src[i])
		case c == '_':
			cur = append(cur, lit.String())
			lit.Reset()
		case c == '%':
			p.pieces = append(p.pieces, append(cur, lit.String()))
			lit.Reset()
			cur = piece{}
			p.open = true
		default:
			lit.WriteByte(c)
		}
	}
	p.pieces = append(p.pieces, append(cur, lit.String()))
	return p
}

// match tells whether the whole of s matches. Each "%" takes as little as it can,
// which finds a match wherever there is one.
func (p pattern) match(sc *scope, s string) (bool, error) {
	if err := sc.step(len(s)); err != nil {
		return false, err
	}
	n := p.pieces[0].prefix(s)
	if n < 0 || !p.open {
		return n == len(s), nil
	}
	s = s[n:]
	last := len(p.pieces) - 1
	for _, piece := range p.pieces[1:last] {
		end, err := piece.find(sc, s)
		if err != nil || end < 0 {
			return false, err
		}
		s = s[end:]
	}
	return p.pieces[last].suffix(s), nil
}

// cost is what comparing it costs, in bytes that are looked at.
func (p piece) cost() int {
	n := 0
	for _, lit := range p {
		n += 16 + len(lit)
	}
	return n
}

// prefix is where the piece ends that s begins with; -1 where it does not.
func (p piece) prefix(s string) int {
	at := 0
	for i, lit := range p {
		if i > 0 {
			_, n := utf8.DecodeRuneInString(s[at:])
			if n == 0 {
				return -1
			}
			at += n
		}
		if !strings.HasPrefix(s[at:], lit) {
			return -1
		}
		at += len(lit)
	}
	return at
}

// suffix tells whether s ends with the piece.
func (p piece) suffix(s string) bool {
	for i := len(p) - 1; i >= 0; i-- {
		if !strings.HasSuffix(s, p[i]) {
			return false
		}
		s = s[:len(s)-len(p[i])]
		if i > 0 {
			_, n := utf8.DecodeLastRuneInString(s)
			if n == 0 {
				return false
			}
			s = s[:len(s)-n]
		}
	}
	return true
}

// find is where the first occurrence of the piece in s ends; -1 without one.
func (p piece) find(sc *scope, s string) (int, error) {
	if len(p) == 1 {
		i := strings.Index(s, p[0])
		if i < 0 {
			return -1, nil
		}
		return i + len(p[0]), nil
	}
	for at := 0; ; {
		// Where the piece begins with a literal only its occurrences count.
		i := strings.Index(s[at:], p[0])
		if i < 0 {
			return -1, nil
		}
		at += i
		if err := sc.step(p.cost()); err != nil {
			return -1, err
		}
		if n := p.prefix(s[at:]); n >= 0 {
			return at + n, nil
		}
		_, n := utf8.DecodeRuneInString(s[at:])
		if n == 0 {
			return -1, nil
		}
		at += n
	}
}
