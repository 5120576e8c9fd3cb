package push

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
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
	"github.com/weft-mesh/weft/pkg/tracing"
	"github.com/weft-mesh/weft/pkg/version"
)

// Bounds of a target's answer.
const (
	// maxAnswer is how much of a body is read so that the connection can be
	// used again.
	maxAnswer = 64 << 10
	// maxAnswerHeaders bounds its headers.
	maxAnswerHeaders = 64 << 10
	// maxRetryAfter bounds the delay that a target may ask for.
	maxRetryAfter = time.Hour
)

// client calls one target. It has connections of its own, so that no target uses
// up another's, and calls only addresses that the guard lets pass.
type client struct {
	http      *http.Client
	transport *http.Transport
	clock     clock.Clock
}

func newClient(allow []netip.Prefix, wall clock.Clock) *client {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second, Control: egress.Guard(allow)}
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
	}
	return &client{transport: tr, clock: wall, http: &http.Client{Transport: tr,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

func (c *client) close() { c.transport.CloseIdleConnections() }

// post sends one event and tells what came of it.
func (c *client) post(ctx context.Context, push *snapshot.Push, key snapshot.Key, d *delivery.Delivery) answer {
	ctx, cancel := context.WithTimeout(ctx, push.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, push.URL, bytes.NewReader(d.Event.Data))
	if err != nil {
		return failure(Failed, "the target's URL cannot be used")
	}
	cloudevents.EncodeBinary(req.Header, d.Event)
	req.Header.Set("User-Agent", "weft/"+version.String())
	req.Header.Set("Weft-Subscription", key.String())
	req.Header.Set("Weft-Attempt", strconv.Itoa(d.Attempt))
	propagation.TraceContext{}.Inject(ctx, propagation.HeaderCarrier(req.Header))
	resp, err := c.http.Do(req)
	if err != nil {
		return noAnswer(ctx, err)
	}
	defer resp.Body.Close()
	// A target that answered has answered, also where its body does not end.
	_, _ = io.CopyN(io.Discard, resp.Body, maxAnswer)
	switch {
	case resp.StatusCode/100 == 2:
		return answer{outcome: outcomeOK}
	case resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable:
		// One that says "at once", or a time that has passed, gets the schedule: it
		// would be called again and again without a pause.
		if delay, ok := retryAfter(resp.Header.Get("Retry-After"), c.clock.Now()); ok && delay > 0 {
			return answer{Later, "http " + strconv.Itoa(resp.StatusCode), delay}
		}
	}
	return failure(Refused, "http %d", resp.StatusCode)
}

// noAnswer names why there was none. The text goes into dead letters: it tells
// what happened, not how this network looks.
func noAnswer(ctx context.Context, err error) answer {
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	switch {
	case errors.Is(err, egress.ErrForbidden):
		return failure(Forbidden, "the target's address is not one that this proxy calls")
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return failure(Failed, "no answer in time")
	case ctx.Err() != nil:
		return failure(Failed, "the proxy was stopping")
	case errors.As(err, &dns):
		return failure(Failed, "the target's name was not found")
	case errors.As(err, &cert):
		return failure(Failed, "the target's certificate is not valid")
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
