package push

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/rest"
)

func request(t *testing.T, r *configv1.RestRequest) *rest.Request {
	t.Helper()
	out, err := rest.CompileRequest(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestRequest: an endpoint that knows no CloudEvents is called as it wants to be.
func TestRequest(t *testing.T) {
	h := newHook(t, func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	w := newWorld(t, loopback, sub("orders", h.URL+"/api?key=1", func(s *snapshot.Subscription) {
		s.Push.Request = request(t, &configv1.RestRequest{Method: "PUT", Path: "/orders/{subject}/lines/{data.line.no}",
			Query: map[string]string{"who": "{source}", "none": "{dataschema}"}, Headers: map[string]string{"Idempotency-Key": "{id}", "X-None": "{nowhere}"}})
	}))
	w.publish("orders", &event.Event{ID: "7", Source: "/a b&c", Type: "t", Subject: "eu/42?x#y", DataContentType: "application/json", Data: []byte(`{"line": {"no": 3}}`)})
	r, body := h.next(w)
	if got, want := r.Method+" "+r.RequestURI, "PUT /api/orders/eu%2F42%3Fx%23y/lines/3?key=1&who=%2Fa+b%26c"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if string(body) != `{"line": {"no": 3}}` || r.Header.Get("Content-Type") != "application/json" || r.Header.Get("Idempotency-Key") != "7" || r.Header.Get("Weft-Attempt") != "1" {
		t.Errorf("%s %v", body, r.Header)
	}
	for name := range r.Header {
		if strings.HasPrefix(name, "Ce-") || name == "X-None" {
			t.Errorf("the header %s is sent", name)
		}
	}
	w.settled("orders")
}

// TestNoRequestOfEvent: an event of which no request can be made is a dead letter at once.
func TestNoRequestOfEvent(t *testing.T) {
	h := newHook(t, nil)
	w := newWorld(t, loopback, sub("orders", h.URL, func(s *snapshot.Subscription) {
		s.Push.Request = request(t, &configv1.RestRequest{Path: "/orders/{subject}"})
	}))
	e := ev("1")
	e.Subject = "a/../b"
	w.publish("orders", e)
	d := w.dead()
	if attempts, _ := event.Lookup(d.Ext, "deadletterattempts"); d.ID != "1" || attempts != "1" {
		t.Errorf("the dead letter is %+v", d)
	}
	if len(h.got) > 0 {
		t.Error("it was sent")
	}
}

// TestAnswers: what a Subscription says of a status counts; what it says of a class
// does not cover answers that mean "not now".
func TestAnswers(t *testing.T) {
	must := func(list ...string) rest.Statuses {
		s, err := rest.ParseStatuses(list)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	push := &snapshot.Push{SettleOn: must("409", "3xx"), RejectOn: must("4xx", "503")}
	c := newClient(&Config{}, "demo")
	for code, want := range map[int]string{200: outcomeOK, 204: outcomeOK, 302: outcomeOK, 400: Rejected, 404: Rejected, 408: Refused, 409: outcomeOK, 410: Gone, 425: Refused,
		429: Refused, 500: Refused, 503: Rejected} {
		if got := c.judge(push, &http.Response{StatusCode: code, Header: http.Header{}}).outcome; got != want {
			t.Errorf("%d is %s, want %s", code, got, want)
		}
	}
	if got := c.judge(&snapshot.Push{SettleOn: must("410")}, &http.Response{StatusCode: http.StatusGone}).outcome; got != outcomeOK {
		t.Errorf("410 that settles is %s", got)
	}
}

// TestGone: a target that says 410 is called no more, without losing an event or an
// attempt, until its Subscription is changed.
func TestGone(t *testing.T) {
	h := newHook(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n == 1 {
			w.WriteHeader(http.StatusGone)
		}
	})
	one := func(s *snapshot.Subscription) { s.Push.Concurrency, s.Push.Version = 1, "1" }
	w := newWorld(t, loopback, sub("orders", h.URL, one))
	w.publish("orders", ev("1"), ev("2"))
	h.next(w)
	w.until("it is shown as gone", func() bool {
		f := w.pusher.Failing()
		return len(f) == 1 && f[0].Outcome == Gone
	})
	w.snaps.Store(w.snapshot(sub("orders", h.URL, one))) // nothing of it changed
	if len(h.got) > 0 {
		t.Error("a target that is gone was called")
	}
	w.snaps.Store(w.snapshot(sub("orders", h.URL, func(s *snapshot.Subscription) { one(s); s.Push.Version = "2" })))
	for _, id := range []string{"1", "2"} {
		if r, _ := h.next(w); r.Header.Get("Ce-Id") != id || r.Header.Get("Weft-Attempt") != "1" {
			t.Errorf("want event %s at its first attempt: %v", id, r.Header)
		}
	}
	w.settled("orders")
	if f := w.pusher.Failing(); len(f) != 0 {
		t.Errorf("it still fails: %v", f)
	}
}

// TestSecrets: requests are signed with every key and carry the Authorization, by
// files that may change; without one nothing is sent.
func TestSecrets(t *testing.T) {
	key := func(b byte) (raw []byte, text string) {
		raw = []byte(strings.Repeat(string(rune(b)), 24))
		return raw, "whsec_" + base64.StdEncoding.EncodeToString(raw) + "\n"
	}
	oldKey, oldText := key('o')
	newKey, newText := key('n')
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("demo/old", oldText)
	write("demo/new", newText)
	write("other/token", "of-another-namespace")
	h := newHook(t, nil)
	signed := func(s *snapshot.Subscription) {
		s.Push.SignWith, s.Push.Scheme, s.Push.Secret = []string{"new", "old"}, "Bearer", "token"
	}
	w := newWorldWith(t, Config{Allow: loopback, Secrets: dir}, sub("orders", h.URL, signed))
	w.publish("orders", ev("1"))
	d := w.dead()
	if reason, _ := event.Lookup(d.Ext, "deadletterreason"); !strings.Contains(reason, "secret token") || strings.Contains(reason, dir) {
		t.Errorf("the dead letter is %+v", d)
	}
	if len(h.got) > 0 {
		t.Fatal("it was sent without its Authorization")
	}
	write("demo/token", "s3cret\n")
	w.snaps.Store(w.snapshot(sub("orders", h.URL, func(s *snapshot.Subscription) { signed(s); s.Push.Version = "2" })))
	w.publish("orders", ev("2"))
	var r *http.Request
	var body []byte
	for r, body = h.next(w); r.Header.Get("Ce-Id") != "2"; r, body = h.next(w) {
	}
	if got := r.Header.Get("Authorization"); got != "Bearer s3cret" {
		t.Errorf("Authorization is %q", got)
	}
	id, at := r.Header.Get("Webhook-Id"), r.Header.Get("Webhook-Timestamp")
	want := ""
	for _, k := range [][]byte{newKey, oldKey} {
		m := hmac.New(sha256.New, k)
		m.Write([]byte(id + "." + at + "." + string(body)))
		want += " v1," + base64.StdEncoding.EncodeToString(m.Sum(nil))
	}
	if got := r.Header.Get("Webhook-Signature"); got != want[1:] {
		t.Errorf("the signature is %q, want %q", got, want[1:])
	}
	if sec, err := strconv.ParseInt(at, 10, 64); err != nil || time.Since(time.Unix(sec, 0)).Abs() > time.Hour {
		t.Errorf("the time is %q", at)
	}
	if id != messageID(ev("2")) || id == messageID(ev("1")) {
		t.Errorf("the id is %q", id)
	}
}

// TestKeyOfStandardWebhooks: the example of the specification's own libraries.
func TestKeyOfStandardWebhooks(t *testing.T) {
	k, err := parseKey("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	h := http.Header{}
	sign(h, "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`), [][]byte{k})
	if got := h.Get("Webhook-Signature"); got != "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=" {
		t.Errorf("the signature is %q", got)
	}
	for _, s := range []string{"", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_c2hvcnQ=", "whsec_!", "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, 65))} {
		if _, err := parseKey(s); err == nil || strings.Contains(err.Error(), "c2hvcnQ") {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// TestSecretsOfOthers: a name leads to no file outside of the namespace's folder.
func TestSecretsOfOthers(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"demo/ok": "fine", "other/x": "other"} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, "demo", "link")); err != nil {
		t.Fatal(err)
	}
	s := secrets{folder: dir, namespace: "demo"}
	if got, err := s.get("ok"); got != "fine" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	for _, name := range []string{"link", "none", "."} {
		if got, err := s.get(name); err == nil || got != "" {
			t.Errorf("%s is %q", name, got)
		}
	}
}
