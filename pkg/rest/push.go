package rest

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
)

// CheckPush tells whether a delivery can be carried out. It yields everything
// that is wrong; each has a *FieldError's field.
func CheckPush(p *configv1.PushDelivery, yield func(*FieldError)) {
	u, err := url.Parse(p.Url)
	switch {
	case p.Service != nil && p.Url != "":
		yield(&FieldError{"service", "must be unset where there is a url: a push has one target"})
	case p.Service != nil:
		checkService(p, yield)
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		yield(&FieldError{"url", "must be an absolute http or https URL"})
	case u.User != nil:
		yield(&FieldError{"url", "must not have user information: secrets are given by reference"})
	case u.Fragment != "":
		yield(&FieldError{"url", "must not have a fragment"})
	case p.Authorization != nil && u.Scheme != "https" && !isLoopback(u.Hostname()):
		yield(&FieldError{"authorization", "needs an https URL: the secret would cross the network in the clear"})
	}
	if p.Authorization != nil && p.Authorization.Secret == "" {
		yield(&FieldError{"authorization.secret", "must not be empty"})
	}
	if p.Tls != nil {
		checkTLS(p, u, yield)
	}
	switch {
	case p.Handshake != nil && p.Handshake.Origin == "":
		yield(&FieldError{"handshake.origin", "must not be empty"})
	case p.Handshake != nil && p.Service != nil:
		yield(&FieldError{"handshake", "needs a url: of a service each instance would have to be asked"})
	}
	if p.Request != nil {
		if _, err := CompileRequest(p.Request); err != nil {
			if f, ok := errors.AsType[*FieldError](err); ok {
				yield(&FieldError{"request." + f.Field, f.Reason})
			}
		}
	}
	for _, l := range []struct {
		field string
		list  []string
	}{{"settle_on", p.SettleOn}, {"reject_on", p.RejectOn}} {
		if _, err := ParseStatuses(l.list); err != nil {
			if f, ok := errors.AsType[*FieldError](err); ok {
				yield(&FieldError{l.field + f.Field, f.Reason})
			}
		}
	}
	for i, s := range p.RejectOn {
		for _, t := range p.SettleOn {
			if s == t {
				yield(&FieldError{fmt.Sprintf("reject_on[%d]", i), s + " is in settle_on too"})
			}
		}
	}
}

// checkService checks a target that is a service.
func checkService(p *configv1.PushDelivery, yield func(*FieldError)) {
	s := p.Service
	u, err := url.Parse("http://x" + s.Path)
	switch {
	case s.Name == "":
		yield(&FieldError{"service.name", "must not be empty"})
	case s.Scheme != "" && s.Scheme != "http" && s.Scheme != "https":
		yield(&FieldError{"service.scheme", "must be http or https"})
	case s.Path != "" && s.Path[0] != '/' || err != nil || u.Fragment != "":
		yield(&FieldError{"service.path", "must be a path that begins with a slash, without a fragment"})
	case p.Authorization != nil && s.Scheme != "https":
		yield(&FieldError{"authorization", "needs the scheme https: the secret would cross the network in the clear"})
	}
}

// checkTLS checks what a target is trusted by and shown; u is its URL, where it has one.
func checkTLS(p *configv1.PushDelivery, u *url.URL, yield func(*FieldError)) {
	t := p.Tls
	switch {
	case t.Ca == "" && t.Certificate == "" && t.Key == "":
		yield(&FieldError{"tls", "must name a ca, or a certificate and its key; leave it out for the system's authorities"})
	case t.Certificate == "" && t.Key != "":
		yield(&FieldError{"tls.certificate", "must not be empty where there is a key"})
	case t.Certificate != "" && t.Key == "":
		yield(&FieldError{"tls.key", "must not be empty where there is a certificate"})
	}
	switch {
	case p.Service != nil && p.Service.Scheme != "https":
		yield(&FieldError{"tls", "needs the scheme https"})
	case p.Service == nil && u != nil && u.Scheme == "http":
		yield(&FieldError{"tls", "needs an https URL"})
	}
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback() || strings.EqualFold(host, "localhost")
}
