// Package policy answers who a client is and what it may do. Both answers come
// from rules that are compiled when the configuration changes; nothing is
// compiled when an event arrives.
package policy

import (
	"crypto/sha256"
	"crypto/x509"
	"math"
	"net/netip"
	"sync/atomic"
	"time"
)

// Principal is an authenticated client. It is immutable and not copied.
type Principal struct {
	// Namespace of the Identity that vouches for it; "" for Local.
	Namespace string
	// Name within the namespace.
	Name string
	// Groups, each as "namespace/group".
	Groups []string
	// Identity is the canonical name of the resource that vouched for it.
	Identity string
	// Expires in Unix nanoseconds; 0 is never. Whoever holds a connection asks
	// Identities.Refresh when the configuration changes and at this time.
	Expires int64
	// Credential is the public part of what was shown: key id, the
	// certificate's serial or "token". For logs.
	Credential string

	// What was shown, so that Refresh can judge it by newer identities.
	hash  [sha256.Size]byte
	chain []*x509.Certificate
	token string

	current atomic.Pointer[refreshed]
}

// Local is the principal of whoever comes over loopback or a Unix socket without credentials to
// a proxy that trusts loopback (`weft up`).
const Local = "local"

// String is how the principal stands in policies and messages:
// "namespace/name", or "local".
func (p *Principal) String() string {
	if p.Namespace == "" {
		return p.Name
	}
	return p.Namespace + "/" + p.Name
}

// expires is t for a Principal: the last or first time that there is for one where t is
// later or earlier, as the end of certificates that have none (RFC 5280: in 9999).
func expires(t time.Time) int64 {
	switch {
	case t.After(time.Unix(0, math.MaxInt64)):
		return math.MaxInt64
	case t.Unix() < 0:
		return 1
	}
	return max(t.UnixNano(), 1)
}

// Expired reports whether what was shown has expired.
func (p *Principal) Expired(now time.Time) bool {
	return p.Expires != 0 && now.UnixNano() >= p.Expires
}

// Credentials are what a client showed. They never go into logs or errors.
type Credentials struct {
	// Bearer is the token of "Authorization: Bearer"; "" without one.
	Bearer string
	// Certificates are the client's chain, leaf first, possession proven by
	// the TLS handshake, but not yet verified against any authority.
	Certificates []*x509.Certificate
	// Peer is the connection's other end, over TCP.
	Peer netip.AddrPort
	// Unix is set where it came over a Unix socket, which is of this machine.
	Unix bool
}

// Action is what a client does.
type Action uint8

// The actions of access rules.
const (
	Publish Action = iota
	Subscribe
	Consume
)

func (a Action) String() string {
	return [...]string{"publish", "subscribe", "consume"}[a]
}

// Decision is an answer and what gave it.
type Decision struct {
	Allowed bool
	// Policy is the canonical name of the AccessPolicy that decided; "" where
	// no rule allowed.
	Policy string
	// Rule is the rule's name within it.
	Rule string
	// Why is the whole for people: `denied by rule "no-interns" of
	// AccessPolicy demo/orders` or `no AccessPolicy of namespace demo allows
	// demo/alice to publish to topic orders`.
	Why string
	// Shadow is set where a shadowed rule would have changed the answer: its
	// policy and rule, "accesspolicy/demo/orders#no-interns".
	Shadow string
}
