package provision

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/election"
	"github.com/weft-mesh/weft/store"
)

// defaultMaxEventBytes is that of a Topic that names none.
const defaultMaxEventBytes = 1 << 20

// NeedsOf are what a topic requires of its store.
func NeedsOf(t *configv1.Topic) store.Needs {
	n := t.GetNeeds()
	return store.Needs{Durability: store.Durability(n.GetDurability()), Order: n.GetOrder(), Delay: n.GetDelay().AsDuration(), Replay: n.GetReplay(), //nolint:gosec // validated
		Broadcast: n.GetBroadcast(), RequestReply: n.GetRequestReply(), MaxEventBytes: cmp.Or(int(t.GetMaxEventBytes()), defaultMaxEventBytes)}
}

// lacking says of an epoch what the topic needs and its store, which was observed to
// have caps, does not give: for the one that is written to and for the target of a
// Migration alike.
func lacking(t *configv1.Topic, es *epochState, caps store.Capabilities) {
	word, reasons := "", []string(nil)
	for _, a := range store.Meet(NeedsOf(t), caps) {
		if a.Means == store.MeansNone {
			word = cmp.Or(word, "StoreLacks"+a.Word)
			reasons = append(reasons, fmt.Sprintf("needs %s, EventStore %s %s", a.Need, es.Store, a.Detail))
		}
	}
	if word != "" {
		es.cannot(word, "%s", strings.Join(reasons, "; "))
	}
}

// lackingLocal is lacking for a store that only proxies open.
func (p *Provisioner) lackingLocal(e *configstore.Entry, t *configv1.Topic, es *epochState) {
	caps, ok := stated(p.cfg.Drivers, e.Resource.GetEventStore())
	switch {
	case ok:
		lacking(t, es, caps)
	case t.GetNeeds() != nil:
		es.cannot("StoreUnknown", "nobody knows whether EventStore %s gives what it needs: this control plane has no driver for it", es.Store)
	}
}

// localKind is the driver whose stores only proxies open.
const localKind = "embedded"

// stated are the capabilities of a store that need not be observed.
func stated(drivers map[string]store.Driver, es *configv1.EventStore) (store.Capabilities, bool) {
	if es.GetEmbedded() == nil {
		return store.Capabilities{}, false
	}
	d, ok := drivers[localKind].(store.Stater)
	if !ok {
		return store.Capabilities{}, false
	}
	return d.States(), true
}

// observations is where the status keys of observed capabilities begin.
const observations = "observed/"

// observation is what a status key has.
type observation struct {
	Version      string             `json:"version"` // of the EventStore
	Capabilities store.Capabilities `json:"capabilities"`
}

// observe writes what a store was observed to be able to do under its own key, when
// it changed. Failing is no harm: the next pass writes it.
func (p *Provisioner) observe(ctx context.Context, term election.Term, e *configstore.Entry, o *opened) {
	b, err := json.Marshal(observation{e.Version(), o.caps})
	if err != nil || o.told == string(b) {
		return
	}
	cctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := term.Write(cctx, p.cfg.Store.Client(), clientv3.OpPut(p.cfg.Store.StatusKey(observations+e.Name), string(b))); err == nil {
		o.told = string(b)
	}
}

// Observed reads what stores were observed to be able to do, at whichever replica.
// The function that it gives answers for one EventStore in the version that was
// observed, and for those whose driver states it; false where nobody knows. Without
// etcd it knows only these.
func Observed(s *configstore.Store, drivers map[string]store.Driver) func(context.Context) func(*configstore.Entry) (store.Capabilities, bool) {
	return func(ctx context.Context) func(*configstore.Entry) (store.Capabilities, bool) {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		prefix := s.StatusKey(observations)
		seen := map[string]observation{}
		if resp, err := s.Client().Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithSerializable()); err == nil {
			for _, kv := range resp.Kvs {
				var o observation
				if json.Unmarshal(kv.Value, &o) == nil {
					seen[string(kv.Key[len(prefix):])] = o
				}
			}
		}
		return func(e *configstore.Entry) (store.Capabilities, bool) {
			if caps, ok := stated(drivers, e.Resource.GetEventStore()); ok {
				return caps, true
			}
			o, ok := seen[e.Name]
			return o.Capabilities, ok && o.Version == e.Version()
		}
	}
}
