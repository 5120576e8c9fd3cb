package discovery

import (
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
)

// The reasons of alarms.
const (
	restoreSuspected = "RestoreSuspected"
	quarantined      = "Quarantined"
)

// alarms are what proxies have claimed that an operator must look at: the newest of
// each reason, until the lineage changes or nobody has claimed it for claimLasts.
type alarms struct {
	mu     sync.Mutex
	raised map[string]alarm
}

type alarm struct {
	lineage, message string
	since, last      time.Time
}

// claimLasts is how long a claim is shown that nobody repeats.
const claimLasts = time.Hour

func (a *alarms) raise(now time.Time, lineage, reason, message string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.raised == nil {
		a.raised = map[string]alarm{}
	}
	since := now
	if old, ok := a.raised[reason]; ok && old.lineage == lineage && now.Sub(old.last) < claimLasts {
		since = old.since
	}
	a.raised[reason] = alarm{lineage, message, since, now}
}

// Alarms are what an operator must look at, as far as this replica knows.
func (s *Server) Alarms() []*adminv1.Alarm {
	var out []*adminv1.Alarm
	add := func(reason, message string, since time.Time) {
		out = append(out, &adminv1.Alarm{Reason: reason, Message: message, Since: timestamppb.New(since)})
	}
	snap, _ := s.cfg.Source.Snapshot()
	if message, since := s.cfg.Source.Suspected(); message != "" {
		add(restoreSuspected, message, since)
	}
	s.alarms.mu.Lock()
	for reason, a := range s.alarms.raised {
		if snap != nil && a.lineage == snap.Lineage && s.cfg.Clock.Now().Sub(a.last) < claimLasts {
			add(reason, a.message, a.since)
		}
	}
	s.alarms.mu.Unlock()
	if snap != nil {
		for name, q := range snap.Quarantined() {
			what := "the version before it is served"
			if q.Instead == nil {
				what = "there is no version before it: what it governs is denied"
			}
			e := snap.Get(configstore.QuarantineName(snap.Get(name).Namespace, name))
			add(quarantined, name+" has a version that "+strings.Join(q.Why.Nodes, ", ")+" refused ("+q.Why.Reason+"); "+what+". Apply another version", e.Resource.GetMetadata().GetCreatedAt().AsTime())
		}
	}
	slices.SortFunc(out, func(a, b *adminv1.Alarm) int {
		if c := strings.Compare(a.Reason, b.Reason); c != 0 {
			return c
		}
		return strings.Compare(a.Message, b.Message)
	})
	return out
}
