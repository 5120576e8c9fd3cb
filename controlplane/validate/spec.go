package validate

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/url"
	"strings"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/jwtauth"
	"github.com/weft-mesh/weft/pkg/names"
)

// spec judges what protovalidate's rules cannot say.
func (c *collector) spec(r *configv1.Resource) {
	switch s := r.Spec.(type) {
	case *configv1.Resource_EventStore:
		rmq := s.EventStore.GetRocketmq()
		c.keyPair("spec.rocketmq.credentials", rmq.GetCredentials())
		c.keyPair("spec.rocketmq.admin_credentials", rmq.GetAdminCredentials())
	case *configv1.Resource_Topic:
		c.topic(s.Topic)
	case *configv1.Resource_Route:
		c.route(s.Route)
	case *configv1.Resource_Subscription:
		c.subscription(s.Subscription)
	case *configv1.Resource_AccessPolicy:
		c.accessPolicy(s.AccessPolicy)
	case *configv1.Resource_Identity:
		c.identity(s.Identity)
	}
}

// keyPair: processes have working directories of their own, so a path is whole.
func (c *collector) keyPair(path string, pair *configv1.KeyPair) {
	for _, f := range []struct {
		name string
		ref  *configv1.SecretRef
	}{{"access_key", pair.GetAccessKey()}, {"secret_key", pair.GetSecretKey()}} {
		if file := f.ref.GetFile(); file != "" && !strings.HasPrefix(file, "/") {
			c.add(path+"."+f.name+".file", "absolute-path", "must be an absolute path, which begins with /")
		}
	}
}

func (c *collector) topic(t *configv1.Topic) {
	for _, reserved := range []string{"weft-", "%RETRY%", "RMQ_SYS_", "rmq_sys_", "SCHEDULE_TOPIC_XXXX", "TBW102"} {
		if strings.HasPrefix(t.PhysicalName, reserved) {
			c.add("spec.physical_name", "physical-name", fmt.Sprintf("must not begin with %q: the mesh or RocketMQ keeps such topics for itself", reserved))
		}
	}
	switch t.KeyFrom {
	case "", event.AttrSource, event.AttrType, event.AttrSubject:
	case event.AttrID, event.AttrTime, event.AttrSpecVersion, event.AttrDataContentType, event.AttrDataSchema:
		c.add("spec.key_from", "key-from", fmt.Sprintf("%q does not order events: use subject, source, type or an extension attribute", t.KeyFrom))
	}
	if t.DeletionPolicy == configv1.DeletionPolicy_DELETION_POLICY_DELETE {
		c.add("spec.deletion_policy", "not-enforced", "delete is not enforced by this version: leave it out, and delete the topic in its store")
	}
	if r := t.Retention; r != nil && r.MaxAge == nil && r.MaxBytes == 0 {
		c.add("spec.retention", "retention", "must have max_age, max_bytes or both")
	}
}

func (c *collector) route(r *configv1.Route) {
	if err := names.CheckName("topic", r.Topic); err != nil {
		c.add("spec.topic", "name", err.Error())
	}
	var all filterCost
	for i, rule := range r.Rules {
		path := fmt.Sprintf("spec.rules[%d]", i)
		all.add(c.filter(rule.Filter, path+".filter"))
		for j, to := range rule.To {
			if err := names.CheckName("topic", to.Topic); err != nil {
				c.add(fmt.Sprintf("%s.to[%d].topic", path, j), "name", err.Error())
			}
		}
	}
	// Each event is judged by rule after rule, until one matches.
	c.bound("spec.rules", "the filters of all rules together", all, maxRoute)
}

// Bounds of one filter, since each event of a topic is judged by it: how deep it
// nests, how long one value is, and what it costs.
const (
	maxFilterDepth = 8
	maxFilterValue = 1024
)

// filterCost is what a filter costs: its expressions, the conditions on attributes
// in them, and the bytes of those attributes' names and values.
type filterCost struct{ nodes, conditions, bytes int }

func (f *filterCost) add(o filterCost) {
	f.nodes, f.conditions, f.bytes = f.nodes+o.nodes, f.conditions+o.conditions, f.bytes+o.bytes
}

// The most of one filter, and of those of a Route together. Of expressions and
// depth proxies have the same bounds, and refuse what is beyond.
var (
	maxFilter = filterCost{nodes: 256, conditions: 512, bytes: 16 << 10}
	maxRoute  = filterCost{nodes: 1024, conditions: 2048, bytes: 64 << 10}
)

