package http

import (
	"net/http"
	"slices"
)

// cors lets pages of the origins that are allowed read the answers (the CORS protocol
// of the Fetch standard). It reports whether the request was a preflight, which it has
// answered. A page authenticates as every client does, with a token or key that its
// script shows: nothing that a browser adds by itself is taken for it, so answers
// never allow credentials, and the local principal stays for things of this machine.
func (s *Server) cors(w http.ResponseWriter, r *http.Request) (preflight bool) {
	if len(s.cfg.Origins) == 0 {
		return false
	}
	h := w.Header()
	h.Add("Vary", "Origin")
	origin := r.Header.Get("Origin")
	if !slices.Contains(s.cfg.Origins, origin) {
		return false
	}
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Access-Control-Expose-Headers", "*") // also the attributes of replies, without credentials
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	h.Set("Access-Control-Allow-Methods", "DELETE, GET, PATCH, POST, PUT")
	if asked := r.Header.Get("Access-Control-Request-Headers"); printable(asked, 4096) {
		h.Set("Access-Control-Allow-Headers", asked) // those of CloudEvents have any name
	}
	h.Set("Access-Control-Max-Age", "600")
	w.WriteHeader(http.StatusNoContent)
	return true
}
