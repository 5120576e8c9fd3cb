package cloudevents

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/weft-mesh/weft/pkg/event"
)

// MaxBatch bounds the events of a batch.
const MaxBatch = 1000

// A SizeError is of a batch with too few or too many events.
type SizeError struct{ msg string }

func (e *SizeError) Error() string { return e.msg }

var errMany, errEmpty = &SizeError{fmt.Sprintf("a batch has at most %d events", MaxBatch)}, &SizeError{"the batch is empty"}

// DecodeJSON decodes one event in the JSON format. Data of the event may be part
// of b, which must not be changed afterwards. The event is not validated.
func DecodeJSON(b []byte) (event.Event, error) {
	r := newReader(b)
	e, err := r.event()
	if err != nil {
		return e, err
	}
	if !r.atEnd() {
		return e, errors.New("there is something behind the event's JSON object")
	}
	return e, nil
}

// DecodeJSONBatch decodes a batch, as DecodeJSON does an event. An event that is
// wrong has an error at its place in wrong, which is nil where every event was
// read; err is for a batch that cannot be told apart into events, or a *SizeError.
func DecodeJSONBatch(b []byte) (events []event.Event, wrong []error, err error) {
	r := newReader(b)
	if err := r.batchBegin(); err != nil {
		return nil, nil, err
	}
	for r.dec.PeekKind() != jsontext.KindEndArray {
		if len(events) == MaxBatch {
			return nil, nil, errMany
		}
		e, err := r.event()
		if err != nil {
			return decodeEach(b)
		}
		events = append(events, e)
	}
	return events, nil, r.batchEnd(len(events))
}

// decodeEach decodes a batch with something wrong in it, value by value, so that
// what is wrong is known of each event.
func decodeEach(b []byte) (events []event.Event, wrong []error, err error) {
	r := newReader(b, jsontext.AllowDuplicateNames(true)) // that is for each to say
	if err := r.batchBegin(); err != nil {
		return nil, nil, err
	}
	for r.dec.PeekKind() != jsontext.KindEndArray {
		if len(events) == MaxBatch {
			return nil, nil, errMany
		}
		raw, err := r.value()
		if err != nil {
			return nil, nil, fmt.Errorf("event %d: %w", len(events), err)
		}
		e, err := DecodeJSON(raw)
		events, wrong = append(events, e), append(wrong, err)
	}
	return events, wrong, r.batchEnd(len(events))
}

// batchBegin reads the beginning of a batch.
func (r *reader) batchBegin() error {
	if r.dec.PeekKind() != jsontext.KindBeginArray {
		return errors.New("a batch is a JSON array of events")
	}
	_, err := r.dec.ReadToken()
	return err
}

// batchEnd reads the end of a batch of n events.
func (r *reader) batchEnd(n int) error {
	if _, err := r.dec.ReadToken(); err != nil {
		return fmt.Errorf("the batch does not end: %w", syntax(err))
	}
	if !r.atEnd() {
		return errors.New("there is something behind the batch")
	}
	if n == 0 {
		return errEmpty
	}
	return nil
}

// reader reads JSON (RFC 8259, with unique names and valid UTF-8: RFC 7493) and
// gives parts of its input instead of copies.
type reader struct {
	dec  *jsontext.Decoder
	b    []byte
	text texts
	last event.Event // the one before: a batch's events are much alike
}

func newReader(b []byte, o ...jsontext.Options) *reader {
	return &reader{dec: jsontext.NewDecoder(bytes.NewBuffer(b), o...), b: b}
}

// value is the next value as it stands in the input.
func (r *reader) value() ([]byte, error) {
	v, err := r.dec.ReadValue()
	if err != nil {
		return nil, syntax(err)
	}
	end := int(r.dec.InputOffset())
	return r.b[end-len(v) : end : end], nil
}

func (r *reader) atEnd() bool {
	_, err := r.dec.ReadToken()
	return errors.Is(err, io.EOF)
}

