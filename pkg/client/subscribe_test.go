package client

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	cev1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/pkg/event"
)

// TestSettledTogether: what is done with and waits to be said is said in one message, and
// everything else about a delivery before it.
func TestSettledTogether(t *testing.T) {
	var said []string
	send := func(r *eventsv1.SubscribeRequest) error {
		switch x := r.Message.(type) {
		case *eventsv1.SubscribeRequest_Ack:
			said = append(said, fmt.Sprint("ack ", x.Ack.Ids))
		case *eventsv1.SubscribeRequest_Nack:
			said = append(said, fmt.Sprint("nack ", x.Nack.Ids))
		case *eventsv1.SubscribeRequest_Extend:
			said = append(said, fmt.Sprint("extend ", x.Extend.Ids))
		}
		return nil
	}
	waiting := make(chan settlement, 2*maxSettled)
	for _, x := range []settlement{answer(2, errors.New("no")), answer(3, nil), {more: extension(4, time.Second)}, answer(4, nil)} {
		waiting <- x
	}
	if err := sendSettled(send, answer(1, nil), waiting); err != nil || !slices.Equal(said, []string{"nack [2]", "extend [4]", "ack [1 3 4]"}) {
		t.Fatalf("%v, %v", said, err)
	}

	// However much others say, nobody waits for all of it.
	said = nil
	for range cap(waiting) {
		waiting <- answer(2, errors.New("no"))
	}
	if err := sendSettled(send, answer(1, nil), waiting); err != nil || len(said) != maxSettled || said[maxSettled-1] != "ack [1]" {
		t.Fatalf("%d messages, the last is %s, %v", len(said), said[len(said)-1], err)
	}

	// The last of a stream.
	said, waiting = nil, make(chan settlement, 1)
	waiting <- answer(2, nil)
	close(waiting)
	if err := sendSettled(send, answer(1, nil), waiting); err != nil || !slices.Equal(said, []string{"ack [1 2]"}) {
		t.Errorf("%v, %v", said, err)
	}
}

// token is a position token of version 1.
func token(topic byte, epoch, offset, minor uint64, partition string) string {
	b := append([]byte{1}, slices.Repeat([]byte{topic}, 16)...)
	for _, n := range []uint64{epoch, offset, minor} {
		b = binary.AppendUvarint(b, n)
	}
	return base64.RawURLEncoding.EncodeToString(append(b, partition...))
}

// breaking is a proxy whose tails break once they have sent one event, which the first has
// not: of each it keeps what was asked for.
type breaking struct {
	eventsv1.UnimplementedEventServiceServer
	asked chan *eventsv1.Tail
	time  *timestamppb.Timestamp
	one   *eventsv1.Delivery
	n     atomic.Int32
}

func (b *breaking) Subscribe(rpc grpc.BidiStreamingServer[eventsv1.SubscribeRequest, eventsv1.SubscribeResponse]) error {
	req, err := rpc.Recv()
	if err != nil {
		return err
	}
	n := b.n.Add(1)
	b.asked <- req.GetOpen().GetTail()
	at := b.time.AsTime().Add(time.Duration(n) * time.Hour)
	_ = rpc.Send(&eventsv1.SubscribeResponse{Message: &eventsv1.SubscribeResponse_Opened{Opened: &eventsv1.SubscribeOpened{Time: timestamppb.New(at)}}})
	if n > 1 {
		_ = rpc.Send(&eventsv1.SubscribeResponse{Message: &eventsv1.SubscribeResponse_Deliveries{Deliveries: &eventsv1.Deliveries{Deliveries: []*eventsv1.Delivery{b.one}}}})
	}
	return status.Error(codes.Unavailable, "it breaks")
}

