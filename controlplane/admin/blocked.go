package admin

import (
	"fmt"
	"slices"
	"strings"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
)

// told are the conditions of resources that connected proxies tell of, by canonical name.
func told(proxies []*adminv1.ProxyStatus) map[string][]*adminv1.Condition {
	out := map[string][]*adminv1.Condition{}
	for name, c := range troubles(proxies, "TargetFailing", (*discoveryv1.ReportStatusRequest).GetTargets) {
		out[name] = append(out[name], c)
	}
	for name, c := range troubles(proxies, "StoreDenies", (*discoveryv1.ReportStatusRequest).GetDenied) {
		out[name] = append(out[name], c)
	}
	for name, c := range blockedKeys(proxies) {
		out[name] = append(out[name], c)
	}
	return out
}

// tells reports whether a resource is a proxy's to tell of.
func tells(p *adminv1.ProxyStatus, name string) bool {
	_, ns, _, err := resource.Split(name)
	about := p.Info.GetNamespaces()
	return err == nil && (len(about) == 0 || slices.Contains(about, ns))
}

// blockedKeys are the conditions of ordered Subscriptions of which some connected proxy
// holds keys that are blocked: how many over all, and the event that failed first.
func blockedKeys(proxies []*adminv1.ProxyStatus) map[string]*adminv1.Condition {
	type all struct {
		keys  int
		nodes []string
		first *discoveryv1.BlockedState
	}
	found := map[string]*all{}
	for _, p := range proxies {
		for _, b := range p.GetReport().GetBlocked() {
			if !p.Connected || !tells(p, b.Name) {
				continue
			}
			a := found[b.Name]
			if a == nil {
				a = &all{first: b}
				found[b.Name] = a
			}
			if a.keys += int(b.Keys); b.Since.AsTime().Before(a.first.Since.AsTime()) {
				a.first = b
			}
			a.nodes = append(a.nodes, p.NodeId)
		}
	}
	out := map[string]*adminv1.Condition{}
	for name, a := range found {
		out[name] = &adminv1.Condition{Type: "KeysBlocked", State: adminv1.Condition_STATE_TRUE, Reason: "AttemptsOver", Since: a.first.Since,
			Message: fmt.Sprintf("%s: keys that wait behind events which have failed as often as they may: %d; the first failed in %s at %s", someNodes(a.nodes), a.keys, names.Text(a.first.Topic, 256), names.Text(a.first.Position, 256))}
	}
	return out
}

// someNodes names a few proxies, and tells how many more there are. It sorts nodes.
func someNodes(nodes []string) string {
	slices.Sort(nodes)
	who := strings.Join(nodes[:min(len(nodes), 3)], ", ")
	if more := len(nodes) - 3; more > 0 {
		who += fmt.Sprintf(" and %d more", more)
	}
	return who
}