// syntax is what is wrong with the JSON and where.
func syntax(err error) error {
	s, ok := errors.AsType[*jsontext.SyntacticError](err)
	switch {
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	case !ok:
		return err
	case errors.Is(err, jsontext.ErrDuplicateName):
		return fmt.Errorf("member %q is there twice", clip(s.JSONPointer.LastToken()))
	}
	return fmt.Errorf("%w, at byte %d", s.Err, s.ByteOffset)
}

// unquoted is what of raw, which is valid JSON, stands between its quotes.
func unquoted(raw []byte) ([]byte, error) {
	if raw[0] != '"' {
		return nil, errors.New("is not a string")
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1], nil
	}
	return jsontext.AppendUnquote(nil, raw)
}

// member is the name of a member and what its value was in the event before, as
// far as it is an attribute of every event.
func (r *reader) member(name []byte) (n, like string) {
	switch string(name) {
	case event.AttrID:
		return event.AttrID, ""
	case event.AttrSource:
		return event.AttrSource, r.last.Source
	case event.AttrSpecVersion:
		return event.AttrSpecVersion, event.SpecVersion
	case event.AttrType:
		return event.AttrType, r.last.Type
	case event.AttrSubject:
		return event.AttrSubject, r.last.Subject
	case event.AttrTime:
		return event.AttrTime, r.last.Time
	case event.AttrDataContentType:
		return event.AttrDataContentType, r.last.DataContentType
	case event.AttrDataSchema:
		return event.AttrDataSchema, r.last.DataSchema
	case "data":
		return "data", ""
	}
	return r.text.string(name, ""), ""
}

// event reads one event.
func (r *reader) event() (event.Event, error) {
	var e event.Event
	if kind := r.dec.PeekKind(); kind != jsontext.KindBeginObject {
		if _, err := r.value(); err != nil {
			return e, fmt.Errorf("not a JSON object: %w", err)
		}
		return e, errors.New("an event is a JSON object")
	}
	if _, err := r.dec.ReadToken(); err != nil {
		return e, syntax(err)
	}
	var data, data64 []byte
	version := false
	for n := 0; r.dec.PeekKind() != jsontext.KindEndObject; n++ {
		if n == maxExtensions+10 { // with those of the context, and the data in both forms
			return e, fmt.Errorf("the event has more than %d extension attributes", maxExtensions)
		}
		raw, err := r.value()
		if err != nil {
			return e, err
		}
		quoted, err := unquoted(raw)
		if err != nil {
			return e, err
		}
		name, like := r.member(quoted)
		if raw, err = r.value(); err != nil {
			return e, fmt.Errorf("member %q: %w", clip(name), err)
		}
		switch name {
		case "data":
			data = raw
			continue
		case "data_base64":
			data64 = raw
			continue
		}
		value, err := r.attribute(raw, like)
		if err != nil {
			return e, fmt.Errorf("attribute %q: %w", clip(name), err)
		}
		if name == event.AttrSpecVersion {
			if version = true; value != event.SpecVersion {
				return e, fmt.Errorf("specversion is %q; this is for version 1.0", clip(value))
			}
			continue
		}
		if value == "" && string(raw) == "null" {
			continue // null is absent
		}
		if err := set(&e, name, value); err != nil {
			return e, err
		}
	}
	if _, err := r.dec.ReadToken(); err != nil {
		return e, syntax(err)
	}
	if !version {
		return e, errors.New("specversion is missing")
	}
	event.SortAttrs(e.Ext)
	err := decodeData(&e, data, data64)
	r.last = e
	r.last.Data = nil
	return e, err
}

// attribute is the string form of an attribute's JSON value, which is like where
// the two are equal.
func (r *reader) attribute(raw []byte, like string) (string, error) {
	switch raw[0] {
	case '"':
		b, err := unquoted(raw)
		return r.text.string(b, like), err
	case 't', 'f':
		return string(raw), nil
	case 'n':
		return "", nil
	case '{', '[':
		return "", errors.New("is neither string, number nor boolean")
	}
	n, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil || n < math.MinInt32 || n > math.MaxInt32 {
		return "", errors.New("is a number that is not a 32-bit integer")
	}
	return strconv.FormatInt(n, 10), nil
}

