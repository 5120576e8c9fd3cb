package rocketmq

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// permFence are the permissions of a topic in the mesh's fence: to read it, and, of
// permInherit, nothing. RocketMQ looks at that one for topics alone after which others are
// made. By it the mesh knows a fence of its own from a topic that somebody else has made
// one to read only.
const (
	permInherit = 1
	permFence   = permRead | permInherit
)

// topicConfig is a topic as one broker has it.
type topicConfig struct {
	ReadQueueNums, WriteQueueNums, Perm, TopicSysFlag int
	TopicFilterType                                   string
	Order                                             bool
}

// fields ask for a topic that is so.
func (t topicConfig) fields(topic string) map[string]string {
	return map[string]string{"topic": topic, "defaultTopic": "TBW102", "readQueueNums": strconv.Itoa(t.ReadQueueNums), "writeQueueNums": strconv.Itoa(t.WriteQueueNums),
		"perm": strconv.Itoa(t.Perm), "topicFilterType": t.TopicFilterType, "topicSysFlag": strconv.Itoa(t.TopicSysFlag), "order": strconv.FormatBool(t.Order)}
}

// topicConfig asks a broker for a topic.
func (s *Store) topicConfig(ctx context.Context, addr, topic string) (t topicConfig, err error) {
	cmd, err := s.c.ask(ctx, addr, reqTopicConfig, map[string]string{"topic": topic}, nil)
	if err != nil {
		return t, err
	}
	if err := decodeJSON(cmd.Body, &t); err != nil {
		return t, unavailable(fmt.Errorf("topic %s: %w", topic, err))
	}
	return t, nil
}

// permit changes the permissions of a topic at every broker that has it, and waits until
// all name servers say so. It fails as whole does.
func (s *Store) permit(ctx context.Context, topic string, within time.Duration, become func(perm int) int, so func(*route) bool) error {
	r, err := s.c.whole(ctx, topic, within)
	if err != nil {
		return err
	}
	for _, name := range sortedKeys(r.brokers) {
		t, err := s.topicConfig(ctx, r.brokers[name], topic)
		if err != nil {
			return err
		}
		was := t.Perm
		if t.Perm = become(was); t.Perm == was {
			continue
		}
		if _, err := s.c.ask(ctx, r.brokers[name], reqCreateTopic, t.fields(topic), nil); err != nil {
			return err
		}
	}
	for retry := minRetry; ; pause(ctx, &retry) {
		r, err := s.c.whole(ctx, topic, within)
		if err == nil && so(r) {
			return nil
		}
		if ctx.Err() != nil {
			return fault.Wrap(fault.Unavailable, "rocketmq.permit", "not-seen", fmt.Errorf("the permissions of topic %s were changed, but the name servers do not know it: %w", topic, errors.Join(ctx.Err(), err)))
		}
	}
}

// Fence has name servers tell that nobody may write to a topic; see store.Fencer. Clients
// learn that when they ask next where the topic is, which official ones do every 30 s.
// Brokers look at no topic's permission when they are sent a message.
func (s *Store) Fence(ctx context.Context, topic string) (store.Fence, error) {
	return store.FenceAdvisory, s.permit(ctx, topic, math.MaxInt64, func(perm int) int {
		if perm&permWrite == 0 {
			return perm
		}
		return permFence
	}, func(r *route) bool { return len(r.write) == 0 })
}

// Unfence has name servers tell again that the topic may be written to.
func (s *Store) Unfence(ctx context.Context, topic string) error {
	err := s.permit(ctx, topic, removedAfter, func(perm int) int {
		if perm == permFence {
			return permRead | permWrite
		}
		return perm
	}, func(r *route) bool {
		return !slices.Contains(slices.Collect(maps.Values(r.perms)), permFence)
	})
	if err != nil && fault.ClassOf(err) == fault.NotFound {
		return nil
	}
	return err
}

var _ store.Fencer = (*Store)(nil)
