package kafka

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
	"unsafe"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store"
)

// How an event is a record: CloudEvents' Kafka protocol binding. It is written in
// binary mode: attributes are headers "ce_<name>", datacontenttype is content-type,
// data are the value. The ordering key is the record's key. Headers of the mesh are
// "weft_<name>". What cannot be a header makes the whole event the value, in the JSON
// format, marked by content-type. So does an event without data: a record without a
// value removes those before it of its key where a topic is compacted, and Java's
// consumer gives none to the CloudEvents SDK.
const (
	cePrefix    = "ce_"
	contentType = "content-type"
	meshPrefix  = "weft_"
	// typeProto is the content type of an event in the protobuf format.
	typeProto = "application/cloudevents+protobuf"
)

// overhead bounds what a record takes in a batch beside its key, value and headers,
// the batch's own header among it; headerOverhead is that of one header, with the
// prefix of its name.
const (
	overhead       = 128
	headerOverhead = 10
)

// record is an event as a batch has it.
type record struct {
	key     string // "": none
	value   []byte // not nil
	headers []byte // how many, and each
}

// encode makes a record of an event, with its headers behind what is in room, which it
// returns. The record borrows the event's data.
func encode(o store.Outgoing, room []byte) (r record, _ []byte) {
	e := o.Event
	h := headers{at: len(room), buf: append(room, make([]byte, maxCountBytes)...)}
	r.key = o.Key
	if binary(e) {
		h.add("ce_specversion", "", event.SpecVersion)
		h.add("ce_id", "", e.ID)
		h.add("ce_source", "", e.Source)
		h.add("ce_type", "", e.Type)
		h.add("ce_subject", "", e.Subject)
		h.add("ce_time", "", e.Time)
		h.add("ce_dataschema", "", e.DataSchema)
		h.add(contentType, "", e.DataContentType)
		for i := range e.Ext {
			h.add(cePrefix, e.Ext[i].Name, e.Ext[i].Value)
		}
		if r.value = e.Data; r.value == nil {
			r.value = []byte{}
		}
	} else {
		h.add(contentType, "", cloudevents.TypeJSON)
		r.value = cloudevents.AppendJSON(nil, e)
	}
	for i := range e.Mesh {
		h.add(meshPrefix, e.Mesh[i].Name, e.Mesh[i].Value)
	}
	r.headers = h.end()
	return r, h.buf
}

// headers are written one by one, with room before them for how many they are.
type headers struct {
	buf   []byte
	at, n int
}

const maxCountBytes = 5

// add adds a header that has a value; its name is in two parts.
func (h *headers) add(prefix, name, value string) {
	if value == "" {
		return
	}
	h.n++
	h.buf = kbin.AppendVarint(h.buf, int32(len(prefix)+len(name))) //nolint:gosec // bounded by maxMessage
	h.buf = append(append(h.buf, prefix...), name...)
	h.buf = append(kbin.AppendVarint(h.buf, int32(len(value))), value...) //nolint:gosec // likewise
}

// end writes how many they are, and gives them all.
func (h *headers) end() []byte {
	n := int32(h.n) //nolint:gosec // events have few attributes
	from := h.at + maxCountBytes - kbin.VarintLen(n)
	kbin.AppendVarint(h.buf[:from], n)
	return h.buf[from:len(h.buf):len(h.buf)]
}

// headerBytes bounds what the headers of an event take.
func headerBytes(e *event.Event) int {
	return 160 + e.Held() - len(e.Data) + headerOverhead*(len(e.Ext)+len(e.Mesh))
}

// binary reports whether the event can be in binary mode: it has data (or more
// attributes than versions before this one read in JSON), its attributes are UTF-8, and its data are not
// themselves an event, as which they would be read.
func binary(e *event.Event) bool {
	if len(e.Data) == 0 && len(e.Ext) <= event.MaxAttributes || cloudevents.IsEvent(e.DataContentType) {
		return false
	}
	for _, s := range [...]string{e.ID, e.Source, e.Type, e.Subject, e.Time, e.DataContentType, e.DataSchema} {
		if !utf8.ValidString(s) {
			return false
		}
	}
	for i := range e.Ext {
		if e.Ext[i].Value == "" || !utf8.ValidString(e.Ext[i].Value) {
			return false
		}
	}
	return true
}

// size bounds what a record takes of the largest batch that brokers accept.
func (r *record) size() int { return overhead + len(r.key) + len(r.value) + len(r.headers) }

// headerUnreadable is the mesh's header of an event that stands for a record which
// is not the event that it says it is: why.
const headerUnreadable = "unreadable"

// decode makes an event of a record, with whose batch it shares memory. One that is no
// CloudEvent becomes one: its id is its position and its source its topic, the same
// at every delivery, and its key is the ordering key. So does one that is not valid,
// or a bad record would stop its partition for ever; its data are the value as it is
// stored. Of headers with one name the last counts.
func decode(r *kgo.Record) event.Event {
	var room [12]event.Attr
	h := read(r.Headers, room[:0])
	e, err := decodeCloudEvent(&h, r.Value)
	if err == nil && h.is != native {
		e.Ext = event.LastOfEach(e.Ext)
		err = e.Conforms()
	}
	if err != nil || h.is == native {
		e = decodeNative(&h, r)
	}
	e.Mesh = event.LastOfEach(h.mesh)
	if err != nil {
		e.Mesh = event.With(e.Mesh, headerUnreadable, err.Error())
	}
	return e
}

