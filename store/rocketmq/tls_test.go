package rocketmq

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
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/tlsconf"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/rocketmq/remoting"
)

// minted is an authority, and a certificate of it for loopback with its key, in PEM.
type minted struct{ ca, cert, key []byte }

func mint(t *testing.T, name string) minted {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	sign := func(template, parent *x509.Certificate, by *ecdsa.PrivateKey) (*ecdsa.PrivateKey, []byte) {
		t.Helper()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(err)
		template.SerialNumber, template.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		if parent == nil {
			parent, by = template, key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
		must(err)
		return key, der
	}
	ca := &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caKey, caDER := sign(ca, nil, nil)
	key, der := sign(&x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}, ca, caKey)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	must(err)
	encode := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	return minted{encode("CERTIFICATE", caDER), encode("CERTIFICATE", der), encode("PRIVATE KEY", private)}
}

// put writes files, each in the place of the one before.
func put(t *testing.T, files map[string][]byte) {
	t.Helper()
	for name, b := range files {
		if err := os.WriteFile(name+".new", b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(name+".new", name); err != nil {
			t.Fatal(err)
		}
	}
}

// filesIn are files with what is minted in a folder of their own.
func filesIn(t *testing.T, m minted) tlsconf.Files {
	t.Helper()
	dir := t.TempDir()
	f := tlsconf.Files{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), CA: filepath.Join(dir, "ca.pem")}
	put(t, map[string][]byte{f.Cert: m.cert, f.Key: m.key, f.CA: m.ca})
	return f
}

// secure is a store's TLS of files.
func secure(t *testing.T, f tlsconf.Files, serverName string) func() (*tls.Config, error) {
	t.Helper()
	s, err := tlsconf.Open("event store", f, nil)
	if err != nil {
		t.Fatal(err)
	}
	return func() (*tls.Config, error) {
		c := s.Client()
		c.ServerName = serverName
		return c, nil
	}
}

// startTLS starts servers that speak TLS alone, with clients that have a certificate.
func startTLS(ctx context.Context, t *testing.T, f tlsconf.Files) *servers.RocketMQ {
	t.Helper()
	servers.NeedServers(t)
	r, err := servers.StartRocketMQ(ctx, servers.RocketMQOptions{TLS: f})
	if err != nil {
		t.Fatal(err)
	}
	shut(t, func(context.Context) error { return r.Stop() })
	return r
}

// TestTLS: servers that speak TLS alone, with those who have a certificate, serve a store
// that has one in all it does; of what is wrong on either side it says which file to look at.
func TestTLS(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	ours, others := mint(t, "ours"), mint(t, "others")
	r := startTLS(ctx, t, filesIn(t, ours))
	for name, tc := range map[string]struct {
		tls  func() (*tls.Config, error)
		want string // in what the store says
	}{
		"good":                  {secure(t, filesIn(t, ours), ""), ""},
		"by name":               {secure(t, filesIn(t, ours), "127.0.0.1"), ""},
		"another authority":     {secure(t, filesIn(t, minted{others.ca, ours.cert, ours.key}), ""), "tls.ca_file"},
		"another name":          {secure(t, filesIn(t, ours), "elsewhere.test"), "tls.server_name"},
		"no certificate":        {secure(t, tlsconf.Files{CA: filesIn(t, ours).CA}, ""), "tls.certificate_file"},
		"a strange certificate": {secure(t, filesIn(t, minted{ours.ca, others.cert, others.key}), ""), "tls.certificate_file"},
		"in the clear":          {nil, "it may want TLS"},
	} {
		s := openWith(t, 0, Options{NameServers: []string{r.NameServer}, TLS: tc.tls})
		err := s.Check(ctx)
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.want != "" && (store.Why(err) != "Unreachable" || fault.ClassOf(err) != fault.Unavailable || fault.From(err).RetryAfter <= 0 || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: %v", name, err)
		}
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
	}
	if t.Failed() {
		return
	}
	missing := fault.New(fault.Unavailable, "credentials", "store-secret-missing", "it is not there")
	if _, err := (Driver{}).Open(ctx, store.Config{Options: Options{NameServers: []string{r.NameServer}, TLS: func() (*tls.Config, error) { return nil, missing }}}); store.Why(err) != "SecretMissing" {
		t.Errorf("opened without its files: %v", err)
	}
	if err := unavailable(missing); store.Why(err) != "SecretMissing" {
		t.Errorf("a connection without its files: %v", err)
	}

	s := openWith(t, 0, Options{NameServers: []string{r.NameServer}, TLS: secure(t, filesIn(t, ours), "")})
	shut(t, s.Close)
	if _, err := s.Probe(ctx); err != nil {
		t.Error(err)
	}
	topic := ensure(ctx, t, s, 2)
	f := follow(ctx, t, s, topic)
	publishAll(ctx, t, s, topic, "small", 50)
	large := make([]store.Outgoing, 4)
	for i := range large {
		large[i].Event = &event.Event{ID: "large" + uuid.NewString(), Source: "/s", Type: "t", Data: make([]byte, 500<<10)} // many records of TLS
	}
	if err := s.Publish(ctx, topic, large, make([]store.Result, len(large))); err != nil {
		t.Fatal(err)
	}
	f.wait(ctx, t, 50+len(large))
}

