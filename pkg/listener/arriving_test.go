package listener

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"math/rand/v2"
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
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// caller is a call of the model: what it has yet to send, and how its message stands.
type caller struct {
	send        []byte
	have, left  int // of the message: bytes of its head, and of the rest once that is there
	held        int64
	any         bool // message was whole
	long, reset bool
}

const longestInTest = 5000

// sent is told of a frame with data, of size bytes with its padding.
func (c *caller) sent(data []byte, size int) {
	whole := c.have == 0
	for _, b := range data {
		if c.long {
			break
		}
		if c.have < messageHead {
			c.left = c.left<<8 | int(b) // the flag is 0
			c.have++
		} else {
			c.left--
		}
		if c.have < messageHead {
			continue
		}
		c.long = c.left > longestInTest
		if c.left == 0 || c.long {
			c.have, c.left, c.any, whole = 0, 0, true, true
		}
	}
	switch {
	case c.have == 0 || c.long:
		c.held = 0
	case whole:
		c.held = frameCost(size)
	default:
		c.held += frameCost(size)
	}
}

// nowhere is a connection that leads nowhere.
type nowhere struct{ net.Conn }

func (nowhere) Close() error { return nil }

// follow is a connection that is followed, and what bounds it.
func follow(most int64) (*followed, *arriving) {
	a := &arriving{most: most, longest: longestInTest, calls: 1000}
	f := &followed{Conn: nowhere{}, in: calls{splitter: splitter{preface: clientPreface}, arriving: a, from: &conn{}}}
	f.reset = f.ended
	return f, a
}

// TestArrivingModel: however clients send frames, messages, padding, ends and resets, and
// however the bytes are cut, what is counted is what the messages that are not whole take.
func TestArrivingModel(t *testing.T) {
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // not secret
		f, a := follow(1 << 40)
		var out bytes.Buffer
		fr := http2.NewFramer(&out, nil)
		cut := func(p []byte, take func([]byte)) {
			for len(p) > 0 {
				n := 1 + r.IntN(len(p))
				take(p[:n])
				p = p[n:]
			}
		}
		out.WriteString(http2.ClientPreface)
		open := map[uint32]*caller{}
		var last uint32
		check := func(what string) {
			t.Helper()
			cut(out.Bytes(), f.take)
			out.Reset()
			var want int64
			for _, c := range open {
				if c.reset {
					continue
				}
				if want += c.held; !c.any {
					want += callCost
				}
			}
			if got := a.held(); got != want {
				t.Fatalf("seed %d: after %s %d bytes are held, and %d are expected", seed, what, got, want)
			}
		}
		for range 300 {
			ids := make([]uint32, 0, len(open))
			for id := range open {
				ids = append(ids, id)
			}
			slices.Sort(ids)
			if len(ids) == 0 || r.IntN(8) == 0 {
				last += 2
				if last == 2 {
					last = 1
				}
				end := r.IntN(10) == 0
				_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: last, BlockFragment: make([]byte, r.IntN(50)), EndHeaders: true, EndStream: end})
				if !end {
					open[last] = &caller{}
				}
				check("a call")
				continue
			}
			id := ids[r.IntN(len(ids))]
			c := open[id]
			switch r.IntN(20) {
			case 0:
				_ = fr.WriteRSTStream(id, http2.ErrCodeCancel)
				delete(open, id)
				check("a reset")
			case 1:
				_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, EndStream: true})
				delete(open, id)
				check("trailers")
			case 2:
				_ = fr.WritePing(false, [8]byte{1})
				_ = fr.WriteWindowUpdate(0, 100)
				_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 16})
				check("other frames")
			case 3:
				// The server ends it; what its client sends meanwhile is nobody's.
				var said bytes.Buffer
				back := http2.NewFramer(&said, nil)
				_ = back.WritePing(true, [8]byte{2})
				_ = back.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: make([]byte, 20), EndHeaders: true, EndStream: true})
				_ = back.WriteRSTStream(id, http2.ErrCodeNo)
				_ = back.WriteData(id+2, false, make([]byte, r.IntN(100)))
				cut(said.Bytes(), func(p []byte) { f.said.resets(p, f.reset) })
				c.reset = true
				check("the server's end")
			default:
				for len(c.send) == 0 {
					n := r.IntN(1 + r.IntN(3000))
					if r.IntN(50) == 0 {
						n = longestInTest + 1
					}
					c.send = append(binary.BigEndian.AppendUint32([]byte{0}, uint32(n)), make([]byte, n)...) //nolint:gosec // small
					if r.IntN(2) == 0 {
						c.send = append(c.send, c.send...)
					}
				}
				n := 1 + r.IntN(len(c.send))
				if r.IntN(3) == 0 {
					n = min(n, 3)
				}
				data, end := c.send[:n], r.IntN(20) == 0
				c.send = c.send[n:]
				size := n
				if r.IntN(4) == 0 {
					pad := make([]byte, r.IntN(30))
					size += 1 + len(pad)
					_ = fr.WriteDataPadded(id, end, data, pad)
				} else {
					_ = fr.WriteData(id, end, data)
				}
				if c.sent(data, size); end {
					delete(open, id)
				}
				check("data")
			}
		}
		_ = f.Close()
		f.take([]byte("what comes after the end"))
		if n := a.held(); n != 0 || len(f.in.open) != 0 || a.first != nil || a.last != nil {
			t.Fatalf("seed %d: %d bytes of %d calls are held when the connection has ended", seed, n, len(f.in.open))
		}
	}
}

