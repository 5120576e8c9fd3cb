package admin

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"

	"github.com/weft-mesh/weft/pkg/fault"
)

const (
	// maxRestoreReason bounds the reason of a restore, in bytes.
	maxRestoreReason = 1024
	// restoreWait bounds the wait for etcd, which may have come back only now, and
	// for this replica to follow the new lineage.
	restoreWait = 12 * time.Second
)

// DeclareRestore begins a new lineage: etcd was restored from a backup, and what
// it has is in force.
func (s *Service) DeclareRestore(ctx context.Context, req *adminv1.DeclareRestoreRequest) (*adminv1.DeclareRestoreResponse, error) {
	reason := strings.TrimSpace(req.Reason)
	if reason == "" || len(reason) > maxRestoreReason {
		return nil, status.Errorf(codes.InvalidArgument, "reason must have 1 to %d bytes: it is kept in the audit record", maxRestoreReason)
	}
	who := callerOf(ctx)
	ctx, cancel := context.WithTimeout(ctx, restoreWait)
	defer cancel()
	lineage, revision, err := s.cfg.Store.DeclareRestore(ctx, who.Subject, who.Peer, reason)
	switch {
	case err == nil:
	case fault.ClassOf(err) == fault.Conflict:
		return nil, status.Error(codes.Aborted, err.Error())
	default:
		return nil, toStatus(err)
	}
	return &adminv1.DeclareRestoreResponse{Lineage: lineage, Revision: revision}, nil
}
