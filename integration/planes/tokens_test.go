package planes

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	cloudeventsv1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"

	"github.com/weft-mesh/weft/pkg/client"
)

// signer is an issuer of tokens.
type signer struct {
	t   *testing.T
	key ed25519.PrivateKey
}

func newSigner(t *testing.T) signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return signer{t, key}
}

// jwks is the public half of its key.
func (s signer) jwks() string {
	s.t.Helper()
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: s.key.Public(), KeyID: "1"}}})
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

// token is one of sub for audience demo that is good until end.
func (s signer) token(sub string, end time.Time) string { return s.tokenFor("demo", sub, end) }

func (s signer) tokenFor(audience, sub string, end time.Time) string {
	s.t.Helper()
	j, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: s.key}, (&jose.SignerOptions{}).WithHeader("kid", "1"))
	if err != nil {
		s.t.Fatal(err)
	}
	payload, err := json.Marshal(map[string]any{"iss": "https://issuer", "aud": audience, "sub": sub, "exp": end.Unix()})
	if err != nil {
		s.t.Fatal(err)
	}
	sig, err := j.Sign(payload)
	if err != nil {
		s.t.Fatal(err)
	}
	out, err := sig.CompactSerialize()
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

func identityRes(name string, spec *configv1.Identity) *configv1.Resource {
	return &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: name}, Spec: &configv1.Resource_Identity{Identity: spec}}
}

func tokensOf(jwks string) *configv1.Resource {
	return identityRes("staff", &configv1.Identity{Method: &configv1.Identity_Jwt{Jwt: &configv1.JwtIssuer{Issuer: "https://issuer", Audiences: []string{"demo"},
		Keys: &configv1.JwtIssuer_Jwks{Jwks: jwks}}}})
}

// keysOf is an Identity with API keys, by their principals.
func keysOf(keys map[string]string) *configv1.Resource {
	list := &configv1.ApiKeys{}
	for principal, key := range keys {
		sum := sha256.Sum256([]byte(key))
		list.Keys = append(list.Keys, &configv1.ApiKey{Id: strings.Split(key, "_")[1], Hash: "sha256:" + hex.EncodeToString(sum[:]), Principal: principal})
	}
	return identityRes("keys", &configv1.Identity{Method: &configv1.Identity_ApiKeys{ApiKeys: list}})
}

func orderEvent(id string) *cloudeventsv1.CloudEvent {
	return &cloudeventsv1.CloudEvent{Id: id, Source: "/test", SpecVersion: "1.0", Type: "t", Data: &cloudeventsv1.CloudEvent_BinaryData{BinaryData: []byte("x")}}
}

// openSessions opens one session of each kind that lasts, with a bearer, and
// gives for each what waits for its end. All have been served; then they are idle.
func (g *gateway) openSessions(bearer string) map[string]func() error {
	g.t.Helper()
	ctx := metadata.AppendToOutgoingContext(g.ctx, "authorization", "Bearer "+bearer)
	must := func(err error) {
		g.t.Helper()
		if err != nil {
			g.t.Fatal(err)
		}
	}
	m, err := g.join(ctx, "billing")
	must(err)
	tail, err := g.events.Subscribe(ctx)
	must(err)
	must(tail.Send(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Open{Open: &eventsv1.SubscribeOpen{Namespace: "demo", Credit: 64,
		Source: &eventsv1.SubscribeOpen_Tail{Tail: &eventsv1.Tail{Topics: []string{"orders"}}}}}}))
	_, err = tail.Recv()
	must(err)
	publish, err := g.events.PublishStream(ctx)
	must(err)
	must(publish.Send(&eventsv1.PublishStreamRequest{Namespace: "demo", Topic: "other", Events: []*cloudeventsv1.CloudEvent{orderEvent("1")}}))
	answer, err := publish.Recv()
	must(err)
	if len(answer.Failed) > 0 {
		g.t.Fatal(answer)
	}
	quiet, err := g.events.PublishStream(ctx)
	must(err)
	must(quiet.Send(&eventsv1.PublishStreamRequest{Namespace: "demo", Topic: "other"})) // no event
	req, err := http.NewRequestWithContext(g.ctx, http.MethodGet, "http://"+g.Addrs().HTTP+"/v1/demo/topics/orders/events", nil)
	must(err)
	req.Header.Set("Authorization", "Bearer "+bearer)
	sse, err := http.DefaultClient.Do(req)
	must(err)
	g.t.Cleanup(func() { _ = sse.Body.Close() })
	if sse.StatusCode != http.StatusOK {
		g.t.Fatal(sse.Status)
	}
	return map[string]func() error{
		"Subscribe":             func() error { _, err := m.stream.Recv(); return err },
		"the tail":              func() error { _, err := tail.Recv(); return err },
		"PublishStream":         func() error { _, err := publish.Recv(); return err },
		"PublishStream, unused": func() error { _, err := quiet.Recv(); return err },
		"SSE": func() error {
			for lines := bufio.NewScanner(sse.Body); lines.Scan(); {
				if strings.HasPrefix(lines.Text(), "data: ") {
					if strings.Contains(lines.Text(), "credentials-revoked") {
						return status.Error(codes.Unauthenticated, lines.Text())
					}
					return errors.New(lines.Text())
				}
			}
			return errors.New("it ended without a word")
		},
	}
}

