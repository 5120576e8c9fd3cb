package kafka

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store/sendqueue"
)

// Times of a batch.
const (
	// sendTimeout is how long a broker may take to have a batch on enough replicas.
	sendTimeout = 5 * time.Second
	// unsentFor is how long a batch that no broker has got is tried: a new leader is
	// elected within a second or two.
	unsentFor = 5 * time.Second
	// doubtFor is how long one is tried of which nobody knows whether it was kept.
	doubtFor = 20 * time.Second
)

// partitionName is a partition's stable name.
func partitionName(p int32) string { return strconv.Itoa(int(p)) }

// produce is a request of one batch, which it encodes where the request is written: as
// long as that was not begun, no broker has it.
type produce struct {
	*kmsg.ProduceRequest // its one partition has no records
	batch

	mu      sync.Mutex
	written bool // or it is being written
	over    bool
}

// AppendTo appends the request with the batch. Without records it ends with their length
// and an empty list of tags for each of three levels, or in the older form with a length
// of four bytes. A request that is over has no records, which brokers refuse.
func (p *produce) AppendTo(dst []byte) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	dst = p.ProduceRequest.AppendTo(dst)
	if p.over {
		return dst
	}
	p.written = true
	dst, n := dst[:len(dst)-4], p.size()
	if !p.IsFlexible() {
		return p.append(kbin.AppendInt32(dst, int32(n))) //nolint:gosec // bounded by maxBatchBytes and maxMessage
	}
	dst = p.append(kbin.AppendUvarint(dst, uint32(n)+1)) //nolint:gosec // likewise
	return append(dst, 0, 0, 0)
}

// end has the batch not be written any more: its events are as they are until it is
// settled, which another request may do. It reports whether a broker may have it.
func (p *produce) end() (written bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	return p.written
}

// deliver has a batch kept, or answers its calls why not.
func (s *Store) deliver(sn *sender, batch []*outgoing) error {
	first, err := s.settle(sn, batch)
	switch {
	case err == nil:
		sn.Sent(batch, partitionName(sn.partition), first)
		return nil
	case len(batch) == 1 || fault.ClassOf(err) == fault.Ambiguous || !errors.Is(err, kerr.MessageTooLarge) && !errors.Is(err, kerr.RecordListTooLarge) && !errors.Is(err, kerr.InvalidRecord):
		sn.producer = 0 // no other batch is to be taken for this one, whatever became of it
		sn.Failed(batch, err)
		return err
	}
	// The topic takes less than is usual, or a segment of it does, or not one of them: the
	// others are not to suffer for it.
	half := len(batch) / 2
	err = s.deliver(sn, batch[:half])
	if rest := sn.Unfailed(batch[half:]); len(rest) > 0 {
		err = s.deliver(sn, rest)
	}
	return err
}

// settle sends a batch again and again, under its sequence number, until the broker
// says what became of it. It gives the offset of the first event.
func (s *Store) settle(sn *sender, batch []*outgoing) (first int64, err error) {
	const op = "kafka.publish"
	began, retry := time.Now(), minRetry
	doubt := false // a broker may have it
	for fresh := false; ; fresh = true {
		first, doubts, err := s.attempt(sn, batch, fresh)
		doubt = doubt || doubts
		switch {
		case err == nil:
			sn.sequence += int32(len(batch)) //nolint:gosec // at most maxBatchEvents
			if sn.sequence < 0 {
				sn.producer = 0 // numbers begin anew with another producer
			}
			return first, nil
		case errors.Is(err, kerr.OutOfOrderSequenceNumber), errors.Is(err, kerr.UnknownProducerID), errors.Is(err, kerr.InvalidProducerEpoch), errors.Is(err, kerr.InvalidProducerIDMapping):
			// The log does not go on where it did, and does not have this batch.
			sn.producer, doubt = 0, false
		case doubt && !again(err):
			sn.producer = 0
			return 0, ambiguous(err)
		case !again(err) && !errors.Is(err, errNoTopic):
			return 0, classify(s.life, op, err)
		}
		switch {
		case doubt && (s.life.Err() != nil || time.Since(began) >= doubtFor):
			sn.producer = 0 // the next batch must not take this one's numbers
			return 0, ambiguous(err)
		case doubt && time.Since(began) >= unsentFor:
			s.refuse(sn, err) // it would wait as long, and is surely not sent
		case doubt:
		case s.life.Err() != nil:
			return 0, sendqueue.Closed(op)
		case errors.Is(err, errNoTopic) || time.Since(began) >= unsentFor:
			return 0, classify(s.life, op, err)
		}
		pause(s.life, &retry)
	}
}

