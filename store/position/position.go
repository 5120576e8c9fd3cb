// Package position has the position token: a place in a topic that clients may
// keep. Tokens are opaque, versioned and stable: one that was given out is
// understood for ever.
package position

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strings"

	"github.com/google/uuid"

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
	b := append(buf[:0], version)
	u, err := uuid.Parse(t.TopicUID)
	if err != nil || len(t.Pos.Partition) > maxPartition {
		return ""
	}
	b = append(b, u[:]...)
	b = binary.AppendUvarint(b, uint64(t.Epoch))
	b = binary.AppendUvarint(b, t.Pos.Offset)
	b = binary.AppendUvarint(b, t.Pos.Minor)
	b = append(b, t.Pos.Partition...)
	return base64.RawURLEncoding.EncodeToString(b)
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
