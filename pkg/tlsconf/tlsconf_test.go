package tlsconf

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// mint writes a new authority and a certificate of it into files below dir.
func mint(t *testing.T, dir string, serial int64) Files {
	t.Helper()
	return mintFor(t, dir, serial, time.Hour)
}

// mintFor mints what is good for so long.
func mintFor(t *testing.T, dir string, serial int64, life time.Duration) Files {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(err)
		return k
	}
	caKey, leafKey := key(), key()
	ca := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(life), IsCA: true, BasicConstraintsValid: true}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "leaf"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	must(err)
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, &leafKey.PublicKey, caKey)
	must(err)
	private, err := x509.MarshalPKCS8PrivateKey(leafKey)
	must(err)
	f := Files{Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key"), CA: filepath.Join(dir, "ca")}
	for name, b := range map[string]*pem.Block{f.Cert: {Type: "CERTIFICATE", Bytes: leafDER}, f.Key: {Type: "PRIVATE KEY", Bytes: private}, f.CA: {Type: "CERTIFICATE", Bytes: caDER}} {
		must(os.WriteFile(name, pem.EncodeToMemory(b), 0o600))
	}
	return f
}

func open(t *testing.T, f Files) *Source {
	t.Helper()
	s, err := Open("test", f, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// age makes s look at its files at the next connection, whose times then differ.
func age(t *testing.T, s *Source) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.checked, s.stamp = s.checked.Add(-checkEvery), [3]stamp{}
}

// TestReload: a certificate and an authority that change on disk are those of the
// next connection; what cannot be read changes nothing, holds up nothing else, is
// logged once, and shown until it is good again.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	f := mint(t, dir, 1)
	var log bytes.Buffer
	s, err := Open("clients", f, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	serial := func() int64 { return s.Certificate().Leaf.SerialNumber.Int64() }
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(Metrics("weft_test", s))
	shows := func(ok, failed, unusable int) {
		t.Helper()
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range families {
			for _, m := range f.Metric {
				name := strings.TrimPrefix(f.GetName(), "weft_test_tls_")
				for _, l := range m.Label {
					name += " " + l.GetValue()
				}
				got[name] = m.Counter.GetValue() + m.Gauge.GetValue()
			}
		}
		want := map[string]float64{"reloads_total clients ok": float64(ok), "reloads_total clients failed": float64(failed), "files_unusable clients": float64(unusable),
			"certificate_start_timestamp_seconds clients":  float64(s.Certificate().Leaf.NotBefore.Unix()),
			"certificate_expiry_timestamp_seconds clients": float64(s.Certificate().Leaf.NotAfter.Unix())}
		if !maps.Equal(got, want) {
			t.Errorf("the metrics are %v, want %v", got, want)
		}
	}
	before := s.current().pool
	mint(t, dir, 2)
	if serial() != 1 {
		t.Error("files are read for every connection")
	}
	shows(0, 0, 0)
	age(t, s)
	if after := s.current().pool; serial() != 2 || after.Equal(before) || s.Client().RootCAs.Equal(before) {
		t.Error("certificate or authority of the files before")
	}
	shows(1, 0, 0)

	// Authorities that cannot be read do not hold up a certificate.
	mint(t, dir, 3)
	if err := os.WriteFile(f.CA, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		age(t, s)
		shows(1, n+1, 1)
	}
	if after := s.current().pool; serial() != 3 || after == nil || after.Equal(before) {
		t.Error("authorities that cannot be read hold a certificate up, or are none")
	}
	mint(t, dir, 4)
	if err := os.WriteFile(f.Cert, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	age(t, s)
	if serial() != 3 {
		t.Error("a file that cannot be read has taken the certificate away")
	}
	shows(1, 4, 1)
	mint(t, dir, 5)
	age(t, s)
	shows(2, 4, 0)
	if serial() != 5 || strings.Count(log.String(), "stays in force") != 1 || strings.Count(log.String(), "can be used again") != 1 || !strings.Contains(log.String(), f.CA) {
		t.Errorf("certificate %d; the log: %s", serial(), &log)
	}
}

// TestCredentialsFollow: what Credentials trust is what the file says when
// the connection is made.
func TestCredentialsFollow(t *testing.T) {
	serverDir, clientDir := t.TempDir(), t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := mint(t, serverDir, 1)
	config, err := open(t, Files{Cert: served.Cert, Key: served.Key}).Server(tls.RequestClientCert, "h2")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _ = tls.Server(c, config).Handshake(); _ = c.Close() }()
		}
	}()
	other := mint(t, clientDir, 2)
	trusted := open(t, Files{CA: other.CA})
	creds := trusted.Credentials(nil)
	connect := func() error {
		t.Helper()
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _, err = creds.ClientHandshake(context.Background(), l.Addr().String(), conn)
		return err
	}
	if connect() == nil {
		t.Fatal("an authority that is not in the file is trusted")
	}
	b, err := os.ReadFile(served.CA)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(other.CA, b, 0o600); err != nil {
		t.Fatal(err)
	}
	age(t, trusted)
	if err := connect(); err != nil {
		t.Fatalf("the authority that is in the file now: %v", err)
	}
}