// TestTokensEnd: a token that ends, a key that is taken out of its Identity, an
// Identity that is deleted and an issuer that has other keys end every session
// that was opened with them, also those that are idle, and no other session and
// no connection. What a client shows afterwards is judged anew.
func TestTokensEnd(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	issuer := newSigner(t)
	const key, other = "weft_abcdefgh_0123456789abcdef", "weft_ijklmnop_0123456789abcdef"
	for name, tc := range map[string]struct {
		bearer func(now time.Time) string
		end    func(ctx context.Context, t *testing.T, cp *replica, later *atomic.Int64)
	}{
		"a token's end": {func(now time.Time) string { return issuer.token("alice", now.Add(10*time.Minute)) },
			func(_ context.Context, _ *testing.T, _ *replica, later *atomic.Int64) {
				later.Store(int64(10 * time.Minute))
			}},
		"a key is taken out": {func(time.Time) string { return key },
			func(ctx context.Context, t *testing.T, cp *replica, _ *atomic.Int64) {
				apply(ctx, t, cp, keysOf(map[string]string{"bob": other}))
			}},
		"the Identity is deleted": {func(now time.Time) string { return issuer.token("alice", now.Add(10*time.Minute)) },
			func(ctx context.Context, t *testing.T, cp *replica, _ *atomic.Int64) {
				if _, err := cp.admin.Delete(ctx, &adminv1.DeleteRequest{Targets: []*adminv1.DeleteTarget{{Name: "identity/demo/staff"}}}); err != nil {
					t.Fatal(err)
				}
			}},
		"the issuer has other keys": {func(now time.Time) string { return issuer.token("alice", now.Add(10*time.Minute)) },
			func(ctx context.Context, t *testing.T, cp *replica, _ *atomic.Int64) {
				apply(ctx, t, cp, tokensOf(newSigner(t).jwks()))
			}},
	} {
		t.Run(name, func(t *testing.T) {
			cp := startReplica(ctx, t, startEtcd(ctx, t))
			cfg := proxyConfig(filepath.Join(t.TempDir(), "data"), cp.Addrs().Discovery)
			var later atomic.Int64 // how far the proxy's clock is ahead
			cfg.Clock = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
			g := runProxy(ctx, t, cfg)
			apply(ctx, t, cp, eventStore("demo", "main", "1"), topic("demo", "orders"), topic("demo", "other"), subscriptionRes("billing", "", "orders"), subscriptionRes("audit", "", "orders"),
				tokensOf(issuer.jwks()), keysOf(map[string]string{"alice": key, "bob": other}), policyOf(everything("alice", "bob")))
			g.await("the topics", ready([]string{"orders", "other"}, []string{"billing", "audit"}))

			bob, err := g.join(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+other), "audit")
			if err != nil {
				t.Fatal(err)
			}
			bearer := tc.bearer(time.Now())
			sessions := g.openSessions(bearer)
			before := connections(t, g)
			tc.end(ctx, t, cp, &later)
			for what, ended := range sessions {
				if err := ended(); status.Code(err) != codes.Unauthenticated {
					t.Errorf("%s ends with %v", what, err)
				}
			}
			if after := connections(t, g); after != before {
				t.Errorf("there were %s connections, now %s", before, after)
			}
			shown := binary("2")
			shown["Authorization"] = "Bearer " + bearer
			if code, body := g.post("orders", "x", shown); code != http.StatusUnauthorized {
				t.Errorf("what was shown is answered with %d %s", code, body)
			}
			shown["Authorization"] = "Bearer " + other
			if code, body := g.post("orders", "x", shown); code != http.StatusOK {
				t.Errorf("another's key is answered with %d %s", code, body)
			}
			bob.mustTake("2=x")
		})
	}
}

