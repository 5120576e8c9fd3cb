package fault

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

func TestFrom(t *testing.T) {
	cause := errors.New("boom")
	e := Wrap(Unavailable, "store.publish", "store-down", cause)
	for name, tc := range map[string]struct {
		err  error
		want Class
	}{
		"itself":       {e, Unavailable},
		"wrapped":      {fmt.Errorf("again: %w", e), Unavailable},
		"canceled":     {context.Canceled, Canceled},
		"deadline":     {fmt.Errorf("x: %w", context.DeadlineExceeded), Canceled},
		"unclassified": {cause, Internal},
		"nil":          {(*Error)(nil), Internal},
		"a joined nil": {errors.Join((*Error)(nil), context.Canceled), Internal},
	} {
		if got := From(tc.err); got == nil || got.Class != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
	if From(nil) != nil {
		t.Error("From(nil) is not nil")
	}
	if !errors.Is(e, cause) {
		t.Error("the cause is lost")
	}
}

func TestUntakeable(t *testing.T) {
	want := map[Class]bool{Invalid: true, TooLarge: true}
	for _, c := range Classes() {
		if got := Untakeable(&Error{Class: c}); got != want[c] {
			t.Errorf("%v: %v", c, got)
		}
	}
}

func TestRetryable(t *testing.T) {
	want := map[Class]bool{Throttled: true, Unavailable: true, Ambiguous: true}
	seen := map[string]bool{}
	for _, c := range Classes() {
		if got := Retryable(&Error{Class: c}); got != want[c] {
			t.Errorf("%v: %v", c, got)
		}
		if seen[c.String()] {
			t.Errorf("two classes are called %q", c)
		}
		seen[c.String()] = true
	}
}
