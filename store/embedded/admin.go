package embedded

import (
	"context"
	"encoding/binary"
	"encoding/json"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

func (t *topic) recordLocked() ([]byte, error) {
	return json.Marshal(topicRecord{ID: t.id, Spec: t.spec, Low: t.low, CumLow: t.cumLow, NextFrom: t.next})
}

// EnsureTopic creates the topic or changes its settings.
func (s *Store) EnsureTopic(ctx context.Context, spec store.TopicSpec) error {
	const op = "embedded.ensure-topic"
	if spec.Name == "" || len(spec.Name) > 255 {
		return fault.New(fault.Invalid, op, "topic-name", "a topic's name has 1 to 255 bytes")
	}
	s.mu.Lock()
	t := s.topics[spec.Name]
	if t != nil && t.spec == spec {
		s.mu.Unlock()
		return nil
	}
	s.mu.Unlock()
	// The committer makes one change of a topic after the other, so that this does not race
	// with itself.
	var next *topic
	return s.note(ctx, op, "t"+spec.Name, func(b *pebble.Batch) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		r := topic{id: s.nextID, name: spec.Name}
		if t := s.topics[spec.Name]; t != nil {
			r = *t
			next = t
		} else {
			s.nextID++
			next = &topic{id: r.id, name: spec.Name, changed: make(chan struct{}), groups: map[string]*group{}}
		}
		r.spec = spec
		v, err := r.recordLocked()
		if err != nil {
			return err
		}
		if err := b.Set([]byte("n"), binary.BigEndian.AppendUint32(nil, s.nextID), nil); err != nil {
			return err
		}
		return b.Set([]byte("t"+spec.Name), v, nil)
	}, func() {
		if s.topics[spec.Name] == nil {
			s.topics[spec.Name], s.byID[next.id] = next, next
		}
		s.topics[spec.Name].spec = spec
	})
}

// TopicExists reports whether the topic is there.
func (s *Store) TopicExists(_ context.Context, name string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.topics[name] != nil, nil
}

// DeleteTopic deletes a topic with its records and groups.
func (s *Store) DeleteTopic(ctx context.Context, name string) error {
	s.mu.Lock()
	t := s.topics[name]
	if t == nil {
		s.mu.Unlock()
		return nil
	}
	t.gone = true
	delete(s.topics, name)
	delete(s.byID, t.id) // what it held back is dropped when it is due
	for _, g := range t.groups {
		g.gone = true
		g.wakeLocked()
	}
	t.wakeLocked()
	s.mu.Unlock()
	return s.do(ctx, "embedded.delete-topic", func(b *pebble.Batch) error {
		if err := b.Delete([]byte("t"+name), nil); err != nil {
			return err
		}
		if err := b.DeleteRange(recordKey(t.id, 0), recordKey(t.id+1, 0), nil); err != nil {
			return err
		}
		return b.DeleteRange(groupKey(t.id, ""), groupKey(t.id+1, ""), nil)
	})
}

// EnsureGroup creates a group with its start durably fixed.
func (s *Store) EnsureGroup(ctx context.Context, topic, name string, from store.Start) error {
	const op = "embedded.ensure-group"
	s.mu.Lock()
	t, err := s.topicLocked(op, topic)
	if err != nil || t.groups[name] != nil {
		s.mu.Unlock()
		return err
	}
	low, next := t.low, t.next
	s.mu.Unlock()
	for _, p := range from.After {
		if p.Partition != "" || p.Offset >= next {
			return store.Refused(topic, p)
		}
	}
	floor, err := s.start(t, from, low, next)
	if err != nil {
		return err
	}
	var created *group
	return s.note(ctx, op, string(groupKey(t.id, name)), func(b *pebble.Batch) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if t.groups[name] != nil || t.gone {
			return nil
		}
		created = newGroup(s, t, name, floor)
		return b.Set(groupKey(t.id, name), created.encodeLocked(), nil)
	}, func() {
		if created != nil {
			t.groups[name] = created
		}
	})
}

// DeleteGroup deletes a group.
func (s *Store) DeleteGroup(ctx context.Context, topic, name string) error {
	s.mu.Lock()
	t := s.topics[topic]
	if t == nil || t.groups[name] == nil {
		s.mu.Unlock()
		return nil
	}
	g := t.groups[name]
	g.gone = true
	delete(t.groups, name)
	g.wakeLocked()
	s.mu.Unlock()
	return s.do(ctx, "embedded.delete-group", func(b *pebble.Batch) error { return b.Delete(groupKey(t.id, name), nil) })
}

// Extents tells where the topic begins and ends.
func (s *Store) Extents(_ context.Context, topic string) ([]store.Extent, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := s.topicLocked("embedded.extents", topic)
	if err != nil {
		return nil, err
	}
	return []store.Extent{{Begin: t.low, End: t.next}}, nil
}

// Lag tells how far a group is behind.
func (s *Store) Lag(_ context.Context, topic, name string) ([]store.PartitionLag, error) {
	const op = "embedded.lag"
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := s.topicLocked(op, topic)
	if err != nil {
		return nil, err
	}
	g := t.groups[name]
	if g == nil {
		return nil, fault.New(fault.NotFound, op, "unknown-group", "topic %s has no group %s", topic, name)
	}
	g.advanceLocked()
	return []store.PartitionLag{{Committed: g.floor, End: t.next, Behind: int64(t.next-g.floor) - int64(len(g.settled)), Delayed: t.delayed}}, nil
}
