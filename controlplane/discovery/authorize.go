package discovery

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Authorize refuses, as a gRPC status, whoever is not the node that it says it is:
// the peer of ctx must be allowed the node id, and the node must have a discovery
// stream here that was opened with the same credential.
func (s *Server) Authorize(ctx context.Context, nodeID string) error {
	c, err := credentialOf(ctx)
	if err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	if c.node != "" && c.node != nodeID {
		return status.Errorf(codes.PermissionDenied, "the certificate or join token is of node %s, not of %s", c.node, nodeID)
	}
	if err := s.refusal(nodeID); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch st := s.nodes[nodeID]; {
	case st == nil:
		return status.Errorf(codes.FailedPrecondition, "node %s has no discovery stream here", nodeID)
	case st.credential.subject != c.subject:
		return status.Errorf(codes.PermissionDenied, "node %s is connected with another certificate", nodeID)
	}
	return nil
}

// Allows reports whether the credential that the peer of ctx has shown is good for a
// namespace.
func Allows(ctx context.Context, namespace string) bool {
	c, err := credentialOf(ctx)
	return err == nil && (c.namespaces == nil || c.namespaces[namespace])
}
