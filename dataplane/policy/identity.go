package policy

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/jwtauth"
)

// maxKey bounds an API key, in bytes.
const maxKey = 256

// Identities authenticate clients. They are immutable and safe for concurrent
// use. The zero value refuses everyone.
type Identities struct {
	keys          map[string]apiKey
	authorities   []authority
	issuers       []issuer
	trustLoopback bool
}

type apiKey struct {
	hash      [sha256.Size]byte
	principal *Principal
}

type authority struct {
	identity  string
	namespace string
	pool      *x509.CertPool
	source    configv1.PrincipalSource
	prefix    string
	groups    []string
}

// NamedIdentity is an Identity with its names.
type NamedIdentity struct {
	Namespace string
	// Name is the canonical name.
	Name string
	Spec *configv1.Identity
}

// CheckIdentity tells whether an identity compiles. The error is a *FieldError.
func CheckIdentity(spec *configv1.Identity) error {
	var i Identities
	return i.add(NamedIdentity{Spec: spec})
}

// CompileIdentities compiles what CheckIdentity accepts and leaves the rest
// out, so that its clients are refused. A key id that two identities claim is
// nobody's. verifiers check the tokens of identities by their canonical names;
// where one is not there, its tokens are refused. With trustLoopback whoever comes
// over loopback or a Unix socket without credentials is Local.
func CompileIdentities(list []NamedIdentity, verifiers map[string]*jwtauth.Verifier, trustLoopback bool) *Identities {
	out := &Identities{trustLoopback: trustLoopback}
	for _, n := range list {
		next := Identities{keys: out.keys, authorities: out.authorities, issuers: out.issuers}
		if next.add(n) == nil {
			out.keys, out.authorities, out.issuers = next.keys, next.authorities, next.issuers
		}
	}
	for i := range out.issuers {
		out.issuers[i].verifier = verifiers[out.issuers[i].identity]
	}
	return out
}

func (i *Identities) add(n NamedIdentity) error {
	switch m := n.Spec.GetMethod().(type) {
	case *configv1.Identity_ApiKeys:
		if i.keys == nil {
			i.keys = map[string]apiKey{}
		}
		for j, k := range m.ApiKeys.Keys {
			path := fmt.Sprintf("spec.api_keys.keys[%d]", j)
			raw, ok := strings.CutPrefix(k.Hash, "sha256:")
			sum, err := hex.DecodeString(raw)
			if !ok || err != nil || len(sum) != sha256.Size {
				return &FieldError{path + ".hash", "is not sha256: and 64 hexadecimal digits"}
			}
			if k.Id == "" || k.Principal == "" || k.Principal == Local {
				return &FieldError{path, "must have an id and a principal, which is not " + Local}
			}
			p := &Principal{Namespace: n.Namespace, Name: k.Principal, Identity: n.Name, Credential: k.Id}
			for _, g := range k.Groups {
				p.Groups = append(p.Groups, n.Namespace+"/"+g)
			}
			if k.ExpiresAt != nil {
				p.Expires = expires(k.ExpiresAt.AsTime())
			}
			if _, taken := i.keys[k.Id]; taken {
				i.keys[k.Id] = apiKey{} // matches nothing
				continue
			}
			p.hash = [sha256.Size]byte(sum)
			i.keys[k.Id] = apiKey{hash: p.hash, principal: p}
		}
	case *configv1.Identity_Mtls:
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM([]byte(m.Mtls.CaCertificates)) {
			return &FieldError{"spec.mtls.ca_certificates", "has no certificate in PEM"}
		}
		a := authority{identity: n.Name, namespace: n.Namespace, pool: pool, source: m.Mtls.PrincipalFrom, prefix: m.Mtls.UriPrefix}
		switch a.source {
		case configv1.PrincipalSource_PRINCIPAL_SOURCE_URI_SAN:
			if a.prefix == "" {
				return &FieldError{"spec.mtls.uri_prefix", "is required with principal_from uri_san"}
			}
		case configv1.PrincipalSource_PRINCIPAL_SOURCE_DNS_SAN, configv1.PrincipalSource_PRINCIPAL_SOURCE_COMMON_NAME:
			if a.prefix != "" {
				return &FieldError{"spec.mtls.uri_prefix", "is only for principal_from uri_san"}
			}
		default:
			return &FieldError{"spec.mtls.principal_from", "is not one that this version enforces"}
		}
		for _, g := range m.Mtls.Groups {
			a.groups = append(a.groups, n.Namespace+"/"+g)
		}
		i.authorities = append(i.authorities, a)
	case *configv1.Identity_Jwt:
		if _, err := jwtauth.New(TokenRules(m.Jwt)); err != nil {
			return &FieldError{"spec.jwt", err.Error()}
		}
		i.issuers = append(i.issuers, issuer{identity: n.Name, namespace: n.Namespace, name: m.Jwt.Issuer, audiences: m.Jwt.Audiences})
	default:
		return &FieldError{"spec", "has no method that this version enforces"}
	}
	return nil
}