// TestArrivingLongFrame: a frame that says to be longer than it may counts as the longest
// that there may be: who lies does not have others cut off.
func TestArrivingLongFrame(t *testing.T) {
	f, a := follow(1 << 40)
	var out bytes.Buffer
	out.WriteString(http2.ClientPreface)
	_ = http2.NewFramer(&out, nil).WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true})
	out.Write([]byte{0xff, 0xff, 0xff, frameData, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0})
	f.take(out.Bytes())
	if got := a.held(); got != callCost+frameCost(longestFrame) {
		t.Errorf("%d bytes are held", got)
	}
}

// FuzzFrames: nothing that a client sends, however it is cut, is counted as less than
// nothing, or stays when its connection has ended.
func FuzzFrames(f *testing.F) {
	var out bytes.Buffer
	fr := http2.NewFramer(&out, nil)
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("x"), EndHeaders: true})
	_ = fr.WriteDataPadded(1, false, []byte{0, 0, 0, 0, 1, 'x', 0, 0, 0}, make([]byte, 3))
	_ = fr.WriteData(1, false, []byte{0, 9, 'x'})
	f.Add(out.Bytes(), uint8(7))
	_ = fr.WriteData(1, false, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 'x'})
	_ = fr.WriteRSTStream(1, http2.ErrCodeCancel)
	f.Add(out.Bytes(), uint8(1))
	for _, id := range []uint32{9, 3, 5, 3, 7} {
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true})
	}
	_ = fr.WriteData(7, false, []byte{0, 0, 0, 1, 0, 'x'})
	_ = fr.WriteRSTStream(5, http2.ErrCodeCancel)
	_ = fr.WriteData(9, true, nil)
	f.Add(out.Bytes(), uint8(20))
	f.Fuzz(func(t *testing.T, p []byte, cut uint8) {
		whole, all := follow(1 << 40)
		whole.in.preface, all.calls = 0, 2
		whole.in.take(p)
		parts, some := follow(1 << 40)
		parts.in.preface, some.calls = 0, 2
		for part := range slices.Chunk(p, int(cut)+1) {
			parts.in.take(part)
			if some.held() < 0 {
				t.Fatal("less than nothing is held")
			}
		}
		if all.held() != some.held() {
			t.Fatalf("%d bytes are held of the whole and %d of its parts", all.held(), some.held())
		}
		whole.said.resets(p, whole.reset)
		whole.in.close()
		parts.in.close()
		if all.held() != 0 || some.held() != 0 {
			t.Fatalf("%d and %d bytes are held at the end", all.held(), some.held())
		}
	})
}

// begins says the first size bytes of a message of 1 MiB, of a new call.
func (a *attacker) begins(size int) error {
	if err := a.open(false); err != nil {
		return err
	}
	for part := range slices.Chunk(append([]byte{0, 0, 0x10, 0, 0}, make([]byte, size)...), 16<<10) {
		if err := a.WriteData(a.id, false, part); err != nil {
			return err
		}
	}
	return nil
}

// heard waits until the server has read all that was said, and reports whether it did.
func (a *attacker) heard() bool {
	if a.WriteSettings() != nil {
		return false
	}
	for a.asked++; a.asked > 0; {
		frame, err := a.ReadFrame()
		if err != nil {
			return false
		}
		if s, ok := frame.(*http2.SettingsFrame); ok && s.IsAck() {
			a.asked--
		}
	}
	return true
}

