// Package position has the position token: a place in a topic that clients may
// keep. Tokens are opaque, versioned and stable: one that was given out is
// understood for ever.
package position

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weft-mesh/weft/store"
)

// Token is a place in a topic of the mesh.
type Token struct {
	// TopicUID is the uid of the Topic resource, a UUID.
	TopicUID string
	// Epoch is the number of the TopicBinding's epoch.
	Epoch uint32
	// Pos is the place in the store of that epoch.
	Pos store.Position
}

// ErrInvalid is returned for what is not a token.
var ErrInvalid = errors.New("not a valid position token")

// version is the first byte of version 1. Version 1 is: this byte, 16 bytes
// of topic UUID, uvarint epoch, uvarint offset, uvarint minor offset, and the
// partition's name to the end; the whole in unpadded base64url.
const version = 1

// maxPartition bounds a partition's name in a token, in bytes.
const maxPartition = 256

// maxToken bounds the text of a token, in bytes.
const maxToken = 512

// String is the token's text. TopicUID must be a UUID.
func (t Token) String() string {
	var buf [maxToken]byte
	return string(t.Append(buf[:0]))
}

// Append appends the token's text. TopicUID must be a UUID.
func (t Token) Append(to []byte) []byte {
	// Room for all but long names of partitions. More would make the stacks grow that
	// deliveries are sent from, each of which is new.
	var buf [128]byte
	b := append(buf[:0], version)
	u, err := uuid.Parse(t.TopicUID)
	if err != nil || len(t.Pos.Partition) > maxPartition {
		return to
	}
	b = append(b, u[:]...)
	b = binary.AppendUvarint(b, uint64(t.Epoch))
	b = binary.AppendUvarint(b, t.Pos.Offset)
	b = binary.AppendUvarint(b, t.Pos.Minor)
	b = append(b, t.Pos.Partition...)
	return base64.RawURLEncoding.AppendEncode(to, b)
}

// Parse reads a token. The error is ErrInvalid.
func Parse(s string) (Token, error) {
	if len(s) > maxToken {
		return Token{}, ErrInvalid
	}
	// The decoder skips line breaks; a token has none.
	if strings.ContainsAny(s, "\r\n") {
		return Token{}, ErrInvalid
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) < 1+16 || b[0] != version {
		return Token{}, ErrInvalid
	}
	var u uuid.UUID
	copy(u[:], b[1:17])
	t := Token{TopicUID: u.String()}
	b = b[17:]
	var fields [3]uint64
	for i := range fields {
		v, n := binary.Uvarint(b)
		if n <= 0 || n > 1 && b[n-1] == 0 {
			return Token{}, ErrInvalid
		}
		fields[i], b = v, b[n:]
	}
	if fields[0] > 1<<32-1 || len(b) > maxPartition {
		return Token{}, ErrInvalid
	}
	t.Epoch = uint32(fields[0])
	t.Pos = store.Position{Partition: string(b), Offset: fields[1], Minor: fields[2]}
	return t, nil
}

// Start is where a Subscription begins in one epoch of a topic: after the places that
// tokens have in it, and elsewhere at its beginning, or at the time, or at its end where
// at is nil. Tokens of other topics and of other epochs are passed over: Starts has what
// those mean.
func Start(beginning bool, at *timestamppb.Timestamp, tokens []string, topicUID string, epoch uint32) (store.Start, error) {
	var from store.Start
	switch {
	case beginning:
	case at != nil:
		from.At = at.AsTime()
	default:
		from.End = true
	}
	mine, err := tokensOf(tokens, topicUID)
	for _, t := range mine {
		if t.Epoch == epoch {
			from.After = append(from.After, t.Pos)
		}
	}
	return from, err
}

// tokensOf are the tokens of one topic.
func tokensOf(tokens []string, topicUID string) (mine []Token, err error) {
	for i, s := range tokens {
		t, err := Parse(s)
		if err != nil {
			return nil, fmt.Errorf("spec.start_positions[%d]: %w", i, err)
		}
		if t.TopicUID == topicUID {
			mine = append(mine, t)
		}
	}
	return mine, nil
}

// Begin is an epoch of a topic that a Subscription reads.
type Begin struct {
	Epoch uint32
	// Beginning is what Start is to be told: where its tokens do not say otherwise the
	// Subscription begins at the epoch's beginning, whatever is said of the topic.
	Beginning bool
}

// Starts tells which epochs of a topic a Subscription reads that begins now, and how it
// begins in each. epochs are those that are kept, oldest first, at least one; written is
// the one that is written to.
//
// With tokens it begins in the oldest epoch that they are of: whoever has a place there
// has read what was before. One of an epoch that is not kept any more means the
// beginning of the oldest that is, as a place does whose events are not kept. Without
// tokens it begins at the time, in every epoch; or at the beginning of the oldest; or
// else at the end of the one that is written to. What comes after the epoch that it
// begins in is read from the beginning. One token of an epoch to come is an error.
func Starts(beginning bool, at *timestamppb.Timestamp, tokens []string, topicUID string, epochs []uint32, written uint32) ([]Begin, error) {
	mine, err := tokensOf(tokens, topicUID)
	if err != nil {
		return nil, err
	}
	first, whole := written, beginning // whole: the first from its beginning
	if beginning || at != nil {
		first = epochs[0]
	}
	if len(mine) > 0 {
		first = epochs[len(epochs)-1]
		for _, t := range mine {
			if last := epochs[len(epochs)-1]; t.Epoch > last {
				return nil, fmt.Errorf("spec.start_positions: one is of epoch %d of its topic, which is in epoch %d", t.Epoch, last)
			}
			if t.Epoch < epochs[0] {
				whole = true
			}
			first = min(first, max(t.Epoch, epochs[0]))
		}
	}
	var out []Begin
	for _, e := range epochs {
		switch {
		case e == first:
			out = append(out, Begin{e, whole})
		case e > first:
			out = append(out, Begin{e, beginning || at == nil || len(mine) > 0})
		}
	}
	return out, nil
}
