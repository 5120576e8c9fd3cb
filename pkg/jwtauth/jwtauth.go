// Package jwtauth tells who sent a JSON Web Token: it checks tokens of one
// issuer against the issuer's keys, which it keeps fresh in the background and
// goes on using while the issuer cannot be reached.
//
// Only asymmetric signatures are accepted. Keys come from the configuration and
// nowhere else: what a token says of keys (jwk, jku, x5u, x5c) is not looked at,
// and its kid is only compared. No error says anything that is in a token.
package jwtauth

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"

	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/latest"
)

// Bounds of what comes from outside.
const (
	// MaxToken is the longest token that is looked at, in bytes.
	MaxToken = 16 << 10
	// maxGroups and maxName bound what is taken from a token.
	maxGroups = 256
	maxName   = 256
	// maxVerified is of how many tokens it is remembered that they are good.
	maxVerified = 1024
)

// Config of a Verifier. The zero value of a field is its default.
type Config struct {
	// Issuer is what a token's iss must be, to the letter.
	Issuer string
	// Audiences are what a token's aud must have one of.
	Audiences []string
	// JWKS, JWKSFile and JWKSURL are where the issuer's keys are, exactly one
	// of them: the JSON Web Key Set itself, a file that has it and is read
	// again, or a URL (https, or http to a loopback address).
	JWKS     []byte
	JWKSFile string
	JWKSURL  string
	// PrincipalClaim is the claim that names the principal, a string; "sub".
	PrincipalClaim string
	// GroupsClaim is the claim with the principal's groups, a string or a list
	// of strings; none when empty.
	GroupsClaim string
	// Leeway is how far in the future a token's nbf and iat may be, since
	// clocks differ; 30 s. Its end (exp) is taken to the letter.
	Leeway time.Duration
	// RefreshEvery is after how long keys are looked at again; 5 min.
	RefreshEvery time.Duration
	// MinRefresh is the shortest time between two looks, whoever asks; 10 s.
	MinRefresh time.Duration
	// MaxAge is how long keys of JWKSURL are good after they were last fetched; 7
	// days. Until then an issuer that is away locks nobody out; after it tokens are
	// refused until it is back, since keys that it has withdrawn meanwhile would
	// never be heard of.
	MaxAge time.Duration
	// Wait bounds how long Verify waits for keys that were not there; 2 s.
	Wait time.Duration
	// CachePath is a file that keeps the keys of JWKSURL over a restart; none
	// when empty. Its folder must exist.
	CachePath string
	// Transport fetches JWKSURL; a plain one without the environment's proxy
	// when nil. Whoever gives another says which addresses may be called.
	Transport http.RoundTripper
	// Clock tells when tokens end.
	Clock clock.Clock
	// Fetched is called after every look at the keys; changed says whether
	// they are others, err what went wrong, with the look or with keeping what
	// it brought. It must not block.
	Fetched func(changed bool, err error)
}

// Claims are what a token says, once it is believed.
type Claims struct {
	// Principal is the claim that Config.PrincipalClaim names.
	Principal string
	// Groups are those of Config.GroupsClaim, in the token's order.
	Groups []string
	// Expires is when the token ends.
	Expires time.Time
}

// Reason says why a token was refused. It is fit for a metric's label.
type Reason string

// The reasons.
const (
	Malformed    Reason = "malformed"     // not a signed token, or too long
	Algorithm    Reason = "algorithm"     // none, symmetric, or not one for the key
	UnknownKey   Reason = "unknown-key"   // no key of the issuer has its kid
	NoKeys       Reason = "no-keys"       // the issuer's keys were never had
	StaleKeys    Reason = "stale-keys"    // nor fetched for Config.MaxAge
	Signature    Reason = "signature"     // not signed with the key
	Expired      Reason = "expired"       // or has no end
	NotYet       Reason = "not-yet-valid" // nbf or iat are in the future
	WrongIssuer  Reason = "issuer"
	WrongPublic  Reason = "audience"
	BadPrincipal Reason = "principal" // the claims do not give a principal or groups
)

// Error is a refused token. It does not say anything that is in it.
type Error struct {
	Reason Reason
	what   string
}

func (e *Error) Error() string { return "the token " + e.what }

func refuse(r Reason, what string) (Claims, error) { return Claims{}, &Error{r, what} }

// algorithms are those accepted. With all of them a public key cannot be taken
// for a shared secret.
func algorithms() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
		jose.ES256, jose.ES384, jose.ES512, jose.EdDSA}
}

// Verifier checks tokens of one issuer. It is safe for concurrent use. Run keeps
// its keys fresh.
type Verifier struct {
	cfg    Config
	source source
	keys   *latest.Value[*keySet] // never nil; empty before the first
	looks  *latest.Value[look]
	fresh  atomic.Int64  // when keys of a URL were last fetched, Unix nanoseconds; 0 never
	kick   chan struct{} // capacity 1: look now

	mu       sync.Mutex
	verified map[[sha256.Size]byte]believed // guarded by mu
}

