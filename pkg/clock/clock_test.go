package clock

import (
	"testing"
	"time"
)

// TestClock: the zero value is the machine's clock; neither has a monotonic
// reading, which would hide a jump.
func TestClock(t *testing.T) {
	before := time.Now().Round(0)
	var machine Clock
	now := machine.Now()
	if now.Before(before) || now.After(time.Now().Round(0)) {
		t.Errorf("%v is not between before and after", now)
	}
	jumped := Clock(func() time.Time { return time.Now().Add(24 * time.Hour) })
	for _, c := range []Clock{machine, jumped} {
		if at := c.Now(); at != at.Round(0) {
			t.Errorf("%v has a monotonic reading", at)
		}
	}
	if d := jumped.Now().Sub(now); d < 24*time.Hour {
		t.Errorf("the clock that jumped is %v ahead", d)
	}
}
