package rocketmq

import (
	"bytes"
	"cmp"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
)

// How an event is a message (the CloudEvents SDK for Java does the same):
// binary mode, attributes as properties "CE_<name>", data as the body. Headers
// of the mesh are "WEFT_<name>". What cannot be a property makes the whole event
// the body, in the JSON format, marked by CE_contenttype.
const (
	ceProperty = "CE_"
	// ceContentType is datacontenttype, which that SDK calls so; structured mode
	// is marked by it.
	ceContentType = ceProperty + "contenttype"
	meshProperty  = "WEFT_"
	// Brokers refuse an empty body, so an event without data has one zero byte,
	// as with that SDK. emptyBody says of such a body whether it counts: "1" that
	// it does not, which is also so without it, and "0" that it is the data.
	emptyBody = meshProperty + "empty"
	// shardingKey is what RocketMQ 5 has of a message group, and what its Java client sets;
	// oldShardingKey is its Go client's.
	shardingKey    = "__SHARDINGKEY"
	oldShardingKey = "SHARDING_KEY"

	propertyDeliverAt = "TIMER_DELIVER_MS"
	nameSeparator     = "\x01"
	propSeparator     = "\x02"
	// maxProperties bounds the properties of a message; brokers take 32,767.
	maxProperties = 30 << 10
)

// message is a RocketMQ message.
type message struct {
	queueID    int
	offset     int64
	stored     time.Time
	flags      int32
	body       []byte
	properties []event.Attr // as they stand there; of one that is there twice the last counts
	reconsumed int32
	// unreadable is why the body stayed as it was stored; nil where it is what
	// the producer sent.
	unreadable error
}

// encode makes a message of an event: its properties and its body.
func encode(e *event.Event, deliverAt time.Time) (properties string, body []byte) {
	var b strings.Builder
	b.Grow(256 + e.Size() - len(e.Data))
	add := func(prefix, name, value string) {
		if value != "" {
			for _, s := range [...]string{prefix, name, nameSeparator, value, propSeparator} {
				b.WriteString(s)
			}
		}
	}
	body = e.Data
	if plain(e) {
		add(ceProperty, event.AttrSpecVersion, event.SpecVersion)
		add(ceProperty, event.AttrID, e.ID)
		add(ceProperty, event.AttrSource, e.Source)
		add(ceProperty, event.AttrType, e.Type)
		add(ceProperty, event.AttrSubject, e.Subject)
		add(ceProperty, event.AttrTime, e.Time)
		add("", ceContentType, e.DataContentType)
		add(ceProperty, event.AttrDataSchema, e.DataSchema)
		for i := range e.Ext {
			add(ceProperty, e.Ext[i].Name, e.Ext[i].Value)
		}
	} else {
		add("", ceContentType, cloudevents.TypeJSON)
		body = cloudevents.AppendJSON(nil, e)
	}
	for _, a := range e.Mesh {
		// They quote what others said (why a delivery failed, for one): what
		// separates properties must not be in them.
		add(meshProperty, a.Name, strings.NewReplacer(nameSeparator, " ", propSeparator, " ").Replace(a.Value))
	}
	if len(body) == 0 {
		add("", emptyBody, "1")
		body = []byte{0}
	} else if len(body) == 1 && body[0] == 0 {
		add("", emptyBody, "0")
	}
	add("", "WAIT", "true")
	if !deliverAt.IsZero() {
		add("", propertyDeliverAt, fmt.Sprint(deliverAt.UnixMilli()))
	}
	return b.String(), body
}

// plain reports whether every attribute can be a property.
func plain(e *event.Event) bool {
	n := 0
	ok := func(s string) bool {
		n += len(s) + 16
		return strings.IndexByte(s, nameSeparator[0]) < 0 && strings.IndexByte(s, propSeparator[0]) < 0 && utf8.ValidString(s)
	}
	for _, s := range [...]string{e.ID, e.Source, e.Type, e.Subject, e.Time, e.DataContentType, e.DataSchema} {
		if !ok(s) {
			return false
		}
	}
	for _, a := range e.Ext {
		if a.Value == "" || !ok(a.Value) || !ok(a.Name) || a.Name == ceContentType[len(ceProperty):] {
			return false
		}
	}
	for _, a := range e.Mesh {
		n += len(a.Name) + len(a.Value) + 16
	}
	return n < maxProperties && !cloudevents.IsEvent(e.DataContentType) // which readers would take for the event
}

