package docs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/weft-mesh/weft/integration/servers"
)

// Pages that go on from one mesh in one process.
func TestQuotas(t *testing.T)     { newShell(t).quotas() }
func TestRest(t *testing.T)       { newShell(t).rest() }
func TestFilters(t *testing.T)    { newShell(t).filters() }
func TestForwarding(t *testing.T) { newShell(t).forwarding() }
func TestMigrating(t *testing.T)  { newShell(t).migrating() }
func TestRequests(t *testing.T)   { newShell(t).requests() }
func TestSchemas(t *testing.T)    { newShell(t).schemas() }
func TestEvents(t *testing.T)     { newShell(t).events() }

// TestTogether: the pages can be followed one after the other on one mesh that runs.
func TestTogether(t *testing.T) {
	s := newShell(t)
	s.up()
	s.filters()
	s.forwarding()
	s.migrating()
	s.requests()
	s.schemas()
	s.events()
	s.rest()
	s.quotas()
	if !testing.Short() {
		s.stores(servers.SharedKafka(t))
		s.credentials()
	}
}

// events walks docs/events.md.
func (s *shell) events() {
	s.Helper()
	s.walk(blocks(s.T, "docs/events.md", ""),
		step{begins: "weft up", instead: s.up},
		step{begins: "weft apply", says: []string{`subscription/demo/shippers created`, `parcel-7 is kept at`, `shippers +parcels +parcel-7 .* no truck`}},
		step{begins: "weft trace", says: []string{`stored`, `nacked`, `dead-lettered`, `(?m)^dead-lettered: `}},
		step{begins: "weft dlq list", says: []string{`(?m)^1 +shippers +parcels +no truck`, `after 1 attempt`, `\{"to": "ann"\}`}},
		step{begins: "weft dlq redrive", says: []string{`1 would be redriven`, `(?m)^1 redriven`, `parcels  parcel-7 `}})
}

// quotas walks docs/quotas.md.
func (s *shell) quotas() {
	s.Helper()
	s.walk(blocks(s.T, "docs/quotas.md", ""),
		step{begins: "weft up", instead: s.up},
		step{begins: "weft apply", says: []string{`quota/demo/hello created`, `is in force at 1 proxy`, `events_per_second`}},
		step{begins: "for i", says: []string{`HTTP/1.1 200 OK`, `HTTP/1.1 429 Too Many Requests`, `Retry-After: 1\r?\n`, `"reason":"quota-exceeded"`, `weft: .*Quota hello allows 1 event a second to be published for each principal`}},
		step{begins: "curl", says: []string{`weft_proxy_quota_exceeded_total\{limit="events",quota="demo/hello"\} [2-5]`, `weft_proxy_quota_counted `}},
		step{begins: "curl", says: []string{`"status":429`, `Quota hello allows no more connections`, `quota/demo/hello deleted`}})
}

// rest walks docs/rest.md, with examples/endpoint as what is called.
func (s *shell) rest() {
	s.Helper()
	endpoint := filepath.Join(binaries(s.T), "example-endpoint")
	hook, partner := freeAddr(s), freeAddr(s)
	s.edit("rest/billing.yaml", "127.0.0.1:8080", hook)
	s.edit("rest/partner.yaml", "127.0.0.1:8443", partner)
	s.replace("go run ./examples/endpoint > ", endpoint+" -addr "+hook+" > ")
	s.replace("go run ./examples/endpoint -addr 127.0.0.1:8443 ", endpoint+" -addr "+partner+" ")
	s.walk(blocks(s.T, "docs/rest.md", ""),
		step{begins: "mkdir"},
		step{begins: "weft up", instead: s.up},
		step{begins: "weft apply", says: []string{`httpbinding/demo/shop created`, `(?m)^demo +shop .*`}},
		step{begins: "curl", says: []string{`\{"id":"k-1","source":"/shop/orders","position":"[^"]+"\}`, `"id":"k-1"[^\n]*"type":"order.placed"[^\n]*"subject":"42"[^\n]*"channel":"web"[^\n]*"data":\{"line":`, `"type":"order.cancelled"`}},
		step{begins: "weft reply", says: []string{`HTTP/1.1 200 `, `(?i)content-type: application/json`, `(?m)^\{"article": 7, "price": 42\}$`, `prices  \S+  is replied to`, `HTTP/1.1 404 `, `(?m)^\{"error": "no such article"\}`}},
		step{begins: "sed", says: []string{`httpbinding/demo/other: .*/\{order\}/42 fits paths that /orders/\{order\} of httpbinding/demo/shop`, `"status":400,.*has a segment.*"reason":"bad-path"`, `HTTP/1.1 405 `, `Allow: DELETE, POST, OPTIONS`}},
		step{begins: "go run", says: []string{`subscription/demo/bills created`}, after: func() {
			s.wait("the endpoint", func() error {
				b, err := os.ReadFile(filepath.Join(s.dir, "endpoint.log"))
				s.must(err)
				return says(string(b), []string{`^OPTIONS /api `, `(?m)^PUT /api/orders/42/lines/3\?source=%2Fshop%2Forders Idempotency-Key=k-1 Authorization=Bearer token-of-the-mesh signatures=2 "\{\\"line\\": \{\\"no\\": 3\}\}"$`})
			})
		}},
		step{begins: "until weft dlq list", says: []string{`order.cancelled`, `the event has no \{data.line.no\}`, `PUT /api/orders/42/lines/3`}},
		step{begins: "ec="},
		step{begins: "go run", says: []string{`subscription/demo/partner created`, `(?m)^POST /in ce-type=order.placed ce-id=k-1 certificate=weft `}})
}

