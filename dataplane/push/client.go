package push

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/egress"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/rest"
	"github.com/weft-mesh/weft/pkg/tracing"
	"github.com/weft-mesh/weft/pkg/version"
)

// Bounds of a target's answer, and of its silence.
const (
	// maxAnswer is how much of a body is read so that the connection can be
	// used again.
	maxAnswer = 64 << 10
	// maxAnswerHeaders bounds its headers.
	maxAnswerHeaders = 64 << 10
	// maxSilence is how long a connection over HTTP/2 may be silent, and then owe the
	// answer to a ping, before it is given up.
	maxSilence = 10 * time.Second
	// maxRetryAfter bounds the delay that a target may ask for.
	maxRetryAfter = time.Hour
)

// client calls one target. It has connections of its own, so that no target uses
// up another's, and calls only addresses that the guard lets pass.
type client struct {
	transport *http.Transport // whose answers are taken as they are: a redirect is one
	tls       tlsFiles
	secrets   secrets
	clock     clock.Clock
}

func newClient(cfg *Config, namespace string) *client {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second, Resolver: cfg.resolver, Control: egress.Guard(cfg.Allow)}
	tr := &http.Transport{
		Proxy:                  nil, // the environment does not say where events go
		DialContext:            dialer.DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    10 * time.Second,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    64,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: maxAnswerHeaders,
		// One through which nothing comes would be used until TCP gives it up, after a quarter of an hour.
		HTTP2: &http.HTTP2Config{SendPingTimeout: maxSilence, PingTimeout: maxSilence},
	}
	return &client{transport: tr, clock: cfg.Clock, secrets: secrets{folder: cfg.Secrets, namespace: namespace}}
}

func (c *client) close() {
	c.transport.CloseIdleConnections()
	c.tls.close()
}

// post sends one event, to an instance of b where push names a service, and tells what came
// of it, and the reply that the answer is; nil where it is none.
func (c *client) post(ctx context.Context, push *snapshot.Push, b *balancer, key snapshot.Key, d *delivery.Delivery) (answer, *reply) {
	ctx, cancel := context.WithTimeout(ctx, push.Timeout)
	defer cancel()
	to := push.URL
	if b != nil {
		addr := b.pick(time.Now())
		if addr == "" {
			return failure(Failed, "no instance of service %s is known", push.Service.Name), nil
		}
		to = push.Service.Scheme + "://" + addr + push.Service.Path
	}
	req, a := c.request(ctx, push, to, d.Event)
	if req == nil {
		return a, nil
	}
	over, err := c.over(push)
	if err != nil {
		return failure(Failed, "%v", err), nil
	}
	req.Header.Set("User-Agent", "weft/"+version.String())
	req.Header.Set("Weft-Subscription", key.String())
	req.Header.Set("Weft-Attempt", strconv.Itoa(d.Attempt))
	propagation.TraceContext{}.Inject(ctx, propagation.HeaderCarrier(req.Header))
	resp, err := over.RoundTrip(req)
	if b != nil && !errors.Is(ctx.Err(), context.Canceled) {
		b.judge(req.URL.Host, err == nil, time.Now())
	}
	if err != nil {
		return noAnswer(ctx, err), nil
	}
	defer resp.Body.Close()
	// A target that answered has answered, also where its body does not end.
	r := readReply(d.Event, resp)
	drain(resp)
	return c.judge(push, resp), r
}

// drain reads an answer's body so that the connection can be used again. Of 101 it is the
// connection itself, whose reads nothing ends.
func drain(resp *http.Response) {
	if resp.StatusCode != http.StatusSwitchingProtocols {
		_, _ = io.CopyN(io.Discard, resp.Body, maxAnswer)
	}
}

