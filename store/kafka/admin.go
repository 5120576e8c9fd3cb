package kafka

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// defaultPartitions are those of a topic that asks for none.
const defaultPartitions = 8

// EnsureTopic creates the topic or grows its partitions. What is not said of its
// retention is without a bound when it is created, and stays as it is later.
func (s *Store) EnsureTopic(ctx context.Context, t store.TopicSpec) error {
	const op = "kafka.ensure-topic"
	n := t.Partitions
	if n == 0 {
		n = defaultPartitions
	}
	now, err := s.topic(ctx, t.Name, true)
	switch {
	case err == nil:
		if len(now.leaders) < n {
			if _, err := s.adm.UpdatePartitions(ctx, n, t.Name); err != nil {
				return classify(ctx, op, err)
			}
		}
		if err := s.retain(ctx, t, max(n, len(now.leaders))); err != nil {
			return err
		}
	case fault.ClassOf(err) != fault.NotFound:
		return err
	default:
		replicas := int16(-1)
		if s.op.Replicas > 0 {
			replicas = int16(min(s.op.Replicas, 1<<15-1)) //nolint:gosec // bounded
		}
		set := map[string]*string{
			"cleanup.policy": kadm.StringPtr("delete"),
			// Brokers date events: replay from a time goes by it.
			"message.timestamp.type": kadm.StringPtr("LogAppendTime"),
			"max.message.bytes":      kadm.StringPtr(strconv.Itoa(maxMessage + overhead)),
			"retention.ms":           kadm.StringPtr("-1"),
			"retention.bytes":        kadm.StringPtr("-1"),
		}
		for k, v := range retention(t, n) {
			set[k] = &v
		}
		made, err := s.adm.CreateTopics(ctx, int32(n), replicas, set, t.Name) //nolint:gosec // topics have few partitions
		if err == nil {
			err = made.Error()
		}
		if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
			return classify(ctx, op, err)
		}
	}
	return s.until(ctx, op, "the topic was created, but brokers do not know it", func() (bool, error) {
		now, err := s.topic(ctx, t.Name, true)
		if err != nil {
			return false, err
		}
		if len(now.leaders) < n || slices.Contains(now.leaders, -1) {
			return false, nil
		}
		// Its leaders hear of it after who was asked.
		_, err = s.offsets(ctx, op, t.Name, s.adm.ListStartOffsets)
		if err != nil && store.Why(err) != "AccessDenied" { // not everyone may ask
			return false, err
		}
		return true, nil
	})
}

// retention is how topics say what is asked of it. Kafka bounds the bytes of each
// partition by itself.
func retention(t store.TopicSpec, partitions int) map[string]string {
	set := map[string]string{}
	if t.MaxAge > 0 {
		set["retention.ms"] = strconv.FormatInt(t.MaxAge.Milliseconds(), 10)
	}
	if t.MaxBytes > 0 {
		set["retention.bytes"] = strconv.FormatInt(max(t.MaxBytes/int64(partitions), 1), 10)
	}
	return set
}

// retain changes the retention of a topic that is there to what is asked.
func (s *Store) retain(ctx context.Context, t store.TopicSpec, partitions int) error {
	const op = "kafka.ensure-topic"
	want := retention(t, partitions)
	if len(want) == 0 {
		return nil
	}
	have, err := s.adm.DescribeTopicConfigs(ctx, t.Name)
	if err == nil {
		_, err = have.On(t.Name, func(r *kadm.ResourceConfig) error {
			for _, c := range r.Configs {
				if want[c.Key] == c.MaybeValue() {
					delete(want, c.Key)
				}
			}
			return r.Err
		})
	}
	if err != nil || len(want) == 0 {
		return classify(ctx, op, err)
	}
	var change []kadm.AlterConfig
	for k, v := range want {
		change = append(change, kadm.AlterConfig{Op: kadm.SetConfig, Name: k, Value: &v})
	}
	done, err := s.adm.AlterTopicConfigs(ctx, change, t.Name)
	if err == nil {
		_, err = done.On(t.Name, func(r *kadm.AlterConfigsResponse) error { return r.Err })
	}
	return classify(ctx, op, err)
}

// steadily asks again, for callTimeout, while the broker that is to answer is only
// being found: when the first group of a cluster is made, and when another has died.
func (s *Store) steadily(ctx context.Context, op string, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	retry := minRetry
	for {
		err := ask(ctx)
		answer, answered := errors.AsType[*kerr.Error](err)
		_, cut := errors.AsType[*net.OpError](err) // who was found has died since
		if err == nil || ctx.Err() != nil || !cut && (!answered || !answer.Retriable || answer == kerr.UnknownTopicOrPartition) {
			return unreachable(ctx, op, err)
		}
		pause(ctx, &retry)
	}
}

