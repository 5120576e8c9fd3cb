package client

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	cev1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/pkg/buffers"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fuzztest"
)

func full(id string, size int) event.Event {
	return event.Event{ID: id, Source: "/s", Type: "t", Subject: "sub", Time: "2026-01-02T03:04:05Z", DataContentType: "text/plain", Ext: []event.Attr{{Name: "partitionkey", Value: "k"}}, Data: bytes.Repeat([]byte{'x'}, size)}
}

// gen is e as generated code has it.
func gen(t testing.TB, e event.Event) *cev1.CloudEvent {
	t.Helper()
	out := &cev1.CloudEvent{}
	if err := proto.Unmarshal(cloudevents.AppendProto(nil, &e), out); err != nil {
		t.Fatal(err)
	}
	return out
}

var pool = buffers.New()

// TestEncoded: a request in parts is what generated code would send, whatever the
// lengths of its events.
func TestEncoded(t *testing.T) {
	req, want := request("demo", "orders"), &eventsv1.PublishStreamRequest{Namespace: "demo", Topic: "orders"}
	for i, size := range []int{0, 1, 20, 60, 100, 127, 128, 1000, 16300, 16384, 3 << 20} {
		e := full(strings.Repeat("i", i+1), size)
		req = append(req, encode(&e, pool))
		want.Events = append(want.Events, gen(t, e))
	}
	b, err := newCodec().Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	got := &eventsv1.PublishStreamRequest{}
	if err := proto.Unmarshal(b.Materialize(), got); err != nil || !proto.Equal(got, want) || b.Len() > proto.Size(want)+3*len(want.Events) {
		t.Errorf("%v: %d bytes, generated code has %d", err, b.Len(), proto.Size(want))
	}
}

// TestEncodedRequest: so is a request that waits for its reply, and a reply.
func TestEncodedRequest(t *testing.T) {
	e := full("1", 100)
	for _, tc := range []struct {
		req       encoded
		got, want proto.Message
	}{
		{(&Client{pool: pool}).asking("demo", "orders", &e, 90*time.Second), &eventsv1.RequestRequest{}, &eventsv1.RequestRequest{Namespace: "demo", Topic: "orders", Event: gen(t, e), Timeout: durationpb.New(90 * time.Second)}},
		{(&Client{pool: pool}).asking("demo", "orders", &e, 0), &eventsv1.RequestRequest{}, &eventsv1.RequestRequest{Namespace: "demo", Topic: "orders", Event: gen(t, e)}},
		{append(request("demo", ""), encode(&e, pool)), &eventsv1.ReplyRequest{}, &eventsv1.ReplyRequest{Namespace: "demo", Event: gen(t, e)}},
	} {
		b, err := newCodec().Marshal(tc.req)
		if err != nil {
			t.Fatal(err)
		}
		if err := proto.Unmarshal(b.Materialize(), tc.got); err != nil || !proto.Equal(tc.got, tc.want) {
			t.Errorf("%v: %v, expected %v", err, tc.got, tc.want)
		}
	}
}

// FuzzReceived: what the hand-written decoder reads of a response is what generated
// code reads, with bounds, and nothing of it is part of the transport's buffer.
func FuzzReceived(f *testing.F) {
	for _, n := range []int{0, 1, 3, 50} {
		d := &eventsv1.Deliveries{}
		for i := range n {
			d.Deliveries = append(d.Deliveries, &eventsv1.Delivery{Id: uint64(i), Topic: "orders", Position: "p", Attempt: 1, Event: gen(f, full(fmt.Sprint(i), 10))}) //nolint:gosec // small
		}
		b, err := proto.Marshal(&eventsv1.SubscribeResponse{Message: &eventsv1.SubscribeResponse_Deliveries{Deliveries: d}})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{0x0a, 0x00})
	f.Add([]byte{0x12, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		in := bytes.Clone(b)
		var r received
		var err error
		if n := fuzztest.Allocated(func() { err = newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(in)}, &r) }); n > 1024*uint64(len(b))+256<<10 {
			t.Errorf("%d bytes for %d", n, len(b))
		}
		want := &eventsv1.SubscribeResponse{}
		if proto.Unmarshal(b, want) != nil {
			return
		}
		list := want.GetDeliveries().GetDeliveries()
		if err != nil {
			t.Fatalf("%v, generated code reads %v", err, want)
		}
		if want.GetOpened() == nil && want.GetDeliveries() == nil || r.opened != nil && want.GetDeliveries() != nil || r.opened == nil && want.GetOpened() != nil {
			return // nothing, or both, of which generated code keeps the last
		}
		if want.GetDeliveries() != nil && r.opened == nil && len(r.list) != len(list) {
			t.Fatalf("%d deliveries, generated code reads %d", len(r.list), len(list))
		}
		if r.opened != nil {
			return
		}
		before := fmt.Sprintf("%+v", r.list)
		for i := range in {
			in[i] ^= 0xff
		}
		if after := fmt.Sprintf("%+v", r.list); after != before {
			t.Errorf("with another buffer %q becomes %q", before, after)
		}
		for i, d := range list {
			got := &r.list[i]
			if got.id != d.Id || got.Topic != d.Topic || got.Position != d.Position || got.Attempt != int(d.Attempt) {
				t.Errorf("%+v\n%v", got, d)
			}
			if got.err != nil || got.Event.Validate() != nil {
				continue
			}
			wire, err := proto.Marshal(d.Event)
			if err != nil {
				t.Fatal(err)
			}
			e, err := cloudevents.DecodeProto(wire)
			if len(e.Data) == 0 {
				e.Data, got.Event.Data = nil, nil
			}
			if err != nil || !reflect.DeepEqual(e, got.Event) {
				t.Errorf("%v\n%+v\n%+v", err, e, got.Event)
			}
		}
	})
}

