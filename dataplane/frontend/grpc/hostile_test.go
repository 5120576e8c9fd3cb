package grpc

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/pipeline"
	"github.com/weft-mesh/weft/pkg/fuzztest"
	"github.com/weft-mesh/weft/store/position"
)

// endless is a stream that has always one message more.
type endless struct {
	grpc.ServerStream
	ctx context.Context
}

const endlessSize = 100_000

func (e *endless) RecvMsg(m any) error {
	if e.ctx.Err() != nil {
		return e.ctx.Err()
	}
	m.(*publishRequest).size = endlessSize
	return nil
}

// TestPublishStreamTooMany: a message with more events than one may have ends
// the stream. An answer that counts fewer events than were sent would let a
// client take later results for other events.
func TestPublishStreamTooMany(t *testing.T) {
	api, _ := serve(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	st, err := api.PublishStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{pipeline.MaxBatch + 1, 1} {
		if err := st.Send(&eventsv1.PublishStreamRequest{Namespace: "demo", Topic: "orders", Events: ces(n)}); err != nil {
			break // it has ended
		}
	}
	if resp, err := st.Recv(); status.Code(err) != codes.InvalidArgument || reason(err) != "bad-batch" {
		t.Errorf("first %d, count %d, %d failed, %v", resp.GetFirstSequence(), resp.GetCount(), len(resp.GetFailed()), err)
	}
}

// raw sends bytes as they are.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error) { return v.([]byte), nil }

func (raw) Unmarshal([]byte, any) error { return nil }

func (raw) Name() string { return "proto" }

// TestTruncated: messages cut anywhere fail alone; the connection and the server
// go on.
func TestTruncated(t *testing.T) {
	api, conn := serve(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	whole, err := proto.Marshal(&eventsv1.PublishStreamRequest{Namespace: "demo", Topic: "orders", Events: ces(1)})
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i < len(whole); i += 7 {
		err := conn.Invoke(ctx, eventsv1.EventService_Publish_FullMethodName, whole[:i], new([]byte), grpc.ForceCodec(raw{}))
		if c := status.Code(err); c != codes.Internal && c != codes.InvalidArgument && c != codes.PermissionDenied {
			t.Errorf("cut at %d: %v", i, err)
		}
		st, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, eventsv1.EventService_PublishStream_FullMethodName, grpc.ForceCodec(raw{}))
		if err != nil {
			t.Fatal(err)
		}
		if err := st.SendMsg(whole[:i]); err != nil {
			t.Fatal(err)
		}
		if err := st.CloseSend(); err != nil {
			t.Fatal(err)
		}
		for err = nil; err == nil; {
			err = st.RecvMsg(new([]byte))
		}
	}
	if _, err := api.Publish(ctx, &eventsv1.PublishRequest{Namespace: "demo", Topic: "orders", Event: ce("1")}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestBadFrames: gRPC's own frames, cut or lying about their length, end their
// call and nothing else; bytes that are not UTF-8 end no stream.
func TestBadFrames(t *testing.T) {
	api, conn := serve(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for name, tc := range map[string]struct {
		data []byte
		want []string // of grpc-status
	}{
		"cut":             {[]byte{0, 0, 0, 0, 100, 1, 2, 3}, []string{"13"}},
		"half a prefix":   {[]byte{0, 0, 0}, []string{"13"}},
		"too long":        {[]byte{0, 0x7f, 0xff, 0xff, 0xff}, []string{"8"}},
		"longest":         {[]byte{0, 0xff, 0xff, 0xff, 0xff}, []string{"8"}},
		"compressed":      {[]byte{1, 0, 0, 0, 1, 0}, []string{"12", "13"}},
		"another flag":    {[]byte{7, 0, 0, 0, 1, 0}, []string{"13"}},
		"not an event":    {[]byte{0, 0, 0, 0, 2, 0xff, 0xff}, []string{"13"}},
		"nothing follows": {nil, []string{"0", "3", "13"}},
	} {
		for _, method := range []string{eventsv1.EventService_PublishStream_FullMethodName, eventsv1.EventService_Publish_FullMethodName, eventsv1.EventService_Subscribe_FullMethodName} {
			if got := call(t, conn.Target(), method, tc.data); !slices.Contains(tc.want, got) {
				t.Errorf("%s to %s: grpc-status %q, want %v", name, method, got, tc.want)
			}
		}
	}
	st, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, eventsv1.EventService_PublishStream_FullMethodName, grpc.ForceCodec(raw{}))
	if err != nil {
		t.Fatal(err)
	}
	whole, err := proto.Marshal(&eventsv1.PublishStreamRequest{Namespace: "demo", Topic: "orders", Events: ces(1)})
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"/test", "orders"} { // of an event, of the request
		if err := st.SendMsg([]byte(strings.Replace(string(whole), part, strings.Repeat("\xff", len(part)), 1))); err != nil {
			t.Fatal(err)
		}
		if err := st.RecvMsg(new([]byte)); err != nil {
			t.Errorf("bad UTF-8 in %s ends the stream: %v", part, err)
		}
	}
	_ = st.CloseSend()
	first, err := api.Publish(ctx, &eventsv1.PublishRequest{Namespace: "demo", Topic: "orders", Event: ce("1")})
	if err != nil {
		t.Fatal(err)
	}
	if tok, err := position.Parse(first.Position); err != nil || tok.Pos.Offset > 1 {
		t.Errorf("%+v, %v: something was kept", tok, err)
	}
}

// TestCompressed: what comes compressed is refused before it takes memory: a message of a
// few KiB would become as large as one may be, in each call of a connection.
func TestCompressed(t *testing.T) {
	api, conn := serve(t)
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	if _, err := z.Write(make([]byte, 8<<20-1)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	message := append([]byte{1, 0, 0, 0, 0}, bomb.Bytes()...)
	binary.BigEndian.PutUint32(message[1:], uint32(bomb.Len()))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if _, err := api.Publish(ctx, &eventsv1.PublishRequest{Namespace: "demo", Topic: "orders", Event: ce("1")}, grpc.UseCompressor("gzip")); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "not taken compressed") {
		t.Errorf("an event in gzip: %v", err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const bombs = 20
	for _, method := range []string{eventsv1.EventService_Publish_FullMethodName, eventsv1.EventService_PublishStream_FullMethodName} {
		for range bombs {
			if got := call(t, conn.Target(), method, message, [2]string{"grpc-encoding", "gzip"}); got != "13" {
				t.Fatalf("a bomb: grpc-status %q", got)
			}
		}
	}
	if got := call(t, conn.Target(), eventsv1.EventService_Publish_FullMethodName, message, [2]string{"grpc-encoding", "zstd"}); got != "12" {
		t.Errorf("another encoding: grpc-status %q", got)
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<20 {
		t.Errorf("%d bombs of 8 MiB took %d MiB", 2*bombs, grown>>20)
	}
	if _, err := api.Publish(ctx, &eventsv1.PublishRequest{Namespace: "demo", Topic: "orders", Event: ce("1")}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestManyMessages: a request that would become fifty times its size in memory, in each
// call of a connection, is refused before it is decoded.
func TestManyMessages(t *testing.T) {
	_, conn := serve(t)
	for _, n := range []int{maxMessages, maxMessages + 1} { // field 4 of SettleRequest, nack, is a message
		err := conn.Invoke(t.Context(), eventsv1.EventService_Settle_FullMethodName, bytes.Repeat([]byte{0x22, 0}, n), new([]byte), grpc.ForceCodec(raw{}))
		if many := strings.Contains(status.Convert(err).Message(), "at most 10000 messages"); err == nil || many != (n > maxMessages) {
			t.Errorf("%d of them: %v", n, err)
		}
	}
}

// TestStrangers: whoever may not call hears so at once, and does not occupy a
// call by sending no message.
func TestStrangers(t *testing.T) {
	_, conn := serve(t)
	for _, method := range []string{eventsv1.EventService_Publish_FullMethodName, eventsv1.EventService_PublishBatch_FullMethodName, eventsv1.EventService_PublishStream_FullMethodName, eventsv1.EventService_Subscribe_FullMethodName} {
		if got := call(t, conn.Target(), method, nil, [2]string{"authorization", "Bearer nobody"}); got != "16" {
			t.Errorf("%s: grpc-status %q", method, got)
		}
	}
}

// call makes a call with data as they are, on a connection of its own, and gives
// its grpc-status. With headers of its own, and no data, the call does not end.
func call(t *testing.T, addr, method string, data []byte, header ...[2]string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(c, c)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var head bytes.Buffer
	enc := hpack.NewEncoder(&head)
	for _, h := range append([][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", method}, {":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"}}, header...) {
		_ = enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
	}
	_ = f.WriteSettings()
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head.Bytes(), EndHeaders: true})
	if header == nil || data != nil {
		_ = f.WriteData(1, true, data)
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return err.Error()
		}
		if m, ok := frame.(*http2.MetaHeadersFrame); ok {
			for _, h := range m.RegularFields() {
				if h.Name == "grpc-status" {
					return h.Value
				}
			}
		}
	}
}

// TestMessageBombs: what decoding a message takes is bounded, however small its parts
// are: events that are empty, ids, names and positions of nothing.
func TestMessageBombs(t *testing.T) {
	const limit = 8 << 20
	field := func(num protowire.Number, b []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), b)
	}
	for name, tc := range map[string]struct {
		b    []byte
		into func() any
	}{
		"empty events":      {bytes.Repeat(field(3, nil), limit/2), func() any { return newRequest() }},
		"events of nothing": {bytes.Repeat(field(3, field(1, nil)), limit/4), func() any { return newRequest() }},
		"attributes":        {field(3, bytes.Repeat(field(5, nil), limit/2-10)), func() any { return newRequest() }},
		"parts of an event": {bytes.Repeat(field(3, field(1, make([]byte, 8<<10))), limit/(8<<10)-8), func() any { return &publishRequest{single: true} }},
		"parts of a time":   {bytes.Repeat(field(4, make([]byte, 8<<10)), limit/(8<<10)-8), func() any { return newRequest() }},
		"unknown fields":    {bytes.Repeat(field(99, nil), limit/3), func() any { return newRequest() }},
		"topics":            {field(1, field(3, bytes.Repeat(field(1, nil), limit/2-10))), func() any { return &eventsv1.SubscribeRequest{} }},
		"ids":               {field(3, field(1, make([]byte, limit-20))), func() any { return &eventsv1.SubscribeRequest{} }},
		"groups":            {bytes.Repeat([]byte{0x9b, 0x06}, limit/2), func() any { return &eventsv1.SubscribeRequest{} }},
	} {
		c := codec{mem.NopBufferPool{}}
		n := fuzztest.Allocated(func() { _ = c.Unmarshal(mem.BufferSlice{mem.SliceBuffer(tc.b)}, tc.into()) })
		if n > 4*limit {
			t.Errorf("%s: %d MiB for %d", name, n>>20, len(tc.b))
		}
		t.Logf("%s: %d KiB", name, n>>10)
		_ = c.Unmarshal(mem.BufferSlice{mem.SliceBuffer(tc.b[:1<<20])}, tc.into())
	}
	small := field(3, field(1, make([]byte, 64<<10)))
	got := &eventsv1.SubscribeRequest{}
	if err := (codec{mem.NopBufferPool{}}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(small)}, got); err != nil || len(got.GetAck().GetIds()) != 64<<10 {
		t.Errorf("as many ids as there may be deliveries: %d, %v", len(got.GetAck().GetIds()), err)
	}
}
