package push

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/version"
)

// The abuse protection of CloudEvents' HTTP webhooks (section 4): a target is asked
// whether it wants events of an origin, and gets none before it says so. Asking it to
// call back later (WebHook-Request-Callback) is left out: a target that does not answer
// yet is asked again.

// consent is what a target has allowed; the zero value nothing.
type consent struct {
	// Asked for what: nothing is allowed where this is another.
	url, origin string
	rate        uint32
	// every is the time from one request to the next at least; 0 without bound.
	every time.Duration
}

// covers reports whether a target called as push says may be sent events.
func (c *consent) covers(push *snapshot.Push) bool {
	return push.Origin == "" || c.origin != "" && c.url == push.URL && c.origin == push.Origin && c.rate == push.Rate
}

// Times from one question to the next.
const (
	minAsk = time.Second
	maxAsk = 5 * time.Minute
)

// consented waits until the target wants events. It reports whether it does; not once
// ctx has ended, or the target is gone.
func (t *target) consented(ctx context.Context) bool {
	for again := minAsk; ctx.Err() == nil; again = min(2*again, maxAsk) {
		push := t.push.Load().Push
		t.mu.Lock()
		ok, gone := t.consent.covers(push), t.gone != nil
		t.mu.Unlock()
		if ok || gone {
			return ok && !gone
		}
		c, a := t.client.ask(ctx, push)
		if ctx.Err() != nil {
			return false
		}
		t.p.metrics.requests.WithLabelValues(t.labels[0], t.labels[1], a.outcome).Inc()
		if a.outcome == outcomeOK {
			t.mu.Lock()
			t.consent, t.next = c, time.Time{}
			t.mu.Unlock()
			t.judge(a)
			continue
		}
		t.log.Debug("a push target has not consented", "reason", a.reason)
		t.judge(a)
		wait := again/2 + rand.N(again)/2
		if a.delay > 0 {
			wait = a.delay
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-t.changed:
			again = minAsk
		case <-ctx.Done():
		}
		timer.Stop()
	}
	return false
}

// ask asks the target.
func (c *client) ask(ctx context.Context, push *snapshot.Push) (consent, answer) {
	ctx, cancel := context.WithTimeout(ctx, push.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodOptions, push.URL, nil)
	if err != nil {
		return consent{}, failure(Failed, "the target's URL cannot be used")
	}
	req.Header.Set("User-Agent", "weft/"+version.String())
	req.Header.Set("WebHook-Request-Origin", push.Origin)
	if push.Rate > 0 {
		req.Header.Set("WebHook-Request-Rate", strconv.FormatUint(uint64(push.Rate), 10))
	}
	over, err := c.over(push)
	if err != nil {
		return consent{}, failure(Failed, "%v", err)
	}
	resp, err := over.RoundTrip(req)
	if err != nil {
		return consent{}, noAnswer(ctx, err)
	}
	defer resp.Body.Close()
	drain(resp)
	if resp.StatusCode/100 != 2 {
		a := c.judge(&snapshot.Push{}, resp)
		return consent{}, answer{NoConsent, "the target's consent: " + a.reason, a.delay}
	}
	every, err := allowed(push, resp.Header)
	if err != nil {
		return consent{}, failure(NoConsent, "the target's consent: %v", err)
	}
	return consent{push.URL, push.Origin, push.Rate, every}, answer{outcome: outcomeOK}
}

// allowed is what an answer allows: the time between requests.
func allowed(push *snapshot.Push, h http.Header) (time.Duration, error) {
	origins := h.Values("WebHook-Allowed-Origin")
	if len(origins) != 1 || origins[0] != "*" && !strings.EqualFold(origins[0], push.Origin) {
		return 0, fmt.Errorf("its answer does not allow the origin %s", push.Origin)
	}
	rates := h.Values("WebHook-Allowed-Rate")
	switch {
	case len(rates) > 1:
		return 0, fmt.Errorf("its answer has %d rates", len(rates))
	case len(rates) == 0:
		return interval(uint64(push.Rate)), nil
	case rates[0] == "*":
		return 0, nil
	}
	rate, err := strconv.ParseUint(rates[0], 10, 64)
	if err != nil || rate == 0 {
		return 0, fmt.Errorf("its answer allows no rate")
	}
	return interval(rate), nil
}

// interval is the time from one request to the next at a rate a minute; 0 without
// one.
func interval(rate uint64) time.Duration {
	if rate == 0 || rate > math.MaxInt64/2 {
		return 0
	}
	return (time.Minute + time.Duration(rate) - 1) / time.Duration(rate)
}

// most is how many deliveries may be under way: what waits for its turn does so for a
// minute at most.
func (c *consent) most(concurrency int) int {
	if c.every == 0 {
		return concurrency
	}
	return min(concurrency, max(1, int(time.Minute/c.every)))
}

// turn waits for the turn of a delivery. It reports whether it came, with the
// consent of the target as it is called now; else the delivery goes back with the
// session.
func (t *target) turn(ctx context.Context, push *snapshot.Push) bool {
	if push.Origin == "" {
		return true
	}
	t.mu.Lock()
	if !t.consent.covers(push) {
		if t.end != nil {
			t.end()
		}
		t.mu.Unlock()
		return false
	}
	now := time.Now()
	if t.next.Before(now) {
		t.next = now
	}
	wait := t.next.Sub(now)
	t.next = t.next.Add(t.consent.every)
	t.mu.Unlock()
	if wait <= 0 {
		return true
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		t.mu.Lock() // for the next session
		defer t.mu.Unlock()
		t.next = t.next.Add(-t.consent.every)
		return false
	}
}
