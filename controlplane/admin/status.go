package admin

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/census"
	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
)

// Alarms tells what an operator must look at.
type Alarms interface {
	Alarms() []*adminv1.Alarm
}

// Most entries of a status, and how many there are without being asked for.
const (
	defaultListed = 1000
	maxProxies    = 20000
	maxResources  = 10000
)

// listed is how many entries are asked for; field names them.
func listed(field string, asked uint32, most int) (int, error) {
	switch {
	case asked == 0:
		return defaultListed, nil
	case int(asked) > most:
		return 0, status.Errorf(codes.InvalidArgument, "%s is %d, the most is %d", field, asked, most)
	}
	return int(asked), nil
}

// GetStatus tells who has applied what and what is not ready.
func (s *Service) GetStatus(ctx context.Context, req *adminv1.GetStatusRequest) (*adminv1.GetStatusResponse, error) {
	proxies, err := listed("max_proxies", req.MaxProxies, maxProxies)
	if err != nil {
		return nil, err
	}
	if _, err := listed("max_resources", req.MaxResources, maxResources); err != nil {
		return nil, err
	}
	if len(req.NodeId) > 128 {
		return nil, status.Error(codes.InvalidArgument, "node_id has more than 128 characters")
	}
	if req.AtRevision < 0 {
		return nil, status.Errorf(codes.InvalidArgument, "at_revision is %d, revisions are not negative", req.AtRevision)
	}
	if req.Name != "" {
		if _, _, _, err := resource.Split(req.Name); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
	}
	snap, err := s.cfg.Store.Current()
	if err != nil {
		return nil, toStatus(err)
	}
	// What was changed last, and not where etcd was when this replica read it, which may be
	// further than where the others have: nobody lacks anything for that.
	newest := snap.Newest()
	resp := &adminv1.GetStatusResponse{Lineage: snap.Lineage, Revision: newest, Version: s.cfg.Version}
	for _, a := range s.cfg.Alarms {
		resp.Alarms = append(resp.Alarms, a.Alarms()...)
	}
	here := s.cfg.Mesh.Local()
	capped(here, newest) // nor has anybody more
	resp.Replicas = append(resp.Replicas, s.cfg.Mesh.Replica(newest, len(here)))
	if req.Local {
		// What is asked by another replica, which wants to count all.
		proxies = maxProxies
	} else {
		others := s.cfg.Mesh.Others(ctx, &adminv1.GetStatusRequest{Local: true, NodeId: req.NodeId, AtRevision: req.AtRevision, WithoutResources: true})
		capped(others.Proxies, newest)
		here = census.Merge(here, others.Proxies)
		resp.Replicas = append(resp.Replicas, others.Replicas...)
		slices.SortFunc(resp.Replicas, func(a, b *adminv1.ReplicaStatus) int { return strings.Compare(a.Id, b.Id) })
		resp.Alarms = append(resp.Alarms, others.Alarms...)
	}
	at := newStanding(here, snap.Lineage)
	here = slices.DeleteFunc(here, func(p *adminv1.ProxyStatus) bool {
		if req.NodeId != "" {
			return p.NodeId != req.NodeId
		}
		return !p.Connected && s.cfg.Roster.Gone(p.NodeId) // it never has the newest any more
	})
	revision := req.AtRevision
	if revision == 0 {
		revision = newest
	}
	said := told(here)
	here = within(here, req.Namespace)
	resp.Fleet = census.Summarize(here, snap.Lineage, revision)
	census.Sort(here, snap.Lineage, revision)
	if req.NodeId != "" && !req.Local && callerOf(ctx).sees(mesh) {
		here = s.dead(req.NodeId, here)
	}
	resp.Proxies = seen(callerOf(ctx), census.Fit(here, proxies))
	if resp.Alarms = distinct(resp.Alarms); !callerOf(ctx).sees(mesh) {
		resp.Alarms = nil // they name what is in any namespace
	}
	if req.WithoutResources {
		return resp, nil
	}
	return resp, s.resourceStatus(ctx, snap, at, req, said, resp)
}

// capped has no proxy further than the newest change: what a proxy acknowledges, and what is
// written down of one that is gone, may be where etcd was.
func capped(proxies []*adminv1.ProxyStatus, newest int64) {
	for _, p := range proxies {
		p.AckedRevision, p.SentRevision = min(p.AckedRevision, newest), min(p.SentRevision, newest)
	}
}

// trouble is what a proxy tells of a resource.
type trouble interface {
	GetName() string
	GetReason() string
	GetMessage() string
	GetSince() *timestamppb.Timestamp
}

