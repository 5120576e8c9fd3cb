package proxy

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/weft-mesh/weft/pkg/tlsconf"
)

// TestJoinByConnection: what calls show goes with the connection that they are of. A
// certificate that has ended since it was made, or has come, is the next one's.
func TestJoinByConnection(t *testing.T) {
	now := time.Now()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: now.Add(time.Hour)}
	der, err := x509.CreateCertificate(nil, cert, cert, public, private)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := tlsconf.Files{Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key")}
	token := filepath.Join(dir, "token")
	for name, b := range map[string][]byte{files.Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), files.Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), token: []byte("weftjoin_x_y\n")} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	source, err := tlsconf.Open("test", files, nil)
	if err != nil {
		t.Fatal(err)
	}
	j := &joining{file: token, files: source, clock: func() time.Time { return now }}
	connect := func() (certificate bool) {
		c := source.Client()
		j.withhold(c)
		return c.GetClientCertificate != nil
	}
	for _, step := range []struct {
		name        string
		after       time.Duration
		connects    bool
		certificate bool
	}{
		{"a good certificate", 0, true, true},
		{"it has ended since", 2 * time.Hour, false, true},
		{"the next connection", 0, true, false},
		{"it is good again since", -2 * time.Hour, false, false},
		{"the last connection", 0, true, true},
	} {
		now = now.Add(step.after)
		if step.connects && connect() != step.certificate {
			t.Errorf("%s: it is made with a certificate: %v", step.name, !step.certificate)
		}
		if md, err := j.GetRequestMetadata(t.Context()); err != nil || (md["authorization"] == "") != step.certificate {
			t.Errorf("%s: a call shows %v, %v", step.name, md, err)
		}
	}
}