// TestReceivedInParts: an event that came in very many parts is read as one, for a
// few times its size in memory.
func TestReceivedInParts(t *testing.T) {
	want := full("1", 16<<10)
	var d, list, b []byte
	for _, c := range cloudevents.AppendProto(nil, &want) {
		d = append(d, 5<<3|2, 1, c)
	}
	list = protowire.AppendBytes(protowire.AppendTag(list, 1, protowire.BytesType), d)
	b = protowire.AppendBytes(protowire.AppendTag(b, 2, protowire.BytesType), list)
	in := bytes.Clone(b)
	var r received
	var err error
	if n := fuzztest.Allocated(func() { err = r.unmarshal(b) }); err != nil || n > 8*uint64(len(b)) {
		t.Errorf("%v: %d bytes for %d", err, n, len(b))
	}
	if len(r.list) != 1 || !reflect.DeepEqual(r.list[0].Event, want) || !bytes.Equal(b, in) {
		t.Errorf("%d deliveries, the event is another, or the buffer has changed", len(r.list))
	}
}

// TestTooManyReceived: a proxy that sends more deliveries than were ever granted is
// refused before there is room for them.
func TestTooManyReceived(t *testing.T) {
	inner := bytes.Repeat([]byte{0x0a, 0x00}, maxReceived+1)
	b := []byte{0x12}
	for n := len(inner); ; n >>= 7 {
		if n < 0x80 {
			b = append(b, byte(n))
			break
		}
		b = append(b, byte(n)|0x80)
	}
	if err := (&received{}).unmarshal(append(b, inner...)); err == nil {
		t.Error("it is taken")
	}
}

// message is a response with deliveries as a proxy sends them.
func message(n, size int) []byte {
	var list []byte
	for i := range n {
		e := full(fmt.Sprint(i), size)
		d := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), uint64(i)) //nolint:gosec // small
		d = protowire.AppendString(protowire.AppendTag(d, 2, protowire.BytesType), "orders")
		d = protowire.AppendString(protowire.AppendTag(d, 3, protowire.BytesType), strings.Repeat("p", 30))
		d = protowire.AppendBytes(protowire.AppendTag(d, 5, protowire.BytesType), cloudevents.AppendProto(nil, &e))
		list = protowire.AppendBytes(protowire.AppendTag(list, 1, protowire.BytesType), d)
	}
	return protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), list)
}

// TestReceivedApart: whoever appends to the data of an event, or changes them, changes no
// other.
func TestReceivedApart(t *testing.T) {
	var r received
	if err := newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(message(3, 10))}, &r); err != nil || len(r.list) != 3 {
		t.Fatalf("%d deliveries, %v", len(r.list), err)
	}
	other := fmt.Sprintf("%+v, %+v", r.list[0], r.list[2])
	data := r.list[1].Event.Data
	clear(append(data, make([]byte, 100)...))
	clear(data)
	if now := fmt.Sprintf("%+v, %+v", r.list[0], r.list[2]); now != other {
		t.Errorf("%s became %s", other, now)
	}
}

// TestReceivedAllocations: the events of a message are not copied one by one.
func TestReceivedAllocations(t *testing.T) {
	const events = 256
	b, c := mem.BufferSlice{mem.SliceBuffer(message(events, 1024))}, newCodec()
	if n := testing.AllocsPerRun(100, func() {
		if c.Unmarshal(b, &received{}) != nil {
			t.Error("it is refused")
		}
	}); n > events/4 {
		t.Errorf("%.0f allocations for %d events", n, events)
	}
}

// BenchmarkReceive is what an event costs who receives it, in messages of 256.
func BenchmarkReceive(b *testing.B) {
	in, c := mem.BufferSlice{mem.SliceBuffer(message(256, 1024))}, newCodec()
	b.ReportAllocs()
	var r received
	for i := 0; i < b.N; i += 256 {
		if err := c.Unmarshal(in, &r); err != nil {
			b.Fatal(err)
		}
		clear(r.list)
		r.list = r.list[:0]
	}
}

// BenchmarkEncode is what an event costs a Publisher.
func BenchmarkEncode(b *testing.B) {
	e := full("1", 1024)
	b.ReportAllocs()
	for b.Loop() {
		encode(&e, pool).Free()
	}
}

// TestEncodeAllocations: an event of some size is encoded into memory that events before
// it had.
func TestEncodeAllocations(t *testing.T) {
	e := full("1", 1024)
	if n := testing.AllocsPerRun(100, func() { encode(&e, pool).Free() }); n > 1 { // the race detector empties pools
		t.Errorf("%.0f allocations", n)
	}
}
