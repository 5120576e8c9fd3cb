package http

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// smuggled is a request that would be one more event, if what hides it were read
// as something else.
const smuggled = "POST " + orders + " HTTP/1.1\r\nHost: localhost\r\nce-specversion: 1.0\r\nce-id: smuggled\r\nce-source: /s\r\nce-type: t\r\nContent-Length: 0\r\n\r\n"

// TestDesync: where a request ends is what RFC 9112 says (an encoding wins over a
// length), and nothing else: where it says that the message is wrong, that ends the
// connection, so that nobody's request is read as another's. What comes after each
// is a request for nothing, which is the last 404 where the connection lives.
func TestDesync(t *testing.T) {
	w := serve(t)
	const head = "POST " + orders + " HTTP/1.1\r\nHost: localhost\r\nce-specversion: 1.0\r\nce-id: outer\r\nce-source: /s\r\nce-type: t\r\n"
	for name, tc := range map[string]struct {
		raw  string
		want []int // the answers, then the connection ends
	}{
		"both lengths":                {head + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", []int{200, 404}},
		"both, the other way":         {head + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", []int{200, 404}},
		"an encoding that is none":    {head + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + smuggled, []int{501}},
		"an encoding twice":           {head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + smuggled, []int{501}},
		"two encodings":               {head + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + smuggled, []int{501}},
		"an encoding on two lines":    {head + "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", []int{200, 404}},
		"an encoding after a tab":     {head + "Transfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n", []int{200, 404}},
		"a space before the colon":    {head + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + smuggled, []int{400}},
		"two lengths":                 {head + "Content-Length: 0\r\nContent-Length: 5\r\n\r\n" + smuggled, []int{400}},
		"lengths in one":              {head + "Content-Length: 0, 5\r\n\r\n" + smuggled, []int{400}},
		"a length with a sign":        {head + "Content-Length: +0\r\n\r\n" + smuggled, []int{400}},
		"a length in hexadecimal":     {head + "Content-Length: 0x0\r\n\r\n" + smuggled, []int{400}},
		"a chunk's size with a sign":  {head + "Transfer-Encoding: chunked\r\n\r\n+0\r\n\r\n" + smuggled, []int{400}},
		"a chunk's size in 0x":        {head + "Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n" + smuggled, []int{400}},
		"a chunk's size that is huge": {head + "Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n\r\n" + smuggled, []int{400}},
		"a chunk's line with LF":      {head + "Transfer-Encoding: chunked\r\n\r\n0\n\r\n" + smuggled, []int{400}},
		"a chunk's line with CR":      {head + "Transfer-Encoding: chunked\r\n\r\n0;a\rb\r\n\r\n" + smuggled, []int{400}},
		"lines with LF":               {strings.ReplaceAll(head, "\r\n", "\n") + "Content-Length: 0\n\n", []int{200, 404}},
		"a line with CR":              {head + "A: b\rTransfer-Encoding: chunked\r\n\r\n", []int{400}},
		"a header with NUL":           {head + "A: b\x00c\r\n\r\n", []int{400}},
		"a line that goes on":         {head + "A: b\r\n c\r\nContent-Length: 0\r\n\r\n", []int{200, 404}},
		"a space before a header":     {"POST " + orders + " HTTP/1.1\r\n Host: localhost\r\n\r\n", []int{400}},
		"no host":                     {"POST " + orders + " HTTP/1.1\r\n\r\n", []int{400}},
		"two hosts":                   {head + "Host: other\r\n\r\n", []int{400}},
		"HTTP/1.0 with an encoding":   {strings.Replace(head, "HTTP/1.1", "HTTP/1.0", 1) + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled, []int{200}},
		"HTTP/2 over this":            {strings.Replace(head, "HTTP/1.1", "HTTP/2.0", 1) + "\r\n", []int{505}},
		"HTTP/0.9":                    {"POST " + orders + "\r\n\r\n", []int{400}},
		"an upgrade":                  {head + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 0\r\n\r\n", []int{200, 404}},
		"GET with a body":             {"GET " + orders + " HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc", []int{405, 404}},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", strings.TrimPrefix(w.base, "http://"))
			w.must(err)
			defer c.Close()
			w.must(c.SetDeadline(time.Now().Add(2 * time.Minute)))
			_, err = io.WriteString(c, tc.raw+"GET /last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
			w.must(err)
			in := bufio.NewReader(c)
			var got []int
			for {
				resp, err := http.ReadResponse(in, nil)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatal("the connection lives")
				}
				if err != nil {
					break
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				got = append(got, resp.StatusCode)
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("answers %v, want %v", got, tc.want)
			}
		})
	}
}
