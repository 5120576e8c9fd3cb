package inspect

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/weft-mesh/weft/dataplane/facts"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
)

// Bounds of looking for an event in a store.
const (
	searched     = 100000           // events
	searchTime   = 10 * time.Second // for all topics together
	searchIdle   = time.Second      // without anything, it is looked whether there is more
	searchBack   = time.Hour
	closeTimeout = 5 * time.Second
)

// locate finds where the event is: where it was remembered to be stored, or else among
// the last events of the topics that the Subscription reads.
func (a *asking) locate(ctx context.Context, known []facts.Fact) error {
	done, err := a.i.reading(a.who)
	if err != nil {
		return err
	}
	defer done()
	for _, f := range known {
		if f.Position.TopicUID == "" {
			continue
		}
		for _, t := range a.snap.Namespace(a.q.Namespace) {
			if t.UID == f.Position.TopicUID && a.mayRead(t) {
				return a.read(ctx, t, f.Position)
			}
		}
	}
	if len(known) > 0 && doubtful(known) == nil {
		return nil
	}
	from := store.Start{At: a.q.Since}
	if a.q.Since.IsZero() {
		from.At = a.i.cfg.Clock.Now().Add(-searchBack)
	}
	ctx, cancel := context.WithTimeout(ctx, searchTime)
	defer cancel()
	for i := range a.sub.Sources {
		src := &a.sub.Sources[i]
		if !a.mayRead(src.Topic) {
			continue
		}
		if ctx.Err() != nil {
			a.found("event", false, "there was no time to look for it in topic %s and those after it; name a time to look from, with --since", src.Topic.Name)
			a.short = true
			return nil
		}
		if err := a.search(ctx, src.Topic, src.Epoch, from, nil); err != nil || a.topic != nil {
			return err
		}
	}
	return nil
}

func (a *asking) mayRead(t *snapshot.Topic) bool {
	return a.snap.Rules.Authorize(a.who, policy.Subscribe, t.Namespace, t.Name).Allowed
}

// read reads the event at a position.
func (a *asking) read(ctx context.Context, t *snapshot.Topic, at position.Token) error {
	a.topic, a.pos = t, at
	for _, e := range t.Epochs {
		if e.Number != at.Epoch {
			continue
		}
		from := store.Start{End: true}
		if before := at.Pos; before.Offset > 0 {
			before.Offset--
			from.After = []store.Position{before}
		} else {
			from = store.Start{} // the first one of its partition
		}
		a.found("event", true, "it was stored in topic %s at %s", t.Name, at)
		return a.search(ctx, t, e, from, &at.Pos)
	}
	return nil
}

// search reads a topic until it has met the event, by its place or else by source and
// id.
func (a *asking) search(ctx context.Context, t *snapshot.Topic, e snapshot.Epoch, from store.Start, at *store.Position) error {
	st, err := a.i.cfg.Store(e.StoreUID)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, searchTime)
	defer cancel()
	tail, err := st.Tail(ctx, store.TailRequest{Topic: e.Physical, From: from})
	if err != nil {
		return err
	}
	defer func() {
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		_ = tail.Close(cctx)
	}()
	passed, err := tail.Mark(ctx)
	if err != nil {
		return err
	}
	msgs := make([]store.Message, 256)
	n, last := 0, time.Time{}
	for n < searched && ctx.Err() == nil {
		ictx, cancel := context.WithTimeout(ctx, searchIdle)
		got, err := tail.Next(ictx, msgs)
		cancel()
		switch {
		case err != nil && ictx.Err() == nil:
			return err
		case err != nil && ctx.Err() == nil && passed():
			return nil // nothing more
		}
		for i := range msgs[:got] {
			m := &msgs[i]
			if at != nil && m.Pos != *at || at == nil && t.Past(e.Number, m.Pos) || m.Source != a.q.Source || m.ID != a.q.ID {
				continue
			}
			a.event, a.key = &m.Event, m.StoredKey
			if a.topic == nil {
				a.topic, a.pos = t, position.Token{TopicUID: t.UID, Epoch: e.Number, Pos: m.Pos}
				a.found("event", true, "it was found in topic %s at %s", t.Name, a.pos)
			}
			return nil
		}
		if n += got; got > 0 {
			last = msgs[got-1].Stored
		}
	}
	if at == nil {
		upTo := ""
		if !last.IsZero() {
			upTo = ", to what was stored at " + last.UTC().Format(time.RFC3339)
		}
		a.found("event", false, "topic %s was searched no further than over %s%s: --since names a later time to search from", t.Name, several(n, "event"), upTo)
		a.short = true
	}
	return nil
}