// filters walks docs/filters.md.
func (s *shell) filters() {
	s.Helper()
	s.walk(blocks(s.T, "docs/filters.md", ""),
		step{begins: "weft up", instead: s.up},
		step{begins: "weft apply", says: []string{`subscription/demo/euro created`, `accesspolicy/demo/invoices created`}},
		step{begins: "weft publish", says: []string{`1`}},
		step{begins: "weft pull", says: []string{`billing\.invoice\.sent`}},
		step{begins: "weft publish", says: []string{`transform: `}},
		step{begins: "weft eval", says: []string{`topic invoices keeps it`, `subscription euro delivers .*"type":"billing\.invoice\.sent".*"data":\{"amount":10,"in":"EUR"\}`, `subscription euro leaves it out: spec\.filter\.sql: .* is not true; the event has `}},
		step{begins: "weft publish", says: []string{`rule "plant-1" of accesspolicy/demo/invoices allows demo/local to publish only some events .* whose subject is "plant2/1"|allows local to publish only some events .* whose subject is "plant2/1"`, `rule "no-secrets" of accesspolicy/demo/invoices denies .*, for events as this one, whose subject is "plant1/1"`}})
}

// migrating walks docs/migration.md.
func (s *shell) migrating() {
	s.Helper()
	s.walk(blocks(s.T, "docs/migration.md", ""),
		step{begins: "weft up", instead: s.up},
		step{begins: "weft apply", says: []string{`topic/demo/payments created`, `pay-1 is kept at`}},
		step{begins: "weft migrate payments", says: []string{`from +main \(embedded\), as demo_payments, epoch 1`, `to +second \(embedded\), as demo_payments_e2_\w+, epoch 2`, `ledger`, `migration/demo/payments created: the move begins`}},
		step{begins: "until weft migrate", says: []string{`pay-2 is kept at`, `phase +draining: it is written to second`, `(?s)payments  pay-1  .*payments  pay-2  `}},
		step{begins: "weft migrate status", says: []string{`phase +drained: everything in main was read`, `(?s)payments  pay-1  .*payments  pay-2  `, `phase +finished: it is in second alone`}},
		step{begins: "weft migrate list", says: []string{`demo +payments +second +finish +finished`, `migration/demo/payments deleted`}},
		step{begins: "weft get topic payments", says: []string{`demo +payments .* second +Ready`, `topic/demo/payments updated`}})
}

// forwarding walks docs/forwarding.md.
func (s *shell) forwarding() {
	s.Helper()
	s.walk(blocks(s.T, "docs/forwarding.md", ""),
		step{begins: "weft up", instead: s.up},
		step{begins: "weft apply", says: []string{`subscription/demo/large-to-audit created`, `"id": ?"p-2"`, `"amount": ?"2000"`}},
		step{begins: "weft pull", says: []string{`is delivered into topic audit; nobody can join it`}},
		step{begins: "weft publish", says: []string{`p-3`, `forward to audit: event-too-large`}},
		step{begins: "weft apply", says: []string{`spec.forward.topic.*audit -> purchases \(forwarded by subscription/demo/back\) -> audit \(forwarded by subscription/demo/large-to-audit\)`}})
}

// requests walks docs/requests.md.
func (s *shell) requests() {
	s.Helper()
	s.walk(blocks(s.T, "docs/requests.md", ""),
		step{begins: "weft up", instead: s.up},
		step{begins: "weft apply", says: []string{`subscription/demo/answerers created`}},
		step{begins: "curl", says: []string{`(?i)ce-id: a-1\r?\n`, `\{"price": 42\}`}},
		step{begins: "curl", says: []string{`"status":504`, `"reason":"no-reply"`}},
		step{begins: "weft reply", says: []string{`(?m)^\{"price": ?7\}$`, `"type": ?"weft\.cli\.reply".*"data": ?\{"price": ?8\}`, `questions  q-3  is replied to`, `questions  q-4  is replied to`}})
}

// schemas walks docs/schemas.md.
func (s *shell) schemas() {
	s.Helper()
	s.walk(blocks(s.T, "docs/schemas.md", ""),
		step{begins: "weft up", instead: s.up},
		step{begins: "weft apply", says: []string{`schema/demo/order created`, `is kept at`, `weft: .*the data do not conform at /lines/1/count: minimum`, `"status":400,.*/id.*"reason":"schema-mismatch"`}},
		step{begins: "sed", says: []string{`schema/demo/order updated`, `not backward compatible: at the root: the property "total" is required`}},
		step{begins: "weft schema", says: []string{`schema/demo/position: is right`, `order.yaml:\d+: schema/demo/order: the data do not conform at /lines/0/count: minimum`,
			`narrower.yaml:\d+: schema/demo/order: spec.json.document: not backward compatible`, `not forward compatible: at /properties/total`, `at.avsc: is right`}},
		step{begins: "printf", says: []string{`"position":"`, `"status":400,.*at /celsius: want int, the data end.*"reason":"schema-mismatch"`}},
		step{begins: "sed", says: []string{`not backward compatible: at the root: the field at is not in what is read, and has no default`}},
		step{begins: "printf", says: []string{`"position":"`, `"status":400,.*at /at: want int64, got wire type 2.*"reason":"schema-mismatch"`}},
		step{begins: "sed", says: []string{`schema/demo/position updated`, `is kept at`, `weft: .*the data do not conform at /at: want int64, got "7 km"`}})
}
