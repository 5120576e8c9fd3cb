package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// topic is where a topic is, as of a moment.
type topic struct {
	id      [16]byte
	leaders []int32 // by partition; -1 where there is none now
	at      time.Time

	asking bool // somebody looks again; guarded by Store.mu
	turn   int  // of events without a key; likewise
	bytes  int  // since the turn; likewise
}

// topic finds a topic. A remembered answer that is old is still given, while
// somebody looks again; fresh takes none.
func (s *Store) topic(ctx context.Context, name string, fresh bool) (*topic, error) {
	s.mu.Lock()
	t := s.topics[name]
	if t != nil && !fresh {
		if time.Since(t.at) >= metadataAge && !t.asking {
			if done, ok := s.out.Begin(); ok {
				t.asking = true
				go func() {
					defer done()
					_, _ = s.lookUp(s.life, name)
				}()
			}
		}
		s.mu.Unlock()
		return t, nil
	}
	s.mu.Unlock()
	return s.lookUp(ctx, name)
}

// lookUp asks brokers for a topic.
func (s *Store) lookUp(ctx context.Context, name string) (*topic, error) {
	const op = "kafka.topic"
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req := kmsg.NewPtrMetadataRequest()
	req.AllowAutoTopicCreation = false
	req.Topics = []kmsg.MetadataRequestTopic{{Topic: kmsg.StringPtr(name)}}
	resp, err := req.RequestWith(ctx, s.c)
	if err == nil && len(resp.Topics) != 1 {
		err = fmt.Errorf("the answer has %d topics", len(resp.Topics))
	}
	if err == nil {
		err = kerr.ErrorForCode(resp.Topics[0].ErrorCode)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.topics[name]
	if old != nil {
		old.asking = false
	}
	if err != nil {
		if errors.Is(err, kerr.UnknownTopicOrPartition) {
			delete(s.topics, name)
		}
		return nil, unreachable(ctx, op, err)
	}
	t := &topic{id: resp.Topics[0].TopicID, at: time.Now(), leaders: make([]int32, len(resp.Topics[0].Partitions))}
	for i := range t.leaders {
		t.leaders[i] = -1
	}
	for _, p := range resp.Topics[0].Partitions {
		if int(p.Partition) >= len(t.leaders) {
			return nil, unreachable(ctx, op, fmt.Errorf("the answer has partition %d of %d", p.Partition, len(t.leaders)))
		}
		if kerr.ErrorForCode(p.ErrorCode) == nil {
			t.leaders[p.Partition] = p.Leader
		}
	}
	if old != nil {
		t.turn, t.bytes = old.turn, old.bytes
	}
	s.topics[name] = t
	return t, nil
}
