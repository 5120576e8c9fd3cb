package pipeline

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/quota"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
)

// TestRequest: the reply to a request reaches who asked, whole, at the same proxy and
// from another one, and the first one wins.
func TestRequest(t *testing.T) {
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprint("shared ", shared), func(t *testing.T) {
			a := newAskers(t, shared)
			at := a.proxy()
			from := at
			if shared {
				from = a.proxy()
			}
			for i := range 3 {
				request, got := a.ask(at, fmt.Sprint(i), 30*time.Second)
				by, _ := event.Lookup(request.Ext, event.AttrReplyBy)
				if until, err := time.Parse(time.RFC3339, by); request.ID != fmt.Sprint(i) || err != nil || time.Until(until) <= 0 || time.Until(until) > 30*time.Second {
					t.Errorf("the request is %+v", request)
				}
				a.must(from.p.Reply(a.ctx, answerer, "demo", answer("first", request)))
				a.must(from.p.Reply(a.ctx, answerer, "demo", answer("second", request)))
				r := <-got
				if r.err != nil || r.reply.ID != "first" || r.reply.Source != "/answerer" || string(r.reply.Data) != "!" || !slices.Equal(r.reply.Ext, []event.Attr{{Name: "mood", Value: "good"}}) {
					t.Errorf("the reply is %+v, %v", r.reply, r.err)
				}
				a.until(at, replyDuplicate, i+1)
				a.until(at, replyDelivered, i+1)
			}
			if shared {
				a.until(from, replySent, 6)
			}
			if n, _ := at.metric("weft_proxy_requests_waiting"); n != 0 || at.p.replies.held != 0 {
				t.Errorf("%v requests wait, %d bytes are held", n, at.p.replies.held)
			}
		})
	}
}

// TestRepliesAreReadFirst: what others reply is read before the request can be seen.
func TestRepliesAreReadFirst(t *testing.T) {
	a := newAskers(t, true)
	w := a.proxy()
	_, got := a.ask(w, "1", 30*time.Second)
	w.p.EndRequests()
	if r := <-got; fault.From(r.err).Reason != "no-reply" {
		t.Errorf("%v", r.err)
	}
	if got := strings.Join(a.calls.log, ", "); got != "tail "+names.ReplyTopic(uidStore)+", publish orders" {
		t.Errorf("%s", got)
	}
}

// unread is a store whose reply topic cannot be read yet.
type unread struct {
	store.Store
	tails chan struct{}
}

func (u unread) Tail(ctx context.Context, _ store.TailRequest) (store.Tail, error) {
	u.tails <- struct{}{}
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestRequestsThatCannotBegin: what waits until replies can be read counts with what the
// proxy may hold.
func TestRequestsThatCannotBegin(t *testing.T) {
	a := newAskers(t, true)
	w := a.proxy()
	st := unread{a.st.Store, make(chan struct{})}
	w.p.cfg.MaxInFlight, w.p.cfg.Store = 1000, func(string) (store.Store, error) { return st, nil }
	ctx, cancel := context.WithCancel(a.ctx)
	ask := func() error {
		e := question("large")
		e.Data = make([]byte, 600)
		_, err := w.p.Request(ctx, local, "demo", "orders", e, time.Minute)
		return err
	}
	first := make(chan error, 1)
	go func() { first <- ask() }()
	<-st.tails
	if err := ask(); fault.From(err).Reason != "proxy-full" {
		t.Errorf("the second: %v", err)
	}
	cancel()
	if err := <-first; fault.ClassOf(err) != fault.Canceled {
		t.Errorf("the first: %v", err)
	}
	if n := w.p.inFlight.Load(); n != 0 {
		t.Errorf("%d bytes are held", n)
	}
}

// TestNoReply: at the deadline the request ends, and what comes then is dropped and
// counted, as it is after the proxy was started again.
func TestNoReply(t *testing.T) {
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprint("shared ", shared), func(t *testing.T) {
			a := newAskers(t, shared)
			at := a.proxy()
			request, got := a.ask(at, "1", 50*time.Millisecond)
			r := <-got
			if f := fault.From(r.err); f == nil || f.Reason != "no-reply" || f.Class != fault.Ambiguous {
				t.Errorf("%v", r.err)
			}
			if shared {
				other := a.proxy()
				a.must(other.p.Reply(a.ctx, answerer, "demo", answer("late", request)))
				a.until(other, replySent, 1)
			} else if err := at.p.Reply(a.ctx, answerer, "demo", answer("late", request)); fault.From(err).Reason != "reply-late" {
				t.Errorf("%v", err)
			}
			a.until(at, replyLate, 1)
			if !shared {
				again := a.proxy()
				request, got := a.ask(at, "2", 20*time.Second)
				if err := again.p.Reply(a.ctx, answerer, "demo", answer("elsewhere", request)); fault.From(err).Reason != "reply-late" {
					t.Errorf("to one that has stopped: %v", err)
				}
				a.until(again, replyLate, 1)
				at.p.EndRequests()
				if r := <-got; fault.From(r.err).Reason != "no-reply" {
					t.Errorf("a request of a proxy that stops: %v", r.err)
				}
				if _, err := at.p.Request(a.ctx, local, "demo", "orders", question("3"), 0); fault.From(err).Reason != "draining" {
					t.Errorf("%v", err)
				}
			}
		})
	}
}