// errNoTopic is added where brokers say that there is no such topic.
var errNoTopic = errors.New("there is no such topic")

// again reports whether an error may pass by itself.
func again(err error) bool {
	var answer *kerr.Error
	if errors.As(err, &answer) {
		return answer.Retriable
	}
	return true // of connections
}

// attempt sends a batch once. doubts: it failed, and the broker may have it.
func (s *Store) attempt(sn *sender, events []*outgoing, fresh bool) (first int64, doubts bool, err error) {
	t, err := s.topic(s.life, sn.topic, fresh)
	if err != nil {
		if fault.ClassOf(err) == fault.NotFound {
			err = fmt.Errorf("%w: %w", errNoTopic, err)
		}
		return 0, false, err
	}
	if int(sn.partition) >= len(t.leaders) {
		return 0, false, fmt.Errorf("%w with partition %d: %w", errNoTopic, sn.partition, kerr.UnknownTopicOrPartition)
	}
	leader := t.leaders[sn.partition]
	if leader < 0 {
		return 0, false, kerr.LeaderNotAvailable
	}
	ctx, cancel := context.WithTimeout(s.life, sendTimeout+callTimeout)
	defer cancel()
	if sn.producer == 0 {
		if err := s.newProducer(ctx, sn); err != nil {
			return 0, false, err
		}
	}
	req := &produce{ProduceRequest: kmsg.NewPtrProduceRequest(), batch: batch{events: events, producer: sn.producer, epoch: sn.epoch, sequence: sn.sequence, now: s.op.Clock.Now().UnixMilli()}}
	req.Acks, req.TimeoutMillis = -1, int32(sendTimeout.Milliseconds())
	req.Topics = []kmsg.ProduceRequestTopic{{Topic: sn.topic, TopicID: t.id, Partitions: []kmsg.ProduceRequestTopicPartition{{Partition: sn.partition}}}}
	l, err := s.take(leader)
	if err != nil {
		return 0, false, err
	}
	began := time.Now()
	resp, err := l.c.Broker(int(leader)).Request(ctx, req)
	answer, ok := resp.(*kmsg.ProduceResponse)
	waited := s.giveBack(l, leader, began, answer, err)
	if err != nil {
		if doubts = req.end(); !doubts && waited && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("%w: the broker has the client wait for its quota", kerr.ThrottlingQuotaExceeded)
		}
		return 0, doubts, err
	}
	if !ok || len(answer.Topics) != 1 || len(answer.Topics[0].Partitions) != 1 {
		return 0, true, errors.New("the answer is not of this request")
	}
	p := &answer.Topics[0].Partitions[0]
	if err = kerr.ErrorForCode(p.ErrorCode); err == nil {
		if p.BaseOffset < 0 {
			return 0, true, errors.New("the answer has no offset")
		}
		return p.BaseOffset, false, nil
	}
	if p.ErrorMessage != nil {
		err = fmt.Errorf("%w: %.200s", err, *p.ErrorMessage)
	}
	return 0, !slices.Contains(unkept, p.ErrorCode), err
}

// unkept are the answers to a batch that is surely in no log, the only ones after which its
// sequence numbers may be those of another batch: one that has the numbers of one that was
// kept is taken for it, acknowledged, and lost. A leader that has a batch and waits for its
// replicas answers as well that it is not the leader any more.
var unkept = codesOf(kerr.NotEnoughReplicas, kerr.MessageTooLarge, kerr.RecordListTooLarge, kerr.InvalidRecord, kerr.InvalidTimestamp, kerr.CorruptMessage,
	kerr.InvalidTopicException, kerr.UnknownTopicOrPartition, kerr.UnknownTopicID, kerr.InconsistentTopicID, kerr.TopicAuthorizationFailed, kerr.ClusterAuthorizationFailed,
	kerr.OutOfOrderSequenceNumber, kerr.UnknownProducerID, kerr.InvalidProducerEpoch, kerr.InvalidProducerIDMapping,
	kerr.InvalidRequiredAcks, kerr.InvalidRequest, kerr.UnsupportedVersion, kerr.UnsupportedForMessageFormat, kerr.UnsupportedCompressionType,
	kerr.PolicyViolation, kerr.ThrottlingQuotaExceeded)

