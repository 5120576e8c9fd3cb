// Package tlsconf makes TLS configurations from files. Files that change are
// read again, so that certificates and authorities rotate without a restart and
// without dropping connections.
package tlsconf

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/weft-mesh/weft/pkg/outage"
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

// Source has what files say. It looks at them when a connection is made, and when
// its metrics are read. Files that changed and cannot be used leave what was
// there in force, which is logged and shown (Metrics). It is safe for concurrent
// use.
type Source struct {
	name  string
	files Files
	log   *outage.Log

	mu            sync.Mutex
	checked       time.Time
	stamp         [3]stamp
	cert          *tls.Certificate
	pool          *x509.CertPool
	failed        error // why what the files say is not in force
	loads, faults int
}

// stamp tells a file from what it was before.
type stamp struct {
	info os.FileInfo // nil where there is none
}

func (s stamp) same(as stamp) bool {
	if s.info == nil || as.info == nil {
		return s.info == as.info
	}
	return os.SameFile(s.info, as.info) && s.info.ModTime().Equal(as.info.ModTime()) && s.info.Size() == as.info.Size()
}

// Open reads files. name says what they are for, in the log and as a label; log
// may be nil.
func Open(name string, f Files, log *slog.Logger) (*Source, error) {
	if (f.Cert == "") != (f.Key == "") {
		return nil, errors.New("a certificate and its key go together")
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Source{name: name, files: f, checked: time.Now(), log: outage.New(log.With("files", name),
		"TLS files have changed and cannot be used; what they had before stays in force", "TLS files can be used again")}
	s.stamp = s.stamps()
	return s, s.load()
}

func (s *Source) stamps() (out [3]stamp) {
	for i, f := range []string{s.files.Cert, s.files.Key, s.files.CA} {
		if info, err := os.Stat(f); err == nil {
			out[i].info = info
		}
	}
	return out
}

// load takes what can be taken: a certificate is not held up by authorities that
// cannot be read, nor the other way round.
func (s *Source) load() error {
	var errs []error
	if s.files.Cert != "" {
		c, err := tls.LoadX509KeyPair(s.files.Cert, s.files.Key)
		if err != nil {
			errs = append(errs, fmt.Errorf("certificate %s with key %s: %w", s.files.Cert, s.files.Key, err))
		} else {
			s.cert = &c
		}
	}
	if s.files.CA != "" {
		b, err := os.ReadFile(s.files.CA)
		pool := x509.NewCertPool()
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("authorities: %w", err))
		case !pool.AppendCertsFromPEM(b):
			errs = append(errs, fmt.Errorf("authorities: %s has no certificate in PEM", s.files.CA))
		default:
			s.pool = pool
		}
	}
	return errors.Join(errs...)
}

// current gives what the files say; where they cannot be read any more, what
// they said last.
func (s *Source) current() (*tls.Certificate, *x509.CertPool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.look()
	return s.cert, s.pool
}

// look reads files that have changed. A change that cannot be used is tried again
// at every look: files are written one after the other.
func (s *Source) look() {
	now := time.Now()
	if now.Sub(s.checked) < checkEvery {
		return
	}
	s.checked = now
	found, same := s.stamps(), true
	for i := range found {
		same = same && found[i].same(s.stamp[i])
	}
	if same && s.failed == nil {
		return
	}
	s.stamp = found
	if s.failed = s.load(); s.failed != nil {
		s.faults++
	} else {
		s.loads++
	}
	s.log.Is(s.failed)
}

// Server is the configuration of a listener with the certificate of the files.
// With authorities in them withCA says what is asked of clients; otherwise they
// are asked for a certificate that is not verified here (the proxy's identities do
// that). protos are the ALPN protocols.
func (s *Source) Server(withCA tls.ClientAuthType, protos ...string) (*tls.Config, error) {
	if s.files.Cert == "" {
		return nil, errors.New("a TLS listener needs a certificate and a key")
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protos,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			cert, pool := s.current()
			c := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protos, Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequestClientCert}
			if pool != nil {
				c.ClientAuth, c.ClientCAs = withCA, pool
			}
			return c, nil
		}}, nil
}

// Client is the configuration of one connection of a client, which trusts the
// authorities that the files have now (the system's where they name none) and
// shows their certificate, if any. Ask for another for the next connection.
func (s *Source) Client() *tls.Config {
	cert, pool := s.current()
	c := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
	if cert != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return c
}

// Certificate is the own one; nil without.
func (s *Source) Certificate() *tls.Certificate {
	cert, _ := s.current()
	return cert
}

// Credentials are Client for gRPC: what the files say when a connection is made.
// change, unless nil, changes the configuration of each connection.
func (s *Source) Credentials(change func(*tls.Config)) credentials.TransportCredentials {
	return clientCredentials{credentials.NewTLS(s.Client()), func() *tls.Config {
		c := s.Client()
		if change != nil {
			change(c)
		}
		return c
	}}
}

type clientCredentials struct {
	credentials.TransportCredentials // what does not depend on the files
	config                           func() *tls.Config
}

func (c clientCredentials) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return credentials.NewTLS(c.config()).ClientHandshake(ctx, authority, conn)
}

func (c clientCredentials) Clone() credentials.TransportCredentials { return c }

// Client is Source.Client of files that are read once.
func Client(f Files) (*tls.Config, error) {
	s, err := Open("", f, nil)
	if err != nil {
		return nil, err
	}
	return s.Client(), nil
}
