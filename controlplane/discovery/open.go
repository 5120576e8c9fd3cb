package discovery

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
)

// open makes the stream's state from what its first request says of the node.
func (s *Server) open(ctx context.Context, node *corev3.Node, allowed map[string]bool) (*stream, error) {
	st := &stream{server: s, fresh: map[string]bool{}, rejected: map[string]string{}, held: map[string]*discoveryv1.Rejection{}, connected: s.cfg.Clock.Now()}
	st.scope.allowed = allowed
	if p, ok := peer.FromContext(ctx); ok {
		st.peer = p.Addr.String()
	}
	if !names.ValidNodeID(node.GetId()) { // on the roster, moves of topics wait for what it says with Hold
		return nil, status.Error(codes.InvalidArgument, "node.id must have 1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-'")
	}
	st.nodeID = node.Id
	// Before anything else that it says of the node is believed.
	var err error
	if st.credential, err = credentialOf(ctx); err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	if own := st.credential.node; own != "" && own != st.nodeID {
		return nil, status.Errorf(codes.PermissionDenied, "the certificate or join token is of node %s, not of %s", own, st.nodeID)
	}
	st.info = &discoveryv1.NodeInfo{}
	if n := proto.Size(node); n > maxNode {
		return nil, status.Errorf(codes.InvalidArgument, "node has %d bytes, the most is %d", n, maxNode)
	}
	if f := node.GetMetadata().GetFields()["weft"]; f != nil {
		if err := readInfo(f, st.info); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "node.metadata.weft is not a NodeInfo: %v", err)
		}
	}
	st.manifest = st.info.Manifest
	if st.declared = st.manifest && len(st.info.Capabilities) > 0; st.declared {
		st.can = resource.FeaturesOf(st.info.Capabilities)
		st.info.Capabilities = s.intern(st.info.Capabilities)
	}
	st.see()
	for _, text := range []*string{&st.info.Version, &st.info.Zone, &st.info.AdvertiseHost, &st.info.Incarnation} {
		*text = clip(*text)
	}
	if len(st.info.Namespaces) > 0 {
		st.scope.serves = map[string]bool{}
		for i, ns := range st.info.Namespaces {
			if err := names.CheckNamespace(ns); err != nil {
				return nil, status.Errorf(codes.InvalidArgument, "node.metadata.weft.namespaces[%d]: %v", i, err)
			}
			st.scope.serves[ns] = true
		}
	}
	if allowed != nil {
		// How a resource stands is counted among those that are about its namespace.
		own := slices.DeleteFunc(st.info.Namespaces, func(ns string) bool { return !allowed[ns] })
		if len(own) == 0 {
			own = slices.Sorted(maps.Keys(allowed))
		}
		st.info.Namespaces = own
	}
	if values := metadata.ValueFromIncomingContext(ctx, ResumeHeader); len(values) > 0 {
		token := &discoveryv1.ResumeToken{}
		b, err := base64.RawURLEncoding.DecodeString(values[0])
		if err == nil {
			err = proto.Unmarshal(b, token)
		}
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, "the resume token cannot be read")
		}
		if err := s.awaitRevision(ctx, st.nodeID, token); err != nil {
			return nil, err
		}
		st.token = token
	}
	return st, nil
}

// see sums up what decides, beside the subscription, what the node is sent.
func (st *stream) see() {
	can := "everything"
	if st.declared {
		can = strings.Join(st.can.Names(), " ")
	}
	allowed := "all"
	if st.scope.allowed != nil {
		allowed = fmt.Sprintf("%q", slices.Sorted(maps.Keys(st.scope.allowed)))
	}
	sum := sha256.Sum256([]byte(can + "\x00" + allowed))
	st.seen = sum[:16]
}

// readInfo reads what a node says of itself. Its capabilities, which are many, do not
// take the way over JSON.
func readInfo(v *structpb.Value, info *discoveryv1.NodeInfo) error {
	const capabilities = "capabilities"
	var can []string
	if list, ok := v.GetStructValue().GetFields()[capabilities].GetKind().(*structpb.Value_ListValue); ok {
		can = make([]string, 0, len(list.ListValue.Values))
		for _, c := range list.ListValue.Values {
			if _, ok := c.Kind.(*structpb.Value_StringValue); !ok {
				return errors.New("capabilities are not strings")
			}
			can = append(can, c.GetStringValue())
		}
		delete(v.GetStructValue().Fields, capabilities)
	}
	b, err := v.MarshalJSON()
	if err == nil {
		err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, info)
	}
	if can != nil {
		info.Capabilities = can
	}
	return err
}

// maxInterned bounds the lists of capabilities that streams share.
const maxInterned = 64

// intern gives equal lists of capabilities one memory.
func (s *Server) intern(list []string) []string {
	key := strings.Join(list, "\x00")
	s.mu.Lock()
	defer s.mu.Unlock()
	if known, ok := s.interned[key]; ok {
		return known
	}
	if len(s.interned) < maxInterned {
		s.interned[key] = list
	}
	return list
}
