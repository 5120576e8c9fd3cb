package chaos

import (
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

// state is what one proxy had in force at one time: for each resource the version
// and the text that its writer gave it.
type state struct {
	lineage  string
	revision int64
	set      map[string]held
}

type held struct {
	version int64
	text    string
}

func (s state) digest() string {
	names := make([]string, 0, len(s.set))
	for n := range s.set {
		names = append(names, n)
	}
	sort.Strings(names)
	var b strings.Builder
	for _, n := range names {
		fmt.Fprintf(&b, "%s@%d=%s;", n, s.set[n].version, s.set[n].text)
	}
	return b.String()
}

type outcome string

const (
	done    outcome = "OK"
	refused outcome = "refused" // surely not done
	unknown outcome = "unknown"
)

// write is one Apply of one resource, whose text no other Apply has, or its
// removal.
type write struct {
	name, text string
	remove     bool
	// blind: no version was expected, so that one of unknown outcome may still
	// come after others.
	blind   bool
	outcome outcome
	version int64 // where it is done
	// lost: the backup that came back was older.
	lost bool
}

// leaves is the text that etcd has after it; "" for none.
func (w *write) leaves() string {
	if w.remove {
		return ""
	}
	return w.text
}

// log is the history of one run. Its methods may be called by many goroutines.
type log struct {
	began time.Time

	mu     sync.Mutex
	lines  []string
	writes []*write
	// seen is the content at each lineage and revision, and who had it first.
	seen map[string]sighting
	// last is where each proxy is, by its life.
	last map[string]state
	bad  []string
}

type sighting struct{ digest, by string }

func newLog() *log {
	return &log{began: time.Now(), seen: map[string]sighting{}, last: map[string]state{}}
}

func (l *log) printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.printLocked(format, args...)
}

func (l *log) printLocked(format string, args ...any) {
	l.lines = append(l.lines, fmt.Sprintf("%8.3f ", time.Since(l.began).Seconds())+fmt.Sprintf(format, args...))
}

func (l *log) failLocked(format string, args ...any) {
	l.bad = append(l.bad, fmt.Sprintf(format, args...))
	l.printLocked("WRONG: "+format, args...)
}

// wrote records a write and what its writer heard.
func (l *log) wrote(w *write, by, where string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writes = append(l.writes, w)
	l.printLocked("%s at %s: %s=%s %s %d", by, where, w.name, w.text, w.outcome, w.version)
}

// applied records what a proxy has in force. A life is a proxy from its start on,
// or over its starts where it has a disk.
func (l *log) applied(life string, s state) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.printLocked("%s applies %s/%d", life, s.lineage, s.revision)
	at := fmt.Sprintf("%s/%d", s.lineage, s.revision)
	digest := s.digest()
	if first, ok := l.seen[at]; !ok {
		l.seen[at] = sighting{digest, life}
	} else if first.digest != digest {
		l.failLocked("at %s, %s has %s and %s has %s", at, first.by, first.digest, life, digest)
	}
	old, ok := l.last[life]
	switch {
	case !ok:
	case old.lineage == s.lineage && s.revision < old.revision:
		l.failLocked("%s goes back from %d to %d within lineage %s", life, old.revision, s.revision, s.lineage)
	case old.lineage != s.lineage && restores(s.lineage) <= restores(old.lineage):
		l.failLocked("%s goes back from lineage %s to %s", life, old.lineage, s.lineage)
	case old.lineage == s.lineage:
		for name, h := range s.set {
			if was, ok := old.set[name]; ok && h.version < was.version {
				l.failLocked("%s goes back with %s from version %d to %d", life, name, was.version, h.version)
			}
		}
	}
	l.last[life] = s
}

func restores(lineage string) int {
	count, _, _ := strings.Cut(lineage, "-")
	n, _ := strconv.Atoi(count)
	return n
}

// restored records that the content of a backup came back: what was written since
// may be gone. It tells whether any was done.
func (l *log) restored(writesAtBackup int) (lost bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.writes[writesAtBackup:] {
		w.lost = true
		lost = lost || w.outcome == done
	}
	return lost
}

// writesSoFar counts writes.
func (l *log) writesSoFar() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.writes)
}

// behind names who does not have what etcd has.
func (l *log) behind(etcd state, lives []string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	want := etcd.digest()
	var out []string
	for _, life := range lives {
		if s := l.last[life]; s.lineage != etcd.lineage || s.digest() != want {
			out = append(out, fmt.Sprintf("%s has %s/%d", life, s.lineage, s.revision))
		}
	}
	return out
}

// judge looks at the whole history beside what etcd has in the end. A writer
// writes its resources one after the other, so the last write of one that was
// done, or a later one of unknown outcome, is what etcd must have.
func (l *log) judge(etcd state) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	outcomes := map[string]*write{}
	byName := map[string][]*write{}
	for _, w := range l.writes {
		outcomes[w.text] = w
		byName[w.name] = append(byName[w.name], w)
	}
	for name, ws := range byName {
		may, late := []string{""}, []string(nil) // what etcd may have
		var least int64
		for _, w := range ws {
			switch {
			case w.lost || w.outcome == refused:
			case w.outcome == done:
				if w.version <= least {
					l.failLocked("%s=%s was done at version %d, after version %d", name, w.text, w.version, least)
				}
				may, least = []string{w.leaves()}, w.version
			default:
				may = append(may, w.leaves())
				if w.blind {
					late = append(late, w.leaves())
				}
			}
		}
		if got := etcd.set[name]; !slices.Contains(may, got.text) && !slices.Contains(late, got.text) {
			l.failLocked("etcd has %s=%q at version %d; it may have %q, and the last that was done is of version %d", name, got.text, got.version, may, least)
		}
	}
	for at, s := range l.seen {
		for part := range strings.SplitSeq(strings.TrimSuffix(s.digest, ";"), ";") {
			_, text, _ := strings.Cut(part, "=")
			if w := outcomes[text]; w != nil && w.outcome == refused {
				l.failLocked("%s was refused, and %s had it at %s", text, s.by, at)
			}
		}
	}
	return l.bad
}
