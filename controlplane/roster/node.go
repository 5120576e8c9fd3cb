package roster

import (
	"slices"
	"time"
)

// Node is a proxy that may have configuration. It is not changed.
type Node struct {
	ID string `json:"id"`
	// All: it may have any namespace; else Namespaces, sorted.
	All        bool     `json:"all,omitempty"`
	Namespaces []string `json:"namespaces,omitempty"`
	// Since is when it was written down first.
	Since time.Time `json:"since"`
	// Moves: it knows moves of topics, as it said when it connected last; false of one
	// that has not connected since that is asked.
	Moves bool `json:"moves,omitempty"`
	// Incarnation is the process that joined last, of a node that leaves when it stops.
	Incarnation string `json:"incarnation,omitempty"`
	// Dead is set once it was declared dead.
	Dead *Dead `json:"dead,omitempty"`
}

// Dead tells who declared a node dead, and when.
type Dead struct {
	At time.Time `json:"at"`
	By string    `json:"by"`
}

// Has reports whether the node may have configuration of a namespace.
func (n *Node) Has(namespace string) bool {
	_, found := slices.BinarySearch(n.Namespaces, namespace)
	return n.All || found
}

// Joining is a node that is to be sent configuration.
type Joining struct {
	Node string
	// Namespaces of which it is sent configuration; of all where there are none.
	Namespaces []string
	// Fresh: it has said of no configuration that it has.
	Fresh bool
	// Moves: its version knows moves of topics.
	Moves bool
	// Incarnation is drawn at each start of a node that leaves when it stops; else "".
	Incarnation string
}

// covers reports whether all namespaces are the node's; nil is any.
func (n *Node) covers(namespaces []string) bool {
	return n.All || len(namespaces) > 0 && !slices.ContainsFunc(namespaces, func(ns string) bool { return !n.Has(ns) })
}

// is reports whether there is nothing to write down of a node that joins.
func (n *Node) is(j Joining) bool {
	return n.covers(j.Namespaces) && n.Moves == j.Moves && n.Incarnation == j.Incarnation
}

// joined is the node once it has joined.
func (n *Node) joined(j Joining) *Node {
	out := n.with(j.Namespaces)
	out.Moves, out.Incarnation = j.Moves, j.Incarnation
	return out
}

// with is the node with more namespaces.
func (n *Node) with(namespaces []string) *Node {
	out := *n
	out.Namespaces = slices.Compact(slices.Sorted(slices.Values(slices.Concat(n.Namespaces, namespaces))))
	if out.All = n.All || len(namespaces) == 0 || len(out.Namespaces) > maxNamespaces; out.All {
		out.Namespaces = nil
	}
	return &out
}
