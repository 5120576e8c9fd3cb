package rest

import (
	"fmt"
	"net/http"
	"strconv"
)

// Statuses is a set of HTTP statuses and classes of them. The zero value is
// empty.
type Statuses struct {
	codes   map[int]bool
	classes [6]bool
}

// ParseStatuses parses statuses ("409") and classes ("4xx").
func ParseStatuses(list []string) (Statuses, error) {
	var s Statuses
	for i, text := range list {
		if len(text) == 3 && text[1:] == "xx" && text[0] >= '3' && text[0] <= '5' {
			s.classes[text[0]-'0'] = true
			continue
		}
		code, err := strconv.Atoi(text)
		if err != nil || code < 300 || code > 599 {
			return s, &FieldError{fmt.Sprintf("[%d]", i), "must be a status from 300 to 599, or 3xx, 4xx or 5xx"}
		}
		if s.codes == nil {
			s.codes = map[int]bool{}
		}
		s.codes[code] = true
	}
	return s, nil
}

// Names reports whether a status is in the set by itself.
func (s *Statuses) Names(code int) bool { return s.codes[code] }

// Has reports whether a status is in the set by itself or by its class. What says
// "not now", or has a meaning of its own, is in no class.
func (s *Statuses) Has(code int) bool {
	switch code {
	case http.StatusRequestTimeout, http.StatusGone, http.StatusTooEarly, http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return s.codes[code]
	}
	return s.codes[code] || code >= 300 && code < 600 && s.classes[code/100]
}
