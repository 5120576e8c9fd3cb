package admin

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
)

// Bounds of what a request names.
const (
	maxJoinNamespaces = 1000
	maxRevoked        = 100
)

// CreateJoinToken makes a token with which one proxy may join.
func (s *Service) CreateJoinToken(ctx context.Context, req *adminv1.CreateJoinTokenRequest) (*adminv1.CreateJoinTokenResponse, error) {
	if len(req.Namespaces) > maxJoinNamespaces {
		return nil, status.Errorf(codes.InvalidArgument, "namespaces has more than %d", maxJoinNamespaces)
	}
	var expires time.Time
	if req.ExpiresAt != nil {
		if err := req.ExpiresAt.CheckValid(); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "expires_at: %v", err)
		}
		expires = req.ExpiresAt.AsTime()
	}
	token, t, err := s.cfg.JoinTokens.Create(ctx, req.NodeId, req.Namespaces, expires)
	if err != nil {
		return nil, toStatus(err)
	}
	s.cfg.Log.Info("a join token was made", "id", t.ID, "node", t.NodeID, "namespaces", t.Namespaces)
	return &adminv1.CreateJoinTokenResponse{Token: token, Id: t.ID}, nil
}

// ListJoinTokens gives all join tokens, without their secrets.
func (s *Service) ListJoinTokens(ctx context.Context, _ *adminv1.ListJoinTokensRequest) (*adminv1.ListJoinTokensResponse, error) {
	all, err := s.cfg.JoinTokens.List(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	out := &adminv1.ListJoinTokensResponse{}
	for _, t := range all {
		j := &adminv1.JoinToken{Id: t.ID, NodeId: t.NodeID, Namespaces: t.Namespaces, CreatedAt: timestamppb.New(t.Created)}
		if !t.Expires.IsZero() {
			j.ExpiresAt = timestamppb.New(t.Expires)
		}
		out.Tokens = append(out.Tokens, j)
	}
	return out, nil
}

// RevokeJoinTokens ends join tokens, and the streams that were opened with them.
func (s *Service) RevokeJoinTokens(ctx context.Context, req *adminv1.RevokeJoinTokensRequest) (*adminv1.RevokeJoinTokensResponse, error) {
	if n := len(req.Ids); n == 0 || n > maxRevoked {
		return nil, status.Errorf(codes.InvalidArgument, "ids must have 1 to %d", maxRevoked)
	}
	if err := s.cfg.JoinTokens.Revoke(ctx, req.Ids); err != nil {
		return nil, toStatus(err)
	}
	s.cfg.Log.Info("join tokens were revoked", "ids", req.Ids)
	return &adminv1.RevokeJoinTokensResponse{}, nil
}