// look is one look at the keys.
type look struct {
	began time.Time // with a monotonic reading
}

// believed is a token that was verified with the keys of a set.
type believed struct {
	claims Claims
	by     *keySet
}

// New checks cfg and makes a verifier. Keys that are in cfg or were kept on disk
// are there at once; a kept file that cannot be read is as good as none.
func New(cfg Config) (*Verifier, error) {
	if cfg.PrincipalClaim == "" {
		cfg.PrincipalClaim = "sub"
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&cfg.Leeway, 30 * time.Second}, {&cfg.RefreshEvery, 5 * time.Minute}, {&cfg.MinRefresh, 10 * time.Second}, {&cfg.MaxAge, 7 * 24 * time.Hour}, {&cfg.Wait, 2 * time.Second}} {
		if *d.field == 0 {
			*d.field = d.value
		}
		if *d.field < 0 {
			return nil, errors.New("jwt: no time may be negative")
		}
	}
	if cfg.Issuer == "" || len(cfg.Audiences) == 0 || slices.Contains(cfg.Audiences, "") {
		return nil, errors.New("jwt: an issuer and at least one audience are needed, and none may be empty")
	}
	v := &Verifier{cfg: cfg, keys: latest.New(&keySet{}), looks: latest.New(look{}), kick: make(chan struct{}, 1), verified: map[[sha256.Size]byte]believed{}}
	switch {
	case len(cfg.JWKS) > 0 && cfg.JWKSFile == "" && cfg.JWKSURL == "":
		set, err := parseKeys(cfg.JWKS)
		if err != nil {
			return nil, fmt.Errorf("jwt: jwks: %w", err)
		}
		v.keys.Store(set)
	case len(cfg.JWKS) == 0 && cfg.JWKSFile != "" && cfg.JWKSURL == "":
		v.source = fileSource(cfg.JWKSFile)
		// What is there already need not be waited for.
		if b, err := v.source(context.Background()); err == nil {
			if set, err := parseKeys(b); err == nil {
				v.keys.Store(set)
			}
		}
	case len(cfg.JWKS) == 0 && cfg.JWKSFile == "" && cfg.JWKSURL != "":
		if err := CheckURL(cfg.JWKSURL); err != nil {
			return nil, fmt.Errorf("jwt: jwks url: %w", err)
		}
		v.source = urlSource(cfg.JWKSURL, cfg.Transport)
		if set, fetched := loadCache(cfg); set != nil {
			v.keys.Store(set)
			v.fresh.Store(fetched.UnixNano())
		}
	default:
		return nil, errors.New("jwt: the keys come from exactly one of the set itself, a file and a URL")
	}
	return v, nil
}

// Verify tells who sent the token. The error is an *Error, or ctx's where it
// ends while keys are fetched.
func (v *Verifier) Verify(ctx context.Context, token string) (Claims, error) {
	seen := v.keys.Get()
	claims, err := v.VerifyNow(token)
	var e *Error
	if errors.As(err, &e) && (e.Reason == UnknownKey || e.Reason == NoKeys || e.Reason == StaleKeys) && (v.look(ctx, seen) || e.Reason == StaleKeys) {
		return v.VerifyNow(token)
	}
	if ctx.Err() != nil && err != nil {
		return Claims{}, context.Cause(ctx)
	}
	return claims, err
}

// Fetched is when the keys of a URL were last fetched, also before a restart; zero
// where they never were.
func (v *Verifier) Fetched() time.Time {
	if at := v.fresh.Load(); at != 0 {
		return time.Unix(0, at)
	}
	return time.Time{}
}

// VerifyNow is Verify with the keys that are there; it never waits.
func (v *Verifier) VerifyNow(token string) (Claims, error) {
	if len(token) > MaxToken {
		return refuse(Malformed, "is too long")
	}
	keys, now := v.keys.Get(), v.cfg.Clock.Now()
	if at := v.Fetched(); !at.IsZero() && now.Sub(at) > v.cfg.MaxAge {
		return refuse(StaleKeys, fmt.Sprintf("cannot be checked: the issuer's keys could not be fetched for %v", v.cfg.MaxAge))
	}
	sum := sha256.Sum256([]byte(token))
	v.mu.Lock()
	known, ok := v.verified[sum]
	v.mu.Unlock()
	if ok && known.by == keys {
		if !now.Before(known.claims.Expires) {
			return refuse(Expired, "has expired")
		}
		return known.claims, nil
	}
	payload, err := verifySignature(token, keys)
	if err != nil {
		return Claims{}, err
	}
	claims, err := v.judge(payload, now)
	if err != nil {
		return Claims{}, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.verified) >= maxVerified {
		clear(v.verified)
	}
	v.verified[sum] = believed{claims, keys}
	return claims, nil
}

