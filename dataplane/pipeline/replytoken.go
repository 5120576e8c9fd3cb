package pipeline

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"time"

	"github.com/google/uuid"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/names"
)

// replyToken says where a reply goes: it is the attribute replyto of a request and of
// its reply. Clients take it for opaque. It is worth nothing by itself: who replies
// needs the right to read Topic, and a reply is taken only where the whole token is
// that of a request which waits.
type replyToken struct {
	// Store is the uid of the EventStore whose reply topic leads to the proxy of
	// Incarnation.
	Store, Incarnation uuid.UUID
	// Random tells requests apart and cannot be guessed.
	Random [16]byte
	// Deadline, in whole milliseconds, is when nobody waits any more, by the clock
	// of the proxy that waits.
	Deadline time.Time
	// Topic that the request was published to.
	Topic string
}

const (
	tokenVersion = 1
	tokenFixed   = 1 + 3*16 + 8 // bytes before the topic
	maxToken     = 256          // characters; none is as long
)

var errToken = errors.New("is not a token of a request")

// tokenText is base64url without padding, in the one way that it can be written.
var tokenText = base64.RawURLEncoding.Strict()

// String is the token as an attribute.
func (t *replyToken) String() string {
	b := make([]byte, 0, tokenFixed+len(t.Topic))
	b = append(b, tokenVersion)
	b = append(append(append(b, t.Store[:]...), t.Incarnation[:]...), t.Random[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(t.Deadline.UnixMilli())) //nolint:gosec // after 1970
	return tokenText.EncodeToString(append(b, t.Topic...))
}

// parseReplyToken reads what String wrote, and nothing else.
func parseReplyToken(s string) (*replyToken, error) {
	if len(s) > maxToken {
		return nil, errToken
	}
	b, err := tokenText.DecodeString(s)
	if err != nil || len(b) <= tokenFixed || b[0] != tokenVersion {
		return nil, errToken
	}
	t := &replyToken{Store: uuid.UUID(b[1:17]), Incarnation: uuid.UUID(b[17:33]), Random: [16]byte(b[33:49]), Topic: string(b[tokenFixed:])}
	ms := binary.BigEndian.Uint64(b[49:57])
	if ms > maxDeadline || names.CheckName("topic", t.Topic) != nil || tokenText.EncodeToString(b) != s {
		return nil, errToken
	}
	t.Deadline = time.UnixMilli(int64(ms)) //nolint:gosec // bounded above
	return t, nil
}

// RequestTopic is the topic of the request that an event is the reply to; false where it
// is none.
func RequestTopic(e *event.Event) (string, bool) {
	token, _ := event.Lookup(e.Ext, event.AttrReplyTo)
	t, err := parseReplyToken(token)
	if err != nil {
		return "", false
	}
	return t.Topic, true
}

// maxDeadline is the last millisecond of the year 9999.
const maxDeadline = 253402300799999