// TestRequestDeadline: a request waits as long as its caller does, and says so.
func TestRequestDeadline(t *testing.T) {
	a := newAskers(t, false)
	at := a.proxy()
	whole := a.ctx
	for _, timeout := range []time.Duration{0, time.Minute} {
		ctx, cancel := context.WithTimeout(whole, 150*time.Millisecond)
		defer cancel()
		a.ctx = ctx
		request, got := a.ask(at, "1", timeout)
		a.ctx = whole
		end, _ := ctx.Deadline()
		by, _ := event.Lookup(request.Ext, event.AttrReplyBy)
		if until, err := time.Parse(time.RFC3339, by); err != nil || until.Sub(end).Abs() > 5*time.Second {
			t.Errorf("with %v it waits until %s, its caller until %v", timeout, by, end)
		}
		if r := <-got; fault.From(r.err).Reason != "no-reply" {
			t.Errorf("%v", r.err)
		}
	}
	if n, _ := at.metric("weft_proxy_requests_total"); n != 2 {
		t.Errorf("%v requests", n)
	}
	for _, timeout := range []time.Duration{-1, time.Microsecond, MaxRequestTimeout + 1} {
		if _, err := at.p.Request(a.ctx, local, "demo", "orders", question("1"), timeout); fault.From(err).Reason != "bad-timeout" {
			t.Errorf("%v: %v", timeout, err)
		}
	}
}

// TestRequestLetsGo: a request that waits holds no data of its event.
func TestRequestLetsGo(t *testing.T) {
	a := newAskers(t, false)
	at := a.proxy()
	gone := make(chan struct{})
	e := question("1")
	data := new([64 << 10]byte)
	runtime.AddCleanup(data, func(int) { close(gone) }, 0)
	e.Data = data[:]
	ctx, cancel := context.WithCancel(a.ctx)
	ended := make(chan error, 1)
	ask := func(e event.Event) {
		go func() {
			_, err := at.p.Request(ctx, local, "demo", "orders", e, 15*time.Second)
			ended <- err
		}()
	}
	ask(e)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for held := true; held; {
		select {
		case <-gone:
			held = false
		case <-tick.C:
			runtime.GC()
		case err := <-ended:
			t.Fatalf("it ended: %v", err)
		}
	}
	cancel()
	if err := <-ended; fault.ClassOf(err) != fault.Canceled {
		t.Error(err)
	}
}

