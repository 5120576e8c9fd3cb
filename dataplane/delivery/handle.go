package delivery

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"

	"github.com/weft-mesh/weft/pkg/fault"
)

// handle names a delivery that was pulled. Its text is opaque to clients: a
// version byte, the tag of the session, the delivery's id as a varint and the id
// of the proxy's node, in unpadded base64url. It is good at that proxy, for the
// principal that pulled, while its session lasts.
type handle struct {
	tag  handleTag
	id   uint64
	node string
}

// handleTag is drawn for each session.
type handleTag [8]byte

func newHandleTag() (t handleTag) {
	_, _ = rand.Read(t[:]) // never fails
	return t
}

const (
	handleVersion = 1
	// maxHandle bounds the text of a handle, in bytes.
	maxHandle = 512
)

func (h handle) String() string {
	b := append(make([]byte, 0, 64), handleVersion)
	b = append(b, h.tag[:]...)
	b = binary.AppendUvarint(b, h.id)
	return base64.RawURLEncoding.EncodeToString(append(b, h.node...))
}

// handles names deliveries of the session.
func (s *pullSession) handles(node string, ds []Delivery) []string {
	out := make([]string, len(ds))
	for i := range ds {
		out[i] = handle{s.tag, ds[i].ID, node}.String()
	}
	return out
}

var (
	errBadHandle = fault.New(fault.Invalid, "delivery.settle", "bad-delivery-id", "a delivery id is not one that a pull gave")
	errOver      = fault.New(fault.Precondition, "delivery.settle", "delivery-over", "the delivery is not the caller's any more: it was settled, or its ack time-out passed and it comes again")
)

// elsewhere is why a delivery of another proxy is not settled here.
func elsewhere(node string) error {
	return fault.New(fault.Unavailable, "delivery.settle", "delivery-elsewhere", "the delivery was pulled from proxy %q; it is settled there", node)
}

func parseHandle(s string) (h handle, err error) {
	if len(s) > maxHandle {
		return h, errBadHandle
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) < 1+len(h.tag)+1 || b[0] != handleVersion {
		return h, errBadHandle
	}
	copy(h.tag[:], b[1:])
	b = b[1+len(h.tag):]
	id, n := binary.Uvarint(b)
	if n <= 0 {
		return handle{}, errBadHandle
	}
	h.id, h.node = id, string(b[n:])
	if h.String() != s { // one text each
		return handle{}, errBadHandle
	}
	return h, nil
}
