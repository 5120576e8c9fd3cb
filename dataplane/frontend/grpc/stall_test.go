package grpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/listener"
)

// verbose replies at length.
type verbose struct {
	frontend.Mesh
	frontend.Requests
}

const verboseReply = 48 << 10 // for which there is no time beside Stall

func (verbose) Authenticate(context.Context, policy.Credentials) (*policy.Principal, error) {
	return &policy.Principal{Namespace: "demo", Name: "somebody"}, nil
}

func (verbose) Request(context.Context, *policy.Principal, string, string, event.Event, time.Duration) (event.Event, error) {
	return event.Event{ID: "1", Source: "/answer", Type: "answer", Data: make([]byte, verboseReply)}, nil
}

// TestStalledCall: the connection of a client that takes none of the answers to its calls
// is closed, and counted; who takes them is served.
func TestStalledCall(t *testing.T) {
	on, err := listener.Listen("127.0.0.1:0", 10)
	if err != nil {
		t.Fatal(err)
	}
	srv := New(Config{Mesh: verbose{}, Requests: verbose{}, Stall: 100 * time.Millisecond, DrainTime: time.Second, Log: slog.New(slog.DiscardHandler)})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ctx, on) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	conn, err := grpc.NewClient(on.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	request := &eventsv1.RequestRequest{Namespace: "demo", Topic: "orders", Event: ce("1")}
	ask := func() {
		t.Helper()
		got, err := eventsv1.NewEventServiceClient(conn).Request(t.Context(), request)
		if err != nil || len(got.GetEvent().GetBinaryData()) != verboseReply {
			t.Fatalf("who takes what there is: %d bytes, %v", len(got.GetEvent().GetBinaryData()), err)
		}
	}
	ask()

	c, err := net.Dial("tcp", on.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	body, err := proto.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	var head bytes.Buffer
	enc := hpack.NewEncoder(&head)
	fr := http2.NewFramer(c, nil)
	_, err = io.WriteString(c, http2.ClientPreface)
	err = errors.Join(err, fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
	for id := uint32(1); id < 20; id += 2 {
		head.Reset()
		for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":authority", "x"}, {":path", eventsv1.EventService_Request_FullMethodName}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
			err = errors.Join(err, enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
		}
		err = errors.Join(err, fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head.Bytes(), EndHeaders: true}),
			fr.WriteData(id, true, append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...))) //nolint:gosec // short
	}
	if err = errors.Join(err, c.SetReadDeadline(time.Now().Add(90*time.Second))); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("whoever takes nothing is waited for")
	}
	for limit := time.Now().Add(time.Minute); on.Stalled() == 0 && time.Now().Before(limit); { // it counts once it has closed
		runtime.Gosched()
	}
	ask()
	if n := on.Stalled(); n != 1 {
		t.Errorf("%d connections were closed since they took nothing", n)
	}
}
