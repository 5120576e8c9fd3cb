package validate

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/cesql"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/eventcel"
	"github.com/weft-mesh/weft/pkg/jwtauth"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/rest"
	"github.com/weft-mesh/weft/pkg/schema"
)

// spec judges what protovalidate's rules cannot say.
func (c *collector) spec(r *configv1.Resource) {
	switch s := r.Spec.(type) {
	case *configv1.Resource_EventStore:
		rmq := s.EventStore.GetRocketmq()
		c.keyPair("spec.rocketmq.credentials", rmq.GetCredentials())
		c.keyPair("spec.rocketmq.admin_credentials", rmq.GetAdminCredentials())
		c.tls("spec.rocketmq.tls", rmq.GetTls())
		if k := s.EventStore.GetKafka(); k != nil {
			c.kafka(k)
		}
	case *configv1.Resource_Topic:
		c.topic(s.Topic)
	case *configv1.Resource_Route:
		c.route(s.Route)
	case *configv1.Resource_HttpBinding:
		rest.CheckBinding(s.HttpBinding, func(f *rest.FieldError) {
			c.add("spec."+f.Field, "http-rule", f.Reason)
		})
	case *configv1.Resource_Subscription:
		c.subscription(s.Subscription)
	case *configv1.Resource_AccessPolicy:
		c.accessPolicy(s.AccessPolicy)
	case *configv1.Resource_Schema:
		var fe *schema.FieldError
		if _, err := schema.Compile(s.Schema); errors.As(err, &fe) && s.Schema.GetFormat() != nil {
			c.add(fe.Field, "schema", fe.Reason)
		}
	case *configv1.Resource_Quota:
		c.quota(s.Quota)
	case *configv1.Resource_Identity:
		c.identity(s.Identity)
	case *configv1.Resource_Migration:
		c.physicalName(s.Migration.PhysicalName)
	}
}

func (c *collector) kafka(k *configv1.Kafka) {
	c.keyPair("spec.kafka.credentials", k.Credentials)
	c.keyPair("spec.kafka.admin_credentials", k.AdminCredentials)
	c.tls("spec.kafka.tls", k.Tls)
	none := k.SaslMechanism == configv1.SaslMechanism_SASL_MECHANISM_UNSPECIFIED
	switch {
	case none && (k.Credentials != nil || k.AdminCredentials != nil):
		c.add("spec.kafka.sasl_mechanism", "required", "must say how the credentials are shown: plain, scram_sha_256 or scram_sha_512")
	case !none && k.Credentials == nil:
		c.add("spec.kafka.credentials", "required", "must be there with sasl_mechanism")
	case k.SaslMechanism == configv1.SaslMechanism_SASL_MECHANISM_PLAIN && k.Tls == nil:
		c.add("spec.kafka.tls", "required", "must be there with sasl_mechanism plain, which sends the password as it is; tls: {} trusts the system's authorities")
	}
}

func (c *collector) tls(path string, t *configv1.KafkaTls) {
	c.absolute(path+".ca_file", t.GetCaFile())
	c.absolute(path+".certificate_file", t.GetCertificateFile())
	c.absolute(path+".key_file", t.GetKeyFile())
	if (t.GetCertificateFile() == "") != (t.GetKeyFile() == "") {
		c.add(path, "key-pair", "must have certificate_file and key_file both, or neither")
	}
}

// keyPair: processes have working directories of their own, so a path is whole.
func (c *collector) keyPair(path string, pair *configv1.KeyPair) {
	for _, f := range []struct {
		name string
		ref  *configv1.SecretRef
	}{{"access_key", pair.GetAccessKey()}, {"secret_key", pair.GetSecretKey()}} {
		c.absolute(path+"."+f.name+".file", f.ref.GetFile())
	}
}

func (c *collector) absolute(path, file string) {
	if file != "" && !strings.HasPrefix(file, "/") {
		c.add(path, "absolute-path", "must be an absolute path, which begins with /")
	}
}

// physicalName judges the name of a topic of others.
func (c *collector) physicalName(name string) {
	for _, reserved := range []string{"weft-", "%RETRY%", "RMQ_SYS_", "rmq_sys_", "SCHEDULE_TOPIC_XXXX", "TBW102"} {
		if strings.HasPrefix(name, reserved) {
			c.add("spec.physical_name", "physical-name", fmt.Sprintf("must not begin with %q: the mesh or RocketMQ keeps such topics for itself", reserved))
		}
	}
}