// until waits for what a change leads to.
func (s *Store) until(ctx context.Context, op, why string, seen func() (bool, error)) error {
	retry := minRetry
	for {
		ok, err := seen()
		if ok && err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fault.Wrap(fault.Unavailable, op, "not-seen", fmt.Errorf("%s: %w", why, errors.Join(ctx.Err(), err)))
		}
		pause(ctx, &retry)
	}
}

// TopicExists reports whether the topic is there.
func (s *Store) TopicExists(ctx context.Context, name string) (bool, error) {
	_, err := s.topic(ctx, name, true)
	if err != nil && fault.ClassOf(err) == fault.NotFound {
		return false, nil
	}
	return err == nil, err
}

// DeleteTopic deletes the topic.
func (s *Store) DeleteTopic(ctx context.Context, name string) error {
	const op = "kafka.delete-topic"
	done, err := s.adm.DeleteTopics(ctx, name)
	if err == nil {
		err = done.Error()
	}
	if err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition) {
		return classify(ctx, op, err)
	}
	return s.until(ctx, op, "the topic was deleted, but brokers still know it", func() (bool, error) {
		there, err := s.TopicExists(ctx, name)
		return !there, err
	})
}

// offsets asks for an offset of each partition.
func (s *Store) offsets(ctx context.Context, op, topic string, list func(context.Context, ...string) (kadm.ListedOffsets, error)) (map[int32]int64, error) {
	var listed kadm.ListedOffsets
	if err := s.steadily(ctx, op, func(ctx context.Context) (err error) {
		listed, err = list(ctx, topic)
		if err == nil {
			err = listed.Error()
		}
		if err == nil && len(listed[topic]) == 0 {
			err = kerr.UnknownTopicOrPartition
		}
		return err
	}); err != nil {
		return nil, err
	}
	out := map[int32]int64{}
	for p, o := range listed[topic] {
		out[p] = o.Offset
	}
	return out, nil
}

// starts are the offsets where from begins.
func (s *Store) starts(ctx context.Context, op, topic string, from store.Start) (map[int32]int64, error) {
	list := s.adm.ListStartOffsets
	switch {
	case from.End:
		list = s.adm.ListEndOffsets
	case !from.At.IsZero():
		// Brokers know times to the millisecond.
		list = func(ctx context.Context, topics ...string) (kadm.ListedOffsets, error) {
			return s.adm.ListOffsetsAfterMilli(ctx, from.At.UnixMilli(), topics...)
		}
	}
	at, err := s.offsets(ctx, op, topic, list)
	if err != nil {
		return nil, err
	}
	for _, p := range from.After {
		for have := range at {
			if partitionName(have) == p.Partition {
				at[have] = int64(p.Offset) + 1 //nolint:gosec // offsets are below 2^63
			}
		}
	}
	return at, nil
}

// committed is where a group is in a topic; nothing where it has no place there.
func (s *Store) committed(ctx context.Context, op, topic, group string) (map[int32]int64, error) {
	var have kadm.OffsetResponses
	if err := s.steadily(ctx, op, func(ctx context.Context) (err error) {
		have, err = s.adm.FetchOffsetsForTopics(ctx, group, topic)
		if err == nil {
			err = have.Error()
		}
		if errors.Is(err, kerr.GroupIDNotFound) {
			return nil
		}
		return err
	}); err != nil {
		return nil, err
	}
	out := map[int32]int64{}
	for p, o := range have[topic] {
		if o.At >= 0 {
			out[p] = o.At
		}
	}
	return out, nil
}