// TestReplyFrom: what a push target answers needs no right of a principal, and is counted
// where it cannot be passed on.
func TestReplyFrom(t *testing.T) {
	a := newAskers(t, false)
	at := a.proxy()
	from := func(namespace string, e event.Event, wrong error) error {
		return at.p.ReplyFrom(a.ctx, snapshot.Key{Namespace: namespace, Name: "pushed"}, e, wrong)
	}
	request, got := a.ask(at, "1", 30*time.Second)
	forged, large := answer("1", request), answer("1", request)
	forged.Ext, large.Data = event.With(nil, event.AttrReplyTo, "forged"), make([]byte, 2<<20)
	for i, err := range []error{from("demo", answer("1", request), errors.New("no event")), from("demo", forged, nil), from("demo", large, nil), from("other", answer("1", request), nil)} {
		if err == nil || at.replies(replyFailed) != 4 {
			t.Errorf("%d: %v, %d failed", i, err, at.replies(replyFailed))
		}
	}
	a.must(from("demo", answer("1", request), nil))
	if r := <-got; r.err != nil || r.reply.ID != "1" {
		t.Errorf("%+v", r)
	}
	request, got = a.ask(at, "2", 300*time.Millisecond)
	<-got
	if err := from("demo", answer("1", request), nil); fault.From(err).Reason != "reply-late" || at.replies(replyFailed) != 4 {
		t.Errorf("%v", err)
	}
}

// TestReplyAfterRestart: what is replied over the store to a request of a proxy that was
// started again reaches nobody: it counts as sent, and not as received.
func TestReplyAfterRestart(t *testing.T) {
	a := newAskers(t, true)
	old, stop := a.started()
	lost, got := a.ask(old, "1", 30*time.Second)
	stop()
	if r := <-got; fault.From(r.err).Reason != "no-reply" {
		t.Errorf("a request of a proxy that stops: %v", r.err)
	}
	again, other := a.proxy(), a.proxy()
	request, got := a.ask(again, "2", 30*time.Second)
	a.must(other.p.Reply(a.ctx, answerer, "demo", answer("to 1", lost)))
	a.must(other.p.Reply(a.ctx, answerer, "demo", answer("to 2", request))) // is read behind it
	if r := <-got; r.err != nil || r.reply.ID != "to 2" {
		t.Errorf("%+v", r)
	}
	for outcome, want := range map[string]int{replyDelivered: 1, replyUnknown: 0, replyLate: 0, replyDuplicate: 0} {
		if n := again.replies(outcome); n != want {
			t.Errorf("%s is %d after the restart", outcome, n)
		}
	}
	if n, m := other.replies(replySent), old.replies(replyDelivered); n != 2 || m != 0 {
		t.Errorf("%d were sent, %d were delivered before", n, m)
	}
	var received dto.Metric
	a.must(again.p.replies.metrics.received.Write(&received))
	if n := received.GetCounter().GetValue(); n != 1 {
		t.Errorf("%v were received", n)
	}
}

// TestReplyQuota: a quota of the request's topic counts the replies of clients, and not
// what targets answer.
func TestReplyQuota(t *testing.T) {
	a := newAskers(t, false)
	quotas, refused := quota.Compile([]quota.Named{{Namespace: "demo", Name: "quota/demo/q", UID: "q", Spec: &configv1.Quota{Topics: []string{"orders"},
		Per: configv1.QuotaPer_QUOTA_PER_PRINCIPAL, Publish: &configv1.PublishQuota{EventsPerSecond: 1, Burst: durationpb.New(20 * time.Second)}}}})
	if len(refused) > 0 {
		t.Fatal(refused)
	}
	a.snap.Topics[snapshot.Key{Namespace: "demo", Name: "orders"}].Quotas = quotas.Publishing("demo", "orders")
	at := a.proxy()
	request, got := a.ask(at, "1", 30*time.Second)
	for range 100 {
		a.must(at.p.ReplyFrom(a.ctx, snapshot.Key{Namespace: "demo", Name: "pushed"}, answer("pushed", request), nil))
	}
	<-got
	n := 0
	var err error
	for ; err == nil && n < 1000; n++ {
		err = at.p.Reply(a.ctx, answerer, "demo", answer("1", request))
	}
	if f := fault.From(err); err == nil || n <= 20 || f.Class != fault.Throttled || f.Reason != quota.Exceeded {
		t.Errorf("reply %d: %v", n, err)
	}
}

