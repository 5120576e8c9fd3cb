// Package tlsconf makes TLS configurations from files. Files that change are
// read again, so that certificates and authorities rotate without a restart and
// without dropping connections.
package tlsconf

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/weft-mesh/weft/pkg/outage"
	"github.com/weft-mesh/weft/pkg/secretfile"
)

// Files are the paths of PEM files.
type Files struct {
	// Folder, unless empty, is where they are: nothing outside of it is read,
	// wherever names and links lead.
	Folder string
	// Cert and Key are the own certificate chain and key.
	Cert, Key string
	// CA has the authorities that the other side must have.
	CA string
}

// Empty reports whether no file is named.
func (f Files) Empty() bool { return f == Files{} }

// read reads one.
func (f Files) read(name string) ([]byte, error) {
	if f.Folder == "" {
		return os.ReadFile(name)
	}
	b, err := secretfile.ReadIn(f.Folder, name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}

// stat looks at one; nil where there is none.
func (f Files) stat(name string) os.FileInfo {
	var info os.FileInfo
	if f.Folder == "" {
		info, _ = os.Stat(name)
	} else if root, err := os.OpenRoot(f.Folder); err == nil {
		info, _ = root.Stat(name)
		_ = root.Close()
	}
	return info
}

// pair reads the certificate with its key.
func (f Files) pair() (tls.Certificate, error) {
	cert, err := f.read(f.Cert)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := f.read(f.Key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(cert, key)
}

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

	mu      sync.Mutex
	checked time.Time
	stamp   [3]stamp
	content
	failed        error // why what the files say is not in force
	loads, faults int
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
		out[i].info = s.files.stat(f)
	}
	return out
}

// load takes what can be taken: a certificate is not held up by authorities that
// cannot be read, nor the other way round.
func (s *Source) load() error {
	var errs []error
	s.sessions = tls.NewLRUClientSessionCache(0)
	s.draw()
	if s.files.Cert != "" {
		c, err := s.files.pair()
		if err != nil {
			errs = append(errs, fmt.Errorf("certificate %s with key %s: %w", s.files.Cert, s.files.Key, err))
		} else {
			s.cert = &c
		}
	}
	if s.files.CA != "" {
		b, err := s.files.read(s.files.CA)
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
func (s *Source) current() content {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.look()
	return s.content
}

// look reads files that have changed. A change that cannot be used is tried again
// at every look: files are written one after the other.
func (s *Source) look() {
	now := time.Now()
	if now.Sub(s.checked) < checkEvery {
		return
	}
	s.checked = now
	if now.Sub(s.drawn) >= ticketLife {
		s.draw()
	}
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
// that). protos are the ALPN protocols. Over TLS 1.3 a client may resume its session,
// as who it was, until the files change, its certificate expires or a day has passed.
func (s *Source) Server(withCA tls.ClientAuthType, protos ...string) (*tls.Config, error) {
	if s.files.Cert == "" {
		return nil, errors.New("a TLS listener needs a certificate and a key")
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protos,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			now := s.current()
			c := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protos, Certificates: []tls.Certificate{*now.cert}, ClientAuth: tls.RequestClientCert,
				SessionTicketsDisabled: !slices.Contains(hello.SupportedVersions, tls.VersionTLS13)}
			c.SetSessionTicketKeys([][32]byte{now.tickets})
			if now.pool != nil {
				c.ClientAuth, c.ClientCAs = withCA, now.pool
			}
			return c, nil
		}}, nil
}

// Client is the configuration of one connection of a client, which trusts the
// authorities that the files have now (the system's where they name none) and
// shows their certificate, if any. Ask for another for the next connection.
func (s *Source) Client() *tls.Config { return s.current().client() }

func (c content) client() *tls.Config {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.pool}
	if c.cert != nil {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.cert, nil }
	}
	return conf
}

// Same reports whether a configuration that Client gave says what Client would now.
func (s *Source) Same(conf *tls.Config) bool {
	now := s.current()
	if (now.pool == nil) != (conf.RootCAs == nil) || now.pool != nil && !now.pool.Equal(conf.RootCAs) {
		return false
	}
	if now.cert == nil || conf.GetClientCertificate == nil {
		return (now.cert == nil) == (conf.GetClientCertificate == nil)
	}
	was, _ := conf.GetClientCertificate(nil)
	return slices.EqualFunc(was.Certificate, now.cert.Certificate, bytes.Equal)
}

// Unusable is why files that have changed are not in force; nil where they are.
func (s *Source) Unusable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// Certificate is the own one; nil without.
func (s *Source) Certificate() *tls.Certificate {
	return s.current().cert
}

// Credentials are Client for gRPC: what the files say when a connection is made, and
// the sessions of connections that were made with the same.
// change, unless nil, changes the configuration of each connection.
func (s *Source) Credentials(change func(*tls.Config)) credentials.TransportCredentials {
	return clientCredentials{credentials.NewTLS(s.Client()), func() *tls.Config {
		now := s.current()
		c := now.client()
		c.ClientSessionCache = now.sessions
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