// TestTailGoesOn: a tail whose stream broke goes on behind what it has seen, and where it
// began in partitions of which it has seen nothing: from the end, at its proxy's time then.
func TestTailGoesOn(t *testing.T) {
	seen, given := token(1, 1, 7, 0, "0"), token(1, 1, 7, 0, "1")
	told := timestamppb.New(time.Unix(1e9, 0))
	end := &eventsv1.Positions_Time{Time: timestamppb.New(told.AsTime().Add(time.Hour))}
	since := time.Unix(5e8, 0)
	for name, tc := range map[string]struct {
		o      TailOptions
		first  *eventsv1.Tail
		tokens []string
		others *eventsv1.Positions
	}{
		"end":       {TailOptions{}, &eventsv1.Tail{}, nil, &eventsv1.Positions{Others: end}},
		"beginning": {TailOptions{Beginning: true}, &eventsv1.Tail{From: &eventsv1.Tail_Beginning{Beginning: true}}, nil, &eventsv1.Positions{Others: &eventsv1.Positions_Beginning{Beginning: true}}},
		"since":     {TailOptions{Since: since}, &eventsv1.Tail{From: &eventsv1.Tail_Time{Time: timestamppb.New(since)}}, nil, &eventsv1.Positions{Others: &eventsv1.Positions_Time{Time: timestamppb.New(since)}}},
		"after":     {TailOptions{After: []string{given}}, &eventsv1.Tail{From: &eventsv1.Tail_After{After: &eventsv1.Positions{Tokens: []string{given}}}}, []string{given}, &eventsv1.Positions{Others: end}},
	} {
		t.Run(name, func(t *testing.T) {
			proxy := &breaking{asked: make(chan *eventsv1.Tail, 100), time: told, one: &eventsv1.Delivery{Topic: "orders", Position: seen, Event: &cev1.CloudEvent{Id: "1", Source: "/s", SpecVersion: "1.0", Type: "t"}}}
			c := clientOf(t, proxy)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() {
				ended <- c.Tail(ctx, "demo", []string{"orders"}, tc.o, func(Delivery) error { return nil })
			}()
			asked := func(what string, want *eventsv1.Tail) {
				t.Helper()
				got := <-proxy.asked
				slices.Sort(got.GetAfter().GetTokens())
				want.Topics = []string{"orders"}
				if !proto.Equal(got, want) {
					t.Errorf("%s it asks for %v, not %v", what, got, want)
				}
			}
			asked("at first", tc.first)
			second := tc.first
			if tc.o.Since.IsZero() && !tc.o.Beginning {
				second = &eventsv1.Tail{From: &eventsv1.Tail_After{After: &eventsv1.Positions{Tokens: tc.tokens, Others: tc.others.Others}}}
			}
			asked("having seen nothing", second)
			tokens := append([]string{seen}, tc.tokens...)
			slices.Sort(tokens)
			asked("having seen one", &eventsv1.Tail{From: &eventsv1.Tail_After{After: &eventsv1.Positions{Tokens: tokens, Others: tc.others.Others}}})
			cancel()
			<-ended
		})
	}
}

// TestPlaces: of each partition of an epoch of a topic the newest token is kept, and holds
// on to nothing; adding one costs no memory.
func TestPlaces(t *testing.T) {
	var p places
	for _, offset := range []uint64{1, 300, 70000} {
		for _, tok := range []string{token(1, 1, offset, 0, "0"), token(1, 1, offset, 9, "1"), token(1, 200, offset, 0, "0"), token(2, 1, offset, 0, "0"), token(1, 1, offset, 0, "")} {
			p.add(tok)
		}
	}
	for _, tok := range []string{"", "no token", "AgEB", token(1, 1, 1, 1, "")[:25]} {
		p.add(tok)
		p.add(tok)
	}
	want := []string{token(1, 1, 70000, 0, "0"), token(1, 1, 70000, 9, "1"), token(1, 200, 70000, 0, "0"), token(2, 1, 70000, 0, "0"), token(1, 1, 70000, 0, ""),
		"", "no token", "AgEB", token(1, 1, 1, 1, "")[:25]}
	got := p.tokens()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	tok := token(1, 1, 70001, 0, "0")
	if n := testing.AllocsPerRun(100, func() { p.add(tok) }); n > 0 {
		t.Errorf("%.0f allocations", n)
	}
}

// TestPlacesAreBounded: of more partitions than a proxy takes positions of, as where topics come
// and go, those are kept that were read last.
func TestPlacesAreBounded(t *testing.T) {
	var p places
	always := token(1, 1, 1, 0, "always")
	for i := range uint64(3 * maxPlaces) {
		p.add(token(1, i+1, 1, 0, "one of many"))
		p.add(always)
		if n := len(p.at); n > maxPlaces {
			t.Fatalf("%d positions are kept", n)
		}
	}
	last := token(1, 3*maxPlaces, 1, 0, "one of many")
	if got := p.tokens(); !slices.Contains(got, always) || !slices.Contains(got, last) || len(got) < maxPlaces/2 {
		t.Errorf("%d positions are kept, and not those that were read last", len(got))
	}
}

