// Package clock is where wall time is read.
//
// Wall time is what is written down or compared with what others wrote down:
// when a credential ends, how old an audit record is, when a delayed event is
// due. It jumps, when a clock is set or a machine was asleep. How long something
// takes, or has not been heard of, is measured with time.Now and time.Since
// inside one process instead: that never jumps.
package clock

import "time"

// Clock tells the wall time. The zero value is the machine's; tests give another
// one. It must be safe for concurrent use.
type Clock func() time.Time

// Now is the wall time. It has no monotonic reading: what is subtracted from it
// follows the clock, also where that jumps.
func (c Clock) Now() time.Time {
	if c == nil {
		return time.Now().Round(0)
	}
	return c().Round(0)
}
