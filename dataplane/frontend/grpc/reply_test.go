package grpc

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	cev1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
)

// answering replies to every request but those of the type "nobody", and takes replies
// that have a token.
type answering struct {
	frontend.Mesh
	waits chan time.Duration // until the deadline of each request
	kept  []event.Event
}

func (a *answering) Request(ctx context.Context, who *policy.Principal, namespace, topic string, e event.Event, timeout time.Duration) (event.Event, error) {
	if end, ok := ctx.Deadline(); ok {
		a.waits <- time.Until(end)
	}
	if e.Type == "nobody" {
		return event.Event{}, fault.New(fault.Ambiguous, "request", "no-reply", "nobody has replied in time")
	}
	a.kept = append(a.kept, e)
	return event.Event{ID: "to ü " + e.ID, Source: "/answer", Type: "answer", Data: e.Data,
		Ext: []event.Attr{{Name: "asked", Value: namespace + "/" + topic + " " + timeout.String() + " " + who.String()}}}, nil
}

func (a *answering) Reply(_ context.Context, _ *policy.Principal, namespace string, e event.Event) error {
	if token, _ := event.Lookup(e.Ext, event.AttrReplyTo); token != "a-token" || namespace != "demo" || e.ID != "1" || string(e.Data) != "data" {
		return fault.New(fault.Precondition, "reply", "reply-late", "nobody waits for this reply any more")
	}
	return nil
}

func replyTo(token string) *cev1.CloudEvent {
	e := ce("1")
	e.Attributes = map[string]*cev1.CloudEventAttributeValue{event.AttrReplyTo: {Attr: &cev1.CloudEventAttributeValue_CeString{CeString: token}}}
	return e
}

// TestRequest: a request is asked as it came and answered with its reply; what is no
// request or no reply is refused.
func TestRequest(t *testing.T) {
	a := &answering{waits: make(chan time.Duration, 1)}
	api, _ := serve(t, func(m frontend.Mesh) frontend.Mesh { a.Mesh = m; return a })
	ask := func(e *cev1.CloudEvent, timeout *durationpb.Duration) (*eventsv1.RequestResponse, error) {
		return api.Request(t.Context(), &eventsv1.RequestRequest{Namespace: "demo", Topic: "orders", Event: e, Timeout: timeout})
	}
	for timeout, want := range map[*durationpb.Duration]string{nil: "0s", durationpb.New(250 * time.Millisecond): "250ms"} {
		got, err := ask(ce("1"), timeout)
		if e := got.GetEvent(); err != nil || e.GetId() != "to ü 1" || string(e.GetBinaryData()) != "data" || e.GetAttributes()["asked"].GetCeString() != "demo/orders "+want+" local" {
			t.Errorf("%v %v", got, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if _, err := api.Request(ctx, &eventsv1.RequestRequest{Namespace: "demo", Topic: "orders", Event: ce("1")}); err != nil {
		t.Error(err)
	}
	if left := <-a.waits; left < 59*time.Minute || left > time.Hour {
		t.Errorf("a request of an hour has %v", left)
	}
	nobody := ce("1")
	nobody.Type = "nobody"
	for name, tc := range map[string]struct {
		e       *cev1.CloudEvent
		timeout *durationpb.Duration
		code    codes.Code
		reason  string
	}{
		"no reply":        {nobody, nil, codes.DeadlineExceeded, "no-reply"},
		"no event":        {nil, nil, codes.InvalidArgument, "bad-event"},
		"no time":         {ce("1"), &durationpb.Duration{}, codes.InvalidArgument, "bad-timeout"},
		"less than that":  {ce("1"), durationpb.New(-1), codes.InvalidArgument, "bad-timeout"},
		"no valid one":    {ce("1"), &durationpb.Duration{Seconds: 1, Nanos: -1}, codes.InvalidArgument, "bad-timeout"},
		"ten times a day": {ce("1"), &durationpb.Duration{Seconds: 1 << 60}, codes.InvalidArgument, "bad-timeout"},
	} {
		if _, err := ask(tc.e, tc.timeout); status.Code(err) != tc.code || reason(err) != tc.reason {
			t.Errorf("%s: %v (%s)", name, err, reason(err))
		}
	}
	reply := func(e *cev1.CloudEvent) error {
		_, err := api.Reply(t.Context(), &eventsv1.ReplyRequest{Namespace: "demo", Event: e})
		return err
	}
	if err := reply(replyTo("a-token")); err != nil {
		t.Error(err)
	}
	if err := reply(replyTo("old")); status.Code(err) != codes.FailedPrecondition || reason(err) != "reply-late" {
		t.Errorf("a late reply: %v", err)
	}
	if err := reply(nil); status.Code(err) != codes.InvalidArgument || reason(err) != "bad-event" {
		t.Errorf("no reply: %v", err)
	}
}

// TestRequestBuffers: the data of a request are the mesh's, whatever comes after it.
func TestRequestBuffers(t *testing.T) {
	a := &answering{}
	api, _ := serve(t, func(m frontend.Mesh) frontend.Mesh { a.Mesh = m; return a })
	for _, id := range []string{"1", "2", "3"} {
		got, err := api.Request(t.Context(), &eventsv1.RequestRequest{Namespace: "demo", Topic: "orders", Event: large(id)})
		if err != nil || !bytes.Equal(got.Event.GetBinaryData(), dataOf(id)) {
			t.Errorf("%s: %v", id, err)
		}
	}
	for i := range a.kept {
		if e := &a.kept[i]; !bytes.Equal(e.Data, dataOf(e.ID)) || strings.Count(e.ID, "") != 2 {
			t.Errorf("%q has data of another one: %.40q", e.ID, e.Data)
		}
	}
}