// skip has a client that reads go on behind a batch that is too large to be decompressed,
// which gives nothing of its partition else, and has a record stand for it.
func (s *Store) skip(c *kgo.Client, p *kgo.FetchTopicPartition) {
	var large *kgo.ErrDecompressTooLarge
	if !errors.As(p.Err, &large) {
		return
	}
	why := fmt.Sprintf("the batch of the offsets %d to %d has more than %d MiB once it is decompressed; none of it was read", large.Offset, large.NextOffset-1, maxInflated>>20)
	s.cfg.Log.Warn("a batch of records is too large to be read: an event stands for it", "topic", p.Topic, "partition", p.Partition, "why", why)
	p.Err = nil
	p.Records = append(p.Records, &kgo.Record{Topic: p.Topic, Partition: p.Partition, Offset: large.Offset, Timestamp: s.op.Clock.Now(), LeaderEpoch: large.Epoch,
		Headers: []kgo.RecordHeader{{Key: meshPrefix + headerUnreadable, Value: []byte(why)}}})
	c.SetOffsets(map[string]map[int32]kgo.EpochOffset{p.Topic: {p.Partition: {Epoch: large.Epoch, Offset: large.NextOffset}}})
}

// message is a record's, with memory of its own.
func message(r *kgo.Record) store.Message {
	e := decode(r)
	return store.Message{Event: e.Clone(), Pos: position(r), Stored: r.Timestamp, StoredKey: strings.Clone(storedKey(&e, r))}
}

// storedKey is a record's key as an ordering key, where the event does not say it.
func storedKey(e *event.Event, r *kgo.Record) string {
	if len(r.Key) == 0 || e.Key("") != "" {
		return ""
	}
	return keyText(r.Key)
}

// position is where a record is.
func position(r *kgo.Record) store.Position {
	return store.Position{Partition: partitionName(r.Partition), Offset: uint64(r.Offset)} //nolint:gosec // not negative
}

// What a record is, by its headers.
const (
	native     = iota // no CloudEvent
	inBinary          // one in binary mode
	inFormat          // one in structured mode
	incomplete        // it has attributes, and no version
)

// header is what the headers of a record say.
type header struct {
	is          int
	version     string
	contentType string
	attributes  []event.Attr
	mesh        []event.Attr
}

// read reads headers, the attributes into room where they fit.
func read(list []kgo.RecordHeader, room []event.Attr) header {
	h := header{attributes: room}
	for i := range list {
		key, value := list[i].Key, unsafe.String(unsafe.SliceData(list[i].Value), len(list[i].Value)) // nobody modifies it
		if key == contentType {
			h.contentType = value
		} else if name, ok := strings.CutPrefix(key, cePrefix); ok {
			name = strings.ToLower(name)
			if name == event.AttrSpecVersion {
				h.version = value
			} else {
				h.attributes = append(h.attributes, event.Attr{Name: name, Value: value})
			}
		} else if name, ok := strings.CutPrefix(key, meshPrefix); ok {
			h.mesh = append(h.mesh, event.Attr{Name: strings.ToValidUTF8(name, "?"), Value: strings.ToValidUTF8(value, "?")})
		}
	}
	switch {
	case cloudevents.IsEvent(h.contentType):
		h.is = inFormat
	case h.version != "":
		h.is = inBinary
	case len(h.attributes) > 0:
		h.is = incomplete
	}
	return h
}

// decodeCloudEvent reads an event in binary or structured mode.
func decodeCloudEvent(h *header, value []byte) (e event.Event, err error) {
	switch h.is {
	case inFormat:
		kind, _, _ := strings.Cut(h.contentType, ";")
		switch kind = strings.TrimSpace(kind); {
		case strings.EqualFold(kind, cloudevents.TypeJSON):
			return cloudevents.DecodeJSON(value)
		case strings.EqualFold(kind, typeProto):
			return cloudevents.DecodeProto(value)
		}
		return e, fmt.Errorf("content-type is %.80q, a format of events that this version does not read", kind)
	case incomplete:
		return e, errors.New("header ce_specversion is missing")
	case inBinary:
		if h.version != event.SpecVersion {
			return e, fmt.Errorf("ce_specversion is %.80q; this is for version 1.0", h.version)
		}
		e.DataContentType = h.contentType
		for _, a := range h.attributes {
			e.Add(a.Name, a.Value)
		}
		e.Data = data(value)
	}
	return e, nil
}

// decodeNative makes an event of a record that is none.
func decodeNative(h *header, r *kgo.Record) event.Event {
	e := event.Event{ID: strconv.Itoa(int(r.Partition)) + "-" + strconv.FormatInt(r.Offset, 10), Source: "/kafka/" + r.Topic, Type: "org.apache.kafka.record", Data: data(r.Value)}
	if h.contentType != "" && !cloudevents.IsEvent(h.contentType) && event.CheckValue(event.AttrDataContentType, h.contentType) == nil {
		e.DataContentType = h.contentType
	}
	if len(r.Key) > 0 {
		e.Ext = []event.Attr{{Name: event.AttrPartitionKey, Value: keyText(r.Key)}}
	}
	return e
}

// keyText is a record's key as an ordering key: as it is where an attribute can have
// it, else in base64. What keys of more than 4 KiB, which are no text, begin with is
// what orders them. It shares the key's memory.
func keyText(key []byte) string {
	if text := unsafe.String(unsafe.SliceData(key), len(key)); event.CheckValue(event.AttrPartitionKey, text) == nil {
		return text
	}
	return base64.StdEncoding.EncodeToString(key[:min(len(key), 4<<10)])
}

// data is what an event has of a value, which ends where that does; nil where it is empty.
func data(value []byte) []byte {
	if len(value) == 0 {
		return nil
	}
	return slices.Clip(value)
}
