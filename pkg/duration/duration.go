// Package duration writes how long something takes as people and configuration do.
package duration

import (
	"strings"
	"time"
)

// Text is d without units that are zero behind others: 24h, not 24h0m0s.
func Text(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
