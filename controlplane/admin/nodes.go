package admin

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/census"
	"github.com/weft-mesh/weft/controlplane/roster"
	"github.com/weft-mesh/weft/pkg/names"
)

const (
	// maxNodes bounds the proxies of one answer.
	maxNodes = 10000
	// maxNodeReason bounds why a proxy is dead, in bytes.
	maxNodeReason = 1024
)

// ListNodes gives the proxies that may have configuration. Of one that is of many
// namespaces a caller sees those that he may read.
func (s *Service) ListNodes(ctx context.Context, req *adminv1.ListNodesRequest) (*adminv1.ListNodesResponse, error) {
	most, err := listed("max_nodes", req.MaxNodes, maxNodes)
	if err != nil {
		return nil, err
	}
	if len(req.After) > 128 {
		return nil, status.Error(codes.InvalidArgument, "after has more than 128 characters")
	}
	if req.Namespace != "" {
		if err := names.CheckNamespace(req.Namespace); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "namespace: %v", err)
		}
	}
	all, err := s.cfg.Roster.All(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	seen, _ := s.connections(ctx, "")
	who, out := callerOf(ctx), &adminv1.ListNodesResponse{}
	for _, n := range all {
		if n.ID <= req.After || req.Namespace != "" && !n.Has(req.Namespace) {
			continue
		}
		if len(out.Nodes) == most {
			out.More = true
			break
		}
		out.Nodes = append(out.Nodes, nodeOf(n, seen[n.ID], who))
	}
	return out, nil
}

func nodeOf(n *roster.Node, p *adminv1.ProxyStatus, who *Caller) *adminv1.Node {
	out := &adminv1.Node{NodeId: n.ID, Since: timestamppb.New(n.Since), Connected: p.GetConnected(), LastSeen: p.GetLastSeen(), KnowsMoves: n.Moves}
	for _, ns := range n.Namespaces {
		if who.sees(ns) {
			out.Namespaces = append(out.Namespaces, ns)
		}
	}
	if n.Dead != nil {
		out.DeadAt, out.DeadBy = timestamppb.New(n.Dead.At), n.Dead.By
	}
	return out
}

// connections are the proxies that some replica knows of, by node id, and those of which
// the replica does not answer that they were connected to last, with its address; only one,
// where it is named.
func (s *Service) connections(ctx context.Context, node string) (seen map[string]*adminv1.ProxyStatus, unsure map[string]string) {
	seen = map[string]*adminv1.ProxyStatus{}
	others := s.cfg.Mesh.Others(ctx, &adminv1.GetStatusRequest{Local: true, NodeId: node, WithoutResources: true})
	for _, p := range census.Merge(s.cfg.Mesh.Local(), others.Proxies) {
		seen[p.NodeId] = p
	}
	return seen, others.Unsure
}

// mayLive is the error of a node that nobody can say of that it is not connected.
func mayLive(node, replica string) error {
	return status.Errorf(codes.FailedPrecondition, "node %s was connected to the replica at %s, which does not answer this one: it may live. Ask there (--server), or once that replica answers; where that is gone for good, some minutes later", names.Text(node, 128), replica)
}

// DeclareNodeDead has a proxy count no more, and refused.
func (s *Service) DeclareNodeDead(ctx context.Context, req *adminv1.DeclareNodeDeadRequest) (*adminv1.DeclareNodeDeadResponse, error) {
	if err := checkNodeID(req.NodeId); err != nil {
		return nil, err
	}
	if n := len(req.Reason); n == 0 || n > maxNodeReason {
		return nil, status.Errorf(codes.InvalidArgument, "reason must have 1 to %d bytes: it is kept in the audit record", maxNodeReason)
	}
	seen, unsure := s.connections(ctx, req.NodeId)
	if p := seen[req.NodeId]; p.GetConnected() {
		return nil, status.Errorf(codes.FailedPrecondition, "node %s is connected to replica %s: it lives, and would go on with what it has; stop it first (\"weft admin drain\")", names.Text(req.NodeId, 128), p.Replica)
	}
	if at := unsure[req.NodeId]; at != "" {
		return nil, mayLive(req.NodeId, at)
	}
	if err := s.cfg.Roster.DeclareDead(ctx, req.NodeId, callerOf(ctx).Subject); err != nil {
		return nil, toStatus(err)
	}
	return &adminv1.DeclareNodeDeadResponse{}, nil
}

// ReviveNode lets a proxy that was declared dead join again.
func (s *Service) ReviveNode(ctx context.Context, req *adminv1.ReviveNodeRequest) (*adminv1.ReviveNodeResponse, error) {
	if err := checkNodeID(req.NodeId); err != nil {
		return nil, err
	}
	if err := s.cfg.Roster.Revive(ctx, req.NodeId); err != nil {
		return nil, toStatus(err)
	}
	return &adminv1.ReviveNodeResponse{}, nil
}

// ForgetNodes removes proxies that were declared dead.
func (s *Service) ForgetNodes(ctx context.Context, req *adminv1.ForgetNodesRequest) (*adminv1.ForgetNodesResponse, error) {
	if n := len(req.NodeIds); n == 0 || n > roster.MaxForget {
		return nil, status.Errorf(codes.InvalidArgument, "node_ids must have 1 to %d items", roster.MaxForget)
	}
	for _, id := range req.NodeIds {
		if err := checkNodeID(id); err != nil {
			return nil, err
		}
	}
	seen, unsure := s.connections(ctx, "")
	for _, id := range req.NodeIds {
		if at := unsure[id]; at != "" && !seen[id].GetConnected() {
			return nil, mayLive(id, at)
		}
		if p := seen[id]; p.GetConnected() {
			return nil, status.Errorf(codes.FailedPrecondition, "node %s is connected to replica %s: it lives, or that replica has not heard yet that it was declared dead; nobody was forgotten", names.Text(id, 128), p.Replica)
		}
	}
	if err := s.cfg.Roster.Forget(ctx, req.NodeIds); err != nil {
		return nil, toStatus(err)
	}
	return &adminv1.ForgetNodesResponse{}, nil
}

func checkNodeID(id string) error {
	if n := len(id); n == 0 || n > 128 || names.Text(id, n) != id {
		return status.Error(codes.InvalidArgument, "node_id must have 1 to 128 characters, and no control characters")
	}
	return nil
}
