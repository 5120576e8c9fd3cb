package client

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"
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
