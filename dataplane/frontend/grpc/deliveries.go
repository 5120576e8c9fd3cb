package grpc

import (
	"encoding/binary"
	"slices"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
)

// deliveries is a SubscribeResponse with deliveries.
type deliveries struct {
	list []delivery.Delivery
	size int // of the events, in bytes
}

// Size is how long it is, about.
func (d *deliveries) Size() int { return d.size }

// byReference is from how many bytes on data is sent from where it is: a copy costs more
// than what a message of several pieces does.
const byReference = 4 << 10

// marshal encodes the message in one pass, into a buffer of the pool, but for large data.
func (d *deliveries) marshal(pool mem.BufferPool) mem.BufferSlice {
	size, apart, pieces := 64, 0, 0
	for i := range d.list {
		size += bound(&d.list[i])
		if data := largeData(d.list[i].Event); data != nil {
			apart, pieces = apart+len(data), pieces+1
		}
	}
	p := pool.Get(size - apart)
	b, response := open((*p)[:0], 2, size)
	cuts := make([]int, 0, pieces) // where large data belongs
	for i := range d.list {
		x := &d.list[i]
		if x.Shared != nil { // the same bytes for every tail
			b = append(b, x.Shared.Encoded(delivery.FormProto, func() []byte { return slices.Clip(appendDelivery(nil, x)) })...)
		} else {
			b = appendDelivery(b, x)
		}
		if largeData(x.Event) != nil {
			cuts = append(cuts, len(b))
		}
	}
	written := len(b)
	b = response.close(b, apart)
	moved := len(b) - written
	var whole mem.Buffer
	if cap(b) != cap(*p) { // the bound was too low: it is another one now
		pool.Put(p)
		whole = mem.SliceBuffer(b)
	} else {
		*p = b
		whole = mem.NewBuffer(p, pool)
	}
	if pieces == 0 {
		return mem.BufferSlice{whole}
	}
	defer whole.Free()
	out := make(mem.BufferSlice, 0, 2*pieces+1)
	from := 0
	for i := range d.list {
		if data := largeData(d.list[i].Event); data != nil {
			cut := cuts[len(out)/2] + moved
			out = append(out, whole.Slice(from, cut), mem.SliceBuffer(data))
			from = cut
		}
	}
	if from < len(b) {
		out = append(out, whole.Slice(from, len(b)))
	}
	return out
}

// largeData is the data of the event that is sent from where it is; nil where it is copied.
func largeData(e *event.Event) []byte {
	if len(e.Data) < byReference {
		return nil
	}
	return e.Data
}

// bound is a size that the delivery hardly exceeds.
func bound(d *delivery.Delivery) int {
	return d.Event.Size() + 16*len(d.Event.Ext) + len(d.Topic) + len(d.Position.Pos.Partition)*4/3 + 160
}

// appendDelivery appends a Delivery as field 1 of Deliveries, but for large data, which
// comes last.
func appendDelivery(b []byte, d *delivery.Delivery) []byte {
	size := bound(d)
	b, whole := open(b, 1, size)
	if d.ID != 0 {
		b = protowire.AppendVarint(protowire.AppendTag(b, 1, protowire.VarintType), d.ID)
	}
	b = protowire.AppendString(protowire.AppendTag(b, 2, protowire.BytesType), d.Topic)
	b, position := open(b, 3, 1)
	b = position.close(d.Position.Append(b), 0)
	b = protowire.AppendVarint(protowire.AppendTag(b, 4, protowire.VarintType), uint64(d.Attempt)) //nolint:gosec // attempts begin at 1
	b, ev := open(b, 5, size-100)
	data := largeData(d.Event)
	b = cloudevents.AppendProtoHead(b, d.Event)
	if data == nil {
		b = append(b, d.Event.Data...)
	}
	return whole.close(ev.close(b, len(data)), len(data))
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

// close ends the field with what b has behind its beginning, and so many bytes of data that
// are sent from elsewhere. Where its length takes more or fewer bytes than was guessed, what
// is behind moves.
func (f field) close(b []byte, apart int) []byte {
	n := uint64(len(b) - f.at - f.width + apart) //nolint:gosec // not negative
	if w := protowire.SizeVarint(n); w > f.width {
		b = slices.Insert(b, f.at, make([]byte, w-f.width)...)
	} else if w < f.width {
		b = slices.Delete(b, f.at, f.at+f.width-w)
	}
	binary.PutUvarint(b[f.at:], n)
	return b
}