func codesOf(errs ...*kerr.Error) []int16 {
	codes := make([]int16, len(errs))
	for i, err := range errs {
		codes[i] = err.Code
	}
	return codes
}

// newProducer makes the sender a producer that brokers have not seen.
func (s *Store) newProducer(ctx context.Context, sn *sender) error {
	req := kmsg.NewPtrInitProducerIDRequest()
	req.ProducerID, req.ProducerEpoch = -1, -1
	resp, err := req.RequestWith(ctx, s.c)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err != nil {
		return err
	}
	sn.producer, sn.epoch, sn.sequence = resp.ProducerID, resp.ProducerEpoch, 0
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// batch is what goes together to a partition, as a producer numbers it.
type batch struct {
	events   []*outgoing // not empty; their events stay as they are
	producer int64
	epoch    int16
	sequence int32 // of the first
	now      int64 // when it is said to be stored, ms; brokers date topics that are made here themselves
}

// Places in a batch, and what it has before its records.
const (
	batchLengthAt = 8
	batchCRCAt    = 17
	batchHead     = 61
)

// size is how many bytes append appends.
func (b *batch) size() int {
	size := batchHead
	for i, o := range b.events {
		n := o.Event.length(int32(i)) //nolint:gosec // at most maxBatchEvents
		size += kbin.VarintLen(n) + int(n)
	}
	return size
}

// append appends the batch as brokers keep it.
func (b *batch) append(dst []byte) []byte {
	n := int32(len(b.events)) //nolint:gosec // at most maxBatchEvents
	head := kmsg.RecordBatch{PartitionLeaderEpoch: -1, Magic: 2, LastOffsetDelta: n - 1, FirstTimestamp: b.now, MaxTimestamp: b.now,
		ProducerID: b.producer, ProducerEpoch: b.epoch, FirstSequence: b.sequence, NumRecords: n}
	from := len(dst)
	dst = head.AppendTo(slices.Grow(dst, b.size()))
	for i, o := range b.events {
		dst = o.Event.append(dst, int32(i)) //nolint:gosec // at most maxBatchEvents
	}
	it := dst[from:]
	kbin.AppendInt32(it[:batchLengthAt], int32(len(it)-batchLengthAt-4)) //nolint:gosec // a batch is small
	kbin.AppendUint32(it[:batchCRCAt], crc32.Checksum(it[batchCRCAt+4:], castagnoli))
	return dst
}

// length is how many bytes a record of a batch takes behind its length.
func (r *record) length(delta int32) int32 {
	key := kbin.VarintLen(-1)
	if r.key != "" {
		key = kbin.VarintLen(int32(len(r.key))) + len(r.key) //nolint:gosec // bounded by maxMessage
	}
	return int32(2 + kbin.VarintLen(delta) + key + kbin.VarintLen(int32(len(r.value))) + len(r.value) + len(r.headers)) //nolint:gosec // likewise
}

// append appends the record of a batch.
func (r *record) append(dst []byte, delta int32) []byte {
	dst = kbin.AppendVarint(dst, r.length(delta))
	dst = append(dst, 0, 0) // attributes; how much later than the batch's first
	dst = kbin.AppendVarint(dst, delta)
	if r.key != "" {
		dst = kbin.AppendVarintString(dst, r.key)
	} else {
		dst = kbin.AppendVarint(dst, -1)
	}
	dst = kbin.AppendVarintBytes(dst, r.value)
	return append(dst, r.headers...)
}

// pause waits before another try.
func pause(ctx context.Context, retry *time.Duration) {
	timer := time.NewTimer(*retry/2 + rand.N(*retry))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	*retry = min(2**retry, maxRetry)
}
