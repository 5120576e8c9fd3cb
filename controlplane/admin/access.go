package admin

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"

	"github.com/weft-mesh/weft/pkg/resource"
)

// Role is what somebody may do; each may what those before it may.
type Role int

// The roles.
const (
	NoRole Role = iota
	// Viewer reads.
	Viewer
	// Editor changes Topics, Routes and Subscriptions.
	Editor
	// Admin changes also where events are kept and who may do what:
	// EventStores, Migrations, AccessPolicies, Quotas and Identities. One of the whole mesh also
	// commands proxies, lets them join and restores.
	Admin
)

func roleNames() []string { return []string{"none", "viewer", "editor", "admin"} }

func (r Role) String() string { return roleNames()[r] }

// mesh stands for all namespaces, those to come too.
const mesh = "*"

// anywhere stands for some namespace, whichever: the handler looks at each.
const anywhere = ""

// Caller is who calls, and what he may.
type Caller struct {
	// Subject is the name in bindings and audit records.
	Subject string
	// Peer is the address that he calls from.
	Peer string
	// roles are by namespace; of mesh in all.
	roles map[string]Role
	// replica: another control plane, which passes commands on.
	replica bool
}

// host is the caller's address without the port.
func (c *Caller) host() string {
	host, _, err := net.SplitHostPort(c.Peer)
	if err != nil {
		return c.Peer
	}
	return host
}

// has reports whether the caller has a role in a namespace, or in the mesh.
func (c *Caller) has(r Role, namespace string) bool {
	if c.roles[mesh] >= r {
		return true
	}
	if namespace != anywhere {
		return c.roles[namespace] >= r
	}
	for _, has := range c.roles {
		if has >= r {
			return true
		}
	}
	return false
}

// sees reports whether the caller may read what is in a namespace.
func (c *Caller) sees(namespace string) bool { return c.has(Viewer, namespace) }

type callerKey struct{}

// callerOf is who calls; nobody, who may do nothing, where no Access let him in.
func callerOf(ctx context.Context) *Caller {
	if c, ok := ctx.Value(callerKey{}).(*Caller); ok {
		return c
	}
	return &Caller{Subject: "nobody"}
}

// need is a role that a call asks for, and where.
type need struct {
	role      Role
	namespace string
	// replicas: another control plane may without it.
	replicas bool
}

func (n need) String() string {
	switch n.namespace {
	case mesh:
		return fmt.Sprintf("the role %s of the whole mesh", n.role)
	case anywhere:
		return fmt.Sprintf("the role %s in a namespace", n.role)
	}
	return fmt.Sprintf("the role %s in namespace %s", n.role, n.namespace)
}

// metBy reports whether c may.
func (n need) metBy(c *Caller) bool { return n.replicas && c.replica || c.has(n.role, n.namespace) }

// writer is the role that changes resources of a kind.
func writer(kind resource.Kind) Role {
	switch kind {
	case resource.Schema, resource.Topic, resource.Route, resource.HTTPBinding, resource.Subscription:
		return Editor
	}
	return Admin
}

// toWrite is what changing a resource needs. What is no canonical name needs all;
// that it is none is told to those who may anything.
func toWrite(name string) need {
	kind, ns, _, err := resource.Split(name)
	if err != nil {
		return need{role: Admin, namespace: mesh}
	}
	return need{role: writer(kind), namespace: ns}
}

// needs is the table of who may call what; ok is false for a call that is not in
// it, which nobody may. Where it says anywhere, the handler leaves out what the
// caller may not see, or asks for the role of each thing that it finds.
func needs(req any) (all []need, ok bool) {
	read := func(kind, namespace, name string) []need {
		if name == "" {
			return []need{{role: Viewer, namespace: namespace}}
		}
		_, of, _, _ := resource.Split(name)
		if namespace == "" {
			namespace = of
		}
		return []need{{role: Viewer, namespace: of}, {role: Viewer, namespace: namespace}}
	}
	write := func(targets []*adminv1.DeleteTarget) {
		for _, t := range targets {
			all = append(all, toWrite(t.Name))
		}
	}
	switch r := req.(type) {
	case *adminv1.ApplyRequest:
		for _, r := range r.Resources {
			all = append(all, need{role: writer(resource.KindOf(r)), namespace: r.GetMetadata().GetNamespace()})
		}
		write(r.Delete)
		return append(all, need{role: Editor}), true
	case *adminv1.DeleteRequest:
		write(r.Targets)
		return append(all, need{role: Editor}), true
	case *adminv1.RollbackRequest:
		if r.Name != "" {
			return []need{toWrite(r.Name)}, true
		}
		return []need{{role: Editor, namespace: cmp.Or(r.Namespace, mesh)}}, true
	case *adminv1.GetRequest:
		return read("", "", r.Name), true
	case *adminv1.ListRequest:
		return read(r.Kind, r.Namespace, ""), true
	case *adminv1.WatchRequest:
		return read(r.Kind, r.Namespace, ""), true
	case *adminv1.GetStatusRequest:
		return read(r.Kind, r.Namespace, r.Name), true
	case *adminv1.ListHistoryRequest:
		return read(r.Kind, r.Namespace, r.Name), true
	case *adminv1.DiffRequest:
		return read(r.Kind, r.Namespace, r.Name), true
	case *adminv1.ExportSnapshotRequest:
		// With it a proxy serves, and whoever holds it knows all policy.
		if len(r.Namespaces) == 0 {
			return []need{{role: Admin, namespace: mesh}}, true
		}
		for _, ns := range r.Namespaces {
			all = append(all, need{role: Admin, namespace: ns})
		}
		return all, true
	case *adminv1.CommandProxiesRequest:
		return []need{{role: Admin, namespace: mesh, replicas: r.Local}}, true
	case *adminv1.ListNodesRequest:
		return []need{{role: Viewer, namespace: cmp.Or(r.Namespace, mesh)}}, true
	case *adminv1.DeclareNodeDeadRequest, *adminv1.ReviveNodeRequest, *adminv1.ForgetNodesRequest:
		return []need{{role: Admin, namespace: mesh}}, true
	case *adminv1.DeclareRestoreRequest, *adminv1.CreateJoinTokenRequest, *adminv1.ListJoinTokensRequest, *adminv1.RevokeJoinTokensRequest:
		return []need{{role: Admin, namespace: mesh}}, true
	}
	return nil, false
}

// missing are what a caller lacks, each once, for people.
func missing(c *Caller, all []need) string {
	var out []string
	for _, n := range all {
		if !n.metBy(c) && !slices.Contains(out, n.String()) {
			out = append(out, n.String())
		}
	}
	if len(out) > 3 {
		out = append(out[:3], "…")
	}
	return strings.Join(out, ", ")
}
