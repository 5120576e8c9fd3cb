//go:build !linux

package clock

import "time"

var started = time.Now()

// SinceBoot is the time since the process started. That the machine slept is not
// seen by it here; on Linux it is.
func SinceBoot() time.Duration { return time.Since(started) }
