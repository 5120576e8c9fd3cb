package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// SinceBoot is the time since the machine started, its sleep included, which time.Since
// does not count: what another machine has given until some time is judged by it.
func SinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("clock: " + err.Error()) // Linux has had it since 2.6.39
	}
	return time.Duration(ts.Nano())
}
