package admin

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/census"
	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/validate"
	"github.com/weft-mesh/weft/pkg/resource"
)

// standing tells at how many connected proxies a resource is in force, and at
// which not and why. It is made once of all proxies, and asked for each resource.
type standing struct {
	lineage string
	// everywhere are the proxies of all namespaces, of the others by namespace;
	// each list by what they have acknowledged.
	everywhere []node
	of         map[string][]node
	// kept are who refuses, or is not sent, a resource, by its canonical name.
	kept map[string][]kept
}

// node is a connected proxy.
type node struct {
	id string
	// acked is the revision that it has acknowledged; 0 of another lineage.
	acked int64
}

// kept is a proxy that has been told of a resource and does not have it.
type kept struct {
	node
	version, why string
	refuses      bool
}

func newStanding(proxies []*adminv1.ProxyStatus, lineage string) *standing {
	s := &standing{lineage: lineage, of: map[string][]node{}, kept: map[string][]kept{}}
	for _, p := range proxies {
		if !p.Connected {
			continue
		}
		n := node{p.NodeId, p.AckedRevision}
		if census.LackOf(p, lineage, 0).Behind {
			n.acked = 0
		}
		if in := p.Info.GetNamespaces(); len(in) == 0 {
			s.everywhere = append(s.everywhere, n)
		} else {
			for _, ns := range in {
				s.of[ns] = append(s.of[ns], n)
			}
		}
		for _, r := range p.Rejections {
			why := r.Reason
			if r.Field != "" {
				why = r.Field + ": " + why
			}
			s.kept[r.Name] = append(s.kept[r.Name], kept{n, r.Version, why, true})
		}
		for _, w := range p.Withheld {
			s.kept[w.Name] = append(s.kept[w.Name], kept{n, w.Version, w.Reason, false})
		}
	}
	byAcked := func(list []node) {
		slices.SortFunc(list, func(a, b node) int { return cmp.Or(cmp.Compare(a.acked, b.acked), strings.Compare(a.id, b.id)) })
	}
	byAcked(s.everywhere)
	for _, list := range s.of {
		byAcked(list)
	}
	return s
}

// in is how a resource stands.
type in struct {
	proxies, behind, refuse, withheld int
	// first is the first reason of who refuses it or is not sent it, and who that
	// is.
	first kept
}

func (i in) force() int { return i.proxies - i.behind - i.refuse - i.withheld }

// behind are those of a list that have not acknowledged a revision.
func behind(list []node, revision int64) []node {
	n, _ := slices.BinarySearchFunc(list, revision, func(n node, revision int64) int { return cmp.Compare(n.acked, revision) })
	return list[:n]
}

// keeps are who was told of this version of e and does not have it, each once.
func (s *standing) keeps(e *configstore.Entry) []kept {
	var out []kept
	version := e.Version()
	for _, k := range s.kept[e.Name] {
		// What one proxy says stands together.
		if k.version == version && k.acked >= e.ModRevision && (len(out) == 0 || out[len(out)-1].id != k.id) {
			out = append(out, k)
		}
	}
	return out
}

func (s *standing) stands(e *configstore.Entry) in {
	i := in{proxies: len(s.everywhere) + len(s.of[e.Namespace]),
		behind: len(behind(s.everywhere, e.ModRevision)) + len(behind(s.of[e.Namespace], e.ModRevision))}
	for n, k := range s.keeps(e) {
		if n == 0 {
			i.first = k
		}
		if k.refuses {
			i.refuse++
		} else {
			i.withheld++
		}
	}
	return i
}

// condition tells whether a resource is in force, for people.
func (i in) condition() *adminv1.Condition {
	c := &adminv1.Condition{Type: "InForce", State: adminv1.Condition_STATE_FALSE,
		Message: fmt.Sprintf("at %d of %d proxies", i.force(), i.proxies)}
	if i.proxies == 1 {
		c.Message = fmt.Sprintf("at %d of 1 proxy", i.force())
	}
	switch {
	case i.proxies == 0:
		c.State, c.Reason, c.Message = adminv1.Condition_STATE_TRUE, "NoProxies", "no proxy is connected that would be sent it"
	case i.refuse > 0:
		c.Reason = "Refused"
		c.Message += fmt.Sprintf("; %s refuses it: %s", i.first.id, i.first.why)
	case i.withheld > 0:
		c.Reason = "Withheld"
		c.Message += fmt.Sprintf("; %s is not sent it: %s", i.first.id, i.first.why)
	case i.behind > 0:
		c.Reason = "Behind"
	default:
		c.State, c.Reason = adminv1.Condition_STATE_TRUE, "InForce"
	}
	return c
}

// maxLacking bounds who lacks a resource, and what refers to it, in one answer.
const maxLacking = 100

// lacking are who has not this version of e, and why.
func (s *standing) lacking(e *configstore.Entry) []*adminv1.ResourceLack {
	var out []*adminv1.ResourceLack
	add := func(id, why string) {
		if len(out) < maxLacking {
			out = append(out, &adminv1.ResourceLack{NodeId: id, Reason: why})
		}
	}
	for _, k := range s.keeps(e) {
		what := "is not sent it: "
		if k.refuses {
			what = "refuses it: "
		}
		add(k.id, what+k.why)
	}
	for _, list := range [][]node{s.everywhere, s.of[e.Namespace]} {
		for _, n := range behind(list, e.ModRevision) {
			if n.acked == 0 {
				add(n.id, "has not acknowledged anything of this lineage")
			} else {
				add(n.id, fmt.Sprintf("has revision %d", n.acked))
			}
		}
	}
	return out
}

// usedBy are what refers to e and the caller may see: routes and subscriptions to a
// topic, topics to a store, and policies to the principals that have keys of an
// identity.
func usedBy(snap *configstore.Snapshot, e *configstore.Entry, who *Caller) []string {
	var out []string
	add := func(name, namespace string) {
		if who.sees(namespace) {
			out = append(out, name)
		}
	}
	for r := range validate.Users(snap, e.Resource) {
		add(resource.NameOf(r), r.Metadata.Namespace)
	}
	if keys := e.Resource.GetIdentity().GetApiKeys().GetKeys(); len(keys) > 0 {
		principals, groups := map[string]bool{}, map[string]bool{}
		for _, k := range keys {
			principals[e.Namespace+"/"+k.Principal] = true
			for _, g := range k.Groups {
				groups[e.Namespace+"/"+g] = true
			}
		}
		for p := range snap.All(string(resource.AccessPolicy) + "/") {
			named := func(set map[string]bool) func(string) bool {
				return func(s string) bool { return set[s] || set[p.Namespace+"/"+s] }
			}
			if slices.ContainsFunc(p.Resource.GetAccessPolicy().GetRules(), func(r *configv1.AccessRule) bool {
				return slices.ContainsFunc(r.Principals, named(principals)) || slices.ContainsFunc(r.Groups, named(groups))
			}) {
				add(p.Name, p.Namespace)
			}
		}
	}
	slices.Sort(out)
	return out[:min(len(out), maxLacking)]
}
