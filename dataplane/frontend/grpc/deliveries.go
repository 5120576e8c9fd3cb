package grpc

import (
	"encoding/binary"
	"slices"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/pkg/cloudevents"
)

// deliveries is a SubscribeResponse with deliveries.
type deliveries struct{ list []delivery.Delivery }

// marshal encodes the message in one pass, into a buffer of the pool.
func (d *deliveries) marshal(pool mem.BufferPool) mem.Buffer {
	size := 64
	for i := range d.list {
		size += bound(&d.list[i])
	}
	p := pool.Get(size)
	b, response := open((*p)[:0], 2, size)
	for i := range d.list {
		if x := &d.list[i]; x.Shared != nil { // the same bytes for every tail
			b = append(b, x.Shared.Encoded(delivery.FormProto, func() []byte { return slices.Clip(appendDelivery(nil, x)) })...)
		} else {
			b = appendDelivery(b, x)
		}
	}
	b = response.close(b)
	if cap(b) != cap(*p) { // the bound was too low: it is another one now
		pool.Put(p)
		return mem.SliceBuffer(b)
	}
	*p = b
	return mem.NewBuffer(p, pool)
}

// bound is a size that the delivery hardly exceeds.
func bound(d *delivery.Delivery) int {
	return d.Event.Size() + 16*len(d.Event.Ext) + len(d.Topic) + len(d.Position.Pos.Partition)*4/3 + 160
}

// appendDelivery appends a Delivery as field 1 of Deliveries.
func appendDelivery(b []byte, d *delivery.Delivery) []byte {
	size := bound(d)
	b, whole := open(b, 1, size)
	if d.ID != 0 {
		b = protowire.AppendVarint(protowire.AppendTag(b, 1, protowire.VarintType), d.ID)
	}
	b = protowire.AppendString(protowire.AppendTag(b, 2, protowire.BytesType), d.Topic)
	b, position := open(b, 3, 1)
	b = position.close(d.Position.Append(b))
	b = protowire.AppendVarint(protowire.AppendTag(b, 4, protowire.VarintType), uint64(d.Attempt)) //nolint:gosec // attempts begin at 1
	b, ev := open(b, 5, size-100)
	b = ev.close(cloudevents.AppendProto(b, d.Event))
	return whole.close(b)
}

// field is a field of bytes that is being written: where its length stands, and
// for how many bytes of length there is room.
type field struct{ at, width int }

// open begins field num, of which guess is about the size.
func open(b []byte, num protowire.Number, guess int) ([]byte, field) {
	b = protowire.AppendTag(b, num, protowire.BytesType)
	f := field{len(b), protowire.SizeVarint(uint64(max(guess, 0)))} //nolint:gosec // not negative
	return append(b, make([]byte, f.width)...), f
}

// close ends the field with what b has behind its beginning. Where its length
// takes more or fewer bytes than was guessed, what is behind moves.
func (f field) close(b []byte) []byte {
	n := uint64(len(b) - f.at - f.width) //nolint:gosec // not negative
	if w := protowire.SizeVarint(n); w > f.width {
		b = slices.Insert(b, f.at, make([]byte, w-f.width)...)
	} else if w < f.width {
		b = slices.Delete(b, f.at, f.at+f.width-w)
	}
	binary.PutUvarint(b[f.at:], n)
	return b
}
