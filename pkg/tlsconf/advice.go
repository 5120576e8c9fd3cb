package tlsconf

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

// Advice has what to do about connections to a server that fail, in the words of
// those who have set them up.
type Advice struct {
	// CA and Cert are what names the files with the server's authorities and with
	// the own certificate.
	CA, Cert string
	// Name is what to do where the server's certificate is for other names, Plain
	// where the server does not speak TLS.
	Name, Plain string
	// Secure, which follows "TLS, which", is how TLS is had.
	Secure string
}

// Handshake is err, which ended a handshake, with what to do about it.
func (a Advice) Handshake(err error) error {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the server takes the connection and does not answer the handshake: look whether it hangs, and whether it speaks TLS there: %w", err)
	case hungUp(err):
		return fmt.Errorf("the server closed the connection: look whether it speaks TLS there: %w", err)
	}
	return a.add(err)
}

// Unanswered is err, which ended a connection before the server said anything on it, with
// what to do about it. Some servers refuse a client's certificate only there.
func (a Advice) Unanswered(secure bool, err error) error {
	switch {
	case !hungUp(err):
		return a.add(err)
	case secure:
		return fmt.Errorf("the server closed the connection before it answered: it may want another certificate than %s has: %w", a.Cert, err)
	}
	return fmt.Errorf("the server closed the connection before it answered: it may want TLS, which %s: %w", a.Secure, err)
}

// add names the settings that an error of TLS is about.
func (a Advice) add(err error) error {
	var (
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
		record  tls.RecordHeaderError
	)
	var advice string
	switch {
	case errors.As(err, &unknown):
		advice = "the server's certificate is of no authority that " + a.CA + " has (the system's where it is empty): put the server's there"
	case errors.As(err, &name):
		advice = "the server's certificate is for other names: " + a.Name
	case errors.As(err, &invalid):
		advice = "the server's certificate is not valid: replace it at the server"
	case errors.As(err, &record):
		advice = "the server does not speak TLS there: " + a.Plain
	case Refused(err):
		advice = "the server refused the handshake: where it asks for a certificate, " + a.Cert + " must have one that it takes"
	default:
		return err
	}
	return fmt.Errorf("%s: %w", advice, err)
}

// Refused reports whether a connection ended by what the other side said of its TLS.
func Refused(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error" // so has it crypto/tls
}

// hungUp reports whether the other side ended a connection without a word.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
