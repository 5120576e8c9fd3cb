package kafka

import (
	"encoding/base64"
	"strings"

	"github.com/twmb/franz-go/pkg/kbin"

	"github.com/weft-mesh/weft/store/ackwindow"
)

// What is settled above a committed offset stands in the commit's metadata: runs of
// offsets, each as its distance from the last one's end and its length, in base64
// behind a word that says what it is.
const (
	donePrefix = "weft1:"
	// maxDone bounds the metadata; brokers take 4,096 bytes by default. What does not
	// fit is repeated after a crash.
	maxDone = 4000
)

// run is offsets from first to last.
type run struct{ first, last int64 }

// encodeDone is the metadata of a commit at an offset, with what an owner before has settled
// and did not come to this one yet.
func encodeDone(w *ackwindow.Window, at int64, before []run) string {
	var b []byte
	add := func(first, last int64) bool {
		n := len(b)
		b = kbin.AppendVarlong(kbin.AppendVarlong(b, first-at), last-first)
		if len(donePrefix)+base64.RawStdEncoding.EncodedLen(len(b)) > maxDone {
			b = b[:n]
			return false
		}
		at = last + 1
		return true
	}
	room := true
	for first, last := range w.Beyond {
		if room = add(first, last); !room {
			break
		}
	}
	for _, r := range before {
		if room && r.last >= at {
			room = add(max(r.first, at), r.last)
		}
	}
	if len(b) == 0 {
		return ""
	}
	return donePrefix + base64.RawStdEncoding.EncodeToString(b)
}

// decodeDone reads the metadata of a commit at an offset; nothing where it is
// somebody else's.
func decodeDone(metadata string, at int64) []run {
	text, ok := strings.CutPrefix(metadata, donePrefix)
	if !ok {
		return nil
	}
	b, err := base64.RawStdEncoding.DecodeString(text)
	if err != nil {
		return nil
	}
	var runs []run
	for len(b) > 0 {
		gap, n := kbin.Varlong(b)
		if n <= 0 {
			return nil
		}
		length, k := kbin.Varlong(b[n:])
		r := run{first: at + gap, last: at + gap + length}
		if k <= 0 || r.first < at || r.last < r.first {
			return nil
		}
		runs = append(runs, r)
		b, at = b[n+k:], r.last+1
	}
	return runs
}