// TestClientCertificates: who must show one, and who may.
func TestClientCertificates(t *testing.T) {
	f, stranger := mint(t, t.TempDir(), 1), mint(t, t.TempDir(), 2)
	stranger.CA = f.CA
	for name, tc := range map[string]struct {
		ask    tls.ClientAuthType
		client Files
		ok     bool
	}{
		"needed, none":        {tls.RequireAndVerifyClientCert, Files{CA: f.CA}, false},
		"needed, good":        {tls.RequireAndVerifyClientCert, f, true},
		"needed, strange":     {tls.RequireAndVerifyClientCert, stranger, false},
		"may, none":           {tls.VerifyClientCertIfGiven, Files{CA: f.CA}, true},
		"may, good":           {tls.VerifyClientCertIfGiven, f, true},
		"may, shown, strange": {tls.VerifyClientCertIfGiven, stranger, false},
	} {
		config, err := open(t, f).Server(tc.ask)
		if err != nil {
			t.Fatal(err)
		}
		client, err := Client(tc.client)
		if err != nil {
			t.Fatal(err)
		}
		client.ServerName = "127.0.0.1"
		a, b := net.Pipe()
		go func() { c := tls.Client(b, client); _ = c.Handshake(); _, _ = c.Read(make([]byte, 1)) }()
		if err := tls.Server(a, config).Handshake(); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
		_, _ = a.Close(), b.Close()
	}
}

// TestRotationKeepsConnections: a listener whose certificate changes on disk shows
// the new one to the next connection, and the open ones go on.
func TestRotationKeepsConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		f := mint(t, dir, 1)
		config, err := open(t, Files{Cert: f.Cert, Key: f.Key}).Server(tls.RequestClientCert)
		if err != nil {
			t.Fatal(err)
		}
		connect := func() *tls.Conn {
			t.Helper()
			ca, err := os.ReadFile(f.CA)
			if err != nil {
				t.Fatal(err)
			}
			pool := x509.NewCertPool()
			pool.AppendCertsFromPEM(ca)
			near, far := net.Pipe()
			server := tls.Server(far, config)
			go func() { _, _ = io.Copy(server, server) }()
			c := tls.Client(near, &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12})
			if err := c.Handshake(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = near.Close() })
			return c
		}
		// echo has the connection carry bytes both ways.
		echo := func(c *tls.Conn) {
			t.Helper()
			sent, got := []byte("weft"), make([]byte, 4)
			go func() { _, _ = c.Write(sent) }()
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%q, %v", got, err)
			}
		}
		shown := func(c *tls.Conn) int64 { return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64() }
		old := connect()
		echo(old)
		mint(t, dir, 2)
		<-time.After(checkEvery) // of the bubble
		next := connect()
		if shown(old) != 1 || shown(next) != 2 {
			t.Errorf("the open connection was shown %d, the next one %d", shown(old), shown(next))
		}
		echo(next)
		echo(old)
	})
}

