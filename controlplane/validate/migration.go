package validate

import (
	"fmt"
	"slices"
	"strings"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
)

// bindingOf is the binding of a topic; nil where it has none yet.
func (o overlay) bindingOf(ns, topic string) *configv1.TopicBinding {
	t := o.get(resource.Topic, ns, topic)
	if t == nil {
		return nil
	}
	return placed(o.before, t)
}

// home names the EventStore that a topic is in: the one that it was made in, until it has
// moved.
func (o overlay) home(r *configv1.Resource) string {
	if b := o.bindingOf(r.Metadata.Namespace, r.Metadata.Name); b != nil {
		return b.Epochs[len(b.Epochs)-1].Store
	}
	return r.GetTopic().Store
}

// stays checks that a Topic's file does not say where else it is to be: it may say where it
// is, and what it has said.
func (c *collector) stays(o overlay, old, r *configv1.Resource) {
	if r.GetTopic() == nil || old.GetTopic() == nil {
		return
	}
	ns, name, was, to := r.Metadata.Namespace, r.Metadata.Name, old.GetTopic().Store, r.GetTopic().Store
	b, home := o.bindingOf(ns, name), o.home(r)
	if was == to || b != nil && b.Move == nil && to == home {
		return
	}
	no := func(format string, args ...any) { c.add("spec.store", "immutable", fmt.Sprintf(format, args...)) }
	migrate := fmt.Sprintf("moving a topic that is used is weft migrate's work: weft migrate %s -n %s --to %s", name, ns, to)
	switch {
	case o.get(resource.EventStore, ns, to) == nil:
		if b != nil { // else it is missed where the topic would be made
			c.add("spec.store", "reference", fmt.Sprintf("there is no EventStore %s in namespace %s", to, ns))
		}
	case b.GetMove() != nil:
		no("is %q, and the topic is being moved: leave the field as it is until that has ended (weft migrate status %s -n %s)", was, name, ns)
	case b != nil && home != was:
		no("is %q, and the topic is in EventStore %s since it was moved: the field may say either; %s", was, home, migrate)
	default:
		no("is %q; %s, and leave the field as it is", was, migrate)
	}
}

// migrationTogether judges a Migration that is made or changed.
func (c *collector) migrationTogether(o overlay, r *configv1.Resource) {
	ns, m := r.Metadata.Namespace, r.GetMigration()
	topic := o.get(resource.Topic, ns, r.Metadata.Name)
	if topic == nil {
		c.add("metadata.name", "reference", fmt.Sprintf("there is no Topic %s in namespace %s; a Migration has its Topic's name", r.Metadata.Name, ns))
		return
	}
	b := o.bindingOf(ns, r.Metadata.Name)
	if old := o.before.Resource(c.name); old != nil {
		c.wish(b, old, m)
		return
	}
	if m.Wish == configv1.Migration_WISH_ROLL_BACK {
		c.add("spec.wish", "move", "there is nothing to take back yet")
	}
	if b.GetMove() != nil {
		c.add("metadata.name", "move", "another move of the topic is under way: let it come to its end first")
		return
	}
	to := o.get(resource.EventStore, ns, m.To)
	switch {
	case to == nil:
		c.add("spec.to", "reference", fmt.Sprintf("there is no EventStore %s in namespace %s", m.To, ns))
		return
	case o.home(topic) == m.To:
		c.add("spec.to", "move", fmt.Sprintf("the topic is in EventStore %s already", m.To))
		return
	}
	c.storeTakes(topic.GetTopic(), to, "spec.to", "spec.to", m.PhysicalName)
	if m.PhysicalName == "" {
		return
	}
	switch {
	case o.taken(m.PhysicalName, "", to):
		c.add("spec.physical_name", "unique", fmt.Sprintf("the physical topic %s is a Topic's already", m.PhysicalName))
	case o.claimed(m.PhysicalName, c.name, to):
		c.add("spec.physical_name", "unique", fmt.Sprintf("the physical topic %s will be another Topic's, by its Migration", m.PhysicalName))
	}
}

// wish judges what is wished of a move that may have begun.
func (c *collector) wish(b *configv1.TopicBinding, old *configv1.Resource, m *configv1.Migration) {
	was, now := old.GetMigration().Wish, m.Wish
	if was == now {
		return
	}
	no := func(format string, args ...any) { c.add("spec.wish", "move", fmt.Sprintf(format, args...)) }
	if b.GetEnded() == old.Metadata.Uid {
		no("the move has come to its end: delete the Migration, and create another one for another move")
		return
	}
	move := b.GetMove()
	if move == nil || move.MigrationUid != old.Metadata.Uid {
		if was == configv1.Migration_WISH_ROLL_BACK {
			no("the move is taken back before it has begun: delete the Migration, and create another one")
		}
		return // it has not begun
	}
	over := move.Phase >= configv1.Move_PHASE_DRAINING
	switch now {
	case configv1.Migration_WISH_PAUSE:
		switch {
		case over && move.Back:
			no("publishers write to the old store again, so there is nothing to pause: finish")
		case over:
			no("publishers write to the new store already, so there is nothing to pause: roll back, or finish")
		}
	case configv1.Migration_WISH_FINISH:
		switch {
		case move.Back && move.Phase == configv1.Move_PHASE_DRAINED || !move.Back && was != configv1.Migration_WISH_ROLL_BACK:
		case was == configv1.Migration_WISH_PAUSE:
			no("the move is being taken back, and is paused: let it go on (spec.wish: WISH_ROLL_BACK; weft migrate resume %s -n %s), and finish once it is back, and all was read", old.Metadata.Name, old.Metadata.Namespace)
		default:
			no("the move is being taken back: finish once it is, and all was read")
		}
	case configv1.Migration_WISH_UNSPECIFIED, configv1.Migration_WISH_GO:
		if move.Back && over {
			no("the move was taken back: finish it, delete the Migration, and create another one")
		}
	}
}

