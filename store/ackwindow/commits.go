package ackwindow

import (
	"context"
	"time"
)

// Commits has what is settled committed: at once where nothing was for a while, else every
// so often, and sooner where half a window waits for it, or delivery would stop as its other
// half goes by. It is safe for concurrent use.
type Commits struct {
	settled chan struct{} // something was; capacity 1
	half    chan struct{} // and it is half of a window; capacity 1
}

// NewCommits makes one.
func NewCommits() *Commits {
	return &Commits{settled: make(chan struct{}, 1), half: make(chan struct{}, 1)}
}

// Settled says that something was settled, and whether it is half of a window by now.
func (c *Commits) Settled(half bool) {
	if half {
		poke(c.half)
	}
	poke(c.settled)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// longestPause is between two commits that fail, whoever may be there to take them.
const longestPause = 2 * time.Second

// Run calls commit until ctx ends: when something was settled, and not again before the
// interval is over, or half reports that half of a window waits. Where commit reports that
// it failed it is called again after the interval, whatever waits; as long as it fails that
// doubles, up to longestPause.
func (c *Commits) Run(ctx context.Context, interval time.Duration, half, commit func() bool) {
	timer := time.NewTimer(interval)
	defer timer.Stop()
	pause := interval
	for {
		select {
		case <-c.settled:
		case <-ctx.Done():
			return
		}
		kept := commit()
		if kept {
			pause = interval
		}
		timer.Reset(pause)
		if !kept {
			poke(c.settled)
			pause = max(interval, min(2*pause, longestPause))
		}
		for waiting := true; waiting; {
			select {
			case <-timer.C:
				waiting = false
			case <-c.half:
				waiting = !kept || !half()
			case <-ctx.Done():
				return
			}
		}
	}
}