// TestReason: what a handler quotes of an event, which may be no text and large, can be
// sent, and no reason is lost for it.
func TestReason(t *testing.T) {
	for in, want := range map[string]string{"no": "no", "bad \xff\xfe payload": "bad \uFFFD payload", strings.Repeat("x", 1<<20): strings.Repeat("x", maxReason),
		strings.Repeat("x", maxReason-1) + "ä": strings.Repeat("x", maxReason-1) + "\uFFFD"} {
		nack := answer(1, errors.New(in)).more
		if got := nack.GetNack().GetReason(); got != want {
			t.Errorf("%.50q is told as %.50q", in, got)
		}
		if _, err := proto.Marshal(nack); err != nil {
			t.Error(err)
		}
	}
}

// TestRetrySchedule: a delivery comes again on the Subscription's schedule, which is no
// delay on the wire, unless a Retry has one; a reason changes nothing about it.
func TestRetrySchedule(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string
	}{{errors.New("no"), "schedule no"}, {&Retry{}, "schedule "}, {&Retry{Reason: "no"}, "schedule no"}, {fmt.Errorf("later: %w", &Retry{Reason: "no"}), "schedule later: no"},
		{&Retry{Delay: AtOnce, Reason: "no"}, "0s no"}, {&Retry{Delay: time.Minute, Reason: "no"}, "1m0s no"}} {
		nack := answer(1, tc.err).more.GetNack()
		got := "schedule " + nack.Reason
		if nack.Delay != nil {
			got = nack.Delay.AsDuration().String() + " " + nack.Reason
		}
		if got != tc.want {
			t.Errorf("%#v is sent as %q, want %q", tc.err, got, tc.want)
		}
	}
}

// TestKeyIsReadAgain: a key file that is empty for a moment, as while it is written, ends
// nothing that reconnects by itself; the key that is there by then is sent.
func TestKeyIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	write := func(key string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("\n")
	proxy := &breaking{asked: make(chan *eventsv1.Tail, 100), time: timestamppb.Now(), one: &eventsv1.Delivery{}}
	c := clientOf(t, proxy, func(cfg *Config) {
		read := APIKeyFile(path)
		cfg.APIKey = func() (string, error) {
			key, err := read()
			if err != nil {
				write("secret\n")
			}
			return key, err
		}
	})
	if _, err := c.Publish(t.Context(), "demo", "orders", event.Event{ID: "1", Source: "/s", Type: "t"}); code(err) != codes.Unavailable {
		t.Errorf("without a key a call has the error %v", err)
	}
	write("")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- c.Tail(ctx, "demo", []string{"orders"}, TailOptions{}, func(Delivery) error { return nil })
	}()
	select {
	case <-proxy.asked:
	case err := <-ended:
		t.Fatalf("the tail ends with %v", err)
	}
	cancel()
	<-ended
}

// TestAgainEnds: what waits to be tried again waits no longer than for the client's end.
func TestAgainEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Client{closed: make(chan struct{})}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		began, ended := time.Now(), make(chan error, 1)
		go func() {
			ended <- c.again(ctx, func(func()) error { return status.Error(codes.Unavailable, "away") })
		}()
		synctest.Wait() // it has failed once
		close(c.closed)
		if err := <-ended; code(err) != codes.Canceled || time.Since(began) > 0 {
			t.Errorf("it ends after %v with %v", time.Since(began), err)
		}
	})
}

// TestRetryable: what says that it may have happened, or that it may be tried again, may be.
func TestRetryable(t *testing.T) {
	for e, want := range map[*Error]bool{{Code: codes.Unavailable}: true, {Code: codes.ResourceExhausted, Reason: "quota-exceeded"}: true, {Code: codes.ResourceExhausted}: false, {Code: codes.DeadlineExceeded, Reason: "ambiguous"}: true,
		{Code: codes.DeadlineExceeded, Reason: "moved-meanwhile"}: true, {Code: codes.DeadlineExceeded, Reason: "no-reply"}: false, {Code: codes.InvalidArgument}: false} {
		if e.Retryable() != want {
			t.Errorf("%v %s: %v", e.Code, e.Reason, !want)
		}
	}
}
