package http

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/listener"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
)

// Times of a stream.
const (
	heartbeat = 15 * time.Second
	// maxWrite bounds what is written at once, in bytes, but for one event.
	maxWrite = 256 << 10
)

// tail takes GET /v1/{namespace}/topics/{topic or pattern}/events: server-sent
// events, each a CloudEvent in the JSON format. The id of each, and of the opening,
// is where the stream is, in all partitions, so that Last-Event-ID resumes without a gap.
//
// The query's from is beginning, end (the default), or an RFC 3339 time.
func (s *Server) tail(w http.ResponseWriter, r *http.Request, namespace, pattern string) {
	who, err := s.enter(r, "from")
	if err != nil {
		problem(w, err)
		return
	}
	req := delivery.TailRequest{Namespace: namespace, Topics: []string{pattern}}
	if req.From, err = from(r.URL.Query().Get("from")); err != nil {
		problem(w, err)
		return
	}
	last := r.Header.Get("Last-Event-ID")
	places, err := parsePlaces(last)
	if err != nil {
		problem(w, err)
		return
	}
	if last != "" {
		// Partitions of which it has seen nothing begin where the stream did.
		req.After, req.From, req.Resumes = places.tokens, places.from(), true
	} else {
		places.began(req.From, s.cfg.Clock.Now())
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.base, cancel)()
	t, err := s.cfg.Mesh.Tail(ctx, who, req)
	if err != nil {
		problem(w, err)
		return
	}
	defer t.Close()
	places.reads = t.Topics
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	out := &stream{rc: http.NewResponseController(w), w: w, stall: s.cfg.Stall}
	// The id is that of no event: it is for who loses the stream before the first one comes.
	if out.write(append(places.append([]byte(": the stream is open\nid: ")), "\n\n"...)) != nil {
		return
	}
	out.beats(cancel)
	defer out.end()
	s.pump(ctx, t, out, places)
}

// pump writes events until the stream or the tail ends.
func (s *Server) pump(ctx context.Context, t delivery.Tail, out *stream, places *places) {
	var dst []delivery.Delivery
	n := 0
	for {
		dst = frontend.Room(dst, n, maxTailed)
		var err error
		if n, err = t.Next(ctx, dst); err != nil {
			if ctx.Err() == nil { // the last word: why it ends
				_ = out.write(fmt.Appendf(nil, "event: error\ndata: %s\n\n", errorJSON(fault.From(err))))
			}
			return
		}
		if out.events(dst[:n], places) != nil {
			return
		}
	}
}

// maxTailed is how many events a stream takes at once.
const maxTailed = 64

// writes are buffers, lent to streams that write: an idle one has none.
var writes = sync.Pool{New: func() any { return new([]byte) }}

// events writes events.
func (s *stream) events(list []delivery.Delivery, places *places) error {
	p := writes.Get().(*[]byte) //nolint:forcetypeassert // there is nothing else in it
	defer writes.Put(p)
	buf := (*p)[:0]
	for i := range list {
		d := &list[i]
		places.see(d.Position)
		buf = append(buf, "id: "...)
		buf = places.append(buf)
		if d.Shared != nil { // the same bytes for every stream
			buf = append(buf, d.Shared.Encoded(delivery.FormJSON, func() []byte { return slices.Clip(appendData(nil, d)) })...)
		} else {
			buf = appendData(buf, d)
		}
		if len(buf) > maxWrite || i == len(list)-1 {
			if err := s.write(buf); err != nil {
				return err
			}
			buf = buf[:0]
		}
	}
	if cap(buf) <= 2*maxWrite { // what a large event took is let go
		*p = buf
	}
	return nil
}

func appendData(b []byte, d *delivery.Delivery) []byte {
	b = append(b, "\ndata: "...)
	b = cloudevents.AppendJSON(b, d.Event)
	return append(b, "\n\n"...)
}

// stream writes with a deadline, and by itself where nothing was written for a
// heartbeat. One timer does that, so that a stream that waits holds nothing more.
type stream struct {
	rc *http.ResponseController
	w  http.ResponseWriter
	// stall bounds one write, with a second more for each 64 KiB.
	stall time.Duration

	mu    sync.Mutex // held while something is written
	wrote time.Time  // when that last began
	beat  *time.Timer
	ended bool // the response may not be touched any more
}

// beats begins the heartbeats; failed is called when one cannot be written. end must
// follow.
func (s *stream) beats(failed func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.beat = time.AfterFunc(heartbeat, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.ended {
			return
		}
		if left := heartbeat - time.Since(s.wrote); left > 0 {
			s.beat.Reset(left)
			return
		}
		if s.writeLocked([]byte(": still here\n\n")) != nil {
			failed()
			return
		}
		s.beat.Reset(heartbeat)
	})
}

// end ends the heartbeats and waits for one that is being written.
func (s *stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.beat.Stop()
}

func (s *stream) write(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writeLocked(b)
}

