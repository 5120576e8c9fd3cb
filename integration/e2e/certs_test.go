package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/weft-mesh/weft/pkg/tlsconf"
)

// authority issues certificates.
type authority struct {
	m    *mesh
	name string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	// file has its certificate, pem is the same.
	file string
	pem  string
}

func (m *mesh) authority(name string) *authority {
	m.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	m.must(err)
	template := m.template(name)
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	m.must(err)
	cert, err := x509.ParseCertificate(der)
	m.must(err)
	a := &authority{m: m, name: name, cert: cert, key: key, file: filepath.Join(m.dir, name+".pem")}
	a.pem = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	m.must(os.WriteFile(a.file, []byte(a.pem), 0o600))
	return a
}

func (m *mesh) template(name string) *x509.Certificate {
	m.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	m.must(err)
	return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
}

// issue makes a certificate for a server on loopback and, with a URI, for a
// client of that name. Its key is a secret of the mesh.
func (a *authority) issue(name, uri string) tlsconf.Files {
	a.m.Helper()
	return a.issueUntil(name, uri, time.Now().Add(time.Hour))
}

// issueUntil is issue with the certificate's end. It takes the place of one of the
// same name.
func (a *authority) issueUntil(name, uri string, end time.Time) tlsconf.Files {
	m := a.m
	m.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	m.must(err)
	template := m.template(name)
	template.NotAfter = end
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	if uri != "" {
		u, err := url.Parse(uri)
		m.must(err)
		template.URIs = []*url.URL{u}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	m.must(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	m.must(err)
	f := tlsconf.Files{Cert: filepath.Join(m.dir, a.name+"-"+name+".crt"), Key: filepath.Join(m.dir, a.name+"-"+name+".key"), CA: a.file}
	m.must(os.WriteFile(f.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	m.must(os.WriteFile(f.Key, text, 0o600))
	m.secrets["the key of "+f.Cert] = strings.Split(string(text), "\n")[2]
	return f
}

// tls is a client's configuration: what it trusts and, if named, what it shows.
func (a *authority) tls(show tlsconf.Files) *tls.Config {
	a.m.Helper()
	c, err := tlsconf.Client(tlsconf.Files{CA: a.file, Cert: show.Cert, Key: show.Key})
	a.m.must(err)
	return c
}
