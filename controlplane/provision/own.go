package provision

import (
	"context"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
)

// replyPartitions is what a reply topic has: what is in it is read within seconds, by
// every proxy with requests of its store.
const replyPartitions = 4

// repliesKept is how long its events are kept, where the store can be told: nobody waits for
// one for more than minutes.
const repliesKept = time.Hour

// ownTopics makes the topics that the mesh needs in a store that was reached whatever
// Topics are there, or looks whether its administrator has: the one over which replies
// reach the proxies that wait for them, and those of the store itself, for delay. It
// tells what is missing, "" where nothing is, and whether that is worth trying again
// soon. Nothing but what needs them is refused as long as they are missing: the store
// is reachable all the same.
func (p *Provisioner) ownTopics(ctx context.Context, e *configstore.Entry, st store.Store, caps store.Capabilities) (missing string, again bool) {
	admin, ok := st.(store.Admin)
	if !ok {
		return "", false
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	verify := e.Resource.GetEventStore().Provisioning == configv1.Provisioning_PROVISIONING_VERIFY
	spec := store.TopicSpec{Name: names.ReplyTopic(e.Resource.Metadata.Uid), Partitions: replyPartitions}
	if caps.TopicRetention {
		spec.MaxAge = repliesKept
	}
	if err := ensureTopic(ctx, admin, verify, spec); err != nil {
		return "requests are refused for want of the topic " + spec.Name + ": " + err.Error(), !verify
	}
	owner, ok := st.(store.TopicOwner)
	if !ok {
		return "", false
	}
	for _, t := range owner.OwnTopics() {
		err := ensureTopic(ctx, admin, verify, t.Spec)
		if err == nil {
			err = ensureGroup(ctx, admin, verify, t.Spec.Name, t.Group, store.Start{})
		}
		if err != nil {
			return "retries that are more than a second away wait for want of the topic " + t.Spec.Name + " and its group " + t.Group + ": " + err.Error(), !verify
		}
	}
	return "", false
}

// trimOwn has a store remove what it has held back and is done with, from topics of its own.
func (p *Provisioner) trimOwn(ctx context.Context, e *configstore.Entry, o *opened) {
	owner, ok := o.st.(store.TopicOwner)
	if !ok || e.Resource.GetEventStore().Provisioning == configv1.Provisioning_PROVISIONING_VERIFY {
		return
	}
	for _, t := range owner.OwnTopics() {
		p.trim(ctx, o, t.Spec.Name, t.Group)
	}
}

// trim has a store remove what a group of the mesh is done with in a topic that only it
// reads: what waits there may have to for long, so no age tells. Where the store once does
// not, nothing more is asked of it until the next time.
func (p *Provisioner) trim(ctx context.Context, o *opened, topic, group string) {
	st, ok := o.st.(store.Trimmer)
	if !ok || o.kept != "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := st.Trim(ctx, topic, group); err != nil {
		o.kept = "what is done with in " + topic + " and the like is kept: " + err.Error()
		p.cfg.Log.Warn("what retries or delays are done with cannot be removed from a store; it is tried again", "store", o.name, "topic", topic, "in", p.cfg.TrimEvery, "error", err)
	}
}