func (s *stream) writeLocked(b []byte) error {
	s.wrote = time.Now()
	if err := s.rc.SetWriteDeadline(s.wrote.Add(listener.Patience(s.stall, len(b)))); err != nil {
		return err
	}
	// The request is over; only its connection matters now.
	if err := s.rc.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	if _, err := s.w.Write(b); err != nil {
		return err
	}
	return s.rc.Flush()
}

func from(s string) (store.Start, error) {
	switch s {
	case "", "end":
		return store.Start{End: true}, nil
	case "beginning":
		return store.Start{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return store.Start{}, fault.New(fault.Invalid, "http", "bad-from", "from is beginning, end, or an RFC 3339 time")
	}
	return store.Start{At: t}, nil
}

// places are where a stream began and the newest positions of its partitions.
// Their text is a version byte, the beginning as a varint, and the tokens, each
// with its length, in unpadded base64url.
type places struct {
	// since is when it began, in Unix milliseconds; 0 is the beginning.
	since  int64
	tokens []position.Token
	texts  []string
	size   int // of texts as they came
	// reads are the topics that the stream reads now, by uid; nil where that is not known.
	reads func() map[string]struct{}
	over  int // how often there was no room
}

const (
	placesVersion = 1
	// maxPlaces bounds the partitions of one stream, and maxPlacesSize their tokens, in bytes:
	// an id must fit in a request's headers, also where offsets have grown. Partitions beyond
	// come again from where the stream began. Those of topics that are read no more, as they
	// were deleted, make room for them; lookAt is how often that is looked for.
	maxPlaces     = 256
	maxPlacesSize = 16 << 10
	lookAt        = 64
)

// began sets where the stream begins.
func (p *places) began(from store.Start, now time.Time) {
	switch {
	case from.End:
		p.since = now.UnixMilli()
	case !from.At.IsZero():
		p.since = max(1, from.At.UnixMilli())
	}
}

// from is where partitions begin that have no position.
func (p *places) from() store.Start {
	if p.since == 0 {
		return store.Start{}
	}
	return store.Start{At: time.UnixMilli(p.since)}
}

// see records that everything up to tok was seen. Of an epoch before its own one token
// of the topic is kept, which says that the stream was there.
func (p *places) see(tok position.Token) {
	before := false
	for i := len(p.tokens) - 1; i >= 0; i-- {
		if t := &p.tokens[i]; t.TopicUID == tok.TopicUID && t.Epoch < tok.Epoch {
			if before {
				p.size -= len(p.texts[i])
				p.tokens, p.texts = slices.Delete(p.tokens, i, i+1), slices.Delete(p.texts, i, i+1)
			}
			before = true
		}
	}
	for i := range p.tokens {
		if t := &p.tokens[i]; t.TopicUID == tok.TopicUID && t.Epoch == tok.Epoch && t.Pos.Partition == tok.Pos.Partition {
			*t = tok
			p.texts[i] = tok.String()
			return
		}
	}
	text := tok.String()
	full := func() bool { return len(p.tokens) == maxPlaces || p.size+len(text) > maxPlacesSize }
	if full() && p.reads != nil {
		if p.over%lookAt == 0 {
			p.keep(p.reads())
		}
		p.over++
	}
	if !full() {
		p.tokens, p.texts, p.size = append(p.tokens, tok), append(p.texts, text), p.size+len(text)
	}
}

// keep drops the places of other topics than those.
func (p *places) keep(topics map[string]struct{}) {
	n := 0
	p.size = 0
	for i, tok := range p.tokens {
		if _, ok := topics[tok.TopicUID]; ok {
			p.tokens[n], p.texts[n] = tok, p.texts[i]
			p.size += len(p.texts[n])
			n++
		}
	}
	p.tokens, p.texts = p.tokens[:n], p.texts[:n]
}

func (p *places) append(b []byte) []byte {
	raw := binary.AppendVarint([]byte{placesVersion}, p.since)
	for _, t := range p.texts {
		raw = append(binary.AppendUvarint(raw, uint64(len(t))), t...)
	}
	return base64.RawURLEncoding.AppendEncode(b, raw)
}

func parsePlaces(s string) (*places, error) {
	p := &places{}
	if s == "" {
		return p, nil
	}
	bad := fault.New(fault.Invalid, "http", "bad-last-event-id", "Last-Event-ID is not one that this API gave")
	raw, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(raw) == 0 || raw[0] != placesVersion {
		return nil, bad
	}
	since, k := binary.Varint(raw[1:])
	if k <= 0 || since < 0 {
		return nil, bad
	}
	p.since = since
	for raw = raw[1+k:]; len(raw) > 0; {
		n, k := binary.Uvarint(raw)
		if k <= 0 || n > uint64(len(raw)-k) || len(p.tokens) == maxPlaces {
			return nil, bad
		}
		tok, err := position.Parse(string(raw[k : k+int(n)]))
		if err != nil {
			return nil, bad
		}
		p.see(tok)
		raw = raw[k+int(n):]
	}
	return p, nil
}
