package stores

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// topicWork is a topic that this proxy makes itself, with the groups on it.
type topicWork struct {
	spec   store.TopicSpec
	groups map[string]store.Start
}

// retryPartitions is the size of a retry topic.
const retryPartitions = 4

// wanted lists, by EventStore uid and physical topic, what this proxy makes.
func wanted(s *snapshot.Snapshot) map[string]map[string]*topicWork {
	out := map[string]map[string]*topicWork{}
	of := func(uid, physical string) *topicWork {
		if out[uid] == nil {
			out[uid] = map[string]*topicWork{}
		}
		w := out[uid][physical]
		if w == nil {
			w = &topicWork{spec: store.TopicSpec{Name: physical, Partitions: retryPartitions}, groups: map[string]store.Start{}}
			out[uid][physical] = w
		}
		return w
	}
	for _, t := range s.Topics {
		if t.AtProxy == nil {
			continue
		}
		for _, e := range t.Epochs {
			if e.Local {
				of(e.StoreUID, e.Physical).spec = store.TopicSpec{Name: e.Physical, Partitions: t.AtProxy.Partitions, MaxAge: t.AtProxy.MaxAge, MaxBytes: t.AtProxy.MaxBytes}
			}
		}
	}
	for _, sub := range s.Subscriptions {
		for _, src := range sub.Sources {
			if !src.AtProxy {
				continue
			}
			if src.Topic.AtProxy != nil && src.Epoch.Local {
				of(src.Epoch.StoreUID, src.Epoch.Physical).groups[src.Group] = src.Start
			}
			retry := of(src.Epoch.StoreUID, src.RetryTopic)
			retry.spec.DropSettled, retry.groups[src.RetryGroup] = true, store.Start{}
		}
	}
	return out
}

// made is what a store is known to have. It only grows.
type made struct {
	mu     sync.Mutex
	topics map[string]*madeTopic
}

type madeTopic struct {
	spec   store.TopicSpec
	groups map[string]bool
	// usable: at some time all its groups had their start.
	usable bool
}

func (m *made) lacks(w *topicWork) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.topics[w.spec.Name]
	if t == nil || !t.usable || t.spec != w.spec {
		return true
	}
	for g := range w.groups {
		if !t.groups[g] {
			return true
		}
	}
	return false
}

func (m *made) topic(spec store.TopicSpec) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := m.topics[spec.Name]; t != nil {
		t.spec = spec
		return
	}
	m.topics[spec.Name] = &madeTopic{spec: spec, groups: map[string]bool{}}
}

func (m *made) group(topic, group string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.topics[topic].groups[group] = true
}

func (m *made) setUsable(topic string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.topics[topic].usable = true
}

func (m *made) usable(topic string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.topics[topic]
	return t != nil && t.usable
}

func (m *made) hasGroup(topic, group string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.topics[topic]
	return t != nil && t.groups[group]
}

// preparing bounds how many topics are made at a time.
const preparing = 16

// maxProblems bounds the failures that one error tells of.
const maxProblems = 3

// prepare makes what is wanted and not there. One that fails does not stop the
// others.
func (k *keeper) prepare(ctx context.Context, st store.Store, work map[string]*topicWork) error {
	var todo []*topicWork
	for _, w := range work {
		if k.made.lacks(w) {
			todo = append(todo, w)
		}
	}
	if len(todo) == 0 {
		return nil
	}
	admin, ok := st.(store.Admin)
	if !ok {
		return errors.New("the store cannot make topics")
	}
	var mu sync.Mutex
	var problems []error
	failed := 0
	var g errgroup.Group
	g.SetLimit(preparing)
	for _, w := range todo {
		g.Go(func() error {
			if err := k.prepareTopic(ctx, admin, w); err != nil {
				mu.Lock()
				defer mu.Unlock()
				if failed++; failed <= maxProblems {
					problems = append(problems, err)
				}
			}
			return nil
		})
	}
	_ = g.Wait()
	if failed > maxProblems {
		problems = append(problems, fmt.Errorf("and %d topics more", failed-maxProblems))
	}
	return errors.Join(problems...)
}

func (k *keeper) prepareTopic(ctx context.Context, admin store.Admin, w *topicWork) error {
	ctx, cancel := context.WithTimeout(ctx, k.m.cfg.OpenTimeout)
	defer cancel()
	if err := admin.EnsureTopic(ctx, w.spec); err != nil {
		return fmt.Errorf("topic %s: %w", w.spec.Name, err)
	}
	k.made.topic(w.spec)
	var refused error
	for name, start := range w.groups {
		if k.made.hasGroup(w.spec.Name, name) {
			continue
		}
		if err := admin.EnsureGroup(ctx, w.spec.Name, name, start); err != nil {
			err = fmt.Errorf("group %s on topic %s: %w", name, w.spec.Name, err)
			if len(start.After) > 0 && fault.ClassOf(err) == fault.Precondition {
				// Where it is to begin is not there. Publishing need not wait: nothing
				// is missed by who begins at a position.
				refused = cmp.Or(refused, err)
				continue
			}
			return err
		}
		k.made.group(w.spec.Name, name)
	}
	k.made.setUsable(w.spec.Name)
	return refused
}

// mark notes in s, which is not published yet, what is not made yet.
func mark(s *snapshot.Snapshot, keepers map[string]*keeper) {
	for _, t := range s.Topics {
		e := t.Written()
		if t.AtProxy == nil || t.NotReady != "" || !e.Local {
			continue
		}
		if k := keepers[e.StoreUID]; k == nil || !k.made.usable(e.Physical) {
			t.NotReady = "the topic is not made in its event store yet" + problemOf(k)
		}
	}
	for _, sub := range s.Subscriptions {
		kept := sub.Sources[:0:0]
		why := ""
		for _, src := range sub.Sources {
			k := keepers[src.Epoch.StoreUID]
			if src.AtProxy && (k == nil || !k.made.hasGroup(src.Epoch.Physical, src.Group) || !k.made.hasGroup(src.RetryTopic, src.RetryGroup)) {
				why = "the subscription's start on topic " + src.Topic.Name + " is not fixed in its event store yet" + problemOf(k)
				continue
			}
			kept = append(kept, src)
		}
		if why == "" {
			continue
		}
		if sub.Sources = kept; len(kept) == 0 && sub.NotReady == "" {
			sub.NotReady = why
		}
	}
}

func problemOf(k *keeper) string {
	if k == nil {
		return ""
	}
	if p := k.status().Problem; p != "" {
		return ": " + p
	}
	return ""
}