// migrationUnused judges that a Migration is deleted.
func (c *collector) migrationUnused(o overlay, r *configv1.Resource) {
	b := o.bindingOf(r.Metadata.Namespace, r.Metadata.Name)
	if b.GetMove() == nil || b.Move.MigrationUid != r.Metadata.Uid {
		return
	}
	what := "roll it back or finish it first"
	if b.Move.Phase >= configv1.Move_PHASE_DRAINING {
		what = "finish it first (spec.wish)"
	}
	c.add("name", "move", "its move is under way: "+what)
}

// holds names the topic, of those that stay, with an epoch in an EventStore; "" for none.
func (o overlay) holds(ns, store string) string {
	for r := range o.find(epochsIn(ns, store)) {
		if o.bindingOf(ns, r.Metadata.Name) != nil {
			return resource.Name(resource.Topic, ns, r.Metadata.Name)
		}
	}
	return ""
}

// storeTakes judges whether a store can have a topic under a physical name, which field
// has; needs is the field that is told of where it lacks what the topic needs, or "" for
// the topic's own.
func (c *collector) storeTakes(t *configv1.Topic, store *configv1.Resource, retention, durability, physical string) {
	name := store.Metadata.Name
	local := store.GetEventStore().GetEmbedded() != nil
	kafka := store.GetEventStore().GetKafka() != nil
	if t.Retention != nil && !local && !kafka {
		c.add(retention, "store-lacks", "EventStore "+name+" keeps events by one setting for all topics (RocketMQ: fileReservedTime of the broker); leave the Topic's spec.retention out")
	}
	switch n := physical; {
	case local && n != "":
		c.add("spec.physical_name", "store-lacks", "an embedded store has no topics of others to adopt; leave it out")
	case kafka && (strings.ContainsAny(n, "%|") || n == "." || n == ".." || strings.HasPrefix(n, "__")):
		c.add("spec.physical_name", "store-lacks", `Kafka's topics have the characters A-Z, a-z, 0-9, '.', '_' and '-', are not "." or "..", and what begins with "__" is Kafka's own`)
	case store.GetEventStore().GetRocketmq() != nil && (strings.Contains(n, ".") || len(n) > names.MaxPhysical):
		c.add("spec.physical_name", "store-lacks", fmt.Sprintf("RocketMQ's topics have no dots and at most %d characters", names.MaxPhysical))
	case kafka && n != "" && t.Retention != nil:
		c.add(retention, "store-lacks", "a topic that is adopted keeps events as its owner has set it in Kafka; leave the Topic's spec.retention out")
	}
	if local && t.Needs.GetDurability() == configv1.Durability_DURABILITY_REPLICATED {
		c.add(durability, "store-lacks", "an embedded store is on one machine")
	}
}

// taken reports whether a physical topic, in the store that an EventStore reaches, is
// another Topic's than that of the canonical name except; not whose: that namespace may
// not be the caller's.
func (o overlay) taken(name, except string, store *configv1.Resource) bool {
	local := store.GetEventStore().GetEmbedded() != nil
	in := func(ns, other string) bool {
		os := o.get(resource.EventStore, ns, other)
		return os != nil && sameStore(os.GetEventStore(), store.GetEventStore()) && (!local || os == store)
	}
	for other := range o.find(physical(name)) {
		if resource.NameOf(other) != except && in(other.Metadata.Namespace, other.GetTopic().Store) {
			return true
		}
	}
	for other := range o.find(epochCalled(name)) {
		ns, topic := other.Metadata.Namespace, other.Metadata.Name
		if resource.Name(resource.Topic, ns, topic) == except || o.bindingOf(ns, topic) == nil {
			continue
		}
		if slices.ContainsFunc(other.GetTopicBinding().Epochs, func(e *configv1.Epoch) bool { return e.PhysicalName == name && in(ns, e.Store) }) {
			return true
		}
	}
	return false
}

// claimed reports whether a Migration other than that of the canonical name except, which
// has not come to its end, moves its Topic to a physical topic of the store that an
// EventStore reaches: it may not have begun.
func (o overlay) claimed(name, except string, store *configv1.Resource) bool {
	for other := range o.find(claims(name)) {
		ns, topic := other.Metadata.Namespace, other.Metadata.Name
		b := o.bindingOf(ns, topic)
		over := b.GetEnded() != "" && b.Ended == other.Metadata.Uid
		to := o.get(resource.EventStore, ns, other.GetMigration().To)
		if resource.NameOf(other) != except && !over && to != nil && sameStore(to.GetEventStore(), store.GetEventStore()) {
			return true
		}
	}
	return false
}
