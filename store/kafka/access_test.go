package kafka

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// certificate makes a file with a key and its certificate for loopback, and gives who
// trusts it.
func certificate(t *testing.T) (file string, trust *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kafka"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	file, trust = filepath.Join(t.TempDir(), "kafka.pem"), x509.NewCertPool()
	trust.AppendCertsFromPEM(cert)
	if err := os.WriteFile(file, append(text, cert...), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, trust
}

// TestAccess: a broker that wants TLS and a password serves who has both; with
// another password, none, another authority or in the clear a store says so.
// Credentials that change are taken while the store is open.
func TestAccess(t *testing.T) {
	servers.NeedServers(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	file, trust := certificate(t)
	_, stranger := certificate(t)
	k := start(ctx, t, servers.KafkaOptions{Users: map[string]string{"fixed": "f1xed-secret"}, KeyStore: file})
	const user, first, second = "weft", "f1rst-secret", "s3cond-secret"
	must(k.SetUser(ctx, user, first))
	roots := func(p *x509.CertPool) func() (*tls.Config, error) {
		return func() (*tls.Config, error) { return &tls.Config{RootCAs: p, MinVersion: tls.VersionTLS12}, nil }
	}
	always := func(user, password string) func() (Credentials, error) {
		return func() (Credentials, error) { return Credentials{user, password}, nil }
	}
	missing := fault.New(fault.Unavailable, "credentials", "store-secret-missing", "it is not there")
	for name, c := range map[string]struct {
		o   Options
		why string
	}{
		"plain":             {Options{Mechanism: Plain, Credentials: always("fixed", "f1xed-secret"), TLS: roots(trust)}, ""},
		"scram":             {Options{Mechanism: ScramSHA512, Credentials: always(user, first), TLS: roots(trust)}, ""},
		"wrong password":    {Options{Mechanism: ScramSHA512, Credentials: always(user, second), TLS: roots(trust)}, "AccessDenied"},
		"wrong, plain":      {Options{Mechanism: Plain, Credentials: always("fixed", second), TLS: roots(trust)}, "AccessDenied"},
		"unknown user":      {Options{Mechanism: ScramSHA512, Credentials: always("nobody", first), TLS: roots(trust)}, "AccessDenied"},
		"another mechanism": {Options{Mechanism: ScramSHA256, Credentials: always(user, first), TLS: roots(trust)}, "AccessDenied"},
		"another authority": {Options{Mechanism: ScramSHA512, Credentials: always(user, first), TLS: roots(stranger)}, "Unreachable"},
		"in the clear":      {Options{Mechanism: ScramSHA512, Credentials: always(user, first)}, "Unreachable"},
		"no name":           {Options{TLS: roots(trust)}, "Unreachable"}, // brokers say nothing
	} {
		c.o.Brokers = k.Brokers
		s := open(t, c.o, 0)
		if err := s.Check(ctx); store.Why(err) != c.why || (err == nil) != (c.why == "") {
			t.Errorf("%s: %v", name, err)
		}
		must(s.Close(ctx))
	}

	var mu sync.Mutex
	now, gone := Credentials{user, first}, false
	s := open(t, Options{Brokers: k.Brokers, Mechanism: ScramSHA512, TLS: roots(trust), Credentials: func() (Credentials, error) {
		mu.Lock()
		defer mu.Unlock()
		if gone {
			return Credentials{}, missing
		}
		return now, nil
	}}, 0)
	shut(t, s.Close)
	topic := prepare(ctx, t, s, 2)
	sub, err := s.Subscribe(ctx, store.SubscribeRequest{Topic: topic, Group: groupOf(topic), Ordered: true})
	must(err)
	shut(t, sub.Close)
	tail, err := s.Tail(ctx, store.TailRequest{Topic: topic})
	must(err)
	shut(t, tail.Close)
	arrive := func(id string) {
		t.Helper()
		for name, fetch := range map[string]func(context.Context, []store.Message) (int, error){"the group": sub.Fetch, "the tail": tail.Next} {
			dst := make([]store.Message, 1)
			for {
				_, err := fetch(ctx, dst)
				if err == nil && dst[0].ID == id {
					break
				}
				if ctx.Err() != nil {
					t.Fatalf("%s to %s: %v", id, name, err)
				}
			}
			sub.Settle([]*store.Message{&dst[0]})
		}
	}
	must(s.Publish(ctx, topic, one("before", ""), make([]store.Result, 1)))
	arrive("before")

	// The password changes; connections that are there stay, and end with the broker.
	must(k.SetUser(ctx, user, second))
	must(k.Nodes[0].Kill())
	must(k.Nodes[0].Start(ctx))
	until := func(why string) {
		t.Helper()
		for {
			err := s.Check(ctx)
			if err == nil && why == "" || err != nil && store.Why(err) == why {
				return
			}
			if ctx.Err() != nil {
				t.Fatalf("want %q: %v", why, err)
			}
		}
	}
	until("AccessDenied")
	mu.Lock()
	gone = true
	mu.Unlock()
	until("SecretMissing")
	mu.Lock()
	now, gone = Credentials{user, second}, false
	mu.Unlock()
	until("")
	must(s.Publish(ctx, topic, one("after", ""), make([]store.Result, 1)))
	arrive("after")
}

// TestClientCertificate: a broker that asks for a certificate serves who shows one that it
// takes; of others a store says which field has it, with TLS 1.2, whose handshake ends for
// it, and with 1.3, whose client hears of it later.
func TestClientCertificate(t *testing.T) {
	servers.NeedServers(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	file, trust := certificate(t)
	other, _ := certificate(t)
	pair := func(file string) []tls.Certificate {
		t.Helper()
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		c, err := tls.X509KeyPair(text, text)
		if err != nil {
			t.Fatal(err)
		}
		return []tls.Certificate{c}
	}
	own := pair(file)
	authority := filepath.Join(t.TempDir(), "authority.pem")
	if err := os.WriteFile(authority, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own[0].Certificate[0]}), 0o600); err != nil {
		t.Fatal(err)
	}
	k := start(ctx, t, servers.KafkaOptions{KeyStore: file, Properties: []string{"ssl.client.auth=required", "ssl.truststore.type=PEM", "ssl.truststore.location=" + authority}})
	for name, shown := range map[string][]tls.Certificate{"its own": own, "another": pair(other), "none": nil} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			s := open(t, Options{Brokers: k.Brokers, TLS: func() (*tls.Config, error) {
				return &tls.Config{RootCAs: trust, Certificates: shown, MinVersion: version, MaxVersion: version}, nil
			}}, 0)
			switch err := s.Check(ctx); {
			case name == "its own":
				if err != nil {
					t.Errorf("%s, %s: %v", name, tls.VersionName(version), err)
				}
			case store.Why(err) != "Unreachable" || !strings.Contains(err.Error(), "tls.certificate_file"):
				t.Errorf("%s, %s: %v", name, tls.VersionName(version), err)
			}
			if err := s.Close(ctx); err != nil {
				t.Error(err)
			}
		}
	}
}