func refuse(reason, msg string) error {
	return &fault.Error{Class: fault.Unauthenticated, Op: "authenticate", Reason: reason, Msg: msg}
}

// Authenticate tells who a client is. The error is Unauthenticated and says
// nothing of what exists, or Unavailable where a token cannot be checked yet.
// Credentials that are shown must be right: a wrong key is not made good by a
// certificate, nor the other way round; a key or token and a certificate of
// different principals are refused. It may wait a moment, at most until ctx ends,
// for a key that an issuer has signed with for the first time.
func (i *Identities) Authenticate(ctx context.Context, c Credentials, now time.Time) (*Principal, error) {
	var byKey, byCert *Principal
	switch {
	case isToken(c.Bearer):
		var err error
		if byKey, err = i.byToken(c.Bearer, func(v *jwtauth.Verifier) (jwtauth.Claims, error) { return v.Verify(ctx, c.Bearer) }); err != nil {
			return nil, err
		}
	case c.Bearer != "":
		if byKey = i.byKey(c.Bearer, now); byKey == nil {
			return nil, refuse("bad-credentials", "the API key is not valid")
		}
	}
	if len(c.Certificates) > 0 {
		if byCert = i.byCertificate(c.Certificates, now); byCert == nil {
			return nil, refuse("bad-credentials", "the client certificate is not of an authority that the mesh trusts, or names no principal")
		}
	}
	switch {
	case byKey != nil && byCert != nil && byKey.String() != byCert.String():
		return nil, refuse("bad-credentials", "the client certificate is of another principal than the API key or token")
	case byKey != nil && byCert != nil:
		return both(byKey, byCert), nil
	case byKey != nil:
		return byKey, nil
	case byCert != nil:
		return byCert, nil
	case i.trustLoopback && c.Unix:
		return &Principal{Name: Local, Credential: "unix socket"}, nil
	case i.trustLoopback && c.Peer.Addr().Unmap().IsLoopback():
		return &Principal{Name: Local, Credential: "loopback"}, nil
	}
	return nil, refuse("no-credentials", "credentials are needed: an API key or a token (Authorization: Bearer …), or a client certificate")
}

// both is who has shown a key or token, which tells what it may do, and a certificate of
// the same principal: for as long as both are good.
func both(byKey, byCert *Principal) *Principal {
	end := byCert.Expires
	if byKey.Expires != 0 {
		end = min(end, byKey.Expires)
	}
	return &Principal{Namespace: byKey.Namespace, Name: byKey.Name, Groups: byKey.Groups, Identity: byKey.Identity, Expires: end, Credential: byKey.Credential,
		hash: byKey.hash, token: byKey.token, chain: byCert.chain}
}

