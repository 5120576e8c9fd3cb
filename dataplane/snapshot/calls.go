package snapshot

import (
	"fmt"

	"github.com/weft-mesh/weft/pkg/resource"
	"github.com/weft-mesh/weft/pkg/rest"
)

// Calls are the rules of HttpBindings, by where they are called.
type Calls struct {
	namespaces map[string]*Bindings
	hosts      map[string]*Bindings
	// withheld is a binding whose hosts are not known; "" without one.
	withheld string
}

// Bindings are rules that are called at one place.
type Bindings struct {
	Namespace string
	Rules     rest.Mux
	// NotReady says why none of them may be called; "" when they may.
	NotReady string
}

// In are the bindings of a namespace; nil without any.
func (c *Calls) In(namespace string) *Bindings { return c.namespaces[namespace] }

// At are the bindings of a host, in lower case and without a port; nil without any.
func (c *Calls) At(host string) *Bindings {
	if b := c.hosts[host]; b != nil || c.withheld == "" {
		return b
	}
	return &Bindings{NotReady: c.withheld}
}

// bindings compiles HttpBindings. Where one is not understood none of its namespace
// may be called: the call may be its, and an event must not be kept where it does not
// belong.
func (c *compiler) bindings(list []Versioned) {
	calls := &c.out.Calls
	calls.namespaces, calls.hosts = map[string]*Bindings{}, map[string]*Bindings{}
	of := func(m map[string]*Bindings, name, ns string) *Bindings {
		if m[name] == nil {
			m[name] = &Bindings{Namespace: ns}
		}
		return m[name]
	}
	for _, v := range list {
		ns, spec := v.Resource.Metadata.Namespace, v.Resource.GetHttpBinding()
		at := []*Bindings{of(calls.namespaces, ns, ns)}
		for _, h := range spec.Hosts {
			b := of(calls.hosts, h, ns)
			if b.Namespace != ns {
				b.NotReady = fmt.Sprintf("host %s is claimed by two namespaces", h)
			}
			at = append(at, b)
		}
		for _, r := range spec.Rules {
			rule, err := rest.CompileRule(r)
			for _, b := range at {
				if err == nil {
					err = b.Rules.Add(rule)
				}
				if err != nil {
					b.NotReady = fmt.Sprintf("%s is not understood: %v", v.Resource.Name, err)
				}
			}
		}
	}
	for _, name := range c.in.Withheld {
		kind, ns, _, err := resource.Split(name)
		if err != nil || kind != resource.HTTPBinding {
			continue
		}
		why := name + " has no version that this proxy accepts"
		calls.withheld = why
		of(calls.namespaces, ns, ns).NotReady = why
		for _, b := range calls.hosts {
			if b.Namespace == ns {
				b.NotReady = why
			}
		}
	}
}
