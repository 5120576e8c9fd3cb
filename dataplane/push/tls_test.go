package push

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/snapshot"
)

// authority issues certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	last int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key, cert: &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}}
	a.cert.Raw = a.sign(a.cert, &key.PublicKey)
	if a.cert, err = x509.ParseCertificate(a.cert.Raw); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) sign(c *x509.Certificate, key *ecdsa.PublicKey) []byte {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, key, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return der
}

// pem is the authority itself, issue a certificate of 127.0.0.1 and target.example.
func (a *authority) pem() string { return text("CERTIFICATE", a.cert.Raw) }

func (a *authority) issue() (cert, key string) {
	a.t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	a.last++
	der := a.sign(&x509.Certificate{SerialNumber: big.NewInt(100 + a.last), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"target.example"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}, &private.PublicKey)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		a.t.Fatal(err)
	}
	return text("CERTIFICATE", der), text("PRIVATE KEY", pkcs8)
}

func text(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// server is the configuration of a target with a certificate of a, which demands one
// of clients.
func (a *authority) server(clients ...*authority) *tls.Config {
	a.t.Helper()
	cert, key := a.issue()
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		a.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	for _, c := range clients {
		pool.AddCert(c.cert)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, NextProtos: []string{"h2", "http/1.1"}}
}

// put replaces a file, as whole as a mounted secret is.
func put(t *testing.T, path, text string) {
	t.Helper()
	for _, err := range []error{os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path+".new", []byte(text), 0o600), os.Rename(path+".new", path)} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestTLS: a target with a certificate of a private authority, which demands one of
// clients, is called with what the Subscription names, and by nobody else; what is wrong
// is said, with the field.
func TestTLS(t *testing.T) {
	ours, partner, stranger := newAuthority(t), newAuthority(t), newAuthority(t)
	var came atomic.Int32
	h := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		came.Add(1)
		if r.ProtoMajor != 2 || r.TLS.PeerCertificates[0].SerialNumber.Int64() != 101 {
			t.Errorf("%s of %v", r.Proto, r.TLS.PeerCertificates[0].SerialNumber)
		}
	}))
	h.EnableHTTP2, h.TLS = true, partner.server(ours)
	h.StartTLS()
	t.Cleanup(h.Close)
	old := httptest.NewUnstartedServer(h.Config.Handler) // whose refusal comes before anything is sent
	old.TLS = partner.server(ours)
	old.TLS.MaxVersion = tls.VersionTLS12
	old.StartTLS()
	t.Cleanup(old.Close)

	dir := t.TempDir()
	cert, key := ours.issue()
	otherCert, otherKey := stranger.issue()
	for name, text := range map[string]string{"demo/ca": partner.pem(), "demo/cert": cert, "demo/key": key, "demo/wrong-ca": stranger.pem(), "demo/wrong-cert": otherCert, "demo/wrong-key": otherKey,
		"demo/empty": "", "other/ca": partner.pem(), "demo/large": strings.Repeat(partner.pem(), 200)} {
		put(t, filepath.Join(dir, name), text)
	}
	outside := filepath.Join(t.TempDir(), "ca")
	put(t, outside, partner.pem())
	if err := os.Symlink(outside, filepath.Join(dir, "demo", "link")); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		url, ca, cert, key string
		outcome, reason    string
	}{
		{h.URL, "ca", "cert", "key", outcomeOK, ""},
		{h.URL, "", "", "", Untrusted, "of no authority that is trusted (push.tls.ca)"},
		{h.URL, "wrong-ca", "cert", "key", Untrusted, "of no authority that is trusted (push.tls.ca)"},
		{strings.Replace(h.URL, "127.0.0.1", "localhost", 1), "ca", "cert", "key", Untrusted, "certificate is not valid"},
		{old.URL, "ca", "", "", Untrusted, "the target refused the connection (push.tls.certificate): tls: "},
		{old.URL, "ca", "wrong-cert", "wrong-key", Untrusted, "the target refused the connection (push.tls.certificate): tls: "},
		{h.URL, "ca", "cert", "wrong-key", Failed, "push.tls: certificate demo/cert with key demo/wrong-key: tls: private key does not match"},
		{h.URL, "none", "cert", "key", Failed, "push.tls: authorities: demo/none: no such file"},
		{h.URL, "ca", "none", "key", Failed, "push.tls: certificate demo/none with key demo/key: demo/none: no such file"},
		{h.URL, "empty", "cert", "key", Failed, "push.tls: authorities: demo/empty has no certificate in PEM"},
		{h.URL, "large", "cert", "key", Failed, "push.tls: authorities: demo/large: is larger than 65536 bytes"},
		{h.URL, "link", "cert", "key", Failed, "push.tls: authorities: demo/link: path escapes from parent"},
		{h.URL, "../other/ca", "cert", "key", Failed, "push.tls.ca: secret ../other/ca: is not the name of a file"},
		{h.URL, "ca", "cert", "..", Failed, "push.tls.key: secret ..: is not the name of a file"},
	} {
		before := came.Load()
		c := newClient(&Config{Allow: loopback, Secrets: dir}, "demo")
		push := &snapshot.Push{URL: tc.url, Timeout: 10 * time.Second, CA: tc.ca, Cert: tc.cert, Key: tc.key, Origin: "mesh.example"}
		a, _ := c.post(t.Context(), push, nil, snapshot.Key{Namespace: "demo", Name: "s"}, &delivery.Delivery{Attempt: 1, Event: ev("1")})
		n := came.Load() - before
		if _, asked := c.ask(t.Context(), push); asked.outcome != tc.outcome && tc.outcome != outcomeOK || asked.outcome == Untrusted && tc.outcome == outcomeOK {
			t.Errorf("ca %q, certificate %q: asking for consent is %+v", tc.ca, tc.cert, asked)
		}
		c.close()
		if a.outcome != tc.outcome || !strings.Contains(a.reason, tc.reason) || strings.Contains(a.reason, dir) {
			t.Errorf("ca %q, certificate %q, key %q: %s, %q; want %s, %q", tc.ca, tc.cert, tc.key, a.outcome, a.reason, tc.outcome, tc.reason)
		}
		if (n == 1) != (tc.outcome == outcomeOK) {
			t.Errorf("ca %q, certificate %q: %d requests came", tc.ca, tc.cert, n)
		}
	}
	none := newClient(&Config{Allow: loopback}, "demo")
	defer none.close()
	if _, err := none.over(&snapshot.Push{CA: "ca"}); err == nil || !strings.Contains(err.Error(), "push.tls.ca: this proxy has no folder of secrets (--push-secrets)") {
		t.Errorf("without a folder: %v", err)
	}
}