// troubles are the conditions of one type of resources of which some connected proxy tells
// such, by canonical name.
func troubles[T trouble](proxies []*adminv1.ProxyStatus, condition string, of func(*discoveryv1.ReportStatusRequest) []T) map[string]*adminv1.Condition {
	out := map[string]*adminv1.Condition{}
	at := map[string]map[string][]string{} // proxies by what they say
	for _, p := range proxies {
		if !p.Connected {
			continue
		}
		for _, t := range of(p.GetReport()) {
			name := t.GetName()
			if !tells(p, name) {
				continue
			}
			c := out[name]
			if c == nil {
				c = &adminv1.Condition{Type: condition, State: adminv1.Condition_STATE_TRUE, Since: t.GetSince()}
				out[name], at[name] = c, map[string][]string{}
			}
			if t.GetSince().AsTime().Before(c.Since.AsTime()) {
				c.Since = t.GetSince()
			}
			says := t.GetReason() + "\x00" + t.GetMessage()
			at[name][says] = append(at[name][says], p.NodeId)
		}
	}
	for name, by := range at {
		// What most say is first, and gives the word.
		all := slices.SortedFunc(maps.Keys(by), func(a, b string) int {
			return cmp.Or(cmp.Compare(len(by[b]), len(by[a])), strings.Compare(a, b))
		})
		var texts []string
		for _, says := range all[:min(len(all), 3)] {
			_, message, _ := strings.Cut(says, "\x00")
			texts = append(texts, someNodes(by[says])+": "+message)
		}
		out[name].Reason, _, _ = strings.Cut(all[0], "\x00")
		out[name].Message = strings.Join(texts, "; ")
	}
	return out
}

// dead has the status of a node say that it was declared dead; one that was is there also
// where nothing is known of its connection any more.
func (s *Service) dead(node string, status []*adminv1.ProxyStatus) []*adminv1.ProxyStatus {
	dead := s.cfg.Roster.Dead(node)
	if dead == nil {
		return status
	}
	if len(status) == 0 {
		status = []*adminv1.ProxyStatus{{NodeId: node}}
	}
	for _, p := range status {
		p.DeadAt, p.DeadBy = timestamppb.New(dead.At), dead.By
	}
	return status
}

// seen are proxies as a caller may see them: who they are and whether they have
// everything, but what they refuse and are not sent only of his namespaces, and
// what they report, which has stores of all, only with the whole mesh.
func seen(who *Caller, in []*adminv1.ProxyStatus) []*adminv1.ProxyStatus {
	if who.sees(mesh) {
		return in
	}
	hidden := func(name string) bool {
		_, ns, _, err := resource.Split(name)
		return err != nil || !who.sees(ns)
	}
	out := make([]*adminv1.ProxyStatus, len(in))
	for i, p := range in {
		p = proto.Clone(p).(*adminv1.ProxyStatus)
		p.Report = nil
		p.Rejections = slices.DeleteFunc(p.Rejections, func(r *discoveryv1.Rejection) bool { return hidden(r.Name) })
		p.Withheld = slices.DeleteFunc(p.Withheld, func(w *configv1.Withheld) bool { return hidden(w.Name) })
		out[i] = p
	}
	return out
}

// within are proxies with what they tell of a namespace's resources alone, of all for "". What
// they refuse and are not sent stays: they lack it.
func within(in []*adminv1.ProxyStatus, ns string) []*adminv1.ProxyStatus {
	if ns == "" {
		return in
	}
	for _, p := range in {
		if p.Report == nil {
			continue
		}
		r := proto.Clone(p.Report).(*discoveryv1.ReportStatusRequest) // it is others' too
		r.Stores, r.Targets, r.Denied, r.Blocked = of(r.Stores, ns), of(r.Targets, ns), of(r.Denied, ns), of(r.Blocked, ns)
		p.Report = r
	}
	return in
}

// of are those of states that are about a namespace's resources.
func of[T interface{ GetName() string }](states []T, ns string) []T {
	return slices.DeleteFunc(states, func(s T) bool {
		_, about, _, err := resource.Split(s.GetName())
		return err != nil || about != ns
	})
}

// distinct are alarms that differ, each once: of those that several replicas raise
// the one that has lasted longest.
func distinct(in []*adminv1.Alarm) []*adminv1.Alarm {
	slices.SortFunc(in, func(a, b *adminv1.Alarm) int {
		if c := strings.Compare(a.Reason+"\x00"+a.Message, b.Reason+"\x00"+b.Message); c != 0 {
			return c
		}
		return a.Since.AsTime().Compare(b.Since.AsTime())
	})
	return slices.CompactFunc(in, func(a, b *adminv1.Alarm) bool { return a.Reason == b.Reason && a.Message == b.Message })
}

