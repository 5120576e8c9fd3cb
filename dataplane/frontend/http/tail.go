package http

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"time"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
)

// Times of a stream.
const (
	heartbeat = 15 * time.Second
	// writeTimeout bounds one write: a client that does not read is cut off.
	writeTimeout = 20 * time.Second
	// maxWrite bounds what is written at once, in bytes, but for one event.
	maxWrite = 256 << 10
)

// tail takes GET /v1/{namespace}/topics/{topic or pattern}/events: server-sent
// events, each a CloudEvent in the JSON format. The id of each is where the
// stream is, in all partitions, so that Last-Event-ID resumes without a gap.
//
// The query's from is beginning, end (the default), or an RFC 3339 time.
func (s *Server) tail(w http.ResponseWriter, r *http.Request, namespace, pattern string) {
	who, err := s.authenticate(r)
	if err != nil {
		problem(w, err)
		return
	}
	req := delivery.TailRequest{Namespace: namespace, Topics: []string{pattern}}
	if req.From, err = from(r.URL.Query().Get("from")); err != nil {
		problem(w, err)
		return
	}
	places, err := parsePlaces(r.Header.Get("Last-Event-ID"))
	if err != nil {
		problem(w, err)
		return
	}
	if len(places.tokens) > 0 {
		// Partitions of which it has seen nothing begin where the stream did.
		req.After, req.From = places.tokens, places.from()
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
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	out := stream{rc: http.NewResponseController(w), w: w}
	if out.write([]byte(": the stream is open\n\n")) != nil {
		return
	}
	s.pump(ctx, t, &out, places)
}

// pump writes events until the stream or the tail ends.
func (s *Server) pump(ctx context.Context, t delivery.Tail, out *stream, places *places) {
	dst := make([]delivery.Delivery, 64)
	var buf []byte
	for {
		nctx, cancel := context.WithTimeout(ctx, heartbeat)
		n, err := t.Next(nctx, dst)
		quiet := nctx.Err() != nil && ctx.Err() == nil
		cancel()
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return
		case quiet:
			if out.write([]byte(": still here\n\n")) != nil {
				return
			}
			continue
		default:
			// The last word: why it ends.
			f := fault.From(err)
			buf = append(append(append(buf[:0], "event: error\ndata: "...), errorJSON(f)...), "\n\n"...)
			_ = out.write(buf)
			return
		}
		buf = buf[:0]
		for i := range dst[:n] {
			places.see(dst[i].Position)
			buf = append(buf, "id: "...)
			buf = places.append(buf)
			buf = append(buf, "\ndata: "...)
			buf = cloudevents.AppendJSON(buf, dst[i].Event)
			buf = append(buf, "\n\n"...)
			dst[i] = delivery.Delivery{}
			if len(buf) > maxWrite {
				if out.write(buf) != nil {
					return
				}
				buf = buf[:0]
			}
		}
		if len(buf) == 0 {
			continue
		}
		if out.write(buf) != nil {
			return
		}
	}
}

// stream writes with a deadline.
type stream struct {
	rc *http.ResponseController
	w  http.ResponseWriter
}

func (s *stream) write(b []byte) error {
	if err := s.rc.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
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
}

const (
	placesVersion = 1
	// maxPlaces bounds the partitions of one stream, and so the id's length.
	maxPlaces = 256
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

// see records that everything up to tok was seen.
func (p *places) see(tok position.Token) {
	for i := range p.tokens {
		if t := &p.tokens[i]; t.TopicUID == tok.TopicUID && t.Pos.Partition == tok.Pos.Partition {
			*t = tok
			p.texts[i] = tok.String()
			return
		}
	}
	if len(p.tokens) < maxPlaces {
		p.tokens, p.texts = append(p.tokens, tok), append(p.texts, tok.String())
	}
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
