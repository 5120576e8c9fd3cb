package jwtauth

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/weft-mesh/weft/pkg/version"
)

// Bounds of a key set.
const (
	// MaxJWKS is the largest set that is read, in bytes.
	MaxJWKS = 256 << 10
	maxKeys = 64
	// RSA keys below are weak, above costly.
	minRSA, maxRSA = 2048, 8192
	// fetchTimeout bounds one look at a URL.
	fetchTimeout = 10 * time.Second
	maxRedirects = 3
)

// keySet are the keys of an issuer that are of use here. It is not changed.
type keySet struct {
	raw  []byte
	keys []jose.JSONWebKey
}

// CheckJWKS tells whether a JSON Web Key Set that is to be part of a
// configuration has keys that can be used, and no secrets.
func CheckJWKS(b []byte) error {
	if _, err := parseKeys(b); err != nil {
		return err
	}
	var set struct {
		Keys []struct{ D, K json.RawMessage } `json:"keys"`
	}
	if err := json.Unmarshal(b, &set); err != nil {
		return errors.New("is not a JSON Web Key Set")
	}
	for i, k := range set.Keys {
		if k.D != nil || k.K != nil {
			return fmt.Errorf("key %d is a private or secret one; only public keys belong here", i)
		}
	}
	return nil
}

// parseKeys reads a set. Keys that cannot be used (symmetric, of another use,
// weak) are left out; a set without any other is refused. Errors quote nothing.
func parseKeys(b []byte) (*keySet, error) {
	if len(b) > MaxJWKS {
		return nil, fmt.Errorf("has more than %d bytes", MaxJWKS)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, errors.New("is not a JSON Web Key Set")
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("has more than %d keys", maxKeys)
	}
	out := &keySet{raw: bytes.Clone(b)}
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		if k.UnmarshalJSON(raw) != nil || k.Use != "" && k.Use != "sig" {
			continue
		}
		// Who publishes private keys has lost them, but the public half says
		// nothing else.
		k = k.Public()
		if k.Valid() && algorithmOf(k.Key) != nil {
			out.keys = append(out.keys, jose.JSONWebKey{Key: k.Key, KeyID: k.KeyID, Algorithm: k.Algorithm})
		}
	}
	if len(out.keys) == 0 {
		return nil, errors.New("has no key that can be used: RSA of 2048 to 8192 bits, ECDSA P-256, P-384 or P-521, or Ed25519, for signatures")
	}
	return out, nil
}

// algorithmOf are the algorithms that a key is for; nil for one that is not used.
func algorithmOf(key any) []string {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n >= minRSA && n <= maxRSA && k.E >= 3 && k.E&1 == 1 {
			return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
		}
	case *ecdsa.PublicKey:
		if alg := map[int]string{256: "ES256", 384: "ES384", 521: "ES512"}[k.Curve.Params().BitSize]; alg != "" {
			return []string{alg}
		}
	case ed25519.PublicKey:
		return []string{"EdDSA"}
	}
	return nil
}

// find gives the keys that a token with this kid and algorithm may be signed
// with. named: some key has the kid, for whatever algorithm. Without a kid it is
// the only key for the algorithm.
func (s *keySet) find(kid, alg string) (candidates []jose.JSONWebKey, named bool) {
	for _, k := range s.keys {
		if kid != "" && k.KeyID != kid {
			continue
		}
		named = named || kid != ""
		if k.Algorithm != "" && k.Algorithm != alg {
			continue
		}
		for _, a := range algorithmOf(k.Key) {
			if a == alg {
				candidates = append(candidates, k)
			}
		}
	}
	if kid == "" && len(candidates) > 1 {
		return nil, false
	}
	return candidates, named
}

// source reads a key set.
type source func(ctx context.Context) ([]byte, error)

func fileSource(name string) source {
	return func(context.Context) ([]byte, error) { return readFile(name, MaxJWKS) }
}

// readFile gives at most one byte more than most, so that too much is seen.
func readFile(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most+1))
}

// CheckURL tells whether keys may be fetched from a URL: https, or http to a
// loopback address; without user, password or fragment.
func CheckURL(s string) error {
	u, err := url.Parse(s)
	if err != nil {
		// The error of url.Parse quotes it.
		return errors.New("is not a URL")
	}
	if u.Host == "" || u.Hostname() == "" || u.User != nil || u.Fragment != "" || u.Opaque != "" {
		return errors.New("must have a host, and neither user nor fragment")
	}
	switch ip, err := netip.ParseAddr(u.Hostname()); {
	case u.Scheme == "https":
		return nil
	case u.Scheme == "http" && (strings.EqualFold(u.Hostname(), "localhost") || err == nil && ip.Unmap().IsLoopback()):
		return nil
	}
	return errors.New("must be https, or http to a loopback address")
}

