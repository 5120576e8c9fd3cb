package configfile

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/pkg/resource"
)

// one is a snapshot of a resource and of what is withheld.
func one() *discoveryv1.LastGood {
	body := []byte("the resource")
	return &discoveryv1.LastGood{Lineage: "1-x", Revision: 7, Scope: Scope([]string{"demo"}),
		Resources: []*discoveryv1.KeptResource{{Name: "topic/demo/orders", OfferedVersion: "5", Version: "5", Resource: body,
			OfferedDigest: resource.DigestOf("topic/demo/orders", "5", body).Bytes()}},
		Withheld: []*configv1.Withheld{{Name: "accesspolicy/demo/a", Version: "6", Reason: "is quarantined", Governs: true}}}
}

func newKey(t testing.TB) (ed25519.PublicKey, ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return public, private
}

func encoded(t testing.TB, lg *discoveryv1.LastGood, key ed25519.PrivateKey) []byte {
	t.Helper()
	b, err := EncodeSnapshot(lg, key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSignature: with a key only what is signed with the one that belongs to it is
// taken; without a key all that is whole.
func TestSignature(t *testing.T) {
	public, private := newKey(t)
	stranger, _ := newKey(t)
	signed, plain := encoded(t, one(), private), encoded(t, one(), nil)
	// Another content below a good signature, with a checksum that fits.
	other := one()
	other.Revision = 8
	start := len(snapshotMagic) + 32
	body := encoded(t, other, nil)[start+ed25519.SignatureSize:]
	forged, err := seal(snapshotMagic, slices.Concat(signed[start:start+ed25519.SignatureSize], body))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		file []byte
		key  ed25519.PublicKey
		says string // "" is accepted
	}{
		{"signed, with its key", signed, public, ""},
		{"signed, without a key", signed, nil, ""},
		{"unsigned, without a key", plain, nil, ""},
		{"unsigned, with a key", plain, public, "is not signed"},
		{"signed, with another key", signed, stranger, "is not signed with the key"},
		{"changed below its signature", forged, public, "is not signed with the key"},
	} {
		lg, err := DecodeSnapshot(tc.file, tc.key)
		switch {
		case tc.says == "" && (err != nil || !proto.Equal(lg, one())):
			t.Errorf("%s: %v, %v", tc.name, lg, err)
		case tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)):
			t.Errorf("%s: %v, want %q", tc.name, err, tc.says)
		}
	}
}

// TestEveryDamage: wherever a snapshot is cut and whatever bit is wrong, it is
// refused, with a key and without one.
func TestEveryDamage(t *testing.T) {
	public, private := newKey(t)
	whole := encoded(t, one(), private)
	refused := func(what string, at int, b []byte) {
		t.Helper()
		for _, key := range []ed25519.PublicKey{nil, public} {
			if _, err := DecodeSnapshot(b, key); err == nil {
				t.Errorf("%s at byte %d is accepted (key: %v)", what, at, key != nil)
			}
		}
	}
	for i := range whole {
		for bit := range 8 {
			b := slices.Clone(whole)
			b[i] ^= 1 << bit
			refused("a flip", i, b)
		}
		refused("a cut", i, whole[:i])
	}
	refused("one byte more", len(whole), append(slices.Clone(whole), 0))
	kept, err := EncodeKept(one())
	if err != nil {
		t.Fatal(err)
	}
	refused("a proxy's own file", 0, kept)
	newer := slices.Clone(whole)
	newer[nameLen] = '2'
	if _, err := DecodeSnapshot(newer, nil); err == nil || !strings.Contains(err.Error(), `is of version "2" of the format, this program reads "1"`) {
		t.Errorf("another version: %v", err)
	}
}

