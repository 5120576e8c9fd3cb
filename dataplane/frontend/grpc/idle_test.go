package grpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
)

// deep takes much of the stack where a stream begins, as real meshes may.
type deep struct{ frontend.Mesh }

func (m deep) Authenticate(ctx context.Context, c policy.Credentials) (*policy.Principal, error) {
	down(16)
	return m.Mesh.Authenticate(ctx, c)
}

func (m deep) Tail(ctx context.Context, who *policy.Principal, r delivery.TailRequest) (delivery.Tail, error) {
	down(16)
	return m.Mesh.Tail(ctx, who, r)
}

// down takes n KiB of the stack.
//
//go:noinline
func down(n int) byte {
	var room [1024]byte
	if n > 0 {
		room[n] = down(n - 1)
	}
	return room[n]
}

// TestIdle: a stream that waits for events, alone on its connection, has four goroutines,
// of which three are the connection's, with small stacks whatever was deep when it began,
// and little of the heap.
func TestIdle(t *testing.T) {
	_, conn := serve(t, func(m frontend.Mesh) frontend.Mesh { return deep{m} })
	const (
		warm, streams = 100, 500
		others        = 20 // goroutines, of the store and so on
		heap          = 14 << 10
	)
	stacks := 20 << 10
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		stacks = 40 << 10 // frames are larger
	}
	goroutines := runtime.NumGoroutine()
	opened := 0
	open := func(n int) (m runtime.MemStats) {
		for range n {
			waits(t, conn.Target())
		}
		opened += n
		limit := time.Now().Add(10 * time.Second) // clients that answer no pings are not there for long
		for runtime.NumGoroutine() > goroutines+4*opened+others && time.Now().Before(limit) {
			runtime.Gosched()
		}
		if n := runtime.NumGoroutine() - goroutines; n < 4*opened || n > 4*opened+others {
			t.Fatalf("%d goroutines for %d streams", n, opened)
		}
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m
	}
	before := open(warm)
	after := open(streams)
	each := func(before, after uint64) int { return (int(after) - int(before)) / streams } //nolint:gosec // sizes of memory
	onHeap, onStacks := each(before.HeapAlloc, after.HeapAlloc), each(before.StackInuse, after.StackInuse)
	t.Logf("a stream has %d bytes of the heap and %d of stacks", onHeap, onStacks)
	if onHeap > heap {
		t.Errorf("%d bytes of the heap for a stream, at most %d are right", onHeap, heap)
	}
	if onStacks > stacks {
		t.Errorf("%d bytes of stacks for a stream, at most %d are right", onStacks, stacks)
	}
}

// waits opens a connection with a tail that waits, by hand: it is the server's memory
// that counts.
func waits(t *testing.T, addr string) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	body, err := proto.Marshal(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Open{Open: &eventsv1.SubscribeOpen{
		Namespace: "demo", Credit: 16, Source: &eventsv1.SubscribeOpen_Tail{Tail: &eventsv1.Tail{Topics: []string{"orders"}}}}}})
	var head, all bytes.Buffer
	enc, fr := hpack.NewEncoder(&head), http2.NewFramer(&all, c)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":authority", "x"}, {":path", eventsv1.EventService_Subscribe_FullMethodName}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		err = errors.Join(err, enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
	}
	_, _ = io.WriteString(&all, http2.ClientPreface)
	err = errors.Join(err, fr.WriteSettings(), fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head.Bytes(), EndHeaders: true}),
		fr.WriteData(1, false, append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...))) //nolint:gosec // short
	if _, werr := c.Write(all.Bytes()); err != nil || werr != nil {
		t.Fatal(errors.Join(err, werr))
	}
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if f.Header().Type == http2.FrameData {
			return // it is open
		}
	}
}
