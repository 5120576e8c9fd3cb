package pipeline

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/fault"
)

// storeLog tells in the log why stores do not take events: publishers are told no words of a
// store. Where a part of a store is away, writes fail and succeed in turn, so there is a line
// now and then, and none when it works again.
type storeLog struct {
	log *slog.Logger

	mu sync.Mutex
	of map[snapshot.Key]storeFailures
}

type storeFailures struct {
	said     time.Time
	failures int // since then
}

func newStoreLog(log *slog.Logger) *storeLog {
	return &storeLog{log: log, of: map[snapshot.Key]storeFailures{}}
}

// failedEvery is from one line of a store to the next, at least.
const failedEvery = time.Minute

// is takes note of how a write of a store went. What is refused for what it is, held up, given
// up by who published it, or told of by denied.Log is no failure here.
func (l *storeLog) is(store snapshot.Key, err error) {
	if err == nil || fault.Untakeable(err) || errors.Is(err, context.Canceled) {
		return
	}
	if f := fault.From(err); f.Class == fault.Throttled || f.Reason == "store-access-denied" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.of[store]
	s.failures++
	if now := time.Now(); s.said.IsZero() || now.Sub(s.said) >= failedEvery {
		l.log.Warn("a store does not take events", "store", label(store), "failures", s.failures, "error", err)
		s = storeFailures{said: now}
	}
	l.of[store] = s
}
