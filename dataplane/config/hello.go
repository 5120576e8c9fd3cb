package config

import (
	"encoding/base64"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"
)

// clip shortens a text, between characters.
func clip(s string, most int) string { return strings.ToValidUTF8(s[:min(len(s), most)], "") }

// token is the resume token, as it stands in the header; "" to start from
// nothing.
func (c *Client) token() string {
	if c.mem.lineage == "" || c.resync || !slices.Equal(c.mem.scope, c.scope) {
		return ""
	}
	t := &discoveryv1.ResumeToken{Lineage: c.mem.lineage, Revision: c.mem.revision, Scope: slices.Clone(c.scope), Digests: c.mem.digests(), View: c.mem.view}
	if len(c.mem.names) > 0 {
		t.Names = c.first(true).sum.Bytes()
	}
	for _, r := range c.mem.rejections() {
		t.Rejected = append(t.Rejected, &discoveryv1.Rejection{Name: r.Name, Version: r.Version, Field: r.Field, Reason: clip(r.Reason, 256)})
	}
	b, err := proto.Marshal(t)
	if err != nil || len(b) > maxToken {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// node describes this proxy.
func (c *Client) node() (*corev3.Node, error) {
	b, err := protojson.Marshal(c.cfg.Info)
	if err != nil {
		return nil, err
	}
	s := &structpb.Struct{}
	if err := protojson.Unmarshal(b, s); err != nil {
		return nil, err
	}
	return &corev3.Node{Id: c.cfg.NodeID, UserAgentName: "weft", Metadata: &structpb.Struct{
		Fields: map[string]*structpb.Value{"weft": structpb.NewStructValue(s)}}}, nil
}
