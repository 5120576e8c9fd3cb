package chaos

import (
	"strings"
	"testing"
)

func at(lineage string, revision int64, set map[string]held) state {
	return state{lineage: lineage, revision: revision, set: set}
}

func one(version int64, text string) map[string]held { return map[string]held{"x": {version, text}} }

// TestCheckerNotices shows that each rule of the checker can fail, and that a good
// history fails none.
func TestCheckerNotices(t *testing.T) {
	for name, c := range map[string]struct {
		history func(*log)
		etcd    state
		want    string // "" is no complaint
	}{
		"good": {func(l *log) {
			l.wrote(&write{name: "x", text: "a", outcome: done, version: 2}, "w", "r")
			l.applied("p", at("1-a", 2, one(2, "a")))
			l.wrote(&write{name: "x", text: "b", outcome: unknown}, "w", "r")
			l.applied("p", at("1-a", 3, one(3, "b")))
			l.applied("q", at("1-a", 3, one(3, "b")))
			l.restored(0)
			l.applied("p", at("2-b", 1, one(1, "z")))
			l.wrote(&write{name: "x", text: "c", outcome: done, version: 4}, "w", "r")
			l.wrote(&write{name: "x", text: "d", outcome: refused}, "w", "r")
		}, at("2-b", 4, one(4, "c")), ""},
		"older revision": {func(l *log) {
			l.applied("p", at("1-a", 3, one(3, "b")))
			l.applied("p", at("1-a", 2, one(2, "a")))
		}, state{}, "goes back from 3 to 2"},
		"older lineage": {func(l *log) {
			l.applied("p", at("2-a", 3, one(3, "b")))
			l.applied("p", at("1-a", 9, one(9, "a")))
		}, state{}, "goes back from lineage"},
		"older version": {func(l *log) {
			l.applied("p", at("1-a", 3, one(3, "b")))
			l.applied("p", at("1-a", 4, one(2, "a")))
		}, state{}, "from version 3 to 2"},
		"two contents": {func(l *log) {
			l.applied("p", at("1-a", 3, one(3, "b")))
			l.applied("q", at("1-a", 3, nil))
		}, state{}, "at 1-a/3"},
		"lost": {func(l *log) {
			l.wrote(&write{name: "x", text: "a", outcome: done, version: 2}, "w", "r")
		}, at("1-a", 3, nil), `etcd has x=""`},
		"removed, and there": {func(l *log) {
			l.wrote(&write{name: "x", text: "a", outcome: done, version: 2}, "w", "r")
			l.wrote(&write{name: "x", text: "b", remove: true, outcome: done, version: 3}, "w", "r")
		}, at("1-a", 3, one(2, "a")), `etcd has x="a"`},
		"overwritten": {func(l *log) {
			l.wrote(&write{name: "x", text: "a", outcome: done, version: 2}, "w", "r")
			l.wrote(&write{name: "x", text: "b", outcome: done, version: 3}, "w", "r")
		}, at("1-a", 3, one(2, "a")), `etcd has x="a"`},
		"refused and done": {func(l *log) {
			l.wrote(&write{name: "x", text: "a", outcome: refused}, "w", "r")
			l.applied("p", at("1-a", 3, one(3, "a")))
		}, at("1-a", 3, nil), "was refused"},
		"versions that fall": {func(l *log) {
			l.wrote(&write{name: "x", text: "a", outcome: done, version: 5}, "w", "r")
			l.wrote(&write{name: "x", text: "b", outcome: done, version: 4}, "w", "r")
		}, at("1-a", 5, one(4, "b")), "after version 5"},
	} {
		l := newLog()
		c.history(l)
		bad := strings.Join(l.judge(c.etcd), "\n")
		if c.want == "" && bad != "" || !strings.Contains(bad, c.want) {
			t.Errorf("%s: %q, want %q", name, bad, c.want)
		}
	}
	l := newLog()
	l.applied("p", at("1-a", 3, one(3, "b")))
	if who := l.behind(at("1-a", 4, one(4, "c")), []string{"p"}); len(who) != 1 {
		t.Errorf("behind: %v", who)
	}
	if who := l.behind(at("1-a", 4, one(3, "b")), []string{"p"}); len(who) != 0 {
		t.Errorf("it has all, and is behind: %v", who)
	}
}
