package history

import (
	"strings"
	"testing"
)

// TestCheck: the checker sees each kind of broken promise, and none where there
// is none.
func TestCheck(t *testing.T) {
	data := []byte("x")
	base := func() *Log {
		l := New()
		for i, id := range []string{"a1", "a2", "a3"} {
			l.Intend(id, "a", i+1, data)
			l.Told(id, Acked)
		}
		return l
	}
	for name, tc := range map[string]struct {
		play func(*Log)
		want string // part of the only violation; "" for none
	}{
		"all is well": {func(l *Log) { l.Receive("a1", data); l.Receive("a2", data); l.Receive("a3", data) }, ""},
		"one repeat is within the bound": {func(l *Log) {
			l.Receive("a1", data)
			l.Receive("a2", data)
			l.Receive("a1", data)
			l.Receive("a3", data)
		}, ""},
		"lost": {func(l *Log) { l.Receive("a1", data); l.Receive("a2", data) }, "lost"},
		"phantom": {func(l *Log) {
			l.Receive("a1", data)
			l.Receive("a2", data)
			l.Receive("a3", data)
			l.Receive("x", data)
		}, "nobody"},
		"damaged":  {func(l *Log) { l.Receive("a1", data); l.Receive("a2", []byte("y")); l.Receive("a3", data) }, "damaged"},
		"inverted": {func(l *Log) { l.Receive("a2", data); l.Receive("a1", data); l.Receive("a3", data) }, "overtook"},
		"too often": {func(l *Log) {
			l.Receive("a1", data)
			l.Receive("a2", data)
			l.Receive("a3", data)
			l.Receive("a3", data)
			l.Receive("a3", data)
		}, "duplicates"},
		"unknown may come or not": {func(l *Log) {
			l.Intend("u", "u", 1, data)
			l.Told("u", Unknown)
			l.Receive("a1", data)
			l.Receive("a2", data)
			l.Receive("a3", data)
		}, ""},
		"refused must not come": {func(l *Log) {
			l.Intend("r", "r", 1, data)
			l.Told("r", Refused)
			l.Receive("r", data)
			l.Receive("a1", data)
			l.Receive("a2", data)
			l.Receive("a3", data)
		}, "nobody"},
	} {
		l := base()
		tc.play(l)
		v := l.Check().Violations(1, true)
		switch {
		case tc.want == "" && len(v) > 0:
			t.Errorf("%s: %v", name, v)
		case tc.want != "" && (len(v) != 1 || !strings.Contains(v[0], tc.want)):
			t.Errorf("%s: got %q, want one with %q", name, v, tc.want)
		}
	}
}
