package discovery

import (
	"bytes"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

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
	// governing are the namespaces of which it has what applies unasked,
	// "governing/ns/*".
	governing map[string]bool
	exact     map[string]bool
	// names is the digest of exact, of no versions.
	names resource.Digest
}

// has reports whether a name is of the scope, and may be.
func (s *scope) has(kind resource.Kind, name, namespace string) bool {
	if s.allowed != nil && !s.allowed[namespace] || !resource.Streamed(kind) {
		return false
	}
	return s.exact[name] || s.covers(kind, namespace)
}

// covers reports whether the scope has all of a kind in a namespace.
func (s *scope) covers(kind resource.Kind, namespace string) bool {
	return s.touches(namespace) && (s.all || s.spaces[namespace] || resource.Unasked(kind))
}

// touches reports whether a wildcard of the scope has any of a namespace.
func (s *scope) touches(namespace string) bool {
	return (s.allowed == nil || s.allowed[namespace]) && (s.serves == nil || s.serves[namespace]) &&
		(s.all || s.spaces[namespace] || s.governing[namespace])
}

// wild reports whether the scope has wildcards.
func (s *scope) wild() bool { return s.all || len(s.spaces)+len(s.governing) > 0 }

// namespaces yields the namespaces of which the scope's wildcards have any,
// sorted, of those that there are.
func (s *scope) namespaces(snap *configstore.Snapshot) iter.Seq[string] {
	// From the smallest list of those that bound it.
	bounds := []map[string]bool{s.allowed, s.serves}
	if !s.all {
		asked := maps.Clone(s.governing)
		if asked == nil {
			asked = map[string]bool{}
		}
		maps.Copy(asked, s.spaces)
		bounds = append(bounds, asked)
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
			if s.touches(ns) && !yield(ns) {
				return
			}
		}
	}
}

// key says what the scope's wildcards cover, the same for scopes that are equal.
func (s *scope) key() string {
	var b strings.Builder
	list := func(m map[string]bool) {
		for _, ns := range slices.Sorted(maps.Keys(m)) {
			fmt.Fprintf(&b, "%q ", ns)
		}
		b.WriteByte(';')
	}
	for _, bound := range []map[string]bool{s.allowed, s.serves} {
		if bound == nil {
			b.WriteByte('*')
		}
		list(bound)
	}
	if s.all {
		b.WriteByte('*')
	} else {
		list(s.spaces)
		list(s.governing)
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
	governed, governs := resource.CutGoverning(n)
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
	case governs:
		if s.governing == nil {
			s.governing = map[string]bool{}
		}
		if !s.governing[governed] {
			news(true)
		}
		s.governing[governed] = true
	default:
		if _, _, _, err := resource.Split(n); err != nil {
			return status.Errorf(codes.InvalidArgument, "resource_names_subscribe: %v", err)
		}
		if s.exact == nil {
			s.exact = map[string]bool{}
		}
		if !s.exact[n] {
			s.exact[n] = true
			s.names = s.names.Add(resource.DigestOf(n, "", nil))
		}
		news(false)
	}
	if len(s.exact)+len(s.spaces)+len(s.governing) > maxSubscribed {
		return status.Errorf(codes.ResourceExhausted, "a stream may subscribe to %d names", maxSubscribed)
	}
	return nil
}

// remove ends the subscription to one name.
func (s *scope) remove(n string) {
	if ns, ok := namespaceWildcard(n); ok {
		delete(s.spaces, ns)
	}
	if ns, ok := resource.CutGoverning(n); ok {
		delete(s.governing, ns)
	}
	if n == "*" {
		s.all = false
	}
	if s.exact[n] {
		delete(s.exact, n)
		s.names = s.names.Sub(resource.DigestOf(n, "", nil))
	}
}

// is reports whether a resume token is of this scope, as it is subscribed to.
func (s *scope) is(t *discoveryv1.ResumeToken) bool {
	var wild []string
	if s.all {
		wild = append(wild, "*")
	}
	for ns := range s.spaces {
		wild = append(wild, "*/"+ns+"/*")
	}
	for ns := range s.governing {
		wild = append(wild, resource.Governing(ns))
	}
	slices.Sort(wild)
	if len(t.Names) == 0 { // of a client that lists them
		wild = slices.AppendSeq(wild, maps.Keys(s.exact))
		slices.Sort(wild)
		return slices.Equal(wild, t.Scope)
	}
	return slices.Equal(wild, t.Scope) && bytes.Equal(t.Names, s.names.Bytes())
}