// bound refuses what costs more than most.
func (c *collector) bound(path, what string, is, most filterCost) {
	for _, b := range []struct {
		rule, of string
		is, most int
	}{
		{"filter-size", "expressions", is.nodes, most.nodes},
		{"filter-conditions", "conditions on attributes", is.conditions, most.conditions},
		{"filter-bytes", "bytes of names and values of attributes", is.bytes, most.bytes},
	} {
		if b.is > b.most {
			c.add(path, b.rule, fmt.Sprintf("has more than %d %s, which is the most that %s may have: each event is judged by it", b.most, b.of, what))
		}
	}
}

func (c *collector) filter(f *configv1.Filter, path string) filterCost {
	var cost filterCost
	c.filterAt(f, path, 1, &cost)
	c.bound(path, "a filter", cost, maxFilter)
	return cost
}

func (c *collector) filterAt(f *configv1.Filter, path string, depth int, cost *filterCost) {
	if f == nil {
		return
	}
	if cost.nodes++; cost.nodes > maxFilter.nodes {
		return // is refused, however much there is more
	}
	if depth > maxFilterDepth {
		c.add(path, "filter-depth", fmt.Sprintf("filters may nest %d deep", maxFilterDepth))
		return
	}
	dialects := 0
	for _, m := range []struct {
		name string
		m    map[string]string
	}{{"exact", f.Exact}, {"prefix", f.Prefix}, {"suffix", f.Suffix}} {
		if len(m.m) > 0 {
			dialects++
		}
		for k, v := range m.m {
			cost.add(filterCost{conditions: 1, bytes: len(k) + len(v)})
			if len(v) > maxFilterValue {
				c.add(path+"."+m.name+"."+k, "filter-value", fmt.Sprintf("has %d bytes, a value may have %d", len(v), maxFilterValue))
			}
			if !event.ValidName(k) {
				c.add(path+"."+m.name, "attribute-name", fmt.Sprintf("%q is not the name of an attribute ([a-z0-9])", k))
			}
			if v == "" {
				c.add(path+"."+m.name+"."+k, "attribute-value", "must not be empty")
			}
		}
	}
	for _, l := range []struct {
		name string
		l    []*configv1.Filter
	}{{"all", f.All}, {"any", f.Any}} {
		if len(l.l) > 0 {
			dialects++
		}
		for i, child := range l.l {
			c.filterAt(child, fmt.Sprintf("%s.%s[%d]", path, l.name, i), depth+1, cost)
		}
	}
	if f.Not != nil {
		dialects++
		c.filterAt(f.Not, path+".not", depth+1, cost)
	}
	if dialects != 1 {
		c.add(path, "filter-dialect", "must have exactly one of exact, prefix, suffix, all, any, not")
	}
}

// Bounds of the patterns among a Subscription's topics: each topic of the namespace
// is compared with all of them.
const (
	maxPatterns  = 16
	maxWildcards = 8
)

func (c *collector) subscription(s *configv1.Subscription) {
	patterns := 0
	for i, t := range s.Topics {
		if n := strings.Count(t, "*") + strings.Count(t, ">"); n > 0 {
			if patterns++; n > maxWildcards {
				c.add(fmt.Sprintf("spec.topics[%d]", i), "pattern-wildcards", fmt.Sprintf("has %d wildcards, a pattern may have %d", n, maxWildcards))
			}
		}
		if err := names.CheckPattern("topic", t); err != nil {
			c.add(fmt.Sprintf("spec.topics[%d]", i), "pattern", err.Error())
		}
	}
	if patterns > maxPatterns {
		c.add("spec.topics", "patterns", fmt.Sprintf("has %d patterns, a Subscription may have %d: name the topics, or use wider ones", patterns, maxPatterns))
	}
	c.filter(s.Filter, "spec.filter")
	if p := s.GetPush(); p != nil {
		u, err := url.Parse(p.Url)
		switch {
		case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
			c.add("spec.push.url", "url", "must be an absolute http or https URL")
		case u.User != nil:
			c.add("spec.push.url", "url", "must not have user information: secrets are given by reference")
		case u.Fragment != "":
			c.add("spec.push.url", "url", "must not have a fragment")
		}
	}
	if r := s.Retry; r != nil && r.MinBackoff != nil && r.MaxBackoff != nil && r.MinBackoff.AsDuration() > r.MaxBackoff.AsDuration() {
		c.add("spec.retry.min_backoff", "backoff", "must not be longer than max_backoff")
	}
	if d := s.DeadLetterTopic; d != "" {
		if err := names.CheckName("topic", d); err != nil {
			c.add("spec.dead_letter_topic", "name", err.Error())
		}
		for i, t := range s.Topics {
			if names.CheckPattern("topic", t) == nil && names.Match(t, d) {
				c.add("spec.dead_letter_topic", "cycle", fmt.Sprintf("is read by the subscription itself (spec.topics[%d])", i))
			}
		}
	}
}

