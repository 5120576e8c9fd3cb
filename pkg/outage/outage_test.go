package outage

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestLog: an outage that lasts for hours is a few lines: its first failure, one
// now and then that counts, and its end. What works says nothing.
func TestLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := New(slog.New(slog.NewTextHandler(&out, nil)).With("of", "x"), "it fails", "it is back")
		lines := func(of string) int { return strings.Count(out.String(), of) }
		l.Is(nil)
		if out.Len() > 0 {
			t.Errorf("of what works is said: %s", &out)
		}
		for range 2 {
			for range 3600 {
				l.Is(errors.New("gone"))
				time.Sleep(time.Second)
			}
			if n := lines("it fails"); n != 6 || lines("gone") != 6 || lines("of=x") != 6 {
				t.Errorf("an hour is %d lines", n)
			}
			if !strings.Contains(out.String(), "failures=601 since=10m0s") {
				t.Errorf("it is not counted: %s", &out)
			}
			l.Is(nil)
			l.Is(nil)
			if lines("it is back") != 1 || !strings.Contains(out.String(), "failures=3600 after=1h0m0s") {
				t.Errorf("the end: %s", &out)
			}
			out.Reset()
		}
	})
}