// TestTLSDistrust: an authority that is taken away is trusted no more, also where a
// connection is open; the target is shown as one that is not trusted.
func TestTLSDistrust(t *testing.T) {
	ours, partner, stranger := newAuthority(t), newAuthority(t), newAuthority(t)
	h := newHookTLS(t, partner.server(ours))
	dir := t.TempDir()
	cert, key := ours.issue()
	for name, text := range map[string]string{"ca": partner.pem(), "cert": cert, "key": key} {
		put(t, filepath.Join(dir, "demo", name), text)
	}
	w := newWorldWith(t, Config{Allow: loopback, Secrets: dir}, sub("orders", h.URL, func(s *snapshot.Subscription) {
		s.Push.CA, s.Push.Cert, s.Push.Key = "ca", "cert", "key"
	}))
	w.publish("orders", ev("trusted"))
	h.next(w)
	w.settled("orders")
	put(t, filepath.Join(dir, "demo", "ca"), stranger.pem())
	sent := 0
	w.until("the target is not trusted any more", func() bool {
		w.publish("orders", ev(fmt.Sprint(sent)))
		sent++
		f := w.pusher.Failing()
		return len(f) == 1 && f[0].Outcome == Untrusted
	})
	w.settled("orders")
	came := len(h.got)
	w.publish("orders", ev("distrusted"))
	w.settled("orders")
	if len(h.got) != came {
		t.Error("a target that is not trusted any more was called")
	}
}

// TestTLSNoLonger: what was wrong with files is not shown of a target that names none any
// more.
func TestTLSNoLonger(t *testing.T) {
	c := newClient(&Config{}, "demo") // without a folder of secrets
	defer c.close()
	c.tls.unusable = prometheus.NewGauge(prometheus.GaugeOpts{Name: "x"})
	for _, tc := range []struct {
		push     snapshot.Push
		unusable float64
	}{{snapshot.Push{CA: "ca.pem"}, 1}, {snapshot.Push{}, 0}} {
		_, err := c.over(&tc.push)
		var m dto.Metric
		if werr := c.tls.unusable.Write(&m); werr != nil || (err != nil) != (tc.unusable == 1) || m.GetGauge().GetValue() != tc.unusable {
			t.Errorf("with %q: %v, unusable %v, %v", tc.push.CA, err, m.GetGauge().GetValue(), werr)
		}
	}
}