const checkPath = "/grpc.health.v1.Health/Check"

// TestArriving: where messages that are not whole take too much, the connection of the one
// that began first is closed, and counted; one that is sent in time arrives, however long
// others have begun before. With TLS and without.
func TestArriving(t *testing.T) {
	config, skip := selfSigned(t)
	for name, client := range map[string]*tls.Config{"plain": nil, "TLS": skip} {
		t.Run(name, func(t *testing.T) {
			limits, creds := GRPCLimits{Streams: 1000, Message: 1 << 20, Arriving: 1 /* twice Message is the least */}, insecure.NewCredentials()
			if client != nil {
				limits.TLS, creds = config, credentials.NewTLS(client)
			}
			on := serveGRPC(t, limits)
			conn, err := grpc.NewClient(on.Addr().String(), grpc.WithTransportCredentials(creds))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			ask := func() {
				t.Helper()
				long := &grpc_health_v1.HealthCheckRequest{Service: strings.Repeat("x", 1<<20-100)}
				if _, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), long); status.Code(err) != codes.NotFound {
					t.Fatalf("who sends in time: %v", err)
				}
			}
			ask()
			begin := func() *attacker {
				p := dial(t, on.Addr())
				if client != nil {
					p.Conn = tls.Client(p.Conn, client)
				}
				p.say(http2.ClientPreface)
				a := newAttacker(p, checkPath)
				if !a.heard() {
					t.Fatal("it is closed")
				}
				return a
			}
			first, second := begin(), begin()
			if err := first.begins(60 << 10); err != nil || !first.heard() {
				t.Fatal("it is closed: ", err)
			}
			took := 0
			for ; on.Unfinished() == 0; took++ {
				if took > 2<<20/frameHeld {
					t.Fatal("more is on its way than may be")
				}
				if err := second.begins(frameHeld); err != nil || !second.heard() {
					t.Fatal("it is closed: ", err)
				}
			}
			if first.heard() || took < (2<<20-100<<10)/(16<<10+callCost)-1 {
				t.Errorf("another connection was closed, or after %d frames", took)
			}
			ask()
			if second.heard() || on.Unfinished() != 2 {
				t.Errorf("%d connections were closed, and not who began first", on.Unfinished())
			}
			ask()
		})
	}
}

// frameHeld is the data of a frame that takes 16 KiB.
const frameHeld = 16<<10 - messageHead

// TestArrivingRefused: of calls that the server ends before their client does, nothing is
// counted, though the client goes on and never says that it ends them.
func TestArrivingRefused(t *testing.T) {
	on := serveGRPC(t, GRPCLimits{Streams: 1000, Message: 1 << 20, Arriving: 1})
	p := dial(t, on.Addr())
	p.say(http2.ClientPreface)
	a := newAttacker(p, "/nobody/Knows")
	if !a.heard() {
		t.Fatal("it is closed")
	}
	for i := range 300 { // twice what may be held
		if err := a.begins(2000); err != nil || !a.heard() {
			t.Fatalf("the connection was closed after %d calls: %v", i, err)
		}
		if err := a.WriteData(a.id, false, make([]byte, 2000)); err != nil {
			t.Fatal(err)
		}
	}
	if !a.heard() || on.Unfinished() != 0 {
		t.Error("the connection was closed")
	}
}

// TestArrivingBeyond: of calls beyond as many as there may be, those count that others make
// room for, and what is remembered of those that have ended is bounded.
func TestArrivingBeyond(t *testing.T) {
	f, a := follow(1 << 40)
	a.calls = 2
	f.in.preface = 0
	var out bytes.Buffer
	fr := http2.NewFramer(&out, nil)
	open := func(id uint32) {
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true})
	}
	held := func(what string, want int64) {
		t.Helper()
		f.take(out.Bytes())
		out.Reset()
		if got := a.held(); got != want {
			t.Errorf("%s: %d bytes are held, and %d are expected", what, got, want)
		}
	}
	for id := range uint32(4) {
		open(2*id + 1)
	}
	held("twice as many as there may be", 2*callCost)
	_ = fr.WriteData(7, false, []byte{0})
	held("data of one that waits", 2*callCost+frameCost(1))
	f.ended(3)
	_ = fr.WriteRSTStream(5, http2.ErrCodeCancel)
	held("another one and one that waits have ended", 2*callCost+frameCost(1))
	for id := uint32(9); id < 9+2*floods; id += 2 {
		open(id)
		held("one more", 2*callCost+frameCost(1))
		f.ended(id)
	}
	if n := cap(f.in.waiting); n > 100 {
		t.Errorf("%d calls are remembered, of %d", n, len(f.in.open))
	}
	f.ended(1)
	f.ended(7)
	held("all have ended", 0)
}

