package http

import (
	"encoding/json"
	"net/http"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/pkg/fault"
)

// result is the outcome of one event.
type result struct {
	Position string   `json:"position,omitempty"`
	Error    *details `json:"error,omitempty"`
}

// writeBatch answers a batch of which not all is kept: one result for each event,
// in order; 207 when some failed and some did not.
func writeBatch(w http.ResponseWriter, err error, res []frontend.Result) {
	out := struct {
		Results []result `json:"results"`
	}{make([]result, len(res))}
	kept := 0
	for i := range res {
		if res[i].Err == nil {
			kept++
			out.Results[i].Position = res[i].Position.String()
			continue
		}
		d := describe(fault.From(res[i].Err))
		out.Results[i].Error = &d
	}
	if kept > 0 {
		writeJSON(w, http.StatusMultiStatus, out)
		return
	}
	f := fault.From(err)
	mayRetry(w.Header(), f)
	writeJSON(w, status(f.Class), out)
}

// appendPositions appends the answer where all is kept, as encoding/json would
// encode it: a result, or the results of a batch. Tokens need no quoting.
func appendPositions(b []byte, batch bool, res []frontend.Result) []byte {
	if batch {
		b = append(b, `{"results":[`...)
	}
	for i := range res {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(res[i].Position.Append(append(b, `{"position":"`...)), `"}`...)
	}
	if batch {
		b = append(b, `]}`...)
	}
	return append(b, '\n')
}

// What is the same in every answer; servers only read it.
var (
	contentJSON = []string{"application/json"}
	nosniff     = []string{"nosniff"}
)

// writeKept answers that all is kept.
func writeKept(w http.ResponseWriter, answer []byte) {
	h := w.Header()
	h["Content-Type"], h["X-Content-Type-Options"] = contentJSON, nosniff
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(answer)
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}
