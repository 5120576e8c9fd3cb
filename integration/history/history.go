// Package history records what publishers were told and what subscribers got,
// and judges afterwards whether the promises were kept: nothing acknowledged
// lost, nothing made up or damaged, keys in order where asked, and no more
// duplicates than what was unsettled at a crash can explain.
package history

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// Outcome is what a publisher was told about one event.
type Outcome uint8

// Outcomes.
const (
	Unknown Outcome = iota // no answer, or the answer was "ambiguous"
	Acked
	Refused // nothing was done
)

// Log is a history. It is safe for concurrent use.
type Log struct {
	mu        sync.Mutex
	published map[string]*sent
	received  map[string]*got
	order     []receipt
	began     time.Time
	places    []spot
	disturbed []disturbance
}

type sent struct {
	key     string
	seq     int
	sum     string
	outcome Outcome
	unknown int // attempts of which nobody knows
}

type got struct {
	count int
}

type receipt struct {
	id string
}

// New makes an empty history.
func New() *Log {
	return &Log{began: time.Now(), published: map[string]*sent{}, received: map[string]*got{}}
}

// Sum is the checksum that travels with an event.
func Sum(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:16])
}

// Intend records that an event is about to be published. seq rises for each
// key.
func (l *Log) Intend(id, key string, seq int, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.published[id] = &sent{key: key, seq: seq, sum: Sum(data)}
}

// Told records the publisher's answer. A repeated publish of the same event may
// turn Unknown into Acked, never the other way.
func (l *Log) Told(id string, o Outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.published[id]
	if o == Unknown {
		s.unknown++
	}
	if s.outcome != Acked {
		s.outcome = o
	}
}

// Receive records that a subscriber got an event, before it settles it. It
// returns how often the event has come by now.
func (l *Log) Receive(id string, data []byte) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.received[id]
	if g == nil {
		g = &got{}
		l.received[id] = g
	}
	g.count++
	l.order = append(l.order, receipt{id})
	if s := l.published[id]; s != nil && s.sum != Sum(data) {
		g.count |= damaged
	}
	return g.count &^ damaged
}

// damaged marks a received event whose data differ from what was published.
const damaged = 1 << 30

// Acked is the number of events that publishers were told are kept.
func (l *Log) Acked() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, s := range l.published {
		if s.outcome == Acked {
			n++
		}
	}
	return n
}

// Missing are the acknowledged events that nobody received yet, at most max.
func (l *Log) Missing(max int) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var ids []string
	for id, s := range l.published {
		if s.outcome == Acked && l.received[id] == nil {
			if ids = append(ids, id); len(ids) == max {
				break
			}
		}
	}
	return ids
}

// Report is the judgement.
type Report struct {
	Published, Acked, Unknown, Refused int
	// Received counts receipts, duplicates among them.
	Received int
	// Duplicates are receipts beyond the first of each event.
	Duplicates int
	// Lost were acknowledged and never received.
	Lost []string
	// Phantom were received and never published, or were refused.
	Phantom []string
	// Damaged came with other data.
	Damaged []string
	// Inverted are events that came for the first time before one of the
	// same key that was published earlier and acknowledged.
	Inverted []string
}

// Check judges the history.
func (l *Log) Check() Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	var r Report
	for id, s := range l.published {
		r.Published++
		switch s.outcome {
		case Acked:
			r.Acked++
			if l.received[id] == nil {
				r.Lost = append(r.Lost, id)
			}
		case Refused:
			r.Refused++
		case Unknown:
			r.Unknown++
		}
	}
	for id, g := range l.received {
		n := g.count &^ damaged
		r.Received += n
		r.Duplicates += n - 1
		if s := l.published[id]; s == nil || s.outcome == Refused {
			r.Phantom = append(r.Phantom, id)
		}
		if g.count&damaged != 0 {
			r.Damaged = append(r.Damaged, id)
		}
	}
	first := map[string]bool{}
	high := map[string]int{}
	for _, c := range l.order {
		s := l.published[c.id]
		if s == nil || first[c.id] {
			continue
		}
		first[c.id] = true
		if s.seq < high[s.key] {
			r.Inverted = append(r.Inverted, c.id)
		}
		high[s.key] = max(high[s.key], s.seq)
	}
	for _, ids := range []*[]string{&r.Lost, &r.Phantom, &r.Damaged, &r.Inverted} {
		slices.Sort(*ids)
	}
	return r
}

// String is the report in one line.
func (r Report) String() string {
	return fmt.Sprintf("published %d (acknowledged %d, unknown %d, refused %d), received %d, duplicates %d, lost %d, phantom %d, damaged %d, inverted %d",
		r.Published, r.Acked, r.Unknown, r.Refused, r.Received, r.Duplicates, len(r.Lost), len(r.Phantom), len(r.Damaged), len(r.Inverted))
}

// Violations are the broken promises, with a few examples each; empty when all
// were kept. maxDuplicates is the bound that the drivers' windows give.
func (r Report) Violations(maxDuplicates int, ordered bool) []string {
	var v []string
	add := func(what string, ids []string) {
		if len(ids) > 0 {
			v = append(v, fmt.Sprintf("%d %s: %s", len(ids), what, strings.Join(ids[:min(len(ids), 5)], " ")))
		}
	}
	add("acknowledged events were lost", r.Lost)
	add("events were received that nobody was told are kept", r.Phantom)
	add("events came damaged", r.Damaged)
	if ordered {
		add("events overtook an earlier one of their key", r.Inverted)
	}
	if r.Duplicates > maxDuplicates {
		v = append(v, fmt.Sprintf("%d duplicates, the bound is %d", r.Duplicates, maxDuplicates))
	}
	return v
}
