package pipeline

import (
	"github.com/weft-mesh/weft/dataplane/facts"
	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
)

// remember keeps what became of events that were published to a topic. Of one that
// there is not nothing is kept: clients could name as many as they like.
func (p *Pipeline) remember(snap *snapshot.Snapshot, k snapshot.Key, events []event.Event, res []frontend.Result) {
	t := snap.Topics[k]
	if p.cfg.Facts == nil || t == nil {
		return
	}
	f := facts.Fact{At: p.cfg.Facts.Now(), Namespace: k.Namespace, Topic: k.Name}
	uid, kept := t.UID, "" // of the topic that has the last one that is stored
	for i := range events {
		f.Kind, f.Position, f.Kept, f.Detail = facts.Stored, res[i].Position, "", ""
		if res[i].Err != nil {
			f.Kind, f.Detail = failure(res[i].Err)
		} else {
			if f.Position.TopicUID != uid {
				uid = f.Position.TopicUID
				kept = keptIn(snap, t, uid)
			}
			f.Kept = kept
		}
		p.cfg.Facts.Add(&events[i], &f)
	}
}

// keptIn is the name of the topic of a Route that keeps an event; "" where it is t.
func keptIn(snap *snapshot.Snapshot, t *snapshot.Topic, uid string) string {
	if uid == t.UID {
		return ""
	}
	for _, name := range t.Route.Topics() {
		if to := snap.Topics[snapshot.Key{Namespace: t.Namespace, Name: name}]; to != nil && to.UID == uid {
			return name
		}
	}
	return ""
}

// failure is an error as a fact.
func failure(err error) (kind facts.Kind, detail string) {
	e := fault.From(err)
	kind = facts.Failed
	if e.Class == fault.Denied || e.Class == fault.Unauthenticated {
		kind = facts.Refused
	}
	if e.Class == fault.Ambiguous {
		detail = facts.Unknown
	}
	if e.Msg == "" {
		return kind, detail + e.Reason
	}
	return kind, detail + e.Reason + ": " + e.Msg
}
