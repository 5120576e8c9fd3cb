package client

import (
	"encoding/base64"
	"encoding/binary"
)

// partition is what of a position token names topic, epoch and partition: the
// token without its offset. Tokens of version 1 are a version byte, 16 bytes of
// topic, and the varints epoch, offset and minor offset before the partition's
// name. A token of a version that is not known is its own partition.
func partition(token string) string {
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(b) < 18 || b[0] != 1 {
		return token
	}
	head, rest := b[:17], b[17:]
	_, n := binary.Uvarint(rest)
	if n <= 0 {
		return token
	}
	epoch := rest[:n]
	rest = rest[n:]
	for range 2 {
		_, n := binary.Uvarint(rest)
		if n <= 0 {
			return token
		}
		rest = rest[n:]
	}
	return string(head) + string(epoch) + "/" + string(rest)
}
