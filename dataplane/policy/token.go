package policy

import (
	"errors"
	"slices"
	"strings"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/jwtauth"
)

// issuer accepts tokens.
type issuer struct {
	identity  string
	namespace string
	name      string            // what tokens call it
	audiences []string          // whom its tokens are for
	verifier  *jwtauth.Verifier // nil refuses all
}

// TokenRules is what a Verifier needs of an identity: whose tokens are accepted
// and where the keys are. Where keys are kept and who is called stays open.
func TokenRules(spec *configv1.JwtIssuer) jwtauth.Config {
	return jwtauth.Config{Issuer: spec.Issuer, Audiences: spec.Audiences, JWKS: []byte(spec.GetJwks()), JWKSURL: spec.GetJwksUri(),
		PrincipalClaim: spec.PrincipalClaim, GroupsClaim: spec.GroupsClaim}
}

// RefusedToken is a cause of what Authenticate gives for a token of an issuer that
// some Identity trusts.
type RefusedToken struct {
	// Identity is the canonical name of the one that refused it, the last where
	// several trust its issuer.
	Identity string
	Reason   jwtauth.Reason
}

func (r *RefusedToken) Error() string { return "refused by " + r.Identity }

// isToken tells tokens from API keys, which have no dots.
func isToken(bearer string) bool { return strings.Contains(bearer, ".") }

// byToken tells whose token it is. Where several identities accept tokens of its
// issuer, each for its audiences, the first that this one is for decides. Those that it is
// not for are not asked: their keys, which may be away, are waited for by nobody else.
func (i *Identities) byToken(token string, verify func(*jwtauth.Verifier) (jwtauth.Claims, error)) (*Principal, error) {
	var last error
	var by, other string
	from, whom := jwtauth.Addressed(token)
	for n := range i.issuers {
		is := &i.issuers[n]
		if is.name != from || is.verifier == nil {
			continue
		}
		if !slices.ContainsFunc(whom, func(a string) bool { return slices.Contains(is.audiences, a) }) {
			other = is.identity
			continue
		}
		claims, err := verify(is.verifier)
		switch {
		case err != nil:
			last, by = err, is.identity
			continue
		case !validPrincipal(claims.Principal):
			return nil, &fault.Error{Class: fault.Unauthenticated, Op: "authenticate", Reason: "bad-credentials", Msg: "the token's principal has characters that a principal must not have",
				Err: &RefusedToken{is.identity, jwtauth.BadPrincipal}}
		}
		p := &Principal{Namespace: is.namespace, Name: claims.Principal, Identity: is.identity, Expires: expires(claims.Expires),
			Credential: "token", token: token}
		for _, g := range claims.Groups {
			p.Groups = append(p.Groups, is.namespace+"/"+g)
		}
		return p, nil
	}
	var why *jwtauth.Error
	switch {
	case last == nil && other != "":
		return nil, &fault.Error{Class: fault.Unauthenticated, Op: "authenticate", Reason: "bad-credentials", Msg: "the token is for another audience", Err: &RefusedToken{other, jwtauth.WrongPublic}}
	case last == nil:
		return nil, refuse("bad-credentials", "the token is not of an issuer that the mesh trusts")
	case !errors.As(last, &why):
		return nil, last // the caller is gone
	case why.Reason == jwtauth.NoKeys || why.Reason == jwtauth.StaleKeys:
		return nil, &fault.Error{Class: fault.Unavailable, Op: "authenticate", Reason: "issuer-unreachable", Msg: why.Error(), RetryAfter: time.Second, Err: &RefusedToken{by, why.Reason}}
	}
	return nil, &fault.Error{Class: fault.Unauthenticated, Op: "authenticate", Reason: "bad-credentials", Msg: why.Error(), Err: &RefusedToken{by, why.Reason}}
}