func urlSource(from string, transport http.RoundTripper) source {
	if transport == nil {
		transport = &http.Transport{ForceAttemptHTTP2: true, TLSHandshakeTimeout: fetchTimeout, MaxResponseHeaderBytes: 64 << 10, IdleConnTimeout: time.Minute}
	}
	client := &http.Client{Transport: transport, Timeout: fetchTimeout,
		CheckRedirect: func(next *http.Request, via []*http.Request) error {
			if first := via[0].URL; len(via) > maxRedirects || next.URL.Scheme != first.Scheme || next.URL.Host != first.Host {
				return http.ErrUseLastResponse
			}
			return nil
		}}
	return func(ctx context.Context) ([]byte, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Accept", "application/jwk-set+json, application/json")
		req.Header.Set("User-Agent", "weft/"+version.String())
		resp, err := client.Do(req)
		if err != nil {
			var where *url.Error
			if errors.As(err, &where) {
				err = where.Err // without the URL: whoever logs this has named it
			}
			return nil, err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("answered with status %d", resp.StatusCode)
		}
		return io.ReadAll(io.LimitReader(resp.Body, MaxJWKS+1))
	}
}

// retryAfter is the wait after a first failure; it doubles up to RefreshEvery.
const retryAfter = time.Second

// Run looks at the keys now, every RefreshEvery, and when a token names a key
// that is not there, until ctx ends.
func (v *Verifier) Run(ctx context.Context) error {
	if v.source == nil {
		<-ctx.Done()
		return nil
	}
	retry := retryAfter
	for {
		wait := v.cfg.RefreshEvery
		if err := v.fetch(ctx); err != nil {
			wait, retry = min(retry, wait), min(2*retry, v.cfg.RefreshEvery)
		} else {
			retry = retryAfter
		}
		// Proxies do not all ask at the same moment.
		timer := time.NewTimer(wait - rand.N(wait/10+1))
		select {
		case <-timer.C:
		case <-v.kick:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		timer.Stop()
	}
}

// fetch looks at the keys once. What it finds replaces what was there; where
// that fails, what was there stays.
func (v *Verifier) fetch(ctx context.Context) error {
	began := time.Now()
	b, err := v.source(ctx)
	var set *keySet
	if err == nil {
		set, err = parseKeys(b)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// The same bytes keep what was verified.
	changed := err == nil && !bytes.Equal(set.raw, v.keys.Get().raw)
	if changed {
		v.keys.Store(set)
	}
	now := v.cfg.Clock.Now()
	if err == nil && v.cfg.JWKSURL != "" {
		v.fresh.Store(now.UnixNano())
	}
	v.looks.Store(look{began})
	problem := err
	if err == nil && v.cfg.JWKSURL != "" && v.cfg.CachePath != "" && (changed || os.Chtimes(v.cfg.CachePath, now, now) != nil) {
		problem = saveCache(v.cfg, b, now)
	}
	if v.cfg.Fetched != nil {
		v.cfg.Fetched(changed, problem)
	}
	return err
}

// look asks for a look at the keys and waits for it, at most Config.Wait. It is
// false where seen, the keys that did not do, are the newest: there was a look a
// moment ago, or it brought nothing in time.
func (v *Verifier) look(ctx context.Context, seen *keySet) bool {
	if v.source == nil {
		return false
	}
	last, done := v.looks.Load()
	if v.keys.Get() != seen {
		return true
	}
	if !last.began.IsZero() && time.Since(last.began) < v.cfg.MinRefresh {
		return false
	}
	select {
	case v.kick <- struct{}{}:
	default: // somebody has asked
	}
	timer := time.NewTimer(v.cfg.Wait)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	case <-ctx.Done():
	}
	return v.keys.Get() != seen
}

// cached is the file at Config.CachePath. When it was last changed is when the
// keys were fetched.
type cached struct {
	Issuer string          `json:"issuer"`
	URL    string          `json:"url"`
	JWKS   json.RawMessage `json:"jwks"`
}

// loadCache gives the kept keys of the same issuer and URL, and when they were
// fetched; nil without.
func loadCache(cfg Config) (_ *keySet, fetched time.Time) {
	if cfg.CachePath == "" {
		return nil, fetched
	}
	b, err := readFile(cfg.CachePath, 2*MaxJWKS)
	info, err2 := os.Stat(cfg.CachePath)
	if err != nil || err2 != nil {
		return nil, fetched
	}
	var c cached
	if json.Unmarshal(b, &c) != nil || c.Issuer != cfg.Issuer || c.URL != cfg.JWKSURL {
		return nil, fetched
	}
	set, err := parseKeys(c.JWKS)
	if err != nil {
		return nil, fetched
	}
	return set, info.ModTime()
}

// saveCache keeps a set: aside, synced, renamed, so that a crash leaves the one
// before.
func saveCache(cfg Config, jwks []byte, fetched time.Time) error {
	b, err := json.Marshal(cached{cfg.Issuer, cfg.JWKSURL, jwks})
	if err != nil {
		return err
	}
	aside := cfg.CachePath + ".writing"
	f, err := os.OpenFile(aside, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("keeping the keys: %w", err)
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close(), os.Chtimes(aside, fetched, fetched)); err == nil {
		err = os.Rename(aside, cfg.CachePath)
	}
	if err != nil {
		return fmt.Errorf("keeping the keys: %w", err)
	}
	return nil
}
