package embedded

import (
	"bytes"
	"encoding/binary"
	"errors"
	"time"

	"github.com/weft-mesh/weft/pkg/event"
)

// recordVersion is the first byte of every record.
const recordVersion = 1

var errRecord = errors.New("a record cannot be decoded")

// header of a record: version, stored time (ns), bytes of the topic up to and
// with this record.
const recordHeader = 1 + 8 + 8

// appendRecord encodes e. What depends on its place is filled in by setPlace.
func appendRecord(b []byte, e *event.Event, stored time.Time) []byte {
	b = append(b, recordVersion)
	b = binary.BigEndian.AppendUint64(b, uint64(stored.UnixNano()))
	b = binary.BigEndian.AppendUint64(b, 0)
	for _, s := range [...]string{e.ID, e.Source, e.Type, e.Subject, e.Time, e.DataContentType, e.DataSchema} {
		b = appendString(b, s)
	}
	for _, attrs := range [...][]event.Attr{e.Ext, e.Mesh} {
		b = binary.AppendUvarint(b, uint64(len(attrs)))
		for i := range attrs {
			b = appendString(appendString(b, attrs[i].Name), attrs[i].Value)
		}
	}
	return append(b, e.Data...)
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// setPlace fills in the bytes up to the record's end, and sees to it that the
// stored time is not before that of the record before it, so that one can search
// by it: clocks jump, and what was held back was encoded long ago. It returns the
// time.
func setPlace(record []byte, cum, before uint64) (stored uint64) {
	stored = max(before, binary.BigEndian.Uint64(record[1:9]))
	binary.BigEndian.PutUint64(record[1:9], stored)
	binary.BigEndian.PutUint64(record[9:17], cum)
	return stored
}

// recordMeta reads the header only.
func recordMeta(b []byte) (stored time.Time, cum uint64, err error) {
	if len(b) < recordHeader || b[0] != recordVersion {
		return time.Time{}, 0, errRecord
	}
	return time.Unix(0, int64(binary.BigEndian.Uint64(b[1:9]))), binary.BigEndian.Uint64(b[9:17]), nil
}

// maxAttrs bounds what a record may claim, so that a damaged one allocates
// little.
const maxAttrs = 1024

// decodeRecord decodes b, which it copies.
func decodeRecord(b []byte) (e event.Event, stored time.Time, err error) {
	if stored, _, err = recordMeta(b); err != nil {
		return e, stored, err
	}
	// One string for all attributes, one slice for the data.
	data, ok := dataOf(b[recordHeader:])
	if !ok {
		return e, stored, errRecord
	}
	d := decoder{s: string(b[recordHeader : len(b)-len(data)])}
	for _, f := range [...]*string{&e.ID, &e.Source, &e.Type, &e.Subject, &e.Time, &e.DataContentType, &e.DataSchema} {
		*f = d.string()
	}
	for _, attrs := range [...]*[]event.Attr{&e.Ext, &e.Mesh} {
		n := d.uvarint()
		if n > maxAttrs || n > uint64(len(d.s)) {
			return event.Event{}, stored, errRecord
		}
		if n > 0 {
			*attrs = make([]event.Attr, n)
			for i := range *attrs {
				(*attrs)[i] = event.Attr{Name: d.string(), Value: d.string()}
			}
		}
	}
	if d.failed {
		return event.Event{}, stored, errRecord
	}
	if len(data) > 0 {
		e.Data = bytes.Clone(data)
	}
	return e, stored, nil
}

// dataOf is what comes behind the attributes of a record, whose header b does not
// have.
func dataOf(b []byte) (data []byte, ok bool) {
	uvarint := func() (uint64, bool) {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return 0, false
		}
		b = b[n:]
		return v, true
	}
	skip := func(strings uint64) bool {
		for range strings {
			n, ok := uvarint()
			if !ok || n > uint64(len(b)) {
				return false
			}
			b = b[n:]
		}
		return true
	}
	if !skip(7) {
		return nil, false
	}
	for range 2 { // Ext, Mesh
		n, ok := uvarint()
		if !ok || n > maxAttrs || !skip(2*n) {
			return nil, false
		}
	}
	return b, true
}

type decoder struct {
	s      string
	failed bool
}

func (d *decoder) uvarint() uint64 {
	var x uint64
	for i := 0; i < len(d.s) && i < binary.MaxVarintLen64; i++ {
		c := d.s[i]
		x |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			d.s = d.s[i+1:]
			return x
		}
	}
	d.failed = true
	return 0
}

func (d *decoder) string() string {
	n := d.uvarint()
	if d.failed || n > uint64(len(d.s)) {
		d.failed = true
		return ""
	}
	s := d.s[:n]
	d.s = d.s[n:]
	return s
}
