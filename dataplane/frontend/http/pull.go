package http

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/duration"
	"github.com/weft-mesh/weft/pkg/fault"
)

// What a client may do with a Subscription stands behind its name.
const (
	verbPull   = ":pull"
	verbSettle = ":settle"
)

// pullRequest is the body of a pull.
type pullRequest struct {
	MaxEvents *int   `json:"max_events"`
	Wait      string `json:"wait"`
}

// pull takes POST /v1/{namespace}/subscriptions/{subscription}:pull: it waits for
// events and gives them, each with the id under which it is settled.
func (s *Server) pull(w http.ResponseWriter, r *http.Request, namespace, subscription string) {
	who, err := s.enter(r)
	if err != nil {
		problem(w, err)
		return
	}
	var in pullRequest
	if err := s.readJSON(w, r, &in); err != nil {
		problem(w, err)
		return
	}
	req := delivery.PullRequest{Max: delivery.DefaultPull, Wait: delivery.DefaultPullWait}
	if in.MaxEvents != nil {
		req.Max = *in.MaxEvents
	}
	if in.Wait != "" {
		if req.Wait, err = time.ParseDuration(in.Wait); err != nil {
			problem(w, fault.New(fault.Invalid, "http", "bad-pull", "wait is a time such as 20s"))
			return
		}
	}
	// The body is here: from now on only the wait bounds the request. A recorder
	// has no deadlines.
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{})
	p, err := s.cfg.Mesh.Pull(r.Context(), who, namespace, subscription, req)
	if err != nil {
		problem(w, err)
		return
	}
	size := 128
	for i := range p.Deliveries {
		size += 512 + p.Deliveries[i].Event.Size()*4/3
	}
	b := appendPulled(make([]byte, 0, size), &p)
	s.expect(rc, len(b))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	if _, err := w.Write(b); err != nil || lost(rc.Flush()) {
		p.Return()
	}
}

// lost reports whether an answer could not be sent. A recorder has nobody to send it to.
func lost(err error) bool { return err != nil && !errors.Is(err, http.ErrNotSupported) }

// appendPulled is the answer to a pull.
func appendPulled(b []byte, p *delivery.Pulled) []byte {
	b = append(b, `{"ack_timeout":"`...)
	b = append(b, duration.Text(p.AckTimeout)...)
	b = append(b, `","deliveries":[`...)
	for i := range p.Deliveries {
		d := &p.Deliveries[i]
		if i > 0 {
			b = append(b, ',')
		}
		// Ids, names and positions have no character that JSON escapes.
		b = append(append(b, `{"delivery_id":"`...), p.Handles[i]...)
		b = append(append(b, `","topic":"`...), d.Topic...)
		b = append(append(b, `","position":"`...), d.Position.String()...)
		b = strconv.AppendInt(append(b, `","attempt":`...), int64(d.Attempt), 10)
		b = cloudevents.AppendJSON(append(b, `,"event":`...), d.Event)
		b = append(b, '}')
	}
	return append(b, "]}\n"...)
}

// settleRequest is the body of a settlement.
type settleRequest struct {
	Ack  []string `json:"ack"`
	Nack []struct {
		IDs    []string `json:"delivery_ids"`
		Delay  string   `json:"delay"`
		Reason string   `json:"reason"`
	} `json:"nack"`
	Extend []struct {
		IDs        []string `json:"delivery_ids"`
		AckTimeout string   `json:"ack_timeout"`
	} `json:"extend"`
}

// settlement is what a body asks for.
func (in *settleRequest) settlement() (x delivery.Settlement, err error) {
	x.Ack = in.Ack
	for _, k := range in.Nack {
		n := delivery.Nack{Handles: k.IDs, Reason: k.Reason, Delay: -1}
		if k.Delay != "" {
			if n.Delay, err = time.ParseDuration(k.Delay); err != nil || n.Delay < 0 || n.Delay > delivery.MaxNackDelay {
				return x, fault.New(fault.Invalid, "http", "bad-delay", "a delay is 0s to %s", duration.Text(delivery.MaxNackDelay))
			}
		}
		x.Nack = append(x.Nack, n)
	}
	for _, e := range in.Extend {
		t := delivery.Extension{Handles: e.IDs}
		if e.AckTimeout != "" {
			if t.Timeout, err = time.ParseDuration(e.AckTimeout); err != nil || t.Timeout <= 0 || t.Timeout > delivery.MaxExtend {
				return x, fault.New(fault.Invalid, "http", "bad-delay", "an ack_timeout is more than 0s and at most %s", duration.Text(delivery.MaxExtend))
			}
		}
		x.Extend = append(x.Extend, t)
	}
	return x, nil
}