// TestForgedReplies: who may not read the topic replies to nothing, and no token but
// the whole one of a request reaches it.
func TestForgedReplies(t *testing.T) {
	a := newAskers(t, false)
	at := a.proxy()
	request, got := a.ask(at, "1", 30*time.Second)
	token, _ := event.Lookup(request.Ext, event.AttrReplyTo)
	whole, err := parseReplyToken(token)
	a.must(err)
	other := func(change func(*replyToken)) string {
		t := *whole
		change(&t)
		return t.String()
	}
	for name, tc := range map[string]struct {
		who    *policy.Principal
		token  string
		reason string
	}{
		"nobody":            {local, token, "access-denied"},
		"no token":          {answerer, "", "bad-reply-token"},
		"cut":               {answerer, token[:len(token)-2], "unknown-topic"},
		"padded":            {answerer, token + "=", "bad-reply-token"},
		"guessed":           {answerer, other(func(t *replyToken) { t.Random[15]++ }), ""},
		"another deadline":  {answerer, other(func(t *replyToken) { t.Deadline = t.Deadline.Add(time.Hour) }), ""},
		"another topic":     {answerer, other(func(t *replyToken) { t.Topic = "audit" }), "access-denied"},
		"another store":     {answerer, other(func(t *replyToken) { t.Store = uuid.New() }), "bad-reply-token"},
		"another namespace": {answerer, token, "access-denied"},
	} {
		ns := "demo"
		if name == "another namespace" {
			ns = "other"
		}
		reply := answer("forged", request)
		reply.Ext = event.With(reply.Ext, event.AttrReplyTo, tc.token)
		err := at.p.Reply(a.ctx, tc.who, ns, reply)
		switch f := fault.From(err); {
		case tc.reason == "" && err != nil, tc.reason != "" && (err == nil || f.Reason != tc.reason && name != "cut"):
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := at.replies(replyUnknown); n != 2 {
		t.Errorf("%d unknown replies", n)
	}
	bare := answer("bare", request)
	bare.Ext = nil
	if err := at.p.Reply(a.ctx, answerer, "demo", bare); !strings.Contains(fault.From(err).Msg, "has no attribute replyto") {
		t.Errorf("a reply without replyto: %v", err)
	}
	large := answer("large", request)
	large.Data = make([]byte, 1<<20)
	if err := at.p.Reply(a.ctx, answerer, "demo", large); fault.From(err).Reason != "event-too-large" {
		t.Errorf("a large reply: %v", err)
	}
	a.must(at.p.Reply(a.ctx, answerer, "demo", answer("true", request)))
	if r := <-got; r.err != nil || r.reply.ID != "true" {
		t.Errorf("the reply is %+v, %v", r.reply, r.err)
	}
}

// TestRequestRefused: what a publish is refused for a request is too, and nothing waits
// then.
func TestRequestRefused(t *testing.T) {
	a := newAskers(t, true)
	at := a.proxy()
	for name, tc := range map[string]struct {
		who     *policy.Principal
		topic   string
		e       event.Event
		timeout time.Duration
		reason  string
	}{
		"denied":         {answerer, "orders", question("1"), 0, "access-denied"},
		"no topic":       {local, "nowhere", question("1"), 0, "unknown-topic"},
		"not ready":      {local, "waiting", question("1"), 0, "topic-not-ready"},
		"no event":       {local, "orders", event.Event{}, 0, "bad-event"},
		"too large":      {local, "small", question("1"), 0, "event-too-large"},
		"waits for ever": {local, "orders", question("1"), time.Hour, "bad-timeout"},
	} {
		if _, err := at.p.Request(a.ctx, tc.who, "demo", tc.topic, tc.e, tc.timeout); err == nil || fault.From(err).Reason != tc.reason {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(at.p.replies.waiting) > 0 {
		t.Error("a request that was refused waits")
	}
	a.must(a.st.Store.(store.Admin).DeleteTopic(a.ctx, names.ReplyTopic(uidStore)))
	if _, err := a.proxy().p.Request(a.ctx, local, "demo", "orders", question("1"), 0); fault.From(err).Reason != "no-reply-topic" {
		t.Errorf("without a reply topic: %v", err)
	}
}

// TestRequestBounds: so many requests wait at most, and so many bytes of replies.
func TestRequestBounds(t *testing.T) {
	a := newAskers(t, false)
	at := a.proxy()
	var first *waiter
	for i := range MaxRequests {
		w, err := at.p.replies.begin(uidStore, "orders", time.Now().Add(time.Minute))
		a.must(err)
		if i == 0 {
			first = w
		}
	}
	if _, err := at.p.Request(a.ctx, local, "demo", "orders", question("1"), 0); fault.From(err).Reason != "too-many-requests" || fault.ClassOf(err) != fault.Throttled {
		t.Errorf("%v", err)
	}
	at.p.replies.end(first)
	request, got := a.ask(at, "2", 30*time.Second)
	at.p.replies.mu.Lock()
	at.p.replies.held = maxReplies
	at.p.replies.mu.Unlock()
	if err := at.p.Reply(a.ctx, answerer, "demo", answer("1", request)); fault.From(err).Reason != "proxy-full" {
		t.Errorf("%v", err)
	}
	at.p.replies.mu.Lock()
	at.p.replies.held = 0
	at.p.replies.mu.Unlock()
	a.must(at.p.Reply(a.ctx, answerer, "demo", answer("1", request)))
	if r := <-got; r.err != nil {
		t.Error(r.err)
	}
}

// TestClientGone: a request whose client has gone ends, and its reply is unknown.
func TestClientGone(t *testing.T) {
	a := newAskers(t, false)
	at := a.proxy()
	ctx, cancel := context.WithCancel(a.ctx)
	defer cancel()
	w := a.ctx
	a.ctx = ctx
	request, got := a.ask(at, "1", 30*time.Second)
	a.ctx = w
	cancel()
	// The request can be read before its write is acknowledged.
	if r := <-got; fault.ClassOf(r.err) != fault.Canceled && fault.ClassOf(r.err) != fault.Ambiguous {
		t.Errorf("%v", r.err)
	}
	a.must(at.p.Reply(a.ctx, answerer, "demo", answer("1", request)))
	a.until(at, replyUnknown, 1)
}

// FuzzReplyToken: whatever a client sends is refused, or is exactly what String writes.
func FuzzReplyToken(f *testing.F) {
	good := replyToken{Store: uuid.New(), Incarnation: uuid.New(), Deadline: time.UnixMilli(1), Topic: "orders.eu"}
	f.Add(good.String())
	f.Add(base64.RawURLEncoding.EncodeToString(make([]byte, 60)))
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := parseReplyToken(s)
		if err != nil {
			if !errors.Is(err, errToken) {
				t.Error(err)
			}
			return
		}
		if tok.String() != s || tok.Topic == "" || tok.Deadline.Year() > 10000 {
			t.Errorf("%q is %+v", s, tok)
		}
	})
}

// TestRequestEndsWithCredentials: a request waits for as long as its credentials are good,
// by their own date and by the newest configuration.
func TestRequestEndsWithCredentials(t *testing.T) {
	a := newAskers(t, false)
	at := a.proxy()
	for name, tc := range map[string]struct {
		expires int64
		revoke  bool
	}{"expired": {expires: time.Now().Add(50 * time.Millisecond).UnixNano()}, "revoked": {revoke: true}} {
		got := make(chan error, 1)
		go func() {
			_, err := at.p.Request(a.ctx, &policy.Principal{Name: policy.Local, Expires: tc.expires}, "demo", "orders", question(name), MaxRequestTimeout)
			got <- err
		}()
		if tc.revoke {
			next := *at.p.cfg.Snapshots.Get()
			next.Identities = policy.CompileIdentities(nil, nil, false)
			at.p.cfg.Snapshots.Store(&next)
		}
		if f := fault.From(<-got); f == nil || f.Class != fault.Ambiguous || f.Reason != "no-reply" || !strings.Contains(f.Msg, "credentials") {
			t.Errorf("%s: %v", name, f)
		}
		if tc.revoke {
			at.p.cfg.Snapshots.Store(a.snap)
		}
	}
	if n, _ := at.metric("weft_proxy_requests_waiting"); n != 0 {
		t.Errorf("%v requests wait", n)
	}
}
