package rest

import (
	"fmt"
	"slices"
)

// Mux finds the rule of a call among those of a namespace, or of a host. The zero
// value has none. It is safe for concurrent use once all are added.
type Mux struct{ root node }

// node is where paths stand after some segments.
type node struct {
	literals map[string]*node
	one      *node
	// several are the rules that take all segments from here, here those of the path
	// that ends here: each of another method.
	several, here []*Rule
}

// Add adds a rule. The error names one that is there and fits a path as well as r.
func (m *Mux) Add(r *Rule) error {
	at := &m.root
	for _, s := range r.path {
		switch s.kind {
		case literal:
			if at.literals == nil {
				at.literals = map[string]*node{}
			}
			if at.literals[s.text] == nil {
				at.literals[s.text] = &node{}
			}
			at = at.literals[s.text]
		case one:
			if at.one == nil {
				at.one = &node{}
			}
			at = at.one
		case several:
			return put(&at.several, r)
		}
	}
	return put(&at.here, r)
}

// put adds a rule to those of other methods.
func put(list *[]*Rule, r *Rule) error {
	if o := of(*list, r.Method); o != nil {
		return fmt.Errorf("%s and %s fit the same paths", o, r)
	}
	*list = append(*list, r)
	return nil
}

func of(list []*Rule, method string) *Rule {
	for _, r := range list {
		if r.Method == method {
			return r
		}
	}
	return nil
}

// Find is the most specific rule of a method and path; nil without one.
func (m *Mux) Find(method string, p *Path) *Rule { return m.root.find(method, p.Segments()) }

// find looks where a path goes on, the most specific way first: no other rule fits
// that is as specific, and each node is looked at once.
func (n *node) find(method string, rest []string) *Rule {
	if len(rest) == 0 {
		return of(n.here, method)
	}
	if next := n.literals[rest[0]]; next != nil {
		if r := next.find(method, rest[1:]); r != nil {
			return r
		}
	}
	if n.one != nil {
		if r := n.one.find(method, rest[1:]); r != nil {
			return r
		}
	}
	return of(n.several, method)
}

// All are the rules that fit a path, the most specific one of each method, sorted by
// it.
func (m *Mux) All(p *Path) []*Rule {
	var out []*Rule
	for _, method := range Methods() {
		if r := m.Find(method, p); r != nil {
			out = append(out, r)
		}
	}
	return out
}

// Methods are those that a rule may have, sorted.
func Methods() []string { return []string{"DELETE", "GET", "PATCH", "POST", "PUT"} }

func knownMethod(m string) bool { return slices.Contains(Methods(), m) }
