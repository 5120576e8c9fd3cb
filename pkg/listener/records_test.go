package listener

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
)

// TestSecuredReady: over TLS everything arrives, however records are cut and come together
// and however much is read at once; who waits holds no buffer, neither for what it reads
// nor beneath TLS.
func TestSecuredReady(t *testing.T) {
	config, skip := selfSigned(t)
	config.NextProtos = skip.NextProtos
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, size := range []int{1, 7, 1000, 1 << 14, 64 << 10} {
			if !t.Run(fmt.Sprint(tls.VersionName(version), "/", size), func(t *testing.T) {
				l, err := Listen("127.0.0.1:0", 1)
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				p := dial(t, l.Addr())
				raw, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer raw.Close()
				below, above := &counted{}, &counted{}
				creds := following{credentials.NewTLS(config), true, &arriving{most: 1 << 40, longest: 1 << 20, calls: 10}, below}
				client := skip.Clone()
				client.MinVersion, client.MaxVersion, client.DynamicRecordSizingDisabled = version, version, true
				var said burst
				c := tls.Client(&said, client)
				said.Conn = p.Conn
				shaken := make(chan error, 1)
				go func() { shaken <- c.Handshake() }()
				out, _, err := creds.ServerHandshake(raw)
				if err = errors.Join(err, <-shaken); err != nil {
					t.Fatal(err)
				}
				s := out.(*securedReady)
				if err := raw.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
					t.Fatal(err)
				}
				r := rand.New(rand.NewPCG(uint64(size), uint64(version))) //nolint:gosec // not secret
				const turns = 30
				for turn := range turns {
					want := make([]byte, 0, 100<<10)
					said.hold = true
					for range 1 + r.IntN(5) {
						part := bytes.Repeat([]byte{byte(turn)}, 1+r.IntN(1+r.IntN(20_000/(1+100/size))))
						if turn == turns-1 {
							part = part[:1] // so that a read of more ends with it
						}
						want = append(want, part...)
						if _, err := c.Write(part); err != nil {
							t.Fatal(err)
						}
					}
					// What TLS said comes in pieces that are no records.
					pieces := slices.Chunk(bytes.Clone(said.kept.Bytes()), 1+r.IntN(len(want)))
					said.kept.Reset()
					said.hold = false
					go func() {
						for piece := range pieces {
							_, _ = p.Write(piece)
						}
					}()
					var got []byte
					for len(got) < len(want) {
						buf, n, err := s.ReadOnReady(size, above)
						if err != nil {
							t.Fatalf("turn %d, after %d of %d bytes: %v", turn, len(got), len(want), err)
						}
						got = append(got, (*buf)[:n]...)
						above.Put(buf)
					}
					if !bytes.Equal(got, want) {
						t.Fatalf("turn %d: something else came", turn)
					}
				}
				tried := below.got.Load()
				go func() { // it looks, and waits without a buffer
					for below.got.Load() == tried || below.lent.Load() > 0 {
					}
					if n := above.lent.Load(); n > 0 && size > 1 { // of which it may be that a record has more
						t.Errorf("who waits holds %d buffers", n)
					}
					_ = c.Close()
				}()
				if buf, n, err := s.ReadOnReady(size, above); buf != nil || n != 0 || !errors.Is(err, io.EOF) || above.lent.Load() != 0 || below.lent.Load() != 0 {
					t.Fatalf("at its end: %d, %v, %d and %d buffers are lent", n, err, above.lent.Load(), below.lent.Load())
				}
			}) {
				return // each that hangs takes long
			}
		}
	}
}

// burst is a connection that can keep what is written.
type burst struct {
	net.Conn
	hold bool
	kept bytes.Buffer
}

func (b *burst) Write(p []byte) (int, error) {
	if b.hold {
		return b.kept.Write(p)
	}
	return b.Conn.Write(p)
}
