package fleet

import (
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
)

// trouble is why the registry cannot be brought up to date, and since when.
type trouble struct {
	mu    sync.Mutex
	alarm *adminv1.Alarm
}

// set notes how a pass ended, and when; nil is well.
func (t *trouble) set(err error, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		t.alarm = nil
		return
	}
	since := timestamppb.New(at)
	if t.alarm != nil {
		since = t.alarm.Since
	}
	t.alarm = &adminv1.Alarm{Reason: "RegistryUnreachable", Since: since,
		Message: "proxies cannot be registered, clients may not find new ones: " + err.Error()}
}

// Alarms has one while the registry cannot be brought up to date; only at the
// replica that registers. It is safe for concurrent use.
func (f *Fleet) Alarms() []*adminv1.Alarm {
	f.trouble.mu.Lock()
	defer f.trouble.mu.Unlock()
	if f.trouble.alarm == nil {
		return nil
	}
	return []*adminv1.Alarm{f.trouble.alarm}
}
