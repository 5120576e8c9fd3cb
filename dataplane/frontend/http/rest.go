package http

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/rest"
)

// hostOf is the host that a request is for, in lower case and without a port.
func hostOf(r *http.Request) string {
	host, _, _ := strings.Cut(r.Host, ":") // no address of IPv6 is a host of bindings
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// rest takes a call of a REST API: below /rest/{namespace}/, or of a host of
// HttpBindings. Its path is read once: what is matched is what is authorised and
// becomes the event.
func (s *Server) rest(w http.ResponseWriter, r *http.Request, prefixed bool) {
	call := frontend.Call{Method: r.Method, Host: hostOf(r)}
	escaped := r.URL.RawPath // as it came, where that is not what the decoded path would be
	if escaped == "" {
		escaped = r.URL.EscapedPath()
	}
	var err error
	if prefixed {
		call.Namespace, escaped, err = cutNamespace(escaped)
	}
	if err == nil {
		call.Path, err = rest.ReadPath(escaped)
	}
	if err != nil {
		problem(w, fault.New(fault.Invalid, "http", "bad-path", "the path %v", err))
		return
	}
	who, err := s.authenticate(r)
	if err != nil {
		problem(w, err)
		return
	}
	bound, err := s.cfg.Mesh.Bound(who, call)
	if err != nil {
		problem(w, err)
		return
	}
	if bound.Rule == nil {
		w.Header().Set("Allow", strings.Join(append(bound.Allow, http.MethodOptions), ", "))
		if r.Method == http.MethodOptions {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		problem(w, fault.New(fault.Invalid, "http", methodNotAllowed, "this path takes %s", strings.Join(bound.Allow, ", ")))
		return
	}
	if err := plain(r.Header); err != nil {
		w.Header().Set("Accept-Encoding", "identity")
		problem(w, err)
		return
	}
	in := s.body(w, r, s.cfg.MaxBody)
	defer in.release()
	buf := newBuffer()
	if err := buf.read(in, r.ContentLength); err != nil {
		problem(w, unread(err))
		return
	}
	events, res := buf.event[:], buf.results(1)
	if events[0], err = made(bound.Rule, call.Path, r); err != nil {
		problem(w, fault.New(fault.Invalid, "http", "bad-call", "%v", err))
		return
	}
	events[0].Data = buf.b
	trace(r.Header, events)
	if rule := bound.Rule; rule.Reply {
		s.ask(w, r, in, who, bound.Namespace, rule.Topic, events[0], rule.Timeout, statusOf)
		return
	}
	if err := s.cfg.Mesh.Publish(r.Context(), who, bound.Namespace, bound.Rule.Topic, events, res); err != nil {
		problem(w, err)
		return
	}
	answer := struct {
		ID       string `json:"id"`
		Source   string `json:"source"`
		Position string `json:"position"`
	}{events[0].ID, events[0].Source, res[0].Position.String()}
	buf.release()
	writeJSON(w, http.StatusAccepted, answer)
}

// statusOf is the status that a reply says: one of success or of an error that is not the
// connection's. 200 is that of a reply which says nothing, or none of them.
func statusOf(reply *event.Event) int {
	said, _ := event.Lookup(reply.Ext, event.AttrHTTPStatus)
	code, err := strconv.Atoi(said)
	if err != nil || len(said) != 3 || http.StatusText(code) == "" || code/100 != 2 && code/100 != 4 && code/100 != 5 || code == http.StatusResetContent {
		return http.StatusOK
	}
	return code
}

// cutNamespace takes /rest/{namespace} off a path.
func cutNamespace(escaped string) (namespace, path string, err error) {
	first, after, _ := strings.Cut(strings.TrimPrefix(escaped, "/rest/"), "/")
	p, err := rest.ReadPath("/" + first)
	if err == nil && len(p.Segments()) == 0 {
		err = errors.New("names no namespace")
	}
	if err != nil {
		return "", "", err
	}
	return p.Segments()[0], "/" + after, nil
}

// made is the event that a rule makes of a call, without its data.
func made(rule *rest.Rule, path *rest.Path, r *http.Request) (event.Event, error) {
	var query url.Values
	if rule.Reads() {
		var err error
		if query, err = url.ParseQuery(r.URL.RawQuery); err != nil {
			return event.Event{}, err
		}
	}
	r.Header.Set("Host", r.Host) // net/http took it out of the headers
	e, err := rule.Event(path, query, r.Header)
	if e.ID == "" {
		e.ID = uuid.NewString()
	}
	return e, err
}
