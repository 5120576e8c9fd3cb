package jwtauth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// The time of all tests.
var noon = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

func at(t time.Time) func() time.Time { return func() time.Time { return t } }

type signers struct {
	rsa, weak *rsa.PrivateKey
	ec, ec384 *ecdsa.PrivateKey
	ed        ed25519.PrivateKey
}

// keys are made once: RSA is slow.
var keys = sync.OnceValue(func() (s signers) {
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	var err error
	s.rsa, err = rsa.GenerateKey(rand.Reader, 2048)
	must(err)
	s.weak, err = rsa.GenerateKey(rand.Reader, 1024)
	must(err)
	s.ec, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	s.ec384, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(err)
	_, s.ed, err = ed25519.GenerateKey(rand.Reader)
	must(err)
	return s
})

// set is a JWKS with the public halves of keys, by kid.
func set(t testing.TB, byKid map[string]crypto.Signer) []byte {
	t.Helper()
	var s jose.JSONWebKeySet
	for kid, k := range byKid {
		s.Keys = append(s.Keys, jose.JSONWebKey{Key: k.Public(), KeyID: kid})
	}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type claims map[string]any

// good are the claims of a token that is accepted.
func good(more ...claims) claims {
	c := claims{"iss": "https://issuer.example", "aud": "weft", "sub": "alice", "exp": noon.Add(time.Hour).Unix(), "groups": []string{"dev", "ops"}}
	for _, m := range more {
		for k, v := range m {
			if v == nil {
				delete(c, k)
			} else {
				c[k] = v
			}
		}
	}
	return c
}

func sign(t testing.TB, alg jose.SignatureAlgorithm, key any, kid string, c claims) string {
	t.Helper()
	payload, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return signPayload(t, alg, key, kid, payload, nil)
}

func signPayload(t testing.TB, alg jose.SignatureAlgorithm, key any, kid string, payload []byte, header map[jose.HeaderKey]any) string {
	t.Helper()
	opts := &jose.SignerOptions{ExtraHeaders: map[jose.HeaderKey]any{}}
	maps.Copy(opts.ExtraHeaders, header)
	if kid != "" {
		opts.ExtraHeaders["kid"] = kid
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, opts)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := s.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	out, err := sig.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func enc(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// raw is a token put together by hand.
func raw(header string, c claims, mac func(signed string) []byte) string {
	payload, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	signed := enc([]byte(header)) + "." + enc(payload)
	return signed + "." + enc(mac(signed))
}

func verifier(t testing.TB, cfg Config) *Verifier {
	t.Helper()
	cfg.Issuer, cfg.Audiences, cfg.GroupsClaim = "https://issuer.example", []string{"weft", "other"}, "groups"
	if cfg.Clock == nil {
		cfg.Clock = at(noon)
	}
	v, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func reasonOf(err error) Reason {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}
