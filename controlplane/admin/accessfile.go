package admin

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/jwtauth"
	"github.com/weft-mesh/weft/pkg/names"
)

// accessFile is the file of who may administer.
type accessFile struct {
	// JWT are issuers of tokens.
	JWT []issuerEntry `yaml:"jwt"`
	// Tokens are static, known by hash.
	Tokens []tokenEntry `yaml:"tokens"`
	// Bindings give roles.
	Bindings []bindingEntry `yaml:"bindings"`
}

// issuerEntry is one issuer of JSON Web Tokens.
type issuerEntry struct {
	Issuer         string   `yaml:"issuer"`
	Audiences      []string `yaml:"audiences"`
	JWKSURL        string   `yaml:"jwks_url"`
	JWKSFile       string   `yaml:"jwks_file"`
	PrincipalClaim string   `yaml:"principal_claim"`
	GroupsClaim    string   `yaml:"groups_claim"`
	// Prefix goes before its subjects and groups, so that two issuers, or an
	// issuer and the file, never name the same one.
	Prefix string `yaml:"prefix"`
}

// config is what checks the issuer's tokens.
func (e issuerEntry) config(now clock.Clock) jwtauth.Config {
	return jwtauth.Config{Issuer: e.Issuer, Audiences: e.Audiences, JWKSURL: e.JWKSURL, JWKSFile: e.JWKSFile,
		PrincipalClaim: e.PrincipalClaim, GroupsClaim: e.GroupsClaim, Clock: now}
}

// key tells entries apart that need verifiers of their own.
func (e issuerEntry) key() string { return fmt.Sprintf("%q", e) }

// tokenEntry is one static token.
type tokenEntry struct {
	Subject   string     `yaml:"subject"`
	Groups    []string   `yaml:"groups"`
	SHA256    string     `yaml:"sha256"`
	ExpiresAt *time.Time `yaml:"expires_at"`
}

// bindingEntry gives subjects and groups a role in namespaces.
type bindingEntry struct {
	Subjects   []string `yaml:"subjects"`
	Groups     []string `yaml:"groups"`
	Role       string   `yaml:"role"`
	Namespaces []string `yaml:"namespaces"`
}

// Bounds of the file.
const (
	maxAccessBytes = 1 << 20
	maxSubject     = 512
)

// localSubject is who comes over loopback without credentials.
const localSubject = "local"

// certificate subjects begin so; no token's may.
const (
	spiffePrefix = "spiffe://"
	cnPrefix     = "cn:"
)

// reservedSubject: how a certificate, or who comes without credentials, is named;
// no token names one so.
func reservedSubject(s string) bool {
	return s == localSubject || strings.HasPrefix(s, spiffePrefix) || strings.HasPrefix(s, cnPrefix)
}

// parseAccess reads the file; verifiers makes, or has, that of an issuer. The error joins all problems, each with its line.
func parseAccess(name string, b []byte, verifiers func(issuerEntry) (*jwtauth.Verifier, error)) (*policy, error) {
	if len(b) > maxAccessBytes {
		return nil, fmt.Errorf("%s: has more than %d bytes", name, maxAccessBytes)
	}
	var f accessFile
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(&f); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%s: is empty; it has jwt, tokens and bindings", name)
		}
		return nil, yamlError(name, err)
	}
	if err := dec.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: has more than one document", name)
	}
	// Once more, for the lines.
	var root yaml.Node
	if err := yaml.Unmarshal(b, &root); err != nil {
		return nil, yamlError(name, err)
	}
	c := accessChecker{name: name, root: &root}
	p := c.policy(&f, verifiers)
	if len(c.problems) > 0 {
		return nil, errors.Join(c.problems...)
	}
	return p, nil
}

// yamlError is the parser's error without the names of our types.
func yamlError(name string, err error) error {
	text := regexp.MustCompile(`( not found)? in type \S+|into \S*admin\.\S+`).ReplaceAllStringFunc(err.Error(), func(s string) string {
		if strings.HasPrefix(s, " not found") {
			return " is no field here"
		}
		return ""
	})
	return fmt.Errorf("%s: %s", name, strings.TrimPrefix(text, "yaml: "))
}

// accessChecker finds what is wrong with the file.
type accessChecker struct {
	name     string
	root     *yaml.Node
	problems []error
}

// line is where entry i of a list stands.
func (c *accessChecker) line(list string, i int) int {
	top := c.root.Content[0]
	for k := 0; k+1 < len(top.Content); k += 2 {
		if entries := top.Content[k+1].Content; top.Content[k].Value == list && i < len(entries) {
			return entries[i].Line
		}
	}
	return top.Line
}