func (c *collector) topic(t *configv1.Topic) {
	c.physicalName(t.PhysicalName)
	switch t.KeyFrom {
	case "", event.AttrSource, event.AttrType, event.AttrSubject:
	case event.AttrID, event.AttrTime, event.AttrSpecVersion, event.AttrDataContentType, event.AttrDataSchema, "data":
		c.add("spec.key_from", "key-from", fmt.Sprintf("%q does not order events: use subject, source, type or an extension attribute", t.KeyFrom))
	}
	if t.Schema != "" {
		if err := names.CheckName("schema", t.Schema); err != nil {
			c.add("spec.schema", "name", err.Error())
		}
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
	// Each event may have to be judged by rule after rule, until one matches.
	c.bound("spec.rules", "the filters of all rules together", all, maxRoute)
}

// Bounds of one filter, since each event of a topic is judged by it: how deep it
// nests, how long one value is, and what it costs.
const (
	maxFilterDepth = 8
	maxFilterValue = 1024
)

// notData is why no filter may name data, which is no attribute: it would never match.
const notData = `"data" is no attribute: filters see the attributes of an event, not its data; publish as an attribute what is to be filtered by`

// filterCost is what a filter costs: its expressions, the conditions on attributes
// in them, the bytes of those attributes' names and values, and those expressions
// that are SQL.
type filterCost struct{ nodes, conditions, bytes, sql int }

func (f *filterCost) add(o filterCost) {
	f.nodes, f.conditions, f.bytes, f.sql = f.nodes+o.nodes, f.conditions+o.conditions, f.bytes+o.bytes, f.sql+o.sql
}

// The most of one filter, and of those of a Route together. Of expressions and
// depth proxies have the same bounds, and refuse what is beyond.
var (
	maxFilter = filterCost{nodes: 256, conditions: 512, bytes: 16 << 10, sql: 8}
	maxRoute  = filterCost{nodes: 4096, conditions: 4096, bytes: 128 << 10, sql: 32}
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
		{"filter-sql", "SQL expressions", is.sql, most.sql},
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
			if k == "data" {
				c.add(path+"."+m.name+"."+k, "attribute-name", notData)
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
	if f.Sql != "" {
		dialects++
		if cost.add(filterCost{sql: 1}); cost.sql <= maxFilter.sql { // what is beyond is refused, and not parsed
			if x, err := cesql.Compile(f.Sql); err != nil {
				c.add(path+".sql", "filter-sql-syntax", err.Error())
			} else if slices.Contains(x.Attributes(), "data") {
				c.add(path+".sql", "attribute-name", notData)
			}
		}
	}
	if dialects != 1 {
		c.add(path, "filter-dialect", "must have exactly one of exact, prefix, suffix, all, any, not, sql")
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
	c.startAlone(s)
	c.filter(s.Filter, "spec.filter")
	if _, err := eventcel.CompileTransform(s.Transform); err != nil {
		field, msg := "", err.Error()
		if fe, ok := errors.AsType[*eventcel.FieldError](err); ok {
			field, msg = "."+fe.Field, fe.Reason
		}
		c.add("spec.transform"+field, "transform", msg)
	}
	if s.Transform != nil && s.DeadLetterTopic == "" {
		c.add("spec.dead_letter_topic", "transform-dead-letters", "is required with a transform: what cannot be transformed goes there")
	}
	if s.OnExhausted == configv1.OnExhausted_ON_EXHAUSTED_DEAD_LETTER && s.DeadLetterTopic == "" {
		c.add("spec.dead_letter_topic", "exhausted-dead-letters", "is required with on_exhausted dead_letter")
	}
	if p := s.GetPush(); p != nil {
		rest.CheckPush(p, func(f *rest.FieldError) {
			rule, _, _ := strings.Cut(f.Field, ".") // "url", "request"
			rule, _, _ = strings.Cut(rule, "[")
			c.add("spec.push."+f.Field, strings.ReplaceAll(rule, "_", "-"), f.Reason)
		})
	}
	c.checkForward(s)
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
		c.perEvent(path, r, subs)
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

// perEvent judges what makes a rule depend on the event.
func (c *collector) perEvent(path string, r *configv1.AccessRule, consumes bool) {
	for j, s := range r.Subjects {
		if err := names.CheckSubjectPattern(s); err != nil {
			c.add(fmt.Sprintf("%s.subjects[%d]", path, j), "pattern", err.Error())
		}
	}
	if r.Condition != "" {
		if _, err := eventcel.CompileCondition(r.Condition); err != nil {
			c.add(path+".condition", "condition", err.Error())
		}
	}
	if (len(r.Subjects) > 0 || r.Condition != "") && consumes {
		c.add(path+".actions", "per-event", "must not have consume with subjects or a condition: who joins a subscription does not choose its events")
	}
}

func (c *collector) quota(q *configv1.Quota) {
	if len(q.Principals)+len(q.Groups)+len(q.Topics) == 0 {
		c.add("spec", "selector", `must name principals, groups or topics; principals: ["*"] is everyone`)
	}
	c.subjects("spec.principals", q.Principals, true)
	c.subjects("spec.groups", q.Groups, false)
	for i, t := range q.Topics {
		if err := names.CheckPattern("topic", t); err != nil {
			c.add(fmt.Sprintf("spec.topics[%d]", i), "pattern", err.Error())
		}
	}
	p := q.GetPublish()
	if p.GetEventsPerSecond() == 0 && p.GetBytesPerSecond() == 0 && p.GetInFlight() == 0 && q.Connections == 0 {
		c.add("spec", "quota", "bounds nothing: it must have publish.events_per_second, publish.bytes_per_second, publish.in_flight or connections")
	}
	if b := p.GetBurst(); b != nil {
		switch {
		case p.EventsPerSecond == 0 && p.BytesPerSecond == 0:
			c.add("spec.publish.burst", "burst", "is of events_per_second and bytes_per_second, of which there is none")
		case p.EventsPerSecond > 0 && b.AsDuration() < time.Second/time.Duration(p.EventsPerSecond):
			c.add("spec.publish.burst", "burst", "is too short for one event")
		}
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
			c.add(path+".principal", "reserved", `"local" is who comes over loopback or a Unix socket without credentials`)
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
