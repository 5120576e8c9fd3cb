package proxy

import (
	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/quota"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/names"
)

// Hold counts a publish stream, or a request that waits for its reply, as a connection to a topic.
func (m *mesh) Hold(who *policy.Principal, namespace, topic string) (frontend.Holding, error) {
	h := &holding{m: m, who: who, namespace: namespace, topics: map[string]struct{}{}}
	if err := h.Also(topic); err != nil {
		return nil, err
	}
	return h, nil
}

// holding is a connection to the topics that it was used for.
type holding struct {
	m         *mesh
	who       *policy.Principal
	namespace string
	topics    map[string]struct{} // that are counted: of those that there are
	session   *quota.Session      // nil before the first
}

// Also counts it as one to a topic, unless it is already.
func (h *holding) Also(topic string) (err error) {
	if _, ok := h.topics[topic]; ok {
		return nil
	}
	s := h.m.snapshots.Get()
	if g := s.Rules.Grant(h.who, policy.Publish, h.namespace, topic); !g.Ever() || s.Topics[snapshot.Key{Namespace: h.namespace, Name: topic}] == nil {
		return nil // is told so when it publishes
	}
	if h.session == nil {
		h.session, err = h.m.quotas.Open(s.Quotas, h.who, h.namespace, []string{topic})
	} else {
		err = h.session.Also(s.Quotas, topic)
	}
	if err == nil {
		h.topics[topic] = struct{}{}
	}
	return err
}

func (h *holding) Close() { h.session.Close() }

// joining counts a member, or a pull while it waits. Who may not join is not told of quotas: it hears why
// when it joins.
func (m *mesh) joining(who *policy.Principal, namespace, subscription string) (*quota.Session, error) {
	s := m.snapshots.Get()
	sub := s.Subscriptions[snapshot.Key{Namespace: namespace, Name: subscription}]
	if sub == nil || !s.Rules.Authorize(who, policy.Consume, namespace, subscription).Allowed {
		return nil, nil
	}
	topics := make([]string, len(sub.Sources))
	for i := range sub.Sources {
		topics[i] = sub.Sources[i].Topic.Name
	}
	if len(topics) == 0 { // it waits for them, and is open
		topics = sub.Topics
	}
	return m.quotas.Open(s.Quotas, who, namespace, topics)
}

// tailing counts a tail, by the topics that it reads when it begins, or where it waits for
// some to come by its patterns. Who may read none of them hears why when it begins.
func (m *mesh) tailing(who *policy.Principal, r delivery.TailRequest) (*quota.Session, error) {
	if len(r.Topics) > delivery.MaxTailTopics {
		return nil, nil // likewise, and they may be a million patterns
	}
	s := m.snapshots.Get()
	var topics []string
	for _, t := range s.Matching(r.Namespace, r.Topics) {
		if g := s.Rules.Grant(who, policy.Subscribe, t.Namespace, t.Name); g.Ever() {
			topics = append(topics, t.Name)
		}
	}
	for _, p := range r.Topics {
		if len(topics) == 0 && names.IsPattern(p) && s.Rules.Prospect(who, policy.Subscribe, r.Namespace, p) {
			topics = append(topics, p)
		}
	}
	if len(topics) == 0 {
		return nil, nil
	}
	return m.quotas.Open(s.Quotas, who, r.Namespace, topics)
}

// heldMember and heldTail count, and keep what they read in use, while they are
// open.
type heldMember struct {
	delivery.Member
	session *quota.Session
	release func()
}

func (m heldMember) Close() {
	m.Member.Close()
	m.session.Close()
	m.release()
}

type heldTail struct {
	delivery.Tail
	session *quota.Session
	release func()
}

func (t heldTail) Close() {
	t.Tail.Close()
	t.session.Close()
	t.release()
}