// place decides by how far the Subscription's group is.
func (a *asking) place(ctx context.Context, src *snapshot.Source) error {
	members, unsettled := a.i.cfg.Members(a.sub.UID)
	hint := ""
	if members > 0 {
		a.found("members", true, "this proxy has %s of it, and %s of it that are not settled, with members or waiting for them", several(members, "member"), several(unsettled, "event"))
	} else {
		none := "no member is connected to this proxy"
		if a.sub.Push != nil {
			none = "nothing is sent to its target by this proxy now: weft status says why"
		}
		hint = "; " + none
		a.found("members", false, "%s", none)
	}
	if why := a.ahead(src.Topic); why != "" {
		a.found("order", false, "%s", why)
		a.verdict("waiting", "Subscription %s has not come to it: %s", a.sub.Name, why)
		return nil
	}
	st, err := a.i.cfg.Store(src.Epoch.StoreUID)
	if err != nil {
		return err
	}
	admin, ok := st.(store.Admin)
	if !ok {
		a.verdict("waiting", "nothing keeps it from Subscription %s", a.sub.Name)
		return nil
	}
	lag, err := admin.Lag(ctx, src.Epoch.Physical, src.Group)
	if err != nil {
		return err
	}
	for _, l := range lag {
		if l.Partition != a.pos.Pos.Partition {
			continue
		}
		if removed, err := a.removed(ctx, st, src.Epoch.Physical); err != nil {
			return err
		} else if removed {
			a.found("place", false, "topic %s has it no more: its retention has removed it", src.Topic.Name)
			a.verdict("passed", "Subscription %s is past it: the retention of topic %s has removed it, before it was delivered or after a delivery that none of the proxies that were asked remembers", a.sub.Name, src.Topic.Name)
			return nil
		}
		if a.pos.Pos.Offset >= l.Committed {
			a.found("place", true, "the Subscription has settled its partition up to %d, the event is at %d, and %d are not settled", l.Committed, a.pos.Pos.Offset, l.Behind)
			where := "the oldest of them"
			if n := a.pos.Pos.Offset - l.Committed; n > 0 {
				where = fmt.Sprint(n, " behind the oldest of them")
			}
			a.verdict("waiting", "Subscription %s has not come to it: of its partition %s, delivered or not, wait to be settled, and it is %s%s", a.sub.Name, several(int(l.Behind), "event"), where, hint)
			return nil
		}
		a.found("place", false, "the Subscription is past it: settled up to %d, the event is at %d", l.Committed, a.pos.Pos.Offset)
		a.verdict("passed", "Subscription %s is past it: longer ago than the proxies that were asked remember it was delivered and settled, kept for another attempt (which it waits for) or given up as a dead letter (weft dlq list has it then), or left out by a filter of then; or it was stored before the Subscription began", a.sub.Name)
		return nil
	}
	a.verdict("waiting", "nothing keeps it from Subscription %s", a.sub.Name)
	return nil
}

// removed reports whether what the topic has begins behind the event.
func (a *asking) removed(ctx context.Context, st store.Store, physical string) (bool, error) {
	me, ok := st.(store.Measurer)
	if !ok || a.event != nil {
		return false, nil
	}
	extents, err := me.Extents(ctx, physical)
	return slices.ContainsFunc(extents, func(x store.Extent) bool {
		return x.Partition == a.pos.Pos.Partition && a.pos.Pos.Less(store.Position{Offset: x.Begin})
	}), err
}

// ahead says what the event's key waits for; "" where that is not known here, or nothing is
// before the event.
func (a *asking) ahead(t *snapshot.Topic) string {
	if !a.sub.Ordered || a.event == nil || a.i.cfg.Ahead == nil {
		return ""
	}
	first, ok := a.i.cfg.Ahead(a.sub.UID, t.Name, cmp.Or(a.event.Key(t.KeyFrom), a.key))
	at, of := first.Position, a.pos
	if !ok || at.Epoch > of.Epoch || at.Epoch == of.Epoch && at.Pos.Partition == of.Pos.Partition && !at.Pos.Less(of.Pos) {
		return ""
	}
	var is []string
	switch first.Failed {
	case 0:
	case 1:
		is = append(is, "has failed once")
	default:
		is = append(is, "has failed "+several(first.Failed, "time"))
	}
	if first.Blocked {
		is = append(is, "blocks it until somebody settles it")
	}
	switch {
	case first.Out:
		is = append(is, "is with a member now")
	case !first.Again.IsZero():
		is = append(is, "is tried again at "+first.Again.UTC().Format(time.RFC3339))
	default:
		is = append(is, "waits for a member")
	}
	if last := len(is) - 1; last > 0 {
		is[last] = "and " + is[last]
	}
	return fmt.Sprintf("its key waits for %s (source %s), which %s", names.Text(first.ID, maxShown), names.Text(first.Source, maxShown), strings.Join(is, ", "))
}

// maxShown bounds what is shown of another event's id and source, in bytes.
const maxShown = 128

// several is a number of things.
func several(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprint(n, " ", what)
}
