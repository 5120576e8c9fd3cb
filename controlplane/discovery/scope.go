package discovery

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
)

// scope is what a stream is about.
type scope struct {
	allowed map[string]bool // by credential; nil is all
	serves  map[string]bool // by NodeInfo; nil is all
	all     bool            // "*"
	spaces  map[string]bool // "*/ns/*"
	exact   map[string]bool
}

// has reports whether a name is of the scope, and may be.
func (s *scope) has(name, namespace string) bool {
	if s.allowed != nil && !s.allowed[namespace] || strings.HasPrefix(name, string(resource.Quarantine)+"/") {
		return false
	}
	return s.exact[name] || s.covers(namespace)
}

// covers reports whether a whole namespace is of the scope.
func (s *scope) covers(namespace string) bool {
	return (s.allowed == nil || s.allowed[namespace]) && (s.all || s.spaces[namespace]) && (s.serves == nil || s.serves[namespace])
}

// wild reports whether the scope has whole namespaces.
func (s *scope) wild() bool { return s.all || len(s.spaces) > 0 }

// namespaces yields the namespaces that the scope covers, sorted, of those that
// there are.
func (s *scope) namespaces(snap *configstore.Snapshot) iter.Seq[string] {
	// From the smallest list of those that bound it.
	bounds := []map[string]bool{s.allowed, s.serves}
	if !s.all {
		bounds = append(bounds, s.spaces)
	}
	var least map[string]bool
	for _, list := range bounds {
		if list != nil && (least == nil || len(list) < len(least)) {
			least = list
		}
	}
	candidates := snap.Namespaces()
	if least != nil {
		candidates = slices.Values(slices.Sorted(maps.Keys(least)))
	}
	return func(yield func(string) bool) {
		for ns := range candidates {
			if s.covers(ns) && !yield(ns) {
				return
			}
		}
	}
}

// key says what the scope's wildcards cover, the same for scopes that are equal.
func (s *scope) key() string {
	var b strings.Builder
	list := func(m map[string]bool) {
		if m == nil {
			b.WriteByte('*')
		}
		for _, ns := range slices.Sorted(maps.Keys(m)) {
			fmt.Fprintf(&b, "%q ", ns)
		}
		b.WriteByte(';')
	}
	list(s.allowed)
	list(s.serves)
	if s.all {
		b.WriteByte('*')
	} else {
		list(s.spaces)
	}
	return b.String()
}

// namespaceWildcard is the namespace of "*/ns/*".
func namespaceWildcard(n string) (string, bool) {
	rest, ok := strings.CutPrefix(n, "*/")
	ns, ok2 := strings.CutSuffix(rest, "/*")
	return ns, ok && ok2 && names.CheckNamespace(ns) == nil
}

// add subscribes to one name. News is called where it brings what is to be sent:
// for a name always, for a wildcard where it is new.
func (s *scope) add(n string, news func(wild bool)) error {
	switch ns, ok := namespaceWildcard(n); {
	case n == "*":
		if !s.all {
			news(true)
		}
		s.all = true
	case ok:
		if s.spaces == nil {
			s.spaces = map[string]bool{}
		}
		if !s.spaces[ns] {
			news(true)
		}
		s.spaces[ns] = true
	default:
		if _, _, _, err := resource.Split(n); err != nil {
			return status.Errorf(codes.InvalidArgument, "resource_names_subscribe: %v", err)
		}
		if s.exact == nil {
			s.exact = map[string]bool{}
		}
		s.exact[n] = true
		news(false)
	}
	if len(s.exact)+len(s.spaces) > maxSubscribed {
		return status.Errorf(codes.ResourceExhausted, "a stream may subscribe to %d names", maxSubscribed)
	}
	return nil
}

// remove ends the subscription to one name.
func (s *scope) remove(n string) {
	if ns, ok := namespaceWildcard(n); ok {
		delete(s.spaces, ns)
	}
	if n == "*" {
		s.all = false
	}
	delete(s.exact, n)
}