// unsettled is one delivery that could not be settled.
type unsettled struct {
	ID    string  `json:"delivery_id"`
	Error details `json:"error"`
}

// settle takes POST /v1/{namespace}/subscriptions/{subscription}:settle. What could
// not be settled is listed: 207, or the status of the first where nothing was.
func (s *Server) settle(w http.ResponseWriter, r *http.Request, namespace, subscription string) {
	who, err := s.enter(r)
	if err != nil {
		problem(w, err)
		return
	}
	var in settleRequest
	if err := s.readJSON(w, r, &in); err != nil {
		problem(w, err)
		return
	}
	x, err := in.settlement()
	if err != nil {
		problem(w, err)
		return
	}
	failed, err := s.cfg.Mesh.Settle(r.Context(), who, namespace, subscription, x)
	if err != nil {
		problem(w, err)
		return
	}
	out := struct {
		Settled   int         `json:"settled"`
		Unsettled []unsettled `json:"unsettled,omitempty"`
	}{Settled: x.Len() - len(failed)}
	code := http.StatusOK
	for _, u := range failed {
		out.Unsettled = append(out.Unsettled, unsettled{u.Handle, describe(fault.From(u.Err))})
	}
	switch {
	case len(failed) > 0 && out.Settled > 0:
		code = http.StatusMultiStatus
	case len(failed) > 0:
		f := fault.From(failed[0].Err)
		code = status(f.Class)
		mayRetry(w.Header(), f)
	}
	writeJSON(w, code, out)
}

// readJSON reads a body of known fields; none is an empty object.
func (s *Server) readJSON(w http.ResponseWriter, r *http.Request, v any) error {
	in := s.body(w, r, min(s.cfg.MaxBody, maxJSON))
	defer in.release()
	b, err := io.ReadAll(in)
	if err != nil {
		return unread(err)
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	err = d.Decode(v)
	if err == nil && d.Decode(&struct{}{}) != io.EOF {
		err = errors.New("there is something behind the object")
	}
	if err != nil {
		return &fault.Error{Class: fault.Invalid, Op: "http", Reason: "bad-body", Msg: "the body is not what this call takes: " + misread(err, b, v)}
	}
	return nil
}

// misread is what is wrong with a body b that is to be a v, by its path, without names of ours.
func misread(err error, b []byte, v any) string {
	var typ *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &typ):
		want := "an object"
		switch typ.Type.Kind() {
		case reflect.Int:
			want = "a whole number"
		case reflect.String:
			want = "text"
		case reflect.Slice:
			want = "a list"
		}
		return fmt.Sprintf("%s is to be %s, and is %s", cmp.Or(misplaced(b, reflect.TypeOf(v).Elem(), ""), typ.Field, "it"), want, typ.Value)
	case errors.As(err, &syntax):
		return fmt.Sprintf("it is not JSON: %v, at byte %d", err, syntax.Offset)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "it is not JSON: it ends too soon"
	}
	return strings.TrimPrefix(err.Error(), "json: ")
}

// misplaced is the path of the first value in b that is of another type than t has there.
func misplaced(b []byte, t reflect.Type, path string) string {
	at := func(b []byte, t reflect.Type, path string) (string, bool) {
		var typ *json.UnmarshalTypeError
		if !errors.As(json.Unmarshal(b, reflect.New(t).Interface()), &typ) {
			return "", false
		}
		return misplaced(b, t, path), true
	}
	switch t.Kind() {
	case reflect.Slice:
		var all []json.RawMessage
		_ = json.Unmarshal(b, &all)
		for i, raw := range all {
			if p, found := at(raw, t.Elem(), fmt.Sprintf("%s[%d]", path, i)); found {
				return p
			}
		}
	case reflect.Struct:
		var all map[string]json.RawMessage
		_ = json.Unmarshal(b, &all)
		for i := range t.NumField() {
			name := t.Field(i).Tag.Get("json")
			if raw, there := all[name]; there {
				if p, found := at(raw, t.Field(i).Type, strings.TrimPrefix(path+"."+name, ".")); found {
					return p
				}
			}
		}
	}
	return path
}

// maxJSON bounds a body that is no event, in bytes: MaxSettle ids with reasons.
const maxJSON = 1 << 20
