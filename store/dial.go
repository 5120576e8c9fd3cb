package store

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"

	"github.com/weft-mesh/weft/pkg/tlsconf"
)

// Dial connects to a server of a store, by TLS with the settings that conf gives; nil:
// in the clear. Without a ServerName the server's certificate must be for the host of
// addr. ctx bounds the handshake too.
func Dial(ctx context.Context, d *net.Dialer, addr string, conf func() (*tls.Config, error)) (net.Conn, error) {
	if conf == nil {
		return d.DialContext(ctx, "tcp", addr)
	}
	c, err := conf()
	if err != nil {
		return nil, err
	}
	if c = c.Clone(); c.ServerName == "" {
		if c.ServerName, _, err = net.SplitHostPort(addr); err != nil {
			return nil, err
		}
	}
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, c)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("TLS with %s: %w", addr, advice().Handshake(err))
	}
	return conn, nil
}

// advice names the EventStore's fields.
func advice() tlsconf.Advice {
	return tlsconf.Advice{CA: "tls.ca_file", Cert: "tls.certificate_file", Name: "set tls.server_name to one that it has",
		Plain: "take tls out of the EventStore, or name a port that does", Secure: "tls of the EventStore turns on"}
}

// Unanswered is err, which ended a connection before the server said anything on it, with
// what to do about it. Some servers refuse a client's certificate only there.
func Unanswered(secure bool, err error) error { return advice().Unanswered(secure, err) }

// RefusedTLS reports whether a connection ended by what the server said of its TLS.
func RefusedTLS(err error) bool { return tlsconf.Refused(err) }