// appendBatch appends a message as an element of a batch's body.
func appendBatch(b []byte, properties string, body []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(4+4+4+4+4+len(body)+2+len(properties))) //nolint:gosec // bounded by the store's limit
	b = append(b, make([]byte, 12)...)                                                  // magic, CRC, flag
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))                             //nolint:gosec // likewise
	b = append(b, body...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(properties))) //nolint:gosec // below maxProperties
	return append(b, properties...)
}

// storedKey is what orders a message of a native producer where the event does not say it:
// its message group or sharding key.
func (m *message) storedKey(e *event.Event) string {
	key := cmp.Or(m.property(shardingKey), m.property(oldShardingKey))
	if key == "" || e.Key("") != "" {
		return ""
	}
	return key
}

// property is a property's value, "" where there is none.
func (m *message) property(name string) string {
	for i := len(m.properties) - 1; i >= 0; i-- {
		if m.properties[i].Name == name {
			return m.properties[i].Value
		}
	}
	return ""
}

var errMessage = errors.New("not a valid message")

// decodeMessages decodes the body of a pull's answer, and gives take one message after the
// other until it wants no more.
func decodeMessages(b []byte, take func(*message) (more bool)) error {
	var m message
	for more := true; more && len(b) > 0; {
		var n int
		var err error
		if m, n, err = decodeMessage(b); err != nil {
			return err
		}
		b = b[n:]
		more = take(&m)
	}
	return nil
}

// cursor reads fields of a message.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) bytes(n int) []byte {
	if n < 0 || n > len(c.b) {
		c.bad = true
		return make([]byte, min(max(n, 0), 16))
	}
	v := c.b[:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) u32() uint32 { return binary.BigEndian.Uint32(c.bytes(4)) }
func (c *cursor) u64() uint64 { return binary.BigEndian.Uint64(c.bytes(8)) }

// System flags of a message.
const (
	flagCompressed  = 1
	flagBornHostV6  = 1 << 4
	flagStoreHostV6 = 1 << 5
	compressionMask = 7 << 8
	compressionZlib = 3 << 8
	minMessage      = 91
	// maxInflatedBytes is what producers take by default, before they compress it: more than
	// the mesh writes. A message that inflates to more is delivered as it is stored.
	maxInflatedBytes = maxMessage + surround
)

func decodeMessage(b []byte) (m message, size int, err error) {
	if len(b) < minMessage-20 {
		return m, 0, errMessage
	}
	size = int(binary.BigEndian.Uint32(b))
	if size < minMessage-20 || size > len(b) {
		return m, 0, errMessage
	}
	c := cursor{b: b[4:size]}
	c.bytes(8)                      // magic, CRC
	m.queueID = int(int32(c.u32())) //nolint:gosec // as the broker wrote it
	c.bytes(4)                      // flag
	m.offset = int64(c.u64())       //nolint:gosec // likewise
	c.bytes(8)                      // physical offset
	m.flags = int32(c.u32())        //nolint:gosec // likewise
	c.bytes(8)                      // born time
	host := func(v6 int32) {
		if m.flags&v6 != 0 {
			c.bytes(20)
		} else {
			c.bytes(8)
		}
	}
	host(flagBornHostV6)
	m.stored = time.UnixMilli(int64(c.u64())) //nolint:gosec // likewise
	host(flagStoreHostV6)
	m.reconsumed = int32(c.u32()) //nolint:gosec // likewise
	c.bytes(8)                    // prepared transaction
	m.body = c.bytes(int(c.u32()))
	c.bytes(int(c.bytes(1)[0])) // topic
	props := c.bytes(int(binary.BigEndian.Uint16(c.bytes(2))))
	if c.bad {
		return m, 0, errMessage
	}
	m.properties = make([]event.Attr, 0, bytes.Count(props, []byte(nameSeparator)))
	for text := string(props); text != ""; {
		var p string
		p, text, _ = strings.Cut(text, propSeparator)
		if k, v, ok := strings.Cut(p, nameSeparator); ok {
			m.properties = append(m.properties, event.Attr{Name: k, Value: v})
		}
	}
	if m.flags&flagCompressed != 0 {
		if body, err := inflate(m.flags, m.body); err != nil {
			m.unreadable = err
		} else {
			m.body = body
		}
	}
	return m, size, nil
}

