package duration

import (
	"testing"
	"testing/quick"
	"time"
)

func TestText(t *testing.T) {
	for want, d := range map[string]time.Duration{"24h": 24 * time.Hour, "1m": time.Minute, "1h0m1s": time.Hour + time.Second, "1h30m": 90 * time.Minute, "0s": 0, "20s": 20 * time.Second, "1m0.5s": time.Minute + time.Second/2, "-2h": -2 * time.Hour, "10ms": 10 * time.Millisecond} {
		if got := Text(d); got != want {
			t.Errorf("%v is %s, want %s", d, got, want)
		}
	}
	same := func(d time.Duration) bool { got, err := time.ParseDuration(Text(d)); return err == nil && got == d }
	if err := quick.Check(func(n int32) bool { return same(time.Duration(n)*time.Second) && same(time.Duration(n)) }, nil); err != nil {
		t.Error(err)
	}
}
