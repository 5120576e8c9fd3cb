package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"
)

// restYAML is a binding by which calls become events of the topic orders.
const restYAML = `
apiVersion: weft/v1alpha1
kind: HttpBinding
metadata: {namespace: NS, name: api}
spec: {rules: [{method: POST, path: "/orders/{order}", topic: orders, attributes: {type: "{header.X-Type}", source: /shop, id: "{query.id}", subject: "{order}"}}]}
---`

// says sends bytes on a connection of HTTP and gives the status of the answer; 0 where
// the connection was closed without one. Where none comes it ends what it says: there may
// be more to come.
func (p *proxy) says(b []byte) int {
	p.m.Helper()
	c, err := net.Dial("tcp", p.http)
	p.m.must(err)
	defer c.Close()
	_, _ = c.Write(b) // whoever says nonsense may be cut off already
	in := bufio.NewReader(c)
	p.m.must(c.SetDeadline(time.Now().Add(200 * time.Millisecond)))
	if _, err := in.Peek(1); errors.Is(err, os.ErrDeadlineExceeded) {
		_ = c.(*net.TCPConn).CloseWrite()
	}
	p.m.must(c.SetDeadline(time.Now().Add(time.Minute)))
	resp, err := http.ReadResponse(in, nil)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		p.m.Fatalf("nobody answers, and nobody closes: %q", b)
	}
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// misread reports whether a status tells that the proxy failed, and not who asked: of
// HTTP 501 and 505 are of who asks, and 504 is of who has gone.
func misread(status int) bool {
	return status >= 500 && status != http.StatusNotImplemented && status != http.StatusHTTPVersionNotSupported && status != http.StatusGatewayTimeout
}

// calls are whole requests of HTTP by which an event is published.
func (m *mesh) calls(bearer string) map[string][]byte {
	head := "HTTP/1.1\r\nHost: localhost\r\nAuthorization: " + bearer + "\r\nContent-Type: text/plain\r\n"
	return map[string][]byte{
		"a call of a REST API": []byte("POST /rest/" + m.ns + "/orders/a%20b%2Dc?id=r-1&x=%C3%A9 " + head + "X-Type: order.placed\r\nContent-Length: 5\r\n\r\nhello"),
		"one in chunks":        []byte("POST /rest/" + m.ns + "/orders/7?id=r-2 " + head + "X-Type: order.placed\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
		"binary mode": []byte("POST /v1/" + m.ns + "/topics/orders " + head + "Ce-Specversion: 1.0\r\nCe-Id: b-1\r\nCe-Source: /shop\r\nCe-Type: order%20placed\r\n" +
			"Ce-Time: 2026-01-02T03:04:05Z\r\nCe-Subject: %E2%82%AC\r\nCe-Extra: x\r\nContent-Length: 5\r\n\r\nhello"),
	}
}

// stream publishes bytes over a publish stream of their own, and tells how many events
// of it were taken.
func (m *mesh) stream(ctx context.Context, conn *grpc.ClientConn, b []byte) (taken int, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	st, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, eventsv1.EventService_PublishStream_FullMethodName)
	if err != nil {
		return 0, err
	}
	if err := st.SendMsg(b); err == nil {
		_ = st.CloseSend()
	}
	for {
		resp := &eventsv1.PublishStreamResponse{}
		if err := st.RecvMsg(resp); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return taken, err
		}
		taken += int(resp.Count) - len(resp.Failed)
	}
}

// captures are what clients of many kinds once sent, as the fuzz targets of a frontend
// have them.
func (m *mesh) captures(frontend string) (all [][]byte) {
	m.Helper()
	files, err := filepath.Glob(filepath.Join("..", "..", "dataplane", "frontend", frontend, "testdata", "captures", "*"))
	m.must(err)
	for _, f := range files {
		if filepath.Base(f) == "README.md" {
			continue
		}
		b, err := os.ReadFile(f)
		m.must(err)
		all = append(all, b)
	}
	if len(all) < 5 {
		m.Fatalf("there are %d captures of %s", len(all), frontend)
	}
	return all
}

