package event

import "testing"

// TestTime: only RFC 3339, since others read the time too.
func TestTime(t *testing.T) {
	for in, good := range map[string]bool{"": true, "2026-01-02T03:04:05Z": true, "2026-01-02T03:04:05.123456789+02:00": true, "2026-01-02T03:04:05-00:00": true,
		"2026-01-02T3:04:05Z": false, "2026-01-02T03:04:05,5Z": false, "2026-01-02T03:04:05+24:00": false, "2026-01-02T03:04:05": false,
		"2026-01-02 03:04:05Z": false, "2026-02-30T03:04:05Z": false, "2026-01-02T03:04:05.Z": false, "0": false} {
		e := Event{ID: "1", Source: "s", Type: "t", Time: in}
		if err := e.Validate(); (err == nil) != good {
			t.Errorf("%q: %v", in, err)
		}
		if _, err := e.ParseTime(); good && err != nil {
			t.Errorf("%q is valid but is not read: %v", in, err)
		}
	}
}
