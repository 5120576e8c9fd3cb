package rest

import (
	"errors"
	"fmt"
	"net/textproto"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// CheckHeader tells whether a header may be set by a template: none that says
// where a message ends or goes, or that the mesh sets itself.
func CheckHeader(name string) error {
	if !validHeader(name) {
		return errors.New("is not the name of a header")
	}
	c := textproto.CanonicalMIMEHeaderKey(name)
	switch c {
	case "Authorization":
		return errors.New("may not be set here: secrets are given by reference")
	case "Host", "Content-Length", "Transfer-Encoding", "Connection", "Keep-Alive", "Te", "Trailer", "Upgrade", "Expect", "User-Agent", "Content-Encoding", "Traceparent", "Tracestate":
		return errors.New("is set by the mesh itself")
	}
	for _, p := range []string{"Proxy-", "Weft-", "Webhook-", "Ce-"} {
		if strings.HasPrefix(c, p) {
			return fmt.Errorf("begins with %s: such headers are the mesh's own", p)
		}
	}
	return nil
}

func validHeader(name string) bool { return httpguts.ValidHeaderFieldName(name) && len(name) <= 128 }

// HeaderValue makes text fit for a header: control characters and what is not
// ASCII are percent-encoded, so that a value never ends its header.
func HeaderValue(s string) string {
	const hex = "0123456789ABCDEF"
	i := strings.IndexFunc(s, func(r rune) bool { return r < 0x20 || r >= 0x7f })
	if i < 0 {
		return strings.TrimSpace(s)
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c >= 0x7f {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		} else {
			b.WriteByte(c)
		}
	}
	return strings.TrimSpace(b.String())
}
