package resource

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
)

// Digest sums up resources: how many, and the sum, modulo 2^128, of a hash of
// each. See configv1.KindDigest. Digests are comparable; the zero value is that
// of no resources.
type Digest struct {
	Count  uint32
	hi, lo uint64
}

// DigestOf is the digest of one resource: of its canonical name, its version, and
// its bytes as they are stored and streamed.
func DigestOf(name, version string, bytes []byte) Digest {
	h := sha256.New()
	head := make([]byte, 0, len(name)+len(version)+2)
	head = append(append(append(append(head, name...), 0), version...), 0)
	_, _ = h.Write(head)
	_, _ = h.Write(bytes)
	var sum [sha256.Size]byte
	return one(h.Sum(sum[:0]))
}

// ParseDigest is the digest of one resource from what Bytes gave; false where it
// cannot be.
func ParseDigest(b []byte) (Digest, bool) {
	if len(b) != 16 {
		return Digest{}, false
	}
	return one(b), true
}

func one(sum []byte) Digest {
	return Digest{1, binary.BigEndian.Uint64(sum[:8]), binary.BigEndian.Uint64(sum[8:16])}
}

// Add is the digest of both.
func (d Digest) Add(o Digest) Digest {
	lo, carry := bits.Add64(d.lo, o.lo, 0)
	hi, _ := bits.Add64(d.hi, o.hi, carry)
	return Digest{d.Count + o.Count, hi, lo}
}

// Sub is the digest without o.
func (d Digest) Sub(o Digest) Digest {
	lo, borrow := bits.Sub64(d.lo, o.lo, 0)
	hi, _ := bits.Sub64(d.hi, o.hi, borrow)
	return Digest{d.Count - o.Count, hi, lo}
}

// Bytes is the digest as it is sent, without its count.
func (d Digest) Bytes() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, d.hi), d.lo)
}