// request makes the request of an event to a URL, with what shows whose it is; nil,
// and why, where there is none.
func (c *client) request(ctx context.Context, push *snapshot.Push, to string, e *event.Event) (*http.Request, answer) {
	call := rest.Call{Method: http.MethodPost, Header: http.Header{}}
	if push.Request == nil {
		call.Body = cloudevents.EncodeHTTP(call.Header, e)
	} else {
		var err error
		if call, err = push.Request.Make(e); err != nil {
			return nil, failure(Rejected, "%v", err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, call.Method, to, bytes.NewReader(call.Body))
	if err != nil {
		return nil, failure(Failed, "the target's URL cannot be used")
	}
	req.Header = once(call.Header)
	if push.Request != nil {
		if err := address(req.URL, &call); err != nil {
			return nil, failure(Rejected, "the path cannot be used")
		}
	}
	if push.Secret != "" {
		s, err := c.secrets.get(push.Secret)
		if err != nil {
			return nil, failure(Failed, "%v", err)
		}
		req.Header["Authorization"] = []string{push.Scheme + " " + s}
	}
	if len(push.SignWith) == 0 {
		return req, answer{}
	}
	keys := make([][]byte, 0, len(push.SignWith))
	for _, name := range push.SignWith {
		s, err := c.secrets.get(name)
		if err != nil {
			return nil, failure(Failed, "%v", err)
		}
		k, err := parseKey(s)
		if err != nil {
			return nil, failure(Failed, "secret %s: %v", name, err)
		}
		keys = append(keys, k)
	}
	sign(req.Header, messageID(e), c.clock.Now(), call.Body, keys)
	return req, answer{}
}

// once is a header of a request that is sent once: what has an idempotency key net/http
// sends again by itself where its connection breaks, but for one that it does not know by
// its spelling. In HTTP the spelling of a name says nothing.
func once(h http.Header) http.Header {
	for _, name := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
		if v, ok := h[name]; ok {
			delete(h, name)
			h[strings.ToLower(name)] = v
		}
	}
	return h
}

// address puts a call's path behind that of the target, and its query.
func address(u *url.URL, call *rest.Call) error {
	escaped := strings.TrimSuffix(u.EscapedPath(), "/") + call.Path
	if call.Path == "" {
		escaped = u.EscapedPath()
	}
	path, err := url.PathUnescape(escaped)
	if err != nil {
		return err
	}
	u.Path, u.RawPath = path, escaped
	if u.RawQuery != "" && call.Query != "" {
		u.RawQuery += "&"
	}
	u.RawQuery += call.Query
	return nil
}

// judge tells what an answer means: first what the Subscription says of that
// status, then what everybody means by it, then what it says of its class.
func (c *client) judge(push *snapshot.Push, resp *http.Response) answer {
	code := resp.StatusCode
	switch {
	case push.SettleOn.Names(code):
		return answer{outcome: outcomeOK}
	case push.RejectOn.Names(code):
		return failure(Rejected, "http %d", code)
	case code/100 == 2:
		return answer{outcome: outcomeOK}
	case code == http.StatusGone:
		return failure(Gone, "http %d", code)
	case code == http.StatusTooManyRequests || code == http.StatusServiceUnavailable:
		// One that says "at once", or a time that has passed, gets the schedule: it
		// would be called again and again without a pause.
		if delay, ok := retryAfter(resp.Header.Get("Retry-After"), c.clock.Now()); ok && delay > 0 {
			return answer{Later, "http " + strconv.Itoa(code), delay}
		}
	case push.SettleOn.Has(code):
		return answer{outcome: outcomeOK}
	case push.RejectOn.Has(code):
		return failure(Rejected, "http %d", code)
	}
	return failure(Refused, "http %d", code)
}

// noAnswer names why there was none. The text goes into dead letters: it tells
// what happened, not how this network looks.
func noAnswer(ctx context.Context, err error) answer {
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	var alert *net.OpError
	switch {
	case errors.Is(err, egress.ErrForbidden):
		return failure(Forbidden, "the target's address is not one that this proxy calls")
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return failure(Failed, "no answer in time")
	case ctx.Err() != nil:
		return failure(Failed, "the proxy was stopping")
	case errors.As(err, &dns):
		return failure(Failed, "the target's name was not found")
	case errors.As(err, &authority):
		return failure(Untrusted, "the target's certificate is of no authority that is trusted (push.tls.ca)")
	case errors.As(err, &cert):
		return failure(Untrusted, "the target's certificate is not valid")
	case errors.As(err, &alert) && alert.Op == "remote error": // in the handshake, or right after it
		return failure(Untrusted, "the target refused the connection (push.tls.certificate): %v", alert.Err)
	}
	return failure(Failed, "no connection to the target, or it broke")
}

// retryAfter reads the header: seconds, or a date.
func retryAfter(v string, now time.Time) (time.Duration, bool) {
	if v == "" {
		return 0, false
	}
	if s, err := strconv.ParseUint(v, 10, 32); err == nil {
		return min(time.Duration(s)*time.Second, maxRetryAfter), true
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0, false
	}
	return max(0, min(at.Sub(now), maxRetryAfter)), true
}

// span begins the span of one request, a child of the event's own context.
// Without tracing the target gets the event's context itself.
func (t *target) span(ctx context.Context, d *delivery.Delivery) (context.Context, trace.Span) {
	origin := tracing.Of(d.Event)
	ctx = trace.ContextWithRemoteSpanContext(ctx, origin)
	return t.p.tracer.Start(ctx, "push "+t.key.Name, trace.WithSpanKind(trace.SpanKindClient), tracing.Message("push", t.key.Namespace, d.Topic,
		attribute.String("messaging.consumer.group.name", t.key.Name), attribute.String("messaging.message.id", d.Event.ID), attribute.Int("weft.attempt", d.Attempt)))
}

func failed(span trace.Span, reason string) { span.SetStatus(codes.Error, reason) }
