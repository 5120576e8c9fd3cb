package pipeline

import (
	"testing"
	"time"

	"github.com/weft-mesh/weft/pkg/event"
)

// TestRepliedNewest: of more requests than are remembered, the newest are.
func TestRepliedNewest(t *testing.T) {
	r := newReplies(&Config{Clock: time.Now})
	var tokens []string
	take := func(s string) string {
		token, err := parseReplyToken(s)
		if err != nil {
			t.Fatal(err)
		}
		return r.take(s, token, event.Event{})
	}
	for range maxReplied + 1 {
		w, err := r.begin(uidStore, "orders", time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		if got := take(w.token); got != replyDelivered {
			t.Fatal(got)
		}
		tokens = append(tokens, w.token)
		r.end(w)
	}
	if oldest, next, newest := take(tokens[0]), take(tokens[1]), take(tokens[maxReplied]); oldest != replyUnknown || next != replyDuplicate || newest != replyDuplicate || len(r.replied) != maxReplied {
		t.Errorf("the oldest is %s, the next one %s, the newest %s, of %d", oldest, next, newest, len(r.replied))
	}
}
