// Package tlsconf makes TLS configurations from files. Files that change are
// read again, so that certificates rotate without a restart and without
// dropping connections.
package tlsconf

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// Files are the paths of PEM files.
type Files struct {
	// Cert and Key are the own certificate chain and key.
	Cert, Key string
	// CA has the authorities that the other side must have.
	CA string
}

// Empty reports whether no file is named.
func (f Files) Empty() bool { return f == Files{} }

// checkEvery is how often files are looked at for a change, at most.
const checkEvery = 5 * time.Second

// reloader has what the files say now.
type reloader struct {
	files Files

	mu      sync.Mutex
	checked time.Time
	stamp   [3]time.Time
	now     content
}

// content is what the files say, and the sessions that were made with it. A session
// brings back who the other side was without showing it again: so none outlives what
// either side's files said then.
type content struct {
	cert *tls.Certificate
	pool *x509.CertPool
	// tickets is the key of a server's sessions, drawn anew after ticketLife.
	tickets [32]byte
	drawn   time.Time
	// sessions are a client's.
	sessions tls.ClientSessionCache
}

// ticketLife bounds the use of one key for the sessions of a server.
const ticketLife = 24 * time.Hour

func (c *content) draw() {
	c.drawn = time.Now()
	_, _ = rand.Read(c.tickets[:]) // never fails
}

func newReloader(f Files) (*reloader, error) {
	r := &reloader{files: f}
	r.stamp = r.stamps()
	r.checked = time.Now()
	return r, r.load()
}

func (r *reloader) stamps() (s [3]time.Time) {
	for i, f := range []string{r.files.Cert, r.files.Key, r.files.CA} {
		if info, err := os.Stat(f); err == nil {
			s[i] = info.ModTime()
		}
	}
	return s
}

func (r *reloader) load() error {
	next := content{sessions: tls.NewLRUClientSessionCache(0)}
	next.draw()
	if r.files.Cert != "" {
		c, err := tls.LoadX509KeyPair(r.files.Cert, r.files.Key)
		if err != nil {
			return fmt.Errorf("certificate %s with key %s: %w", r.files.Cert, r.files.Key, err)
		}
		next.cert = &c
	}
	if r.files.CA != "" {
		b, err := os.ReadFile(r.files.CA)
		if err != nil {
			return fmt.Errorf("authorities: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(b) {
			return fmt.Errorf("authorities: %s has no certificate in PEM", r.files.CA)
		}
		next.pool = pool
	}
	r.now = next
	return nil
}

// current gives what the files say; where they cannot be read any more, what
// they said last.
func (r *reloader) current() content {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.Sub(r.checked) >= checkEvery {
		r.checked = now
		if s := r.stamps(); s != r.stamp && r.load() == nil {
			r.stamp = s
		}
		if now.Sub(r.now.drawn) >= ticketLife {
			r.now.draw()
		}
	}
	return r.now
}

// Server is the configuration of a listener with the certificate of f. With
// f.CA clients must have a certificate of it; otherwise they are asked for one,
// which is not verified here (the proxy's identities do that). protos are the
// ALPN protocols. Over TLS 1.3 a client may resume its session, as who it was, until
// the files change, its certificate expires or a day has passed.
func Server(f Files, protos ...string) (*tls.Config, error) {
	return server(f, tls.RequireAndVerifyClientCert, protos)
}

// ServerOptional is Server, but clients need not show a certificate, even with
// f.CA. One that they show must be of it.
func ServerOptional(f Files, protos ...string) (*tls.Config, error) {
	return server(f, tls.VerifyClientCertIfGiven, protos)
}

func server(f Files, withCA tls.ClientAuthType, protos []string) (*tls.Config, error) {
	if f.Cert == "" || f.Key == "" {
		return nil, errors.New("a TLS listener needs a certificate and a key")
	}
	r, err := newReloader(f)
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protos,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			now := r.current()
			c := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protos, Certificates: []tls.Certificate{*now.cert}, ClientAuth: tls.RequestClientCert,
				SessionTicketsDisabled: !slices.Contains(hello.SupportedVersions, tls.VersionTLS13)}
			c.SetSessionTicketKeys([][32]byte{now.tickets})
			if now.pool != nil {
				c.ClientAuth, c.ClientCAs = withCA, now.pool
			}
			return c, nil
		}}, nil
}

// Client is the configuration of a client that trusts f.CA (the system's
// authorities when empty) and shows the certificate of f, if any. The authorities
// are those that the file has now; ClientCredentials follows the file.
func Client(f Files) (*tls.Config, error) {
	r, err := newClient(f)
	if err != nil {
		return nil, err
	}
	return r.client(), nil
}

// ClientCredentials are Client for gRPC: what the files say when a connection is
// made, and the sessions of connections that were made with the same. change, unless
// nil, changes the configuration of each connection.
func ClientCredentials(f Files, change func(*tls.Config)) (credentials.TransportCredentials, error) {
	r, err := newClient(f)
	if err != nil {
		return nil, err
	}
	c := clientCredentials{credentials.NewTLS(r.client()), func() *tls.Config {
		c := r.client()
		c.ClientSessionCache = r.current().sessions
		if change != nil {
			change(c)
		}
		return c
	}, r}
	return c, nil
}

type clientCredentials struct {
	credentials.TransportCredentials // what does not depend on the files
	config                           func() *tls.Config
	files                            *reloader
}

func (c clientCredentials) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return credentials.NewTLS(c.config()).ClientHandshake(ctx, authority, conn)
}

func (c clientCredentials) Clone() credentials.TransportCredentials { return c }

func newClient(f Files) (*reloader, error) {
	if (f.Cert == "") != (f.Key == "") {
		return nil, errors.New("a client certificate and its key go together")
	}
	return newReloader(f)
}

func (r *reloader) client() *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: r.current().pool}
	if r.files.Cert != "" {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return r.current().cert, nil
		}
	}
	return c
}
