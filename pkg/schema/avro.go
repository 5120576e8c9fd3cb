package schema

import (
	"encoding/binary"
	"math"
	"mime"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/weft-mesh/weft/pkg/names"
)

// isAvro reports whether a media type is Avro's binary encoding.
func isAvro(media string) bool {
	if media == "application/avro" {
		return true
	}
	t, _, err := mime.ParseMediaType(media)
	return err == nil && (t == "application/avro" || t == "avro/binary" || t == "application/vnd.apache.avro")
}

// checkAvro judges data in Avro's binary encoding, without making anything of them:
// what they claim to hold takes no memory.
func checkAvro(t *avroType, data []byte) error {
	r := avroReader{rest: data, values: maxValues}
	m := r.value(t, 0)
	if m == nil && len(r.rest) > 0 {
		m = miss("%d bytes are left over", len(r.rest))
	}
	if m == nil {
		return nil
	}
	slices.Reverse(m.path)
	return &Mismatch{Path: names.Text(pointer(m.path), maxMessage), Reason: names.Text(m.reason, maxMessage)}
}

// avroReader walks over data.
type avroReader struct {
	rest   []byte
	values int // how many more there may be: an array of nulls has any number in no bytes
}

// value walks over one value, which nests within depth others.
func (r *avroReader) value(t *avroType, depth int) *dataMiss {
	if r.values--; r.values < 0 {
		return miss("they have more than %d values", maxValues)
	}
	if depth > maxDepth {
		return miss("they nest more than %d deep", maxDepth)
	}
	switch t.kind {
	case "boolean":
		if len(r.rest) > 0 && r.rest[0] > 1 {
			return miss("want boolean, got the byte %d", r.rest[0])
		}
		return r.skip(t.kind, 1)
	case "int":
		n, m := r.long(t.kind)
		if m == nil && (n < math.MinInt32 || n > math.MaxInt32) {
			return miss("%d is beyond an int", n)
		}
		return m
	case "long":
		_, m := r.long(t.kind)
		return m
	case "float":
		return r.skip(t.kind, 4)
	case "double":
		return r.skip(t.kind, 8)
	case "fixed":
		return r.skip(t.kind, int64(t.size))
	case "bytes", "string":
		_, m := r.text(t.kind)
		return m
	case "enum":
		n, m := r.long(t.kind)
		if m == nil && (n < 0 || n >= int64(len(t.symbols))) {
			return miss("enum %s has no symbol %d", t.name, n)
		}
		return m
	case "union":
		n, m := r.long(t.kind)
		if m != nil {
			return m
		}
		if n < 0 || n >= int64(len(t.branches)) {
			return miss("the union has no type %d", n)
		}
		return r.value(t.branches[n], depth+1)
	case "record":
		for i := range t.fields {
			if m := r.value(t.fields[i].of, depth+1); m != nil {
				return m.in(t.fields[i].name)
			}
		}
	case "array", "map":
		return r.blocks(t, depth)
	}
	return nil
}

// blocks walks over the items of an array or a map.
func (r *avroReader) blocks(t *avroType, depth int) *dataMiss {
	for i := 0; ; {
		n, m := r.long(t.kind)
		if m != nil || n == 0 {
			return m
		}
		end := -1 // what is to be left after the block, where it tells
		if n < 0 {
			size, m := r.long(t.kind)
			if m != nil {
				return m
			}
			if size < 0 || size > int64(len(r.rest)) || n == math.MinInt64 {
				return miss("a block of %d bytes is longer than the data", size)
			}
			n, end = -n, len(r.rest)-int(size)
		}
		for ; n > 0; n-- {
			var key []byte
			if t.kind == "map" {
				if key, m = r.text("string"); m != nil {
					return m
				}
			}
			switch m := r.value(t.items, depth+1); {
			case m != nil && t.kind == "map":
				return m.in(string(key))
			case m != nil:
				return m.in(strconv.Itoa(i))
			}
			i++
		}
		if end >= 0 && end != len(r.rest) {
			return miss("a block does not end where it says")
		}
	}
}

// long reads a number.
func (r *avroReader) long(kind string) (int64, *dataMiss) {
	n, size := binary.Varint(r.rest)
	switch {
	case size == 0:
		return 0, miss("want %s, the data end", kind)
	case size < 0:
		return 0, miss("want %s, got a number beyond 64 bits", kind)
	}
	r.rest = r.rest[size:]
	return n, nil
}

// text walks over bytes or a string, which it lends until the data change.
func (r *avroReader) text(kind string) ([]byte, *dataMiss) {
	n, m := r.long(kind)
	if m != nil {
		return nil, m
	}
	start := r.rest
	if m := r.skip(kind, n); m != nil {
		return nil, m
	}
	if kind == "string" && !utf8.Valid(start[:n]) {
		return nil, miss("a string is not UTF-8")
	}
	return start[:n], nil
}

func (r *avroReader) skip(kind string, n int64) *dataMiss {
	if n < 0 || n > int64(len(r.rest)) {
		return miss("want %s of %d bytes, %d are there", kind, n, len(r.rest))
	}
	r.rest = r.rest[n:]
	return nil
}