// TestSessions: a client resumes its session, as who it was, and none outlives what
// the files of either side said when it was made, its certificate, or a day; there are
// none over TLS 1.2.
func TestSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		serverDir, clientDir := t.TempDir(), t.TempDir()
		served, shown := mintFor(t, serverDir, 1, 1000*time.Hour), mintFor(t, clientDir, 2, 80*time.Hour)
		// What the server trusts is a file of its own.
		clients := filepath.Join(serverDir, "clients")
		trust := func(files ...string) {
			t.Helper()
			var all []byte
			for _, name := range files {
				b, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, b...)
			}
			if err := errors.Join(os.WriteFile(clients+".new", all, 0o600), os.Rename(clients+".new", clients)); err != nil {
				t.Fatal(err)
			}
		}
		show := func(f Files) {
			t.Helper()
			if err := errors.Join(os.Rename(f.Cert, shown.Cert), os.Rename(f.Key, shown.Key), os.Rename(f.CA, shown.CA)); err != nil {
				t.Fatal(err)
			}
		}
		trust(shown.CA)
		config, err := open(t, Files{Cert: served.Cert, Key: served.Key, CA: clients}).Server(tls.RequireAndVerifyClientCert, "h2")
		if err != nil {
			t.Fatal(err)
		}
		most := uint16(tls.VersionTLS13)
		creds := open(t, Files{Cert: shown.Cert, Key: shown.Key, CA: served.CA}).Credentials(func(c *tls.Config) { c.MaxVersion = most })
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		type seen struct {
			resumed bool
			serial  int64
			chains  int
			err     error
		}
		connect := func() seen {
			t.Helper()
			near, err := net.Dial("tcp", l.Addr().String()) // a pipe holds nothing, and a ticket is sent unasked
			if err != nil {
				t.Fatal(err)
			}
			defer near.Close()
			far, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			got := make(chan seen, 1)
			go func() {
				defer far.Close()
				c := tls.Server(far, config)
				if err := c.Handshake(); err != nil {
					got <- seen{err: err}
					return
				}
				s := c.ConnectionState()
				got <- seen{s.DidResume, s.PeerCertificates[0].SerialNumber.Int64(), len(s.VerifiedChains), nil}
				_, _ = c.Write([]byte("x"))
			}()
			conn, _, err := creds.ClientHandshake(context.Background(), "127.0.0.1:1", near)
			if err == nil {
				_, err = conn.Read(make([]byte, 1)) // what comes before it is the ticket
			}
			s := <-got
			if (err == nil) != (s.err == nil) {
				t.Errorf("the server: %v, the client: %v", s.err, err)
			}
			return s
		}
		whole := func(what string, serial int64) {
			t.Helper()
			if s := connect(); s != (seen{false, serial, 1, nil}) {
				t.Errorf("%s: %+v", what, s)
			}
			if s := connect(); s != (seen{true, serial, 1, nil}) {
				t.Errorf("%s, and again: %+v", what, s)
			}
		}
		later := func(d time.Duration) { <-time.After(d) } // of the bubble
		whole("a new client", 2)
		other, renewed := mint(t, t.TempDir(), 9), mintFor(t, t.TempDir(), 3, 70*time.Hour)
		trust(shown.CA, renewed.CA)
		later(checkEvery)
		whole("another authority beside", 2)
		// Who renews his certificate is not taken for who he was.
		show(renewed)
		later(checkEvery)
		whole("another certificate", 3)
		later(ticketLife)
		whole("a day later", 3)
		later(ticketLife)
		whole("two days later", 3)
		most = tls.VersionTLS12
		for range 2 {
			if s := connect(); s.resumed || s.err != nil {
				t.Errorf("over TLS 1.2: %+v", s)
			}
		}
		most = tls.VersionTLS13
		later(23 * time.Hour) // expired, and the key is not drawn anew yet
		if s := connect(); s.err == nil {
			t.Errorf("with a certificate that has expired: %+v", s)
		}
		// An authority that is trusted no more is so at the next connection.
		show(mint(t, t.TempDir(), 4))
		trust(shown.CA)
		later(checkEvery)
		whole("once more", 4)
		trust(other.CA)
		later(checkEvery)
		if s := connect(); s.err == nil {
			t.Errorf("of an authority that is not trusted any more: %+v", s)
		}
	})
}