var (
	requestLine     = regexp.MustCompile(`^([A-Z]+) \S+ (.*?)\r?\n`)
	credentialsLine = regexp.MustCompile(`(?im)^Authorization:.*\n`)
)

// replayHTTP says what is captured of HTTP, as it is and bent, to this proxy.
func (p *proxy) replayHTTP(r *rand.Rand, bearer string, times int) {
	p.m.Helper()
	for _, b := range p.m.captures("http") {
		path := "/v1/" + p.m.ns + "/topics/batches"
		if bytes.HasPrefix(b, []byte("GET")) {
			path += "/events"
		}
		b = requestLine.ReplaceAll(credentialsLine.ReplaceAll(b, nil), []byte("$1 "+path+" $2\r\nAuthorization: "+bearer+"\r\n"))
		for i := range times {
			say := b
			if i > 0 {
				say = bend(r, b)
			}
			if bytes.HasPrefix(say, []byte("GET")) {
				say = append(bytes.Clone(say), "\r\n\r\n"...) // or it waits for the rest of the head
			}
			if s := p.says(say); misread(s) || i == 0 && s == 0 {
				p.m.Fatalf("it answers %d: %q", s, say)
			}
		}
	}
}

// replayGRPC sends what is captured of gRPC, as it is and bent, to every method that
// there is for clients.
func (p *proxy) replayGRPC(ctx context.Context, conn *grpc.ClientConn, r *rand.Rand, times int) {
	p.m.Helper()
	seeds := p.m.captures("grpc")
	for _, file := range []protoreflect.FileDescriptor{eventsv1.File_weft_events_v1alpha1_events_proto, eventsv1.File_weft_events_v1alpha1_deadletter_proto, eventsv1.File_weft_events_v1alpha1_inspect_proto} {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for k := range service.Methods().Len() {
				method := service.Methods().Get(k)
				for _, b := range seeds {
					b = p.m.ours(method, b)
					for n := range times {
						say := b
						if n > 0 {
							say = bend(r, b)
						}
						name := fmt.Sprintf("/%s/%s", service.FullName(), method.Name())
						err := call(ctx, conn, name, say)
						switch c := status.Code(err); {
						case c == codes.DeadlineExceeded && strings.HasSuffix(name, "/Request"): // nobody replies
						case c == codes.Unavailable || c == codes.Unknown || c == codes.DeadlineExceeded:
							p.m.Fatalf("%s: %v: %q", name, err, say)
						}
					}
				}
			}
		}
	}
}

// ours is a request as it was captured, of this namespace, where it is one of the method.
func (m *mesh) ours(method protoreflect.MethodDescriptor, b []byte) []byte {
	m.Helper()
	t, err := protoregistry.GlobalTypes.FindMessageByName(method.Input().FullName())
	m.must(err)
	req := t.New()
	if proto.Unmarshal(b, req.Interface()) != nil {
		return b
	}
	for field, value := range map[protoreflect.Name]string{"namespace": m.ns, "topic": "batches"} {
		if f := method.Input().Fields().ByName(field); f != nil && f.Kind() == protoreflect.StringKind {
			req.Set(f, protoreflect.ValueOfString(value))
		}
	}
	out, err := proto.Marshal(req.Interface())
	m.must(err)
	return out
}

// call sends one message and reads to the end.
func call(ctx context.Context, conn *grpc.ClientConn, method string, b []byte) error {
	limit := time.Minute
	if strings.HasSuffix(method, "/Request") {
		limit = 100 * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	st, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return err
	}
	_ = st.SendMsg(b)
	_ = st.CloseSend()
	for {
		if err := st.RecvMsg(&eventsv1.SubscribeResponse{}); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}
