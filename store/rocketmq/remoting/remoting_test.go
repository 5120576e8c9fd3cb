package remoting

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/pkg/fuzztest"
)

func frame(header string, body string) []byte {
	return append(append(binary.BigEndian.AppendUint32(nil, uint32(len(header))), header...), body...) //nolint:gosec // small
}

// TestLooseFields: numbers among the fields are what they are.
func TestLooseFields(t *testing.T) {
	c, err := Decode(frame(`{"code":0,"opaque":7,"flag":1,"extFields":{"queueOffset":123456789012,"msgId":"x","none":null,"yes":true}}`, "body"))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := c.Int("queueOffset"); err != nil || n != 123456789012 {
		t.Errorf("the offset is %d, %v", n, err)
	}
	if c.Opaque != 7 || c.ExtFields["msgId"] != "x" || c.ExtFields["yes"] != "true" || string(c.Body) != "body" {
		t.Errorf("%+v", c)
	}
	for _, bad := range []string{"", "1x", "0x10", "1.5", "1e3", " 1"} {
		c.ExtFields["n"] = bad
		if n, err := c.Int("n"); err == nil {
			t.Errorf("%q is %d", bad, n)
		}
	}
}

// TestSilence: a connection whose server is silent counts as lost once calls have
// timed out for long enough, and not while anything comes.
func TestSilence(t *testing.T) {
	for name, tc := range map[string]struct {
		timeouts []time.Duration
		pause    time.Duration // between calls
		says     int           // the server sends something during this call; -1 never
		lost     bool
	}{
		"one long call":         {[]time.Duration{10 * time.Second}, 0, -1, true},
		"short ones":            {[]time.Duration{5 * time.Second, 5 * time.Second}, 0, -1, true},
		"one short call":        {[]time.Duration{5 * time.Second}, time.Minute, -1, false},
		"something came":        {[]time.Duration{5 * time.Second, 6 * time.Second, 5 * time.Second}, 0, 1, false},
		"something came of one": {[]time.Duration{20 * time.Second}, 0, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := net.Pipe()
				c := NewConn(ours, nil)
				go func() { _, _ = io.Copy(io.Discard, theirs) }()
				for i, d := range tc.timeouts {
					ctx, cancel := context.WithTimeout(t.Context(), d)
					if i == tc.says {
						go func() {
							<-time.After(d / 2)
							notice, err := (&Command{Code: 40}).Append(nil)
							if err != nil {
								t.Error(err)
							}
							_, _ = theirs.Write(notice)
						}()
					}
					if _, err := c.Call(ctx, 10, nil, nil); !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("call %d: %v", i, err)
					}
					cancel()
					<-time.After(tc.pause)
				}
				synctest.Wait()
				lost := false
				select {
				case <-c.Done():
					lost = true
				default:
				}
				if lost != tc.lost {
					t.Errorf("lost: %v", lost)
				}
				c.Close()
				_ = theirs.Close()
			})
		})
	}
}

// FuzzDecode: a frame is refused, or comes back from what is sent for it, and
// costs memory in proportion to its length.
func FuzzDecode(f *testing.F) {
	fuzztest.Seeds(f, "[a-z]*")
	f.Add(frame(`{"code":0,"extFields":{"a":1,"b":null,"c":1e400}}`, ""))
	f.Add([]byte{0, 0xff, 0xff, 0xff})
	f.Add([]byte{1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var c *Command
		var err error
		if n := fuzztest.Allocated(func() { c, err = Decode(b) }); n > 256*uint64(len(b))+256<<10 {
			t.Errorf("%d bytes for %d", n, len(b))
		}
		if err != nil {
			return
		}
		out, err := c.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode(out[4:])
		if err != nil || !bytes.Equal(again.Body, c.Body) || again.Code != c.Code || again.Opaque != c.Opaque || len(c.ExtFields) > 0 && !reflect.DeepEqual(again.ExtFields, c.ExtFields) {
			t.Errorf("%+v became %+v, %v", c, again, err)
		}
	})
}

// FuzzStream: a server that sends anything, cut anywhere, ends the reading, and
// a length without its bytes costs nothing.
func FuzzStream(f *testing.F) {
	one, err := (&Command{Code: 1, Flag: flagResponse, Body: []byte("x")}).Append(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(bytes.Clone(one), one...))
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &Conn{pending: map[int32]chan *Command{}}
		n := fuzztest.Allocated(func() { err = c.readAll(bytes.NewReader(b)) })
		if err == nil || n > 256*uint64(len(b))+4<<20 {
			t.Errorf("%d bytes for %d, %v", n, len(b), err)
		}
	})
}
