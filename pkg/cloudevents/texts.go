package cloudevents

import "strings"

// texts makes strings of bytes, many in one allocation. The zero value is ready.
type texts struct {
	b    strings.Builder // what it has given out it never changes
	slab int             // size of the last slab, in bytes
}

// Slabs grow from small ones, since there may be one event, up to the largest.
const minSlab, maxSlab = 64, 4 << 10

// string is v as a string, which is like where the two are equal.
func (t *texts) string(v []byte, like string) string {
	if string(v) == like {
		return like
	}
	if t.b.Cap()-t.b.Len() < len(v) {
		t.slab = min(max(minSlab, 2*t.slab), maxSlab)
		t.b.Reset() // what it has stays as it is with those who have it
		t.b.Grow(max(len(v), t.slab))
	}
	from := t.b.Len()
	t.b.Write(v)
	return t.b.String()[from:]
}
