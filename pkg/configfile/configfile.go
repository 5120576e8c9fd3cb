// Package configfile is the format of a configuration in a file: what a proxy
// keeps on its disk, and the snapshot that a control plane exports to start
// proxies without one.
//
// A file is a magic with the format's version, the SHA-256 of the rest, and the
// rest: for a snapshot a signature (zeros where it is not signed), and then a
// LastGood. A file is taken whole or not at all.
package configfile

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/pkg/resource"
)

const (
	keptMagic     = "WEFTCFG1"
	snapshotMagic = "WEFTSNP1"
	// nameLen is the part of a magic before the version.
	nameLen = len(snapshotMagic) - 1
)

// MaxBytes bounds a file.
const MaxBytes = 1 << 30

// maxKeyBytes bounds a file with a key.
const maxKeyBytes = 64 << 10

// Everything is the scope that has all namespaces.
const Everything = "*"

// Scope is what a configuration of these namespaces is of, as LastGood.scope has
// it: sorted, each once; everything where there are none.
func Scope(namespaces []string) []string {
	if len(namespaces) == 0 {
		return []string{Everything}
	}
	out := make([]string, 0, len(namespaces))
	for _, ns := range namespaces {
		out = append(out, "*/"+ns+"/*")
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Governing is the scope of what applies unasked in these namespaces, sorted, each
// once.
func Governing(namespaces []string) []string {
	out := make([]string, 0, len(namespaces))
	for _, ns := range namespaces {
		out = append(out, resource.Governing(ns))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Split takes the names of single resources out of a scope.
func Split(scope []string) (wildcards, names []string) {
	for _, s := range scope {
		if s == Everything || strings.HasSuffix(s, "/*") {
			wildcards = append(wildcards, s)
		} else {
			names = append(names, s)
		}
	}
	return wildcards, names
}

// Covers reports whether the wildcards of a scope have the resource called name. A
// kind that is not known here may be one that governs.
func Covers(scope []string, name string) bool {
	kind, rest, _ := strings.Cut(name, "/")
	ns, _, _ := strings.Cut(rest, "/")
	if slices.Contains(scope, Everything) || slices.Contains(scope, "*/"+ns+"/*") {
		return true
	}
	info, known := resource.Lookup(kind)
	return (!known || resource.Unasked(info.Kind)) && slices.Contains(scope, resource.Governing(ns))
}

// CoversScope reports whether a scope has all of one entry of another.
func CoversScope(scope []string, entry string) bool {
	ns, governs := resource.CutGoverning(entry)
	return slices.Contains(scope, Everything) || slices.Contains(scope, entry) || governs && slices.Contains(scope, "*/"+ns+"/*")
}

// EncodeKept is the file that a proxy keeps on its disk.
func EncodeKept(lg *discoveryv1.LastGood) ([]byte, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(lg)
	if err != nil {
		return nil, err
	}
	return seal(keptMagic, body)
}

// DecodeKept reads what EncodeKept wrote. Errors read well after the file's name.
func DecodeKept(file []byte) (*discoveryv1.LastGood, error) {
	body, err := open(keptMagic, file)
	if err != nil {
		return nil, err
	}
	lg := &discoveryv1.LastGood{}
	return lg, proto.Unmarshal(body, lg)
}

// EncodeSnapshot is a snapshot file, signed where there is a key.
func EncodeSnapshot(lg *discoveryv1.LastGood, key ed25519.PrivateKey) ([]byte, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(lg)
	if err != nil {
		return nil, err
	}
	signature := make([]byte, ed25519.SignatureSize)
	if key != nil {
		signature = ed25519.Sign(key, signed(body))
	}
	return seal(snapshotMagic, append(signature, body...))
}

// signed is what a signature is of: not only the content, so that it is good for
// nothing else.
func signed(body []byte) []byte { return append([]byte(snapshotMagic), body...) }

// DecodeSnapshot reads a snapshot file and checks that it is whole and fits
// together. With a key it must be signed with that; without one a signature is not
// looked at. Errors read well after the file's name.
func DecodeSnapshot(file []byte, key ed25519.PublicKey) (*discoveryv1.LastGood, error) {
	rest, err := open(snapshotMagic, file)
	if err != nil {
		return nil, err
	}
	if len(rest) < ed25519.SignatureSize {
		return nil, errors.New("is damaged: it ends before its content")
	}
	signature, body := rest[:ed25519.SignatureSize], rest[ed25519.SignatureSize:]
	switch {
	case key == nil:
	case bytes.Equal(signature, make([]byte, ed25519.SignatureSize)):
		return nil, errors.New("is not signed: the control plane that exports it needs --snapshot-key")
	case !ed25519.Verify(key, signed(body), signature):
		return nil, errors.New("is not signed with the key that belongs to the one it is checked with")
	}
	lg := &discoveryv1.LastGood{}
	if err := proto.Unmarshal(body, lg); err != nil {
		return nil, fmt.Errorf("cannot be read: %w", err)
	}
	return lg, fits(lg)
}

// fits checks what a snapshot says of itself.
func fits(lg *discoveryv1.LastGood) error {
	if lg.Lineage == "" || lg.Revision <= 0 || len(lg.Scope) == 0 {
		return errors.New("has no lineage, revision or scope")
	}
	seen := make(map[string]bool, len(lg.Resources)+len(lg.Withheld))
	once := func(name string) error {
		if seen[name] {
			return fmt.Errorf("has %s twice", name)
		}
		seen[name] = true
		if !Covers(lg.Scope, name) {
			return fmt.Errorf("has %s, which is not of its scope %s", name, strings.Join(lg.Scope, " "))
		}
		return nil
	}
	for _, r := range lg.Resources {
		if err := once(r.Name); err != nil {
			return err
		}
		if got := resource.DigestOf(r.Name, r.Version, r.Resource); r.Version == "" || r.OfferedVersion != r.Version || r.Rejection != nil || !bytes.Equal(got.Bytes(), r.OfferedDigest) {
			return fmt.Errorf("has a %s that is not what its digest or version says", r.Name)
		}
	}
	for _, w := range lg.Withheld {
		if err := once(w.GetName()); err != nil {
			return err
		}
	}
	return nil
}

func seal(magic string, rest []byte) ([]byte, error) {
	size := len(magic) + sha256.Size + len(rest)
	if size > MaxBytes {
		return nil, fmt.Errorf("the configuration has %d bytes as a file, the most is %d", size, MaxBytes)
	}
	sum := sha256.Sum256(rest)
	return slices.Concat([]byte(magic), sum[:], rest), nil
}

func open(magic string, file []byte) ([]byte, error) {
	rest, ok := bytes.CutPrefix(file, []byte(magic[:nameLen]))
	switch {
	case !ok || len(rest) == 0:
		return nil, errors.New("is not a configuration of this format")
	case rest[0] != magic[nameLen]:
		return nil, fmt.Errorf("is of version %q of the format, this program reads %q", rest[:1], magic[nameLen:])
	}
	if rest = rest[1:]; len(rest) < sha256.Size {
		return nil, errors.New("is damaged: it ends before its checksum does")
	}
	body := rest[sha256.Size:]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], rest[:sha256.Size]) {
		return nil, errors.New("is damaged: its checksum does not fit")
	}
	return body, nil
}

// Read reads a file of at most MaxBytes. Errors have the file's name.
func Read(name string) ([]byte, error) { return readBounded(name, MaxBytes) }

func readBounded(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > most {
		return nil, fmt.Errorf("%s has more than %d bytes", name, most)
	}
	return b, nil
}

// PrivateKey reads the key that snapshots are signed with: Ed25519, PKCS #8 in
// PEM, as "openssl genpkey -algorithm ed25519" makes it.
func PrivateKey(name string) (ed25519.PrivateKey, error) {
	key, err := readKey(name, "PRIVATE KEY", x509.ParsePKCS8PrivateKey)
	if err != nil {
		return nil, err
	}
	k, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s has a key that is not an Ed25519 key", name)
	}
	return k, nil
}

// PublicKey reads the key that signatures are checked with: Ed25519, PKIX in PEM,
// as "openssl pkey -pubout" makes it.
func PublicKey(name string) (ed25519.PublicKey, error) {
	key, err := readKey(name, "PUBLIC KEY", x509.ParsePKIXPublicKey)
	if err != nil {
		return nil, err
	}
	k, ok := key.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%s has a key that is not an Ed25519 key", name)
	}
	return k, nil
}

func readKey(name, kind string, parse func([]byte) (any, error)) (any, error) {
	b, err := readBounded(name, maxKeyBytes)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != kind {
		return nil, fmt.Errorf("%s has no PEM block %q at its beginning", name, kind)
	}
	key, err := parse(block.Bytes)
	if err != nil {
		// Not the parser's words: they could have something of the key.
		return nil, fmt.Errorf("%s has a %s that cannot be read", name, strings.ToLower(kind))
	}
	return key, nil
}