// TestTokensAreRenewed: a client whose token ends goes on with the one that it
// has by then, without an error; one that has none then hears so.
func TestTokensAreRenewed(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	issuer := newSigner(t)
	cp := startReplica(ctx, t, startEtcd(ctx, t))
	cfg := proxyConfig(filepath.Join(t.TempDir(), "data"), cp.Addrs().Discovery)
	var later atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	cfg.Clock = now
	g := runProxy(ctx, t, cfg)
	apply(ctx, t, cp, eventStore("demo", "main", "1"), topic("demo", "orders"), subscriptionRes("billing", "", "orders"), tokensOf(issuer.jwks()), policyOf(everything("alice")))
	g.await("the topic", ready([]string{"orders"}, []string{"billing"}))
	var token atomic.Value
	token.Store(issuer.token("alice", now().Add(10*time.Minute)))
	c, err := client.New(client.Config{Addresses: []string{g.Addrs().GRPC}, APIKey: func() (string, error) { return token.Load().(string), nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	connected, taken, over := make(chan struct{}, 10), make(chan string, 10), make(chan error, 2)
	opened := func() { connected <- struct{}{} }
	take := func(d client.Delivery) error { taken <- d.Event.ID; return nil }
	go func() {
		over <- c.Subscribe(ctx, "demo", "billing", func(_ context.Context, d client.Delivery) error { return take(d) }, client.SubscribeOptions{Connected: opened})
	}()
	go func() { over <- c.Tail(ctx, "demo", []string{"orders"}, client.TailOptions{Connected: opened}, take) }()
	p := c.Publisher("demo", "orders", client.PublisherOptions{})
	wait := func(what string, ch <-chan struct{}) {
		t.Helper()
		for range 2 {
			select {
			case <-ch:
			case err := <-over:
				t.Fatalf("%s: %v", what, err)
			case <-ctx.Done():
				t.Fatal(what)
			}
		}
	}
	publish := func(n int) {
		t.Helper()
		q, err := p.Publish(ctx, numbered(n))
		if err == nil {
			_, err = q.Wait(ctx)
		}
		if err != nil {
			t.Fatalf("event %d: %v", n, err)
		}
		for range 2 {
			select {
			case <-taken:
			case err := <-over:
				t.Fatalf("event %d: %v", n, err)
			case <-ctx.Done():
				t.Fatalf("event %d does not come", n)
			}
		}
	}
	wait("the first time", connected)
	publish(1)
	token.Store(issuer.token("alice", now().Add(30*time.Minute)))
	later.Store(int64(10 * time.Minute))
	wait("with the new token", connected)
	publish(2)
	later.Store(int64(30 * time.Minute))
	for range 2 {
		if err := <-over; !unauthenticated(err) {
			t.Errorf("without a token that is good it ends with %v", err)
		}
	}
	q, err := p.Publish(ctx, numbered(3))
	if err == nil {
		_, err = q.Wait(ctx)
	}
	if !unauthenticated(err) {
		t.Errorf("publishing without a token that is good: %v", err)
	}
	_ = p.Close(ctx)
}

func unauthenticated(err error) bool {
	e, ok := errors.AsType[*client.Error](err)
	return ok && e.Code == codes.Unauthenticated
}

// TestIssuerOutage: keys of an issuer that went away are good for 7 days, over a
// restart too, and then tokens are refused as what cannot be checked, until it is
// back. What is refused is counted by reason, how old the keys are is shown, and an
// outage is one line of the log, and its end another.
func TestIssuerOutage(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	issuer := newSigner(t)
	var down atomic.Bool
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if down.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		_, _ = w.Write([]byte(issuer.jwks()))
	}))
	t.Cleanup(s.Close)
	cp := startReplica(ctx, t, startEtcd(ctx, t))
	cfg := proxyConfig(filepath.Join(t.TempDir(), "data"), cp.Addrs().Discovery)
	var later atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	log := &lines{}
	cfg.Clock, cfg.Log = now, slog.New(slog.NewTextHandler(log, nil))
	g := runProxy(ctx, t, cfg)
	staff := tokensOf("")
	staff.GetIdentity().GetJwt().Keys = &configv1.JwtIssuer_JwksUri{JwksUri: s.URL}
	apply(ctx, t, cp, eventStore("demo", "main", "1"), topic("demo", "orders"), staff, policyOf(everything("alice")))
	g.await("the topic", ready([]string{"orders"}, nil))
	shows := func(token string) (int, string) {
		t.Helper()
		h := binary("1")
		h["Authorization"] = "Bearer " + token
		return g.post("orders", "x", h)
	}
	accepted := func(when string) {
		t.Helper()
		if code, body := shows(issuer.token("alice", now().Add(time.Hour))); code != http.StatusOK {
			t.Errorf("%s: %d %s", when, code, body)
		}
	}
	until(ctx, t, "the keys", func() error {
		if code, body := shows(issuer.token("alice", now().Add(time.Hour))); code != http.StatusOK {
			return errors.New(body)
		}
		return nil
	})
	want := map[string]float64{}
	for reason, token := range map[string]string{"expired": issuer.token("alice", now().Add(-time.Second)), "audience": issuer.tokenFor("other", "alice", now().Add(time.Hour)),
		"signature": newSigner(t).token("alice", now().Add(time.Hour)), "principal": issuer.token("a/b", now().Add(time.Hour))} {
		if code, body := shows(token); code != http.StatusUnauthorized {
			t.Errorf("%s: %d %s", reason, code, body)
		}
		want[reason] = 1
	}
	page := scrape(t, g.Addrs().Ops)
	for reason, n := range want {
		if v := page.value(`weft_proxy_issuer_tokens_refused_total{identity="identity/demo/staff",reason="` + reason + `"}`); v != n {
			t.Errorf("%v are counted for %s", v, reason)
		}
	}
	fetched := page.value(`weft_proxy_issuer_keys_fetched_timestamp_seconds{identity="identity/demo/staff"}`)
	if age := float64(now().Unix()) - fetched; age < 0 || age > time.Hour.Seconds() {
		t.Errorf("the keys are %v s old", age)
	}

	down.Store(true)
	later.Store(int64(6 * 24 * time.Hour))
	accepted("6 days later")
	g.stop()
	g = runProxy(ctx, t, cfg)
	g.await("the topic", ready([]string{"orders"}, nil))
	accepted("6 days later, after a restart")
	until(ctx, t, "a look that fails", func() error {
		page := scrape(t, g.Addrs().Ops)
		if v := page.value(`weft_proxy_issuer_key_fetches_total{identity="identity/demo/staff",outcome="failed"}`); v < 2 {
			return fmt.Errorf("%v looks have failed", v)
		}
		if v := page.value(`weft_proxy_issuer_keys_fetched_timestamp_seconds{identity="identity/demo/staff"}`); v != fetched {
			t.Fatalf("the keys were fetched at %v, by the metric at %v", fetched, v)
		}
		return nil
	})
	later.Store(int64(8 * 24 * time.Hour))
	if code, body := shows(issuer.token("alice", now().Add(time.Hour))); code != http.StatusServiceUnavailable || !strings.Contains(body, "issuer-unreachable") {
		t.Errorf("8 days later: %d %s", code, body)
	}
	if v := scrape(t, g.Addrs().Ops).value(`weft_proxy_issuer_tokens_refused_total{identity="identity/demo/staff",reason="stale-keys"}`); v != 1 {
		t.Errorf("%v are counted for stale keys", v)
	}
	if n := log.count("level=WARN", "identity=identity/demo/staff", "cannot be fetched"); n != 1 {
		t.Errorf("the outage is %d lines", n)
	}
	down.Store(false)
	until(ctx, t, "the issuer to be back", func() error {
		if code, body := shows(issuer.token("alice", now().Add(time.Hour))); code != http.StatusOK {
			return errors.New(body)
		}
		return nil
	})
	until(ctx, t, "the log", func() error {
		if n := log.count("level=INFO", "identity=identity/demo/staff", "are fetched again"); n != 1 {
			return fmt.Errorf("that it is back is %d lines", n)
		}
		return nil
	})
}