// resourceStatus adds the resources of the selection: those that are not ready
// first, then those that are and of which proxies tell something, then the others, each
// by name.
func (s *Service) resourceStatus(ctx context.Context, snap *configstore.Snapshot, at *standing, req *adminv1.GetStatusRequest, said map[string][]*adminv1.Condition, resp *adminv1.GetStatusResponse) error {
	most, err := listed("max_resources", req.MaxResources, maxResources)
	if err != nil {
		return err
	}
	if req.Namespace != "" {
		if err := names.CheckNamespace(req.Namespace); err != nil {
			return status.Errorf(codes.InvalidArgument, "namespace: %v", err)
		}
	}
	conditions, err := s.conditions(ctx, snap, at)
	if err != nil {
		return err
	}
	statusOf := func(e *configstore.Entry) *adminv1.ResourceStatus {
		i := at.stands(e)
		r := &adminv1.ResourceStatus{Name: e.Name, Conditions: conditions(e), Version: e.Version(), Proxies: uint32(i.proxies), InForce: uint32(max(0, i.force()))}
		r.Conditions = append(r.Conditions, said[e.Name]...)
		return r
	}
	if req.Name != "" {
		e := snap.Get(req.Name)
		if e == nil {
			return status.Errorf(codes.NotFound, "%s does not exist", names.Text(req.Name, 160))
		}
		r := statusOf(e)
		r.Lacking, r.UsedBy = at.lacking(e), usedBy(snap, e, callerOf(ctx))
		resp.Resources, resp.ResourcesTotal = []*adminv1.ResourceStatus{r}, 1
		if !ready(r) {
			resp.ResourcesNotReady = 1
		}
		return nil
	}
	only, known := resource.Lookup(req.Kind)
	if req.Kind != "" && !known {
		return status.Errorf(codes.InvalidArgument, "%q is not a kind", names.Text(req.Kind, 40))
	}
	var bad, fails, good []*adminv1.ResourceStatus
	for _, info := range resource.Kinds() {
		if info.System || known && info.Kind != only.Kind {
			continue
		}
		prefix, match, err := selection(ctx, string(info.Kind), req.Namespace)
		if err != nil {
			return err
		}
		for e := range snap.All(prefix) {
			if !match(e) {
				continue
			}
			r := statusOf(e)
			resp.ResourcesTotal++
			switch {
			case !ready(r):
				bad = append(bad, r)
			case len(said[e.Name]) > 0:
				fails = append(fails, r)
			case len(good) < most:
				good = append(good, r)
			}
		}
	}
	resp.ResourcesNotReady = uint32(len(bad))
	resp.Resources = slices.Concat(bad, fails, good)
	resp.Resources = resp.Resources[:min(len(resp.Resources), most)]
	return nil
}

// ready reports whether nothing is known against a resource.
func ready(r *adminv1.ResourceStatus) bool {
	return !slices.ContainsFunc(r.Conditions, func(c *adminv1.Condition) bool { return c.State != adminv1.Condition_STATE_TRUE })
}

// CommandProxies tells proxies to do something, at whichever replica they are.
func (s *Service) CommandProxies(ctx context.Context, req *adminv1.CommandProxiesRequest) (*adminv1.CommandProxiesResponse, error) {
	var name string
	command := &discoveryv1.ReportStatusResponse{}
	switch req.Command {
	case adminv1.CommandProxiesRequest_COMMAND_RESYNC:
		name, command.Command = "resync", &discoveryv1.ReportStatusResponse_Resync{Resync: &discoveryv1.Resync{}}
	case adminv1.CommandProxiesRequest_COMMAND_DRAIN:
		name, command.Command = "drain", &discoveryv1.ReportStatusResponse_Drain{Drain: &discoveryv1.Drain{}}
		if len(req.NodeIds) == 0 {
			return nil, status.Error(codes.InvalidArgument, "node_ids: a drain must name the proxies")
		}
	default:
		return nil, status.Errorf(codes.InvalidArgument, "command: %v is none", req.Command)
	}
	if n := len(req.NodeIds); n > 1000 {
		return nil, status.Errorf(codes.InvalidArgument, "node_ids: %d proxies are named, the most is 1,000", n)
	}
	for _, id := range req.NodeIds {
		if len(id) == 0 || len(id) > 128 {
			return nil, status.Errorf(codes.InvalidArgument, "node_ids: %q has not 1 to 128 characters", id)
		}
	}
	told := s.cfg.Commands.Command(name, command, req.NodeIds)
	if !req.Local {
		elsewhere, silent := s.cfg.Mesh.Command(ctx, &adminv1.CommandProxiesRequest{Command: req.Command, NodeIds: req.NodeIds, Local: true})
		told = append(told, elsewhere...)
		if len(silent) > 0 {
			s.cfg.Log.Warn("replicas could not be asked to pass a command on", "command", name, "replicas", silent)
		}
	}
	slices.Sort(told)
	told = slices.Compact(told)
	who := callerOf(ctx)
	s.cfg.Log.Info("proxies were given a command", "command", name, "told", len(told), "actor", who.Subject, "peer", who.Peer)
	return &adminv1.CommandProxiesResponse{NodeIds: told}, nil
}
