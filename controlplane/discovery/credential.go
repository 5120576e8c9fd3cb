package discovery

import (
	"context"
	"fmt"
	"net"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/weft-mesh/weft/pkg/names"
)

// credentialPath is where the path of a proxy's SPIFFE ID begins:
// "spiffe://<trust domain>/weft/proxy/<node id>[/<namespace>…]".
const credentialPath = "/weft/proxy/"

// credential is what the certificate or the join token of a stream's other end says. The zero value
// is that of whoever shows none, over loopback.
type credential struct {
	// subject tells one holder from another, over renewals.
	subject string
	// node is the only node id that it may use; "" is any.
	node string
	// namespaces are all that it may see; nil is all there are.
	namespaces map[string]bool
}

// voter is as whom a node counts where several nodes are needed: itself, where its
// credential says which node it is, or where there is none, over loopback. One
// credential that is good for any node is not several nodes on one host.
func (c credential) voter(nodeID, peer string) string {
	if c.node != "" || c.subject == "" {
		return "node " + nodeID
	}
	host, _, err := net.SplitHostPort(peer)
	if err != nil {
		host = peer
	}
	return "host " + host + " with " + c.subject
}

// credentialOf reads the certificate of a stream's other end, which the listener
// has verified. A certificate without a proxy's SPIFFE ID is bound to nothing.
func credentialOf(ctx context.Context) (credential, error) {
	if c, ok := ctx.Value(credentialKey{}).(credential); ok {
		return c, nil // of a join token
	}
	var c credential
	p, ok := peer.FromContext(ctx)
	if !ok {
		return c, nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return c, nil
	}
	leaf := info.State.PeerCertificates[0]
	c.subject = fmt.Sprintf("%s %v %v", leaf.Subject, leaf.DNSNames, leaf.URIs)
	for _, u := range leaf.URIs {
		rest, ok := strings.CutPrefix(u.Path, credentialPath)
		if !ok || u.Scheme != "spiffe" {
			continue
		}
		if c.node != "" {
			return c, fmt.Errorf("the certificate has two SPIFFE IDs of proxies")
		}
		node, spaces, some := strings.Cut(rest, "/")
		if node == "" {
			return c, fmt.Errorf("the certificate's SPIFFE ID %s has no node id", u)
		}
		c.node = node
		if !some {
			continue
		}
		c.namespaces = map[string]bool{}
		for ns := range strings.SplitSeq(spaces, "/") {
			if err := names.CheckNamespace(ns); err != nil {
				return c, fmt.Errorf("the certificate's SPIFFE ID %s: %w", u, err)
			}
			c.namespaces[ns] = true
		}
	}
	return c, nil
}

// byCertificate gives the namespaces of the certificate that a peer showed.
func byCertificate(ctx context.Context) (map[string]bool, error) {
	c, err := credentialOf(ctx)
	return c.namespaces, err
}