// TestTLSRotation: while events are pushed both sides change authorities and
// certificates, file after file. Each event arrives at its first attempt; the new files
// are used within 5 s of the last, and over connections that were made with them alone;
// what does not fit together meanwhile is shown.
func TestTLSRotation(t *testing.T) { synctest.Test(t, testTLSRotation) }

func testTLSRotation(t *testing.T) {
	const every = 100 * time.Millisecond
	oldOurs, newOurs, oldPartner, newPartner := newAuthority(t), newAuthority(t), newAuthority(t), newAuthority(t)
	newOurs.last = 1000
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, "demo", name) }
	cert, key := oldOurs.issue()
	put(t, file("ca"), oldPartner.pem())
	put(t, file("cert"), cert)
	put(t, file("key"), key)

	var conf atomic.Pointer[tls.Config]
	conf.Store(oldPartner.server(oldOurs))
	type request struct {
		id, attempt string
		serial      int64
	}
	got := make(chan request, 10_000)
	var conns atomic.Int64
	n := make(pipes)
	server := &http.Server{ReadHeaderTimeout: time.Minute, TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		conns.Add(1)
		return conf.Load(), nil
	}}, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got <- request{id: r.Header.Get("Ce-Id"), attempt: r.Header.Get("Weft-Attempt"), serial: r.TLS.PeerCertificates[0].SerialNumber.Int64()}
	})}
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(n, "", "") }()
	w := newWorldWith(t, Config{dial: n.dial, Secrets: dir}, sub("orders", "https://target.example/", func(s *snapshot.Subscription) {
		s.Push.CA, s.Push.Cert, s.Push.Key = "ca", "cert", "key"
	}))
	w.ctx = t.Context()
	events := 0
	// load pushes for so long and gives the serial number of the certificate that came last.
	load := func(long time.Duration) (serial int64) {
		t.Helper()
		for range long / every {
			id := fmt.Sprint(events)
			events++
			w.publish("orders", ev(id))
			<-time.After(every)
			select {
			case r := <-got:
				if r.id != id || r.attempt != "1" {
					t.Fatalf("event %s came as %+v", id, r)
				}
				serial = r.serial
			default:
				t.Fatalf("event %s was not pushed", id)
			}
		}
		return serial
	}
	unusable := func() float64 {
		var m dto.Metric
		w.must(w.pusher.metrics.unusable.WithLabelValues("demo", "orders").Write(&m))
		return m.GetGauge().GetValue()
	}
	if serial := load(10 * time.Second); serial != 101 || conns.Load() != 1 {
		t.Errorf("the certificate is %d, over %d connections", serial, conns.Load())
	}
	put(t, file("ca"), oldPartner.pem()+newPartner.pem())
	load(6 * time.Second)
	conf.Store(newPartner.server(oldOurs, newOurs))
	load(6 * time.Second)
	cert, key = newOurs.issue()
	put(t, file("cert"), cert)
	if serial := load(12 * time.Second); serial != 101 || unusable() != 1 {
		t.Errorf("with a certificate whose key is missing the certificate is %d, and unusable %v", serial, unusable())
	}
	put(t, file("key"), key)
	if serial := load(6 * time.Second); serial != 1101 || unusable() != 0 {
		t.Errorf("of the new files the certificate is %d, and unusable %v", serial, unusable())
	}
	before := conns.Load()
	conf.Store(newPartner.server(newOurs))
	put(t, file("ca"), newPartner.pem())
	if serial := load(6 * time.Second); serial != 1101 || conns.Load() != before+1 {
		t.Errorf("without the old authority: the certificate is %d, after %d new connections", serial, conns.Load()-before)
	}
	put(t, file("ca"), newPartner.pem()+newPartner.pem())
	load(6 * time.Second)
	if conns.Load() != before+1 {
		t.Error("files that say the same made a new connection")
	}
	w.stop()
	close(n)
	_ = server.Close()
	<-served
}