func decodeData(e *event.Event, data, data64 []byte) error {
	if string(data64) == "null" {
		data64 = nil
	}
	if string(data) == "null" && (data64 != nil || !isJSON(e.DataContentType)) {
		data = nil // of what is no JSON, as of attributes, null is absent
	}
	switch {
	case data64 != nil && data != nil:
		return errors.New("data and data_base64 are both there")
	case data64 != nil:
		s, err := unquoted(data64)
		if err != nil {
			return errors.New("data_base64 is not a string")
		}
		b, err := base64.StdEncoding.AppendDecode(nil, s)
		if err != nil {
			return errors.New("data_base64 is not base64")
		}
		e.Data = b
	case data == nil:
	case e.DataContentType == "" || isJSON(e.DataContentType):
		// In the JSON format data without a content type are JSON.
		e.DataContentType = first(e.DataContentType, "application/json")
		e.Data = data
	case data[0] == '"' && bytes.IndexByte(data, '\\') < 0:
		e.Data = data[1 : len(data)-1]
	case data[0] == '"':
		b, err := jsontext.AppendUnquote(nil, data)
		if err != nil {
			return fmt.Errorf("data: %w", err)
		}
		e.Data = b
	default:
		e.Data = data
	}
	return nil
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// isJSON reports whether a content type is JSON's or one of its kind.
func isJSON(contentType string) bool {
	switch contentType {
	case "application/json":
		return true
	case "text/plain", "application/octet-stream", "application/xml", "application/protobuf":
		return false // as is said below, for less
	}
	t, _, err := mime.ParseMediaType(contentType)
	return (err == nil || errors.Is(err, mime.ErrInvalidMediaParameter)) && (t == "application/json" || t == "text/json" || strings.HasSuffix(t, "+json"))
}

// AppendJSON appends e in the JSON format.
func AppendJSON(b []byte, e *event.Event) []byte {
	b = append(b, `{"specversion":"1.0"`...)
	for _, a := range [...]event.Attr{{Name: event.AttrID, Value: e.ID}, {Name: event.AttrSource, Value: e.Source}, {Name: event.AttrType, Value: e.Type},
		{Name: event.AttrSubject, Value: e.Subject}, {Name: event.AttrTime, Value: e.Time}, {Name: event.AttrDataContentType, Value: e.DataContentType},
		{Name: event.AttrDataSchema, Value: e.DataSchema}} {
		if a.Value != "" {
			b = appendMember(b, a.Name, a.Value)
		}
	}
	for i := range e.Ext {
		b = appendMember(b, e.Ext[i].Name, e.Ext[i].Value)
	}
	if isJSON(e.DataContentType) && (len(e.Data) <= maxNested || JSONDepth(e.Data) <= maxNested) {
		// One line, as server-sent events need it. What all read alike is as it is: with names
		// that are unique and valid Unicode; else readers would refuse the event, or change it.
		if with, err := jsontext.AppendFormat(append(b, `,"data":`...), e.Data, jsontext.PreserveRawStrings(true)); err == nil {
			return append(with, '}')
		}
	}
	switch {
	case len(e.Data) == 0:
	case strings.HasPrefix(e.DataContentType, "text/") && !isJSON(e.DataContentType) && utf8.Valid(e.Data):
		b = appendMember(b, "data", string(e.Data))
	default:
		b = append(b, `,"data_base64":"`...)
		b = base64.StdEncoding.AppendEncode(b, e.Data)
		b = append(b, '"')
	}
	return append(b, '}')
}

// maxNested is how deep data nest that are written as JSON: many who read JSON refuse what
// nests deeper, and with it whatever stands around it.
const maxNested = 500

// JSONDepth is how deep JSON nests, before it is parsed. Of what is no JSON it is some number.
func JSONDepth(b []byte) int {
	most, now, quoted := 0, 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			now++
			most = max(most, now)
		case c == '}' || c == ']':
			now--
		}
	}
	return most
}

func appendMember(b []byte, name, value string) []byte {
	b = append(b, `,"`...)
	b = append(b, name...)
	b = append(b, `":`...)
	q, err := json.Marshal(value)
	if err != nil {
		q = []byte(`""`) // a string always marshals
	}
	return append(b, q...)
}
