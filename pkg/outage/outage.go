// Package outage bounds what is logged of something that is tried again and
// again: its first failure, then now and then how often it has failed, and one
// line when it works again.
package outage

import (
	"log/slog"
	"sync"
	"time"
)

// sayEvery is after how long an outage that lasts is told of again.
const sayEvery = 10 * time.Minute

// Log tells of one thing. It is safe for concurrent use.
type Log struct {
	log           *slog.Logger
	failing, back string

	mu          sync.Mutex
	began, said time.Time // with a monotonic reading; zero while it works
	failures    int
}

// New makes a Log that says failing of a failure and back when it is over. log
// already has the attributes that say of what.
func New(log *slog.Logger, failing, back string) *Log {
	return &Log{log: log, failing: failing, back: back}
}

// Is tells how an attempt went: err is nil where it worked.
func (l *Log) Is(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	switch {
	case err == nil && l.failures == 0:
	case err == nil:
		l.log.Info(l.back, "failures", l.failures, "after", now.Sub(l.began).Round(time.Second))
		l.failures = 0
	case l.failures == 0:
		l.began, l.said, l.failures = now, now, 1
		l.log.Warn(l.failing, "error", err)
	default:
		l.failures++
		if now.Sub(l.said) >= sayEvery {
			l.said = now
			l.log.Warn(l.failing, "error", err, "failures", l.failures, "since", now.Sub(l.began).Round(time.Second))
		}
	}
}
