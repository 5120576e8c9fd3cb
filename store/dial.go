package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
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
		return nil, fmt.Errorf("TLS with %s: %w", addr, adviseHandshake(err))
	}
	return conn, nil
}

// adviseHandshake is err, which ended a handshake, with what to do about it.
func adviseHandshake(err error) error {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the server takes the connection and does not answer the handshake: look whether it hangs, and whether it speaks TLS there: %w", err)
	case hungUp(err):
		return fmt.Errorf("the server closed the connection: look whether it speaks TLS there: %w", err)
	}
	return advise(err)
}

// Unanswered is err, which ended a connection before the server said anything on it, with
// what to do about it. Some servers refuse a client's certificate only there.
func Unanswered(secure bool, err error) error {
	switch {
	case !hungUp(err):
		return advise(err)
	case secure:
		return fmt.Errorf("the server closed the connection before it answered: it may want another certificate than tls.certificate_file has: %w", err)
	}
	return fmt.Errorf("the server closed the connection before it answered: it may want TLS, which tls of the EventStore turns on: %w", err)
}

// advise names the EventStore's fields that an error of TLS is about.
func advise(err error) error {
	var (
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
		record  tls.RecordHeaderError
	)
	var advice string
	switch {
	case errors.As(err, &unknown):
		advice = "the server's certificate is of no authority that tls.ca_file has (the system's where it is empty): put the server's there"
	case errors.As(err, &name):
		advice = "the server's certificate is for other names: set tls.server_name to one that it has"
	case errors.As(err, &invalid):
		advice = "the server's certificate is not valid: replace it at the server"
	case errors.As(err, &record):
		advice = "the server does not speak TLS there: take tls out of the EventStore, or name a port that does"
	case RefusedTLS(err):
		advice = "the server refused the handshake: where it asks for a certificate, tls.certificate_file must have one that it takes"
	default:
		return err
	}
	return fmt.Errorf("%s: %w", advice, err)
}

// RefusedTLS reports whether a connection ended by what the server said of its TLS.
func RefusedTLS(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error" // so has it crypto/tls
}

// hungUp reports whether the other side ended a connection without a word.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