func (c *collector) accessPolicy(p *configv1.AccessPolicy) {
	seen := map[string]int{}
	for i, r := range p.Rules {
		path := fmt.Sprintf("spec.rules[%d]", i)
		if j, dup := seen[r.Name]; dup {
			c.add(path+".name", "unique", fmt.Sprintf("%q is also the name of spec.rules[%d]", r.Name, j))
		}
		seen[r.Name] = i
		if len(r.Principals)+len(r.Groups) == 0 {
			c.add(path, "subject", "must name principals or groups")
		}
		var topics, subs bool
		for _, a := range r.Actions {
			if a == configv1.Action_ACTION_CONSUME {
				subs = true
			} else {
				topics = true
			}
		}
		if topics != (len(r.Topics) > 0) {
			c.add(path+".topics", "selector", "are required with the actions publish and subscribe, and only with them")
		}
		if subs != (len(r.Subscriptions) > 0) {
			c.add(path+".subscriptions", "selector", "are required with the action consume, and only with it")
		}
		for j, t := range r.Topics {
			if err := names.CheckPattern("topic", t); err != nil {
				c.add(fmt.Sprintf("%s.topics[%d]", path, j), "pattern", err.Error())
			}
		}
		for j, s := range r.Subscriptions {
			if err := names.CheckPattern("subscription", s); err != nil {
				c.add(fmt.Sprintf("%s.subscriptions[%d]", path, j), "pattern", err.Error())
			}
		}
		c.subjects(path+".principals", r.Principals, true)
		c.subjects(path+".groups", r.Groups, false)
	}
}

func (c *collector) subjects(path string, list []string, principals bool) {
	for i, s := range list {
		if principals && (s == "*" || s == "local") {
			continue
		}
		name := s
		if ns, rest, ok := strings.Cut(s, "/"); ok {
			name = rest
			if err := names.CheckNamespace(ns); err != nil {
				c.add(fmt.Sprintf("%s[%d]", path, i), "subject", err.Error())
			}
		}
		if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._@-") != "" {
			c.add(fmt.Sprintf("%s[%d]", path, i), "subject", `must be a name, "namespace/name", or (principals) "*"; names have A-Z, a-z, 0-9, '.', '_', '@' and '-'`)
		}
	}
}

func (c *collector) identity(id *configv1.Identity) {
	seen := map[string]bool{}
	for i, k := range id.GetApiKeys().GetKeys() {
		path := fmt.Sprintf("spec.api_keys.keys[%d]", i)
		if seen[k.Id] {
			c.add(path+".id", "unique", fmt.Sprintf("%q is there twice", k.Id))
		}
		seen[k.Id] = true
		if k.Principal == "local" {
			c.add(path+".principal", "reserved", `"local" is who comes over loopback without credentials`)
		}
	}
	if j := id.GetJwt(); j != nil {
		switch keys := j.Keys.(type) {
		case *configv1.JwtIssuer_JwksUri:
			if err := jwtauth.CheckURL(keys.JwksUri); err != nil {
				c.add("spec.jwt.jwks_uri", "url", err.Error())
			}
		case *configv1.JwtIssuer_Jwks:
			if err := jwtauth.CheckJWKS([]byte(keys.Jwks)); err != nil {
				c.add("spec.jwt.jwks", "jwks", err.Error())
			}
		}
	}
	m := id.GetMtls()
	if m == nil {
		return
	}
	certs := 0
	rest := []byte(m.CaCertificates)
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			c.add("spec.mtls.ca_certificates", "pem", fmt.Sprintf("has a block %q; only certificates belong here, never a key", block.Type))
			continue
		}
		certs++
		if cert, err := x509.ParseCertificate(block.Bytes); err != nil {
			c.add("spec.mtls.ca_certificates", "pem", fmt.Sprintf("certificate %d cannot be read: %v", certs, err))
		} else if !cert.IsCA {
			c.add("spec.mtls.ca_certificates", "ca", fmt.Sprintf("certificate %d (%s) is not of a certificate authority", certs, cert.Subject))
		}
	}
	if certs == 0 {
		c.add("spec.mtls.ca_certificates", "pem", "has no certificate in PEM")
	}
	bySAN := m.PrincipalFrom == configv1.PrincipalSource_PRINCIPAL_SOURCE_URI_SAN
	if bySAN != (m.UriPrefix != "") {
		c.add("spec.mtls.uri_prefix", "uri-prefix", "is required with principal_from uri_san, and only with it")
	}
}