func (i *Identities) byKey(key string, now time.Time) *Principal {
	if len(key) > maxKey {
		return nil
	}
	rest, ok := strings.CutPrefix(key, "weft_")
	id, _, ok2 := strings.Cut(rest, "_")
	if !ok || !ok2 {
		return nil
	}
	k := i.keys[id]
	sum := sha256.Sum256([]byte(key))
	if subtle.ConstantTimeCompare(sum[:], k.hash[:]) != 1 || k.principal == nil || k.principal.Expired(now) {
		return nil
	}
	return k.principal
}

func (i *Identities) byCertificate(chain []*x509.Certificate, now time.Time) *Principal {
	leaf := chain[0]
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	for n := range i.authorities {
		a := &i.authorities[n]
		chains, err := leaf.Verify(x509.VerifyOptions{Roots: a.pool, Intermediates: between, CurrentTime: now,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		if err != nil {
			continue
		}
		if name := a.principal(leaf); name != "" {
			return &Principal{Namespace: a.namespace, Name: name, Groups: a.groups, Identity: a.identity,
				Expires: expires(until(chains)), Credential: "certificate " + leaf.SerialNumber.Text(16), chain: chain}
		}
	}
	return nil
}

// until is when the last of some chains ends: an authority may before its certificates do.
func until(chains [][]*x509.Certificate) (last time.Time) {
	for _, chain := range chains {
		first := slices.MinFunc(chain, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
		if first.NotAfter.After(last) {
			last = first.NotAfter
		}
	}
	return last
}

func (a *authority) principal(leaf *x509.Certificate) string {
	name := ""
	switch a.source {
	case configv1.PrincipalSource_PRINCIPAL_SOURCE_URI_SAN:
		for _, u := range leaf.URIs {
			if rest, ok := strings.CutPrefix(u.String(), a.prefix); ok {
				name = rest
				break
			}
		}
	case configv1.PrincipalSource_PRINCIPAL_SOURCE_DNS_SAN:
		if len(leaf.DNSNames) > 0 {
			name = leaf.DNSNames[0]
		}
	case configv1.PrincipalSource_PRINCIPAL_SOURCE_COMMON_NAME:
		name = leaf.Subject.CommonName
	}
	if !validPrincipal(name) {
		return ""
	}
	return name
}

// validPrincipal keeps names that would read as something else in a policy out:
// patterns, other namespaces, the local principal.
func validPrincipal(name string) bool {
	if name == "" || len(name) > 128 || name == Local || net.ParseIP(name) != nil {
		return false
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_' && c != '@' {
			return false
		}
	}
	return true
}

// errRevoked is of a principal whose credentials would be refused now.
var errRevoked = refuse("credentials-revoked", "the credentials of this connection are not valid any more")

// Refresh judges a principal that was authenticated before by the identities
// as they are now: groups may have changed, keys and authorities may be gone.
// The error is Unauthenticated where the same credentials would be refused, or
// Unavailable where a token cannot be checked yet.
func (i *Identities) Refresh(p *Principal, now time.Time) (*Principal, error) {
	if p.Namespace == "" {
		if i.trustLoopback && p.Name == Local {
			return p, nil
		}
		return nil, errRevoked
	}
	var byCert *Principal
	if len(p.chain) > 0 {
		if byCert = i.byCertificate(p.chain, now); byCert == nil || byCert.String() != p.String() {
			return nil, errRevoked
		}
	}
	var byKey *Principal
	switch {
	case p.token != "":
		var err error
		byKey, err = i.byToken(p.token, func(v *jwtauth.Verifier) (jwtauth.Claims, error) { return v.VerifyNow(p.token) })
		if err != nil && fault.ClassOf(err) == fault.Unavailable {
			return nil, err // nobody has taken it back
		}
	case p.hash != [sha256.Size]byte{}:
		if k := i.keys[p.Credential]; k.principal != nil && k.hash == p.hash && !k.principal.Expired(now) {
			byKey = k.principal
		}
	case byCert != nil:
		return byCert, nil
	}
	if byKey == nil || byKey.String() != p.String() {
		return nil, errRevoked
	}
	if byCert != nil {
		return both(byKey, byCert), nil
	}
	return byKey, nil
}