// TestFits: a snapshot that contradicts itself is refused, whoever signed it.
func TestFits(t *testing.T) {
	public, private := newKey(t)
	for says, change := range map[string]func(*discoveryv1.LastGood){
		"no lineage":                       func(lg *discoveryv1.LastGood) { lg.Lineage = "" },
		"lineage, revision":                func(lg *discoveryv1.LastGood) { lg.Revision = 0 },
		"or scope":                         func(lg *discoveryv1.LastGood) { lg.Scope = nil },
		"topic/demo/orders twice":          func(lg *discoveryv1.LastGood) { lg.Resources = append(lg.Resources, lg.Resources[0]) },
		"topic/demo/orders, which is not":  func(lg *discoveryv1.LastGood) { lg.Scope = Scope([]string{"shop"}) },
		"accesspolicy/shop/a, which is":    func(lg *discoveryv1.LastGood) { lg.Withheld[0].Name = "accesspolicy/shop/a" },
		"not what its digest":              func(lg *discoveryv1.LastGood) { lg.Resources[0].Resource = []byte("another") },
		"not what its digest or version":   func(lg *discoveryv1.LastGood) { lg.Resources[0].Version = "4" },
		"digest or version says":           func(lg *discoveryv1.LastGood) { lg.Resources[0].Rejection = &discoveryv1.Rejection{} },
		"has accesspolicy/demo/a twice":    func(lg *discoveryv1.LastGood) { lg.Withheld = append(lg.Withheld, lg.Withheld[0]) },
		"a topic/demo/orders that is not ": func(lg *discoveryv1.LastGood) { lg.Resources[0].OfferedDigest = nil },
	} {
		lg := one()
		change(lg)
		if _, err := DecodeSnapshot(encoded(t, lg, private), public); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
}

// TestKeys: keys as openssl makes them are read; others are refused by name and
// without a word of what is in them.
func TestKeys(t *testing.T) {
	dir := t.TempDir()
	write := func(name, kind string, der []byte, err error) string {
		t.Helper()
		if err == nil {
			name = filepath.Join(dir, name)
			err = os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return name
	}
	public, private := newKey(t)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	privateFile := write("private", "PRIVATE KEY", der, err)
	der, err = x509.MarshalPKIXPublicKey(public)
	publicFile := write("public", "PUBLIC KEY", der, err)
	if k, err := PrivateKey(privateFile); err != nil || !k.Equal(private) {
		t.Errorf("%v", err)
	}
	if k, err := PublicKey(publicFile); err != nil || !k.Equal(public) {
		t.Errorf("%v", err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err = x509.MarshalPKCS8PrivateKey(ec)
	ecFile := write("ec", "PRIVATE KEY", der, err)
	bad := write("bad", "PRIVATE KEY", []byte("secret words"), nil)
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, make([]byte, maxKeyBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, says := range map[string]string{publicFile: "no PEM block", ecFile: "not an Ed25519 key", bad: "cannot be read", big: "more than", filepath.Join(dir, "none"): "no such file"} {
		if _, err := PrivateKey(file); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), file) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %q", file, err, says)
		}
	}
	if _, err := PublicKey(privateFile); err == nil {
		t.Error("a private key is taken for a public one")
	}
}

// FuzzSnapshot: whatever a file of the right form says, reading it ends with an
// error, or with a configuration that is of its scope, is what its digests say, and
// is written and read again the same.
func FuzzSnapshot(f *testing.F) {
	body, err := proto.Marshal(one())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		if _, err := DecodeSnapshot(body, nil); err == nil {
			t.Fatal("a file without a checksum is accepted")
		}
		file, err := seal(snapshotMagic, append(make([]byte, ed25519.SignatureSize), body...))
		if err != nil {
			t.Fatal(err)
		}
		lg, err := DecodeSnapshot(file, nil)
		if err != nil {
			return
		}
		for _, r := range lg.Resources {
			if !Covers(lg.Scope, r.Name) || string(resource.DigestOf(r.Name, r.Version, r.Resource).Bytes()) != string(r.OfferedDigest) {
				t.Fatalf("%s is accepted", r.Name)
			}
		}
		again, err := DecodeSnapshot(encoded(t, lg, nil), nil)
		if err != nil || !proto.Equal(lg, again) {
			t.Fatalf("read %v, then %v: %v", lg, again, err)
		}
	})
}
