package push

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/snapshot"
)

// resolver answers every name with the address that answer gives at its nth look-up.
func resolver(answer func(n int) [4]byte) *net.Resolver {
	var looked atomic.Int32
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			var size [2]byte
			if _, err := io.ReadFull(theirs, size[:]); err != nil {
				return
			}
			b := make([]byte, binary.BigEndian.Uint16(size[:]))
			var m dnsmessage.Message
			if _, err := io.ReadFull(theirs, b); err != nil || m.Unpack(b) != nil {
				return
			}
			m.Response, m.Additionals = true, nil
			if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
				m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}, Body: &dnsmessage.AResource{A: answer(int(looked.Add(1)))}}}
			}
			b, err := m.AppendPack(make([]byte, 2))
			if err != nil {
				return
			}
			binary.BigEndian.PutUint16(b, uint16(len(b)-2)) //nolint:gosec // a few hundred bytes
			_, _ = theirs.Write(b)
		}()
		return ours, nil
	}}
}

// at serves at an address of loopback and counts what comes.
func at(t *testing.T, addr string, h http.HandlerFunc) (port string, came *atomic.Int32) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	came = &atomic.Int32{}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		came.Add(1)
		if h != nil {
			h(w, r)
		}
	}), ReadHeaderTimeout: time.Minute}}
	s.Start()
	t.Cleanup(s.Close)
	_, port, err = net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port, came
}

// send posts an event to a URL.
func send(t *testing.T, c *client, url string) answer {
	t.Helper()
	a, _ := c.post(t.Context(), &snapshot.Push{URL: url, Timeout: 10 * time.Second}, nil, snapshot.Key{Namespace: "demo", Name: "s"}, &delivery.Delivery{Attempt: 1, Event: ev("1")})
	return a
}

// TestSpellings: however an address that is not public is spelled, nothing comes
// there: names and numbers are judged by what is connected to.
func TestSpellings(t *testing.T) {
	port, came := at(t, "127.0.0.1:0", nil)
	c := newClient(&Config{resolver: resolver(func(int) [4]byte { return [4]byte{127, 0, 0, 1} })}, "demo")
	defer c.close()
	for _, host := range []string{"127.0.0.1", "127.1.2.3", "[::1]", "0.0.0.0", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]", "[::127.0.0.1]",
		"localhost", "localhost.", "LOCALHOST", "127.0.0.1.nip.example", "any.example",
		"2130706433", "017700000001", "0x7f000001", "0177.0.0.1", "0x7f.0.0.1", "127.1", "127.0.1", "0", "127.0.0.1.", "①②⑦.0.0.1", "127。0。0。1",
		"169.254.169.254", "[fd00:ec2::254]", "[::ffff:169.254.169.254]", "2852039166", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "100.100.100.200", "168.63.129.16",
		"[64:ff9b::7f00:1]", "[64:ff9b::127.0.0.1]", "[64:ff9b:1::1]", "[2002:7f00:1::]", "[2002:a9fe:a9fe::1]", "[2001:0:7f00:1::]", "[fe80::1]", "[fec0::1]", "[ff02::1]", "224.0.0.1", "255.255.255.255", "198.18.0.1"} {
		a := send(t, c, "http://"+host+":"+port+"/")
		if a.outcome != Forbidden && (a.outcome != Failed || strings.HasPrefix(host, "[")) {
			t.Errorf("%s: %+v", host, a)
		}
	}
	for _, url := range []string{"gopher://127.0.0.1:" + port, "unix:///var/run/x", "file:///etc/passwd", "http://good.example@127.0.0.1:" + port, "http://127.0.0.1:" + port + "#@good.example"} {
		if a := send(t, c, url); a.outcome == outcomeOK {
			t.Errorf("%s: %+v", url, a)
		}
	}
	if n := came.Load(); n != 0 {
		t.Errorf("%d requests came", n)
	}
}

// TestRebinding: a name that means something else at the next look-up is judged anew,
// a redirect leads nowhere, and the environment names no proxy.
func TestRebinding(t *testing.T) {
	port, inside := at(t, "127.0.0.1:0", nil)
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:"+port)
	var redirect string
	_, outside := at(t, "127.0.0.2:"+port, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/redirect" {
			http.Redirect(w, r, redirect, http.StatusTemporaryRedirect)
		}
	})
	redirect = "http://127.0.0.1:" + port + "/"
	c := newClient(&Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}, resolver: resolver(func(n int) [4]byte {
		if n == 1 {
			return [4]byte{127, 0, 0, 2}
		}
		return [4]byte{127, 0, 0, 1}
	})}, "demo")
	defer c.close()
	if a := send(t, c, "http://good.example:"+port+"/"); a.outcome != outcomeOK {
		t.Errorf("the first look-up: %+v", a)
	}
	c.transport.CloseIdleConnections()
	if a := send(t, c, "http://good.example:"+port+"/"); a.outcome != Forbidden {
		t.Errorf("the second look-up: %+v", a)
	}
	if a := send(t, c, "http://127.0.0.2:"+port+"/redirect"); a.outcome != Refused {
		t.Errorf("a redirect: %+v", a)
	}
	if in, out := inside.Load(), outside.Load(); in != 0 || out != 2 {
		t.Errorf("%d requests inside, %d outside", in, out)
	}
}
