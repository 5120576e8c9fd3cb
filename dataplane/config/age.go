package config

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/weft-mesh/weft/pkg/clock"
)

// confirmedFile, in the folder of the last good configuration, has as its text when a
// control plane last confirmed that.
const confirmedFile = "confirmed"

// age is how old the configuration is: for how long no control plane has confirmed
// it.
type age struct {
	file  string // "" for none
	clock clock.Clock
	// contact is when a control plane last confirmed the configuration, or the
	// client was made; nil while one is followed. Not wall time: a clock that is
	// set makes no configuration stale.
	contact atomic.Pointer[time.Time]
	// before is how old the configuration was when the client was made, by the
	// wall time that was written down; in nanoseconds.
	before atomic.Int64
}

func newAge(dir string, clock clock.Clock) *age {
	a := &age{clock: clock}
	if dir != "" {
		a.file = filepath.Join(dir, confirmedFile)
	}
	made := time.Now()
	a.contact.Store(&made)
	return a
}

// Age is for how long no control plane has confirmed the configuration, over
// restarts, as far as it was written down; 0 while one is followed. A snapshot file
// is as old as this process. Any goroutine may ask.
func (a *age) Age() time.Duration {
	if at := a.contact.Load(); at != nil {
		return time.Since(*at) + time.Duration(a.before.Load())
	}
	return 0
}

// since says that the configuration is the one on disk, which was written at a time.
func (a *age) since(written time.Time) {
	if b, err := os.ReadFile(a.file); err == nil {
		if at, err := time.Parse(time.RFC3339, string(b)); err == nil && at.After(written) {
			written = at
		}
	}
	a.last(written)
}

// last says when the configuration was last confirmed, by another process.
func (a *age) last(at time.Time) { a.before.Store(int64(max(0, a.clock.Now().Sub(at)))) }

// follows says that a control plane is followed.
func (a *age) follows() {
	if a.contact.Swap(nil) != nil {
		a.before.Store(0)
		a.confirm()
	}
}

// confirm writes down that a control plane confirms the configuration now.
func (a *age) confirm() {
	if a.file == "" || a.contact.Load() != nil {
		return
	}
	// Without it the configuration looks older after a restart, no worse.
	_ = os.MkdirAll(filepath.Dir(a.file), 0o700)
	_ = os.WriteFile(a.file, []byte(a.clock.Now().UTC().Format(time.RFC3339)), 0o600)
}

// lose says that no control plane is followed any more.
func (a *age) lose() {
	a.confirm()
	lost := time.Now()
	a.contact.CompareAndSwap(nil, &lost)
}
