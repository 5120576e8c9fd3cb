// Package inspect answers what happened to an event, and why a Subscription has not
// got it: from what the proxy remembers, the configuration in force, and the store.
package inspect

import (
	"context"
	"sync"
	"time"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/facts"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
)

// Config of an Inspector.
type Config struct {
	// Snapshots has the configuration; never nil inside.
	Snapshots *latest.Value[*snapshot.Snapshot]
	// Store gives the open store of an EventStore.
	Store func(uid string) (store.Store, error)
	Facts *facts.Ring
	// Members tells how many members a Subscription has on this proxy, by its uid,
	// and how many of its events are unsettled here.
	Members func(uid string) (members, unsettled int)
	// Ahead tells which event a key of a topic waits for in an ordered Subscription, where
	// this proxy delivers it.
	Ahead  func(uid, topic, key string) (delivery.Ahead, bool)
	NodeID string
	// Clock tells how long ago an hour is.
	Clock clock.Clock
}

// Inspector answers. It is safe for concurrent use.
type Inspector struct {
	cfg Config

	mu    sync.Mutex
	all   int            // that read stores
	reads map[string]int // those, by whose they are
}

// maxReads bounds the questions of a proxy that read stores at a time, and maxOwnReads
// those of one principal among them.
const (
	maxReads    = 4
	maxOwnReads = 2
)

// New makes an Inspector.
func New(cfg Config) *Inspector {
	return &Inspector{cfg: cfg, reads: map[string]int{}}
}

// reading counts a question that reads stores, until done.
func (i *Inspector) reading(who *policy.Principal) (done func(), err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	own, whom := who.String(), "others"
	if i.reads[own] >= maxOwnReads {
		whom = own
	} else if i.all < maxReads {
		i.all++
		i.reads[own]++
		return func() {
			i.mu.Lock()
			defer i.mu.Unlock()
			i.all--
			if i.reads[own]--; i.reads[own] == 0 {
				delete(i.reads, own)
			}
		}, nil
	}
	return nil, &fault.Error{Class: fault.Throttled, Op: "inspect.why", Reason: "too-many-scans", RetryAfter: time.Second, Msg: "the proxy looks for events for " + whom + " already; ask again"}
}

// Trace is what one proxy remembers of an event.
type Trace struct {
	NodeID string
	// Facts, oldest first.
	Facts []facts.Fact
	// Since is from when on nothing was forgotten.
	Since time.Time
}

// Trace tells what this proxy remembers of an event: of topics on which who has
// Subscribe, and of Subscriptions on which it has Consume besides. The rest is left out.
func (i *Inspector) Trace(_ context.Context, who *policy.Principal, namespace, source, id string) (Trace, error) {
	snap := i.cfg.Snapshots.Get()
	if err := names.CheckNamespace(namespace); err != nil {
		return Trace{}, &fault.Error{Class: fault.Invalid, Op: "inspect", Reason: "bad-name", Msg: err.Error()}
	}
	if err := snap.Refusal(namespace); err != nil {
		return Trace{}, err
	}
	t := Trace{NodeID: i.cfg.NodeID}
	var all []facts.Fact
	all, t.Since = i.cfg.Facts.Of(source, id)
	for _, f := range all {
		if f.Namespace == namespace && mayKnow(snap, who, &f) {
			t.Facts = append(t.Facts, f)
		}
	}
	return t, nil
}

// mayKnow reports whether who may hear a fact. Where a Route took the event to a topic
// that who may not read, that is left out of it.
func mayKnow(snap *snapshot.Snapshot, who *policy.Principal, f *facts.Fact) bool {
	may := func(a policy.Action, name string) bool {
		return snap.Rules.Authorize(who, a, f.Namespace, name).Allowed
	}
	if !may(policy.Subscribe, f.Topic) || f.Subscription != "" && !may(policy.Consume, f.Subscription) {
		return false
	}
	if f.Kept != "" && !may(policy.Subscribe, f.Kept) {
		f.Kept, f.Position.TopicUID = "", ""
	}
	return true
}
