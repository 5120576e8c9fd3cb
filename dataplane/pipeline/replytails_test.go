package pipeline

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
)

// tailed is a store with tails alone, that give what they are told.
type tailed struct {
	store.Store
	opened chan store.TailRequest
	closed chan struct{}
	give   chan any // a store.Message or an error
}

func (s *tailed) Tail(_ context.Context, r store.TailRequest) (store.Tail, error) {
	s.opened <- r
	return s, nil
}

func (s *tailed) Next(ctx context.Context, dst []store.Message) (int, error) {
	select {
	case x := <-s.give:
		if err, failed := x.(error); failed {
			return 0, err
		}
		dst[0], _ = x.(store.Message)
		return 1, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (s *tailed) AtEnd() bool { return false }

func (s *tailed) Mark(context.Context) (passed func() bool, err error) { return s.AtEnd, nil }

func (s *tailed) Close(context.Context) error {
	s.closed <- struct{}{}
	return nil
}

// pass lets time of a bubble pass.
func pass(d time.Duration) { <-time.After(d) }

// TestReplyTails: one reader serves all requests of a store, goes on where it was after
// trouble, and ends a minute after the last request.
func TestReplyTails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &tailed{opened: make(chan store.TailRequest, 10), closed: make(chan struct{}, 10), give: make(chan any)}
		r := newReplies(&Config{Incarnation: uuid.NewString(), Log: slog.New(slog.DiscardHandler), Store: func(string) (store.Store, error) { return st, nil }})
		listen := func() func() {
			release, err := r.tails.listen(t.Context(), uidStore)
			if err != nil {
				t.Fatal(err)
			}
			return release
		}
		first, second := listen(), listen()
		if req := <-st.opened; req.Topic != names.ReplyTopic(uidStore) || !req.From.End || len(st.opened) > 0 {
			t.Errorf("opened %+v, and %d more", req, len(st.opened))
		}
		w, err := r.begin(uidStore, "orders", time.Now().Add(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		pass(time.Second)
		reply := func(offset uint64, token string) store.Message {
			return store.Message{Event: event.Event{ID: "1", Ext: []event.Attr{{Name: event.AttrReplyTo, Value: token}}}, Pos: store.Position{Partition: "a", Offset: offset}}
		}
		other := replyToken{Incarnation: uuid.New(), Topic: "orders"}
		st.give <- reply(7, other.String())
		st.give <- fault.New(fault.Unavailable, "test", "away", "it is away")
		req := <-st.opened
		<-st.closed
		if len(req.From.After) != 1 || req.From.After[0].Offset != 7 || req.From.End || !req.From.At.Equal(began) {
			t.Errorf("it goes on from %+v", req.From)
		}
		st.give <- reply(8, w.token)
		if got := <-w.got; got.ID != "1" {
			t.Errorf("got %+v", got)
		}
		r.end(w)
		first()
		pass(2 * tailIdle)
		second()
		pass(tailIdle / 2)
		third := listen() // in time
		pass(2 * tailIdle)
		synctest.Wait()
		if len(st.closed)+len(st.opened) > 0 {
			t.Error("the reader ended while a request waited")
		}
		third()
		pass(tailIdle + time.Second)
		synctest.Wait()
		if len(st.closed) != 1 || len(r.tails.open) > 0 {
			t.Error("the reader goes on for nobody")
		}
		<-st.closed
		listen()
		<-st.opened
		r.tails.close()
		if len(st.closed) != 1 {
			t.Error("the reader outlives the pipeline")
		}
		if _, err := r.tails.listen(t.Context(), uidStore); fault.From(err).Reason != "draining" {
			t.Errorf("%v", err)
		}
	})
}