// EnsureGroup creates a group by committing its start, in all partitions at once.
func (s *Store) EnsureGroup(ctx context.Context, topic, group string, from store.Start) error {
	const op = "kafka.ensure-group"
	if have, err := s.committed(ctx, op, topic, group); err != nil || len(have) > 0 {
		return err
	}
	begins, err := s.offsets(ctx, op, topic, s.adm.ListStartOffsets)
	if err != nil {
		return err
	}
	ends, err := s.offsets(ctx, op, topic, s.adm.ListEndOffsets)
	if err != nil {
		return err
	}
	for _, p := range from.After {
		known := false
		for have, end := range ends {
			known = known || partitionName(have) == p.Partition && p.Offset < uint64(end) //nolint:gosec // offsets are not negative
		}
		if !known {
			return store.Refused(topic, p)
		}
	}
	at, err := s.starts(ctx, op, topic, from)
	if err != nil {
		return err
	}
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Group, req.Generation, req.RetentionTimeMillis = group, -1, offsetsFor.Milliseconds()
	t := kmsg.NewOffsetCommitRequestTopic()
	t.Topic = topic
	for p, offset := range at {
		c := kmsg.NewOffsetCommitRequestTopicPartition()
		c.Partition, c.Offset, c.Metadata = p, max(offset, begins[p]), kmsg.StringPtr("")
		t.Partitions = append(t.Partitions, c)
	}
	req.Topics = append(req.Topics, t)
	if err := s.steadily(ctx, op, func(ctx context.Context) error {
		resp, err := req.RequestWith(ctx, s.c)
		if err != nil {
			return err
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					return err
				}
			}
		}
		return nil
	}); err != nil {
		return err
	}
	have, err := s.committed(ctx, op, topic, group)
	if err == nil && len(have) != len(at) {
		err = classify(ctx, op, fmt.Errorf("the start of group %s was not kept", group))
	}
	return err
}

// DeleteGroup deletes a group with its offsets.
func (s *Store) DeleteGroup(ctx context.Context, _, group string) error {
	return s.steadily(ctx, "kafka.delete-group", func(ctx context.Context) error {
		_, err := s.adm.DeleteGroup(ctx, group)
		if errors.Is(err, kerr.GroupIDNotFound) {
			return nil
		}
		return err
	})
}

// Extents tells where each partition of a topic begins and ends.
func (s *Store) Extents(ctx context.Context, topic string) ([]store.Extent, error) {
	const op = "kafka.extents"
	begins, err := s.offsets(ctx, op, topic, s.adm.ListStartOffsets)
	if err != nil {
		return nil, err
	}
	ends, err := s.offsets(ctx, op, topic, s.adm.ListEndOffsets)
	if err != nil {
		return nil, err
	}
	var out []store.Extent
	for p := range int32(len(ends)) { //nolint:gosec // topics have few partitions
		out = append(out, store.Extent{Partition: partitionName(p), Begin: uint64(begins[p]), End: uint64(ends[p])}) //nolint:gosec // offsets are not negative
	}
	return out, nil
}

// Lag tells how far a group is behind.
func (s *Store) Lag(ctx context.Context, topic, group string) ([]store.PartitionLag, error) {
	const op = "kafka.lag"
	extents, err := s.Extents(ctx, topic)
	if err != nil {
		return nil, err
	}
	at, err := s.committed(ctx, op, topic, group)
	if err != nil {
		return nil, err
	}
	if len(at) == 0 {
		return nil, unknownGroup(op, topic, group)
	}
	out := make([]store.PartitionLag, len(extents))
	for p, x := range extents {
		// A partition that came after the group begins at its beginning, as one does of
		// which the group has a place that is not there (any more, or yet).
		committed := x.Begin
		if have, ok := at[int32(p)]; ok && uint64(have) >= x.Begin && uint64(have) <= x.End { //nolint:gosec // topics have few partitions, offsets are not negative
			committed = uint64(have) //nolint:gosec // likewise
		}
		out[p] = store.PartitionLag{Partition: x.Partition, Committed: committed, End: x.End, Behind: max(int64(x.End-committed), 0)} //nolint:gosec // likewise
	}
	return out, nil
}

// Trim removes what a group has settled from a topic that is its own; see store.Trimmer.
// Brokers free the room of a segment that has nothing else.
func (s *Store) Trim(ctx context.Context, topic, group string) error {
	const op = "kafka.trim"
	extents, err := s.Extents(ctx, topic)
	if err != nil {
		return err
	}
	at, err := s.committed(ctx, op, topic, group)
	if err != nil {
		return err
	}
	if len(at) == 0 {
		return unknownGroup(op, topic, group)
	}
	var before kadm.Offsets
	for p, x := range extents {
		// A place that is not in the partition is of one that was there before it.
		if have, ok := at[int32(p)]; ok && uint64(have) > x.Begin && uint64(have) <= x.End { //nolint:gosec // topics have few partitions, offsets are not negative
			before.AddOffset(topic, int32(p), have, -1) //nolint:gosec // likewise
		}
	}
	return s.steadily(ctx, op, func(ctx context.Context) error {
		done, err := s.adm.DeleteRecords(ctx, before)
		if err == nil {
			err = done.Error()
		}
		return err
	})
}

var (
	_ store.Admin    = (*Store)(nil)
	_ store.Trimmer  = (*Store)(nil)
	_ store.Measurer = (*Store)(nil)
	_ store.Checker  = (*Store)(nil)
)