func (c *accessChecker) add(list string, i int, field, format string, args ...any) {
	at := fmt.Sprintf("%s:%d: %s[%d]", c.name, c.line(list, i), list, i)
	if field != "" {
		at += "." + field
	}
	c.problems = append(c.problems, errors.New(at+": "+fmt.Sprintf(format, args...)))
}

func (c *accessChecker) policy(f *accessFile, verifiers func(issuerEntry) (*jwtauth.Verifier, error)) *policy {
	p := &policy{tokens: map[[sha256.Size]byte]tokenEntry{}, named: map[string]bool{}, subjects: map[string]map[string]Role{}, groups: map[string]map[string]Role{}}
	p.issuers = map[string]*issuer{}
	for i, e := range f.JWT {
		for j, other := range f.JWT[:i] {
			if strings.HasPrefix(e.Prefix, other.Prefix) || strings.HasPrefix(other.Prefix, e.Prefix) {
				c.add("jwt", i, "prefix", "%q and %q of jwt[%d]: neither may begin with the other, nor be empty, or one issuer could speak for the other's subjects", e.Prefix, other.Prefix, j)
			}
		}
		if strings.HasPrefix(e.Prefix, spiffePrefix) || strings.HasPrefix(e.Prefix, cnPrefix) || len(e.Prefix) > 64 {
			c.add("jwt", i, "prefix", "must have at most 64 characters and not begin like a certificate's subject (%s, %s)", spiffePrefix, cnPrefix)
		}
		if p.issuers[e.Issuer] != nil {
			c.add("jwt", i, "issuer", "is there twice")
			continue
		}
		v, err := verifiers(e)
		if err != nil {
			c.add("jwt", i, "", "%s", strings.TrimPrefix(err.Error(), "jwt: "))
			continue
		}
		p.issuers[e.Issuer] = &issuer{e.Prefix, e.key(), v}
	}
	for i, e := range f.Tokens {
		c.subject("tokens", i, "subject", e.Subject)
		if reservedSubject(e.Subject) {
			c.add("tokens", i, "subject", "%q is not a token's: that is how a certificate, or who comes without credentials, is named", e.Subject)
		}
		for _, g := range e.Groups {
			c.subject("tokens", i, "groups", g)
		}
		sum, err := hex.DecodeString(e.SHA256)
		if err != nil || len(sum) != sha256.Size {
			c.add("tokens", i, "sha256", "must be the SHA-256 of the token in 64 hexadecimal digits (printf %%s \"$TOKEN\" | sha256sum)")
			continue
		}
		key := [sha256.Size]byte(sum)
		if key == sha256.Sum256(nil) {
			c.add("tokens", i, "sha256", "is that of nothing")
		}
		if _, dup := p.tokens[key]; dup {
			c.add("tokens", i, "sha256", "is there twice")
		}
		p.tokens[key] = e
		p.named[e.Subject] = true
	}
	for i, e := range f.Bindings {
		role := Role(slices.Index(roleNames(), e.Role))
		if role < Viewer {
			c.add("bindings", i, "role", "%q is not viewer, editor or admin", e.Role)
		}
		if len(e.Subjects)+len(e.Groups) == 0 {
			c.add("bindings", i, "", "has neither subjects nor groups")
		}
		if len(e.Namespaces) == 0 {
			c.add("bindings", i, "namespaces", `are missing; "*" is all of the mesh`)
		}
		for _, ns := range e.Namespaces {
			if err := names.CheckNamespace(ns); ns != mesh && err != nil {
				c.add("bindings", i, "namespaces", "%v", err)
			}
		}
		give := func(to map[string]map[string]Role, field string, list []string) {
			for _, s := range list {
				c.subject("bindings", i, field, s)
				if to[s] == nil {
					to[s] = map[string]Role{}
				}
				for _, ns := range e.Namespaces {
					to[s][ns] = max(to[s][ns], role)
				}
			}
		}
		give(p.subjects, "subjects", e.Subjects)
		give(p.groups, "groups", e.Groups)
	}
	if len(f.Bindings) == 0 {
		c.problems = append(c.problems, fmt.Errorf("%s: has no bindings: nobody could administer anything", c.name))
	}
	return p
}

func (c *accessChecker) subject(list string, i int, field, s string) {
	if s == "" || len(s) > maxSubject || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		c.add(list, i, field, "must have 1 to %d printable characters", maxSubject)
	}
	if strings.Contains(s, "*") {
		c.add(list, i, field, "%q: there are no patterns of subjects", s)
	}
}
