package pipeline

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/fault"
)

// TestStoreLog: the log has a store's own words for why it does not take events, at most once a
// minute, with how often that was; what is not the store's fault is no such line.
func TestStoreLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said strings.Builder
		r := newStoreLog(slog.New(slog.NewTextHandler(&said, nil)))
		lines := func() []string {
			defer said.Reset()
			return strings.Split(strings.TrimSuffix(said.String(), "\n"), "\n")
		}
		a, b := snapshot.Key{Namespace: "shop", Name: "a"}, snapshot.Key{Namespace: "shop", Name: "b"}
		full := &fault.Error{Class: fault.Unavailable, Op: "rocketmq", Reason: "store-refused", Msg: "the event store refused", Err: errors.New("code 14: disk full")}
		for _, err := range []error{nil, fault.New(fault.TooLarge, "x", "event-too-large", "large"), fault.New(fault.Throttled, "x", "store-busy", "busy"),
			fault.New(fault.Unavailable, "x", "store-access-denied", "denied"), fault.Wrap(fault.Ambiguous, "x", "outcome-unknown", context.Canceled)} {
			if r.is(a, err); said.Len() > 0 {
				t.Errorf("%v: %s", err, lines())
			}
		}
		for range 3 { // parts of a are away
			r.is(a, full)
			r.is(a, nil)
			r.is(b, nil)
		}
		r.is(b, full)
		if l := lines(); len(l) != 2 || !strings.Contains(l[0], "code 14: disk full") || !strings.Contains(l[0], "store=shop/a failures=1") || !strings.Contains(l[1], "store=shop/b failures=1") {
			t.Errorf("%q", l)
		}
		<-time.After(failedEvery)
		r.is(a, full)
		if l := lines(); len(l) != 1 || !strings.Contains(l[0], "store=shop/a failures=3") {
			t.Errorf("a minute later: %q", l)
		}
	})
}

// TestWritesAreTold: a write that a store does not take is told in the log.
func TestWritesAreTold(t *testing.T) {
	w := newWorld(t, 0)
	var said strings.Builder
	w.p.storeLog.log = slog.New(slog.NewTextHandler(&said, nil))
	w.st.fail["orders"] = &fault.Error{Class: fault.Unavailable, Reason: "store-refused", Msg: "the event store refused", Err: errors.New("code 14: disk full")}
	if _, err := w.publish("orders", events("t")); fault.ClassOf(err) != fault.Unavailable {
		t.Fatal(err)
	}
	if !strings.Contains(said.String(), "code 14: disk full") {
		t.Errorf("%q", said.String())
	}
}
