package census

import (
	"cmp"
	"slices"

	"google.golang.org/protobuf/proto"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/pkg/names"
)

// Lack is what keeps a proxy from having all of a revision.
type Lack struct {
	// Disconnected: it is not connected to any replica that answered.
	Disconnected bool
	// Behind: it has not acknowledged the revision yet.
	Behind bool
	// Refusing: it refuses some of it. Withheld: it is not sent some of it, or
	// has no version of it that it can enforce.
	Refusing, Withheld bool
}

// Any reports whether there is anything.
func (l Lack) Any() bool { return l != Lack{} }

// LackOf tells what a proxy lacks of a revision of a lineage.
func LackOf(p *adminv1.ProxyStatus, lineage string, revision int64) Lack {
	applied := p.GetReport().GetConfig()
	other := applied.GetLineage() != "" && applied.GetLineage() != lineage
	return Lack{Disconnected: !p.Connected, Behind: other || p.AckedRevision < revision, Refusing: len(p.Rejections) > 0,
		Withheld: len(p.Withheld) > 0 || len(applied.GetWithheld()) > 0}
}

// Merge makes one entry of each node of what several replicas and records say:
// that of the newest connection or, without any, the one that was seen last.
func Merge(lists ...[]*adminv1.ProxyStatus) []*adminv1.ProxyStatus {
	best := map[string]*adminv1.ProxyStatus{}
	for _, list := range lists {
		for _, p := range list {
			if old := best[p.NodeId]; old == nil || newer(p, old) {
				best[p.NodeId] = p
			}
		}
	}
	out := make([]*adminv1.ProxyStatus, 0, len(best))
	for _, p := range best {
		out = append(out, p)
	}
	return out
}

func newer(a, b *adminv1.ProxyStatus) bool {
	switch {
	case a.Connected != b.Connected:
		return a.Connected
	case a.Connected:
		return a.ConnectedAt.AsTime().After(b.ConnectedAt.AsTime())
	}
	return a.LastSeen.AsTime().After(b.LastSeen.AsTime())
}

// Summarize counts proxies against a revision.
func Summarize(proxies []*adminv1.ProxyStatus, lineage string, revision int64) *adminv1.FleetSummary {
	sum := &adminv1.FleetSummary{Known: uint32(len(proxies))}
	count := func(n *uint32, is bool) {
		if is {
			*n++
		}
	}
	for _, p := range proxies {
		l := LackOf(p, lineage, revision)
		if l.Disconnected {
			sum.Disconnected++
			continue
		}
		sum.Connected++
		count(&sum.Current, !l.Any())
		count(&sum.Behind, l.Behind)
		count(&sum.Refusing, l.Refusing)
		count(&sum.Withheld, l.Withheld)
	}
	return sum
}

// Sort puts proxies that lack something of a revision first: those that refuse,
// those that are behind, those that something is withheld from, those that are
// not connected; then those that cannot use a store, push in vain, hold blocked keys or drain, then the others.
// Within each they are by node id.
func Sort(proxies []*adminv1.ProxyStatus, lineage string, revision int64) {
	rank := func(p *adminv1.ProxyStatus) int {
		switch l := LackOf(p, lineage, revision); {
		case l.Disconnected:
			return 3
		case l.Refusing:
			return 0
		case l.Behind:
			return 1
		case l.Withheld:
			return 2
		case len(p.GetReport().GetStores())+len(p.GetReport().GetTargets())+len(p.GetReport().GetDenied())+len(p.GetReport().GetBlocked()) > 0 || p.GetReport().GetDraining():
			return 4
		}
		return 5
	}
	slices.SortFunc(proxies, func(a, b *adminv1.ProxyStatus) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.NodeId, b.NodeId))
	})
}

// An answer's share for proxies: up to so many bytes they are shown in full,
// then in short, then with what they lack alone, so that 20,000 of them stay
// below what a client takes.
const (
	fullBytes  = 1 << 20
	shortBytes = 4 << 20
)

// Fit gives the first most proxies in as much detail as an answer has room for.
// It changes none of them.
func Fit(proxies []*adminv1.ProxyStatus, most int) []*adminv1.ProxyStatus {
	proxies = proxies[:min(len(proxies), most)]
	out := make([]*adminv1.ProxyStatus, 0, len(proxies))
	size := 0
	for _, p := range proxies {
		switch {
		case size > shortBytes:
			p = short(p, 1, 120)
		case size > fullBytes:
			p = short(p, 3, 400)
		}
		size += proto.Size(p)
		out = append(out, p)
	}
	return out
}

// short is a proxy with at most n of each list, and texts of at most text bytes. Where it is
// reached and what it serves stay: weft trace asks all of them.
func short(p *adminv1.ProxyStatus, n, text int) *adminv1.ProxyStatus {
	out := &adminv1.ProxyStatus{NodeId: p.NodeId, Peer: p.Peer, ConnectedAt: p.ConnectedAt, SentRevision: p.SentRevision, AckedRevision: p.AckedRevision,
		Connected: p.Connected, LastSeen: p.LastSeen, Replica: p.Replica, Info: &discoveryv1.NodeInfo{Version: names.Text(p.Info.GetVersion(), text), Zone: names.Text(p.Info.GetZone(), text),
			AdvertiseHost: names.Text(p.Info.GetAdvertiseHost(), text), Ports: p.Info.GetPorts()}}
	if serves := p.Info.GetNamespaces(); len(serves) <= 20 {
		out.Info.Namespaces = serves // a part of more would be another thing
	}
	for _, r := range p.Rejections[:min(len(p.Rejections), n)] {
		out.Rejections = append(out.Rejections, &discoveryv1.Rejection{Name: r.Name, Version: r.Version, Field: names.Text(r.Field, text), Reason: names.Text(r.Reason, text)})
	}
	for _, w := range p.Withheld[:min(len(p.Withheld), n)] {
		out.Withheld = append(out.Withheld, &configv1.Withheld{Name: w.Name, Version: w.Version, Reason: names.Text(w.Reason, text)})
	}
	if r := p.Report; r != nil {
		out.Report = &discoveryv1.ReportStatusRequest{Draining: r.Draining}
		if c := r.Config; c != nil {
			out.Report.Config = &discoveryv1.AppliedConfig{Lineage: names.Text(c.Lineage, text), Revision: c.Revision, Source: c.Source, ConfirmedAt: c.ConfirmedAt,
				Withheld: c.Withheld[:min(len(c.Withheld), n)]}
		}
		for _, s := range r.Stores[:min(len(r.Stores), n)] {
			out.Report.Stores = append(out.Report.Stores, &discoveryv1.StoreState{Name: s.Name, Reason: names.Text(s.Reason, text), Message: names.Text(s.Message, text)})
		}
		for _, t := range r.Targets[:min(len(r.Targets), n)] {
			out.Report.Targets = append(out.Report.Targets, &discoveryv1.TargetState{Name: t.Name, Reason: names.Text(t.Reason, text), Message: names.Text(t.Message, text), Since: t.Since})
		}
		for _, d := range r.Denied[:min(len(r.Denied), n)] {
			out.Report.Denied = append(out.Report.Denied, &discoveryv1.DeniedState{Name: d.Name, Reason: names.Text(d.Reason, text), Message: names.Text(d.Message, text), Since: d.Since})
		}
		for _, b := range r.Blocked[:min(len(r.Blocked), n)] {
			out.Report.Blocked = append(out.Report.Blocked, &discoveryv1.BlockedState{Name: b.Name, Keys: b.Keys, Topic: b.Topic, Position: names.Text(b.Position, text), Since: b.Since})
		}
	}
	return out
}
