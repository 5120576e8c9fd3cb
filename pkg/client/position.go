package client

import (
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"maps"
	"slices"
)

// maxPlaces is how many positions a proxy takes of a tail that goes on.
const maxPlaces = 4096

// places are the newest position tokens by partition. Of more than maxPlaces, as where topics
// come and go, those are forgotten of which nothing has come for longest: they go on where
// the tail began. The zero value is ready.
type places struct {
	at    map[string]*place
	room  []byte
	added uint64
}

type place struct {
	token []byte
	added uint64 // it was the newest then
}

// add notes a token, of which it keeps nothing.
func (p *places) add(token string) {
	p.room = appendPartition(p.room[:0], token)
	at := p.at[string(p.room)]
	if at == nil {
		if p.at == nil {
			p.at = map[string]*place{}
		}
		if len(p.at) == maxPlaces {
			p.forget()
		}
		at = &place{}
		p.at[string(p.room)] = at
	}
	p.added++
	at.token, at.added = append(at.token[:0], token...), p.added
}

// forget drops what is older than half of them.
func (p *places) forget() {
	all := slices.SortedFunc(maps.Values(p.at), func(a, b *place) int { return cmp.Compare(a.added, b.added) })
	middle := all[len(all)/2].added
	maps.DeleteFunc(p.at, func(_ string, at *place) bool { return at.added < middle })
}

// tokens are the newest, one for each partition.
func (p *places) tokens() []string {
	out := make([]string, 0, len(p.at))
	for _, at := range p.at {
		out = append(out, string(at.token))
	}
	return out
}

// appendPartition appends to an empty slice what of a position token names topic, epoch
// and partition: the token without its offset. Tokens of version 1 are a version byte, 16
// bytes of topic, and the varints epoch, offset and minor offset before the partition's
// name. A token of a version that is not known is its own partition.
func appendPartition(b []byte, token string) []byte {
	none := b
	b, err := base64.RawURLEncoding.AppendDecode(b, []byte(token))
	if err != nil || len(b) < 18 || b[0] != 1 {
		return append(none, token...)
	}
	at, begin := 17, 0
	for i := range 3 {
		_, n := binary.Uvarint(b[at:])
		if n <= 0 {
			return append(none, token...)
		}
		if at += n; i == 0 {
			begin = at // of the offsets
		}
	}
	b[begin] = '/' // no partition has another's name and epoch
	return append(b[:begin+1], b[at:]...)
}