// TestOneConnection: many who ask for the connection to a server at once share one; who
// asks for so short a time that there is none yet does not spoil it for others.
func TestOneConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var accepted atomic.Int64
	server := tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{keyPair(t)}})
	hold, end := make(chan struct{}), make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		for {
			conn, err := server.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			work.Go(func() {
				defer conn.Close()
				<-hold
				_ = conn.(*tls.Conn).Handshake()
				<-end
			})
		}
	})
	c := newCluster(Options{TLS: func() (*tls.Config, error) { return &tls.Config{InsecureSkipVerify: true}, nil }}, nil, nil) //nolint:gosec // who it is does not matter here
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.conn(gone, l.Addr().String()); !notSent(err) {
		t.Errorf("who does not wait: %v", err)
	}
	const n = 50
	got := make(chan *remoting.Conn, n)
	for range n {
		go func() {
			conn, err := c.conn(t.Context(), l.Addr().String())
			if err != nil {
				t.Error(err)
			}
			got <- conn
		}()
	}
	close(hold)
	first := <-got
	for range n - 1 {
		if conn := <-got; conn != first {
			t.Error("another connection")
		}
	}
	if k := accepted.Load(); k != 1 {
		t.Errorf("%d connections", k)
	}
	c.close()
	close(end)
	_ = l.Close()
	work.Wait()
}

// keyPair is the certificate of one who is nobody in particular.
func keyPair(t *testing.T) tls.Certificate {
	t.Helper()
	m := mint(t, "nobody")
	pair, err := tls.X509KeyPair(m.cert, m.key)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// TestTLSReplaced: the authority goes over to another one, and the certificates of both
// sides with it, while events flow. Connections that are there stay; new ones are made
// with what the files have then. Nothing is lost, and the store stays open.
func TestTLSReplaced(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	before, after := mint(t, "before"), mint(t, "after")
	both := append(append([]byte(nil), before.ca...), after.ca...)
	theirs, ours := filesIn(t, before), filesIn(t, before)
	r := startTLS(ctx, t, theirs)
	s := openWith(t, 0, Options{NameServers: []string{r.NameServer}, TLS: secure(t, ours, "")})
	shut(t, s.Close)
	topic := ensure(ctx, t, s, 2)
	f := follow(ctx, t, s, topic)
	publishAll(ctx, t, s, topic, "first", 50)
	put(t, map[string][]byte{theirs.CA: both, ours.CA: both})
	publishAll(ctx, t, s, topic, "trusted", 50)
	put(t, map[string][]byte{theirs.Cert: after.cert, theirs.Key: after.key, ours.Cert: after.cert, ours.Key: after.key})
	publishAll(ctx, t, s, topic, "shown", 50)
	put(t, map[string][]byte{theirs.CA: after.ca, ours.CA: after.ca})
	f.wait(ctx, t, 150)

	var load sync.WaitGroup
	load.Go(func() { publishAll(ctx, t, s, topic, "under", 200) })
	for _, p := range []*servers.Process{r.Names, r.Broker} {
		if err := p.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := p.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	load.Wait()
	publishAll(ctx, t, s, topic, "last", 50)
	f.wait(ctx, t, 400)
	old := openWith(t, 0, Options{NameServers: []string{r.NameServer}, TLS: secure(t, filesIn(t, minted{after.ca, before.cert, before.key}), "")})
	if err := old.Check(ctx); store.Why(err) != "Unreachable" || !strings.Contains(err.Error(), "tls.certificate_file") {
		t.Errorf("with the certificate of before: %v", err)
	}
	if err := old.Close(ctx); err != nil {
		t.Error(err)
	}
}
