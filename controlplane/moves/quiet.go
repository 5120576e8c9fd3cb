package moves

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// An event that waits for another attempt is nowhere to be seen in its retry topic. One that
// its store holds back itself is there once it is due. One that proxies hold back in its place
// is there only once some proxy has read it in a topic of the store's own: later, where none
// runs, or where more wait there than one of them holds. So that is waited for, too.

// quiet is since when nothing has come to a retry topic, which ended there then: the sum of
// where its partitions end.
type quiet struct {
	since time.Duration
	end   uint64
	// looked: held is known, of what was held back by then. passed is since when nothing of
	// it is any more.
	looked bool
	held   []held
	passed time.Duration
	why    string // it is not known
}

// held is a partition of a topic of a store's own, of which something is not settled that
// was there by a moment.
type held struct {
	topic     store.OwnTopic
	partition string
	end       uint64
}

// lags are how far the groups of stores' own topics are, as one look has found them.
type lags map[string][]store.PartitionLag

// holding keeps what stores hold back of retry topics that are quiet.
func (o *Office) holding(ctx context.Context, l *look, snap *configstore.Snapshot) {
	l.mu.Lock()
	todo := map[item]quiet{}
	for at, q := range l.quiet {
		if q.passed == 0 {
			todo[at] = q
		}
	}
	l.mu.Unlock()
	seen := lags{}
	for at, q := range todo {
		left, err := o.held(ctx, snap, at, q, seen)
		if q.why = ""; err != nil {
			q.why = err.Error()
		} else if q.held, q.looked = left, true; len(left) == 0 {
			q.passed = o.cfg.SinceBoot()
		}
		l.mu.Lock()
		l.quiet[at] = q // looks come one after the other
		l.mu.Unlock()
	}
}

// held is what is left of what a store held back of an item once that was quiet.
func (o *Office) held(ctx context.Context, snap *configstore.Snapshot, at item, q quiet, seen lags) (left []held, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	se := snap.Get(at.store)
	if se == nil {
		return nil, fmt.Errorf("EventStore %s is not there", storeName(at))
	}
	st, err := o.stores.get(ctx, se)
	if err != nil {
		return nil, err
	}
	owner, owns := st.(store.TopicOwner)
	admin, ok := st.(store.Admin)
	if !owns || !ok {
		return nil, nil // it holds back itself
	}
	for _, t := range owner.OwnTopics() {
		if t.Delay > at.hidden {
			continue // what is there waits for longer than any of these
		}
		key := at.store + "/" + t.Spec.Name
		lag, there := seen[key]
		if !there {
			if lag, err = ownLag(ctx, admin, t); err != nil {
				return nil, err
			}
			seen[key] = lag
		}
		for _, p := range lag {
			end := p.End
			if q.looked {
				i := slices.IndexFunc(q.held, func(h held) bool { return h.topic.Spec.Name == t.Spec.Name && h.partition == p.Partition })
				if i < 0 {
					continue
				}
				end = q.held[i].end
			}
			if p.Committed < end {
				left = append(left, held{t, p.Partition, end})
			}
		}
	}
	return left, nil
}

// ownLag is how far the group of a store's own topic is; nothing where there is no such topic,
// and nothing can be held back.
func ownLag(ctx context.Context, admin store.Admin, t store.OwnTopic) ([]store.PartitionLag, error) {
	lag, err := admin.Lag(ctx, t.Spec.Name, t.Group)
	if err == nil || fault.ClassOf(err) != fault.NotFound {
		return lag, err
	}
	if there, gone := admin.TopicExists(ctx, t.Spec.Name); gone != nil || there {
		return nil, fmt.Errorf("group %s of topic %s: %w", t.Group, t.Spec.Name, err)
	}
	return nil, nil
}

// lasts is why what a subscription may have between attempts is not over; "" where it is.
func (q quiet) lasts(at item, now time.Duration) string {
	may := fmt.Sprintf("%s may have events in EventStore %s that wait for another attempt: it is given up once ", at.subscription, storeName(at))
	switch {
	case now-q.since < at.hidden+lateness:
		return may + fmt.Sprintf("none came for %s, the longest that one is not seen", at.hidden+lateness)
	case q.why != "":
		return may + "it is known what is held back there: " + q.why
	case !q.looked:
		return may + "it is known what is held back there"
	case len(q.held) > 0:
		h := q.held[0]
		return may + fmt.Sprintf("proxies have brought back what is held back in topic %s, up to offset %d", h.topic.Spec.Name, h.end)
	case now-q.passed < lateness:
		return may + fmt.Sprintf("none came for %s behind what was held back", lateness)
	}
	return ""
}