// verifySignature gives the payload of a token that one of keys has signed.
func verifySignature(token string, keys *keySet) ([]byte, error) {
	bad := func(r Reason, what string) ([]byte, error) { return nil, &Error{r, what} }
	if strings.Count(token, ".") != 2 {
		return bad(Malformed, "is not a signed JSON Web Token")
	}
	sig, err := jose.ParseSignedCompact(token, algorithms())
	if err != nil {
		var alg *jose.ErrUnexpectedSignatureAlgorithm
		if errors.As(err, &alg) {
			return bad(Algorithm, "has a signature algorithm that is not accepted")
		}
		return bad(Malformed, "is not a signed JSON Web Token")
	}
	if len(sig.Signatures) != 1 {
		return bad(Malformed, "is not a signed JSON Web Token")
	}
	h := sig.Signatures[0].Protected
	for _, name := range []jose.HeaderKey{"crit", "b64"} {
		if _, has := h.ExtraHeaders[name]; has {
			return bad(Malformed, "has a header that asks for what is not supported")
		}
	}
	if len(keys.keys) == 0 {
		return bad(NoKeys, "cannot be checked: the issuer's keys could not be fetched yet")
	}
	candidates, fits := keys.find(h.KeyID, h.Algorithm)
	if len(candidates) == 0 {
		if fits {
			return bad(Algorithm, "has a signature algorithm that is not the key's")
		}
		return bad(UnknownKey, "is signed with a key that the issuer does not have")
	}
	for _, k := range candidates {
		if payload, err := sig.Verify(k); err == nil {
			return payload, nil
		}
	}
	return bad(Signature, "has a wrong signature")
}

// Issuer is what a token says of its issuer; nothing of it was verified. It is
// for choosing the Verifier; "" where the token cannot be read.
func Issuer(token string) string {
	issuer, _ := Addressed(token)
	return issuer
}

// Addressed is Issuer, and for whom the token says that it is.
func Addressed(token string) (issuer string, audiences []string) {
	if len(token) > MaxToken {
		return "", nil
	}
	sig, err := jose.ParseSignedCompact(token, algorithms())
	if err != nil {
		return "", nil
	}
	var c struct {
		Issuer   string `json:"iss"`
		Audience any    `json:"aud"`
	}
	if json.Unmarshal(sig.UnsafePayloadWithoutVerification(), &c) != nil {
		return "", nil
	}
	audiences, _ = texts(c.Audience)
	return c.Issuer, audiences
}

// judge reads the claims of a payload whose signature is right.
func (v *Verifier) judge(payload []byte, now time.Time) (Claims, error) {
	var all map[string]any
	if err := json.Unmarshal(payload, &all); err != nil || all == nil {
		return refuse(Malformed, "has claims that cannot be read")
	}
	if iss, _ := all["iss"].(string); iss != v.cfg.Issuer {
		return refuse(WrongIssuer, "is of another issuer")
	}
	aud, ok := texts(all["aud"])
	if !ok || !slices.ContainsFunc(aud, func(a string) bool { return slices.Contains(v.cfg.Audiences, a) }) {
		return refuse(WrongPublic, "is for another audience")
	}
	end, ok, err := moment(all, "exp")
	switch {
	case err != nil:
		return Claims{}, err
	case !ok:
		return refuse(Expired, "has no end (exp)")
	case !now.Before(end):
		return refuse(Expired, "has expired")
	}
	for _, name := range []string{"nbf", "iat"} {
		begin, ok, err := moment(all, name)
		if err != nil {
			return Claims{}, err
		}
		if ok && begin.After(now.Add(v.cfg.Leeway)) {
			return refuse(NotYet, "is not valid yet")
		}
	}
	c := Claims{Expires: end}
	if c.Principal, _ = all[v.cfg.PrincipalClaim].(string); !validName(c.Principal) {
		return refuse(BadPrincipal, "does not name a principal")
	}
	if groups := all[v.cfg.GroupsClaim]; v.cfg.GroupsClaim != "" && groups != nil {
		if c.Groups, ok = texts(groups); !ok || len(c.Groups) > maxGroups || slices.ContainsFunc(c.Groups, func(g string) bool { return !validName(g) }) {
			return refuse(BadPrincipal, "has groups that cannot be read, or too many")
		}
	}
	return c, nil
}

// texts is a claim that is one text or a list of them.
func texts(claim any) ([]string, bool) {
	switch c := claim.(type) {
	case string:
		return []string{c}, true
	case []any:
		out := make([]string, 0, min(len(c), maxGroups))
		for _, e := range c {
			s, ok := e.(string)
			if !ok {
				return nil, false
			}
			out = append(out, s)
		}
		return out, true
	}
	return nil, false
}

// maxSeconds is the end of the year 9999.
const maxSeconds = 253402300799

// moment is a claim that is a time; ok is false where it is not there.
func moment(all map[string]any, name string) (at time.Time, ok bool, err error) {
	claim, ok := all[name]
	if !ok {
		return at, false, nil
	}
	secs, ok := claim.(float64)
	if !ok || secs < 0 || secs > maxSeconds {
		return at, false, &Error{Malformed, "has a time that cannot be read"}
	}
	return time.Unix(int64(secs), 0), true, nil
}

func validName(s string) bool {
	return s != "" && len(s) <= maxName && strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\ufffd' }) < 0
}