func inflate(flags int32, b []byte) ([]byte, error) {
	if kind := flags & compressionMask; kind != 0 && kind != compressionZlib {
		return nil, errors.New("the body is compressed in a way that this version does not read (zlib is)")
	}
	r, err := zlib.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	out, err := io.ReadAll(io.LimitReader(r, maxInflatedBytes+1))
	if len(out) > maxInflatedBytes {
		return nil, fmt.Errorf("the body inflates to more than %d bytes", maxInflatedBytes)
	}
	return out, err
}

// headerUnreadable is the mesh's header of an event that stands for a message
// which cannot be read: why.
const headerUnreadable = "unreadable"

// decode makes an event of a message. One that is no CloudEvent becomes one: its
// id is its position and its source its topic, the same at every delivery. So
// does one that cannot be read or is not valid, or a bad message would stop its
// queue for ever; its data are the body as it is stored.
func decode(m *message, topic, partition string) event.Event {
	e, err := decodeCloudEvent(m)
	native := err == nil && e.ID == "" && e.Source == "" && e.Type == ""
	if e.Ext = event.LastOfEach(e.Ext); err == nil && !native {
		err = e.Conforms()
	}
	if err != nil || native {
		e = event.Event{ID: fmt.Sprintf("%s-%d", partition, m.offset), Source: "/rocketmq/" + topic, Type: "org.apache.rocketmq.message", Data: bytes.Clone(m.body)}
	}
	for _, p := range m.properties {
		if name, ok := strings.CutPrefix(p.Name, meshProperty); ok && p.Name != emptyBody {
			e.Mesh = append(e.Mesh, event.Attr{Name: name, Value: p.Value})
		}
	}
	e.Mesh = event.LastOfEach(e.Mesh)
	if err != nil {
		e.Mesh = event.With(e.Mesh, headerUnreadable, err.Error())
	}
	return e
}

// decodeCloudEvent reads an event in binary or structured mode. Without an error
// the required attributes may still be missing: then it is none.
func decodeCloudEvent(m *message) (event.Event, error) {
	var e event.Event
	switch {
	case m.unreadable != nil:
		return e, m.unreadable
	case structured(m.property(ceContentType)):
		e, err := cloudevents.DecodeJSON(m.body)
		if 2*e.Size() < len(m.body) {
			e = e.Clone() // or it would hold a body that is hardly more than blanks
		}
		return e, err
	}
	switch version := m.property(ceProperty + event.AttrSpecVersion); version {
	case "":
		return e, nil
	case event.SpecVersion:
	default:
		return e, fmt.Errorf("CE_specversion is %.80q; this is for version 1.0", version)
	}
	for _, p := range m.properties {
		if name, ok := strings.CutPrefix(p.Name, ceProperty); ok {
			if name == ceContentType[len(ceProperty):] {
				name = event.AttrDataContentType
			}
			e.Add(name, p.Value)
		}
	}
	if len(m.body) != 1 || m.body[0] != 0 || m.property(emptyBody) == "0" {
		e.Data = bytes.Clone(m.body)
	}
	return e, nil
}

// structured reports whether a content type is that of an event in the JSON
// format; it may have parameters.
func structured(contentType string) bool {
	kind, _, _ := strings.Cut(contentType, ";")
	return strings.EqualFold(strings.TrimSpace(kind), cloudevents.TypeJSON)
}