// unfinished waits until so many connections count as closed, as they do once they are.
func unfinished(t *testing.T, on *Listener, n int64) {
	t.Helper()
	for limit := time.Now().Add(time.Minute); on.Unfinished() != n; runtime.Gosched() {
		if time.Now().After(limit) {
			t.Fatalf("%d connections count as closed, and not %d", on.Unfinished(), n)
		}
	}
}

// TestArrivingUnseen: a call that the server takes is counted, also where its client has
// first sent what is refused: as many calls as there may be, whose refusals are still to be
// written, or one whose number is higher than that of all others.
func TestArrivingUnseen(t *testing.T) {
	const calls = 100
	refused := func(a *attacker, id uint32, f hpack.HeaderField) error {
		return a.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: a.head(f), EndHeaders: true})
	}
	for name, first := range map[string]func(a *attacker) error{
		"as many": func(a *attacker) error {
			for range calls {
				a.id += 2
				if err := refused(a, a.id, hpack.HeaderField{Name: "grpc-timeout", Value: "x"}); err != nil {
					return err
				}
			}
			return nil
		},
		"a high number": func(a *attacker) error {
			return refused(a, 1<<31-1, hpack.HeaderField{Name: "No-Name", Value: "x"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			on := serveGRPC(t, GRPCLimits{Streams: calls, Message: 1 << 20, Arriving: 1 /* twice Message is the least */})
			p := dial(t, on.Addr())
			p.say(http2.ClientPreface)
			a := newAttacker(p, checkPath)
			if !a.heard() {
				t.Fatal("it is closed")
			}
			// In one piece, so that it is read before anything of it is answered.
			var piece bytes.Buffer
			a.Framer = http2.NewFramer(&piece, p)
			if err := first(a); err != nil {
				t.Fatal(err)
			}
			var ids []uint32
			for range calls {
				if err := a.open(false); err != nil {
					t.Fatal(err)
				}
				ids = append(ids, a.id)
			}
			p.say(piece.String())
			a.Framer = http2.NewFramer(p, p)
			if !a.heard() {
				t.Fatal("it is closed")
			}
			for took, id := range ids {
				_ = a.WriteData(id, false, append([]byte{0, 0, 0x10, 0, 0}, make([]byte, frameHeld)...))
				_ = a.WriteData(id, false, make([]byte, frameHeld))
				if !a.heard() {
					t.Logf("it was closed after %d calls", took)
					unfinished(t, on, 1)
					return
				}
			}
			t.Error("more is on its way than may be")
		})
	}
}

// TestArrivingUnended: the message of a call whose client sends one only counts until the
// client has ended the call, with one answer and with many; what counted of a connection
// that has ended counts no more.
func TestArrivingUnended(t *testing.T) {
	message, err := proto.Marshal(&grpc_health_v1.HealthCheckRequest{Service: strings.Repeat("x", 12<<10)})
	if err != nil {
		t.Fatal(err)
	}
	message = append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...) //nolint:gosec // small
	for name, path := range map[string]string{"one answer": checkPath, "many": "/grpc.health.v1.Health/Watch"} {
		t.Run(name, func(t *testing.T) {
			on := serveGRPC(t, GRPCLimits{Streams: 1000, Message: 1 << 20, Arriving: 1 /* twice Message is the least */})
			const most = 2 << 20 / (24 << 10)
			for cut := range int64(2) {
				p := dial(t, on.Addr())
				p.say(http2.ClientPreface)
				a := newAttacker(p, path)
				if !a.heard() {
					t.Fatal("it is closed")
				}
				call := func(end bool) bool {
					t.Helper()
					if err := a.open(false); err != nil {
						return false
					}
					return a.WriteData(a.id, end, message) == nil && a.heard()
				}
				for range 2 * most {
					if path == checkPath && !call(true) {
						t.Fatal("what is ended counts")
					}
				}
				took := 0
				for ; call(false); took++ {
					if took > 3*most {
						t.Fatal("more is held than may be")
					}
				}
				if took < most-2 {
					t.Errorf("it was closed after %d calls", took)
				}
				unfinished(t, on, cut+1)
			}
		})
	}
}
