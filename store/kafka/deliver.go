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
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
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

// produce is a request that knows whether it began to be written to a connection: as
// long as it did not, no broker has it.
type produce struct {
	*kmsg.ProduceRequest
	written atomic.Bool
}

func (p *produce) AppendTo(dst []byte) []byte {
	p.written.Store(true)
	return p.ProduceRequest.AppendTo(dst)
}

// deliver has a batch kept, or answers its calls why not.
func (s *Store) deliver(sn *sender, batch []*outgoing) error {
	first, err := s.settle(sn, batch)
	switch {
	case err == nil:
		sn.Sent(batch, partitionName(sn.partition), first)
		return nil
	case len(batch) == 1 || !errors.Is(err, kerr.MessageTooLarge) && !errors.Is(err, kerr.InvalidRecord):
		sn.Failed(batch, err)
		return err
	}
	// The topic takes less than is usual, or not one of them: the others are not to
	// suffer for it.
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

// buffers are those of batches that brokers have answered: partitions to which nothing is
// on its way hold none.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// attempt sends a batch once. doubts: it failed, and the broker may have it.
func (s *Store) attempt(sn *sender, batch []*outgoing, fresh bool) (first int64, doubts bool, err error) {
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
	buffer := buffers.Get().(*[]byte) //nolint:forcetypeassert // there is nothing else in it
	*buffer = appendBatch((*buffer)[:0], sn, batch, s.op.Clock.Now().UnixMilli())
	req := &produce{ProduceRequest: kmsg.NewPtrProduceRequest()}
	req.Acks, req.TimeoutMillis = -1, int32(sendTimeout.Milliseconds())
	req.Topics = []kmsg.ProduceRequestTopic{{Topic: sn.topic, TopicID: t.id,
		Partitions: []kmsg.ProduceRequestTopicPartition{{Partition: sn.partition, Records: *buffer}}}}
	resp, err := s.c.Broker(int(leader)).Request(ctx, req)
	if err != nil {
		return 0, req.written.Load(), err // a connection may still have the buffer
	}
	if cap(*buffer) <= 2*maxBatchBytes {
		buffers.Put(buffer)
	}
	answer, ok := resp.(*kmsg.ProduceResponse)
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
	for _, kept := range []error{kerr.NotEnoughReplicasAfterAppend, kerr.RequestTimedOut, kerr.UnknownServerError, kerr.KafkaStorageError, kerr.DuplicateSequenceNumber} {
		doubts = doubts || errors.Is(err, kept) // it is in the leader's log, or may be
	}
	return 0, doubts, err
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

// Places in a batch.
const (
	batchLengthAt = 8
	batchCRCAt    = 17
)

// appendBatch appends the batch as brokers keep it, dated as of now, to an empty
// slice. They date it themselves in topics that are made here.
func appendBatch(b []byte, sn *sender, batch []*outgoing, now int64) []byte {
	size := overhead
	for _, o := range batch {
		size += o.Size
	}
	head := kmsg.RecordBatch{PartitionLeaderEpoch: -1, Magic: 2, LastOffsetDelta: int32(len(batch) - 1), FirstTimestamp: now, MaxTimestamp: now, //nolint:gosec // at most maxBatchEvents
		ProducerID: sn.producer, ProducerEpoch: sn.epoch, FirstSequence: sn.sequence, NumRecords: int32(len(batch))} //nolint:gosec // likewise
	b = head.AppendTo(slices.Grow(b, size))
	for i, o := range batch {
		b = appendRecord(b, o.Event, int32(i)) //nolint:gosec // likewise
	}
	kbin.AppendInt32(b[:batchLengthAt], int32(len(b)-batchLengthAt-4)) //nolint:gosec // a batch is small
	kbin.AppendUint32(b[:batchCRCAt], crc32.Checksum(b[batchCRCAt+4:], castagnoli))
	return b
}

// appendRecord appends a record of a batch.
func appendRecord(b []byte, r *kgo.Record, delta int32) []byte {
	n := 1 + kbin.VarlongLen(0) + kbin.VarintLen(delta) + lengthOf(r.Key) + lengthOf(r.Value) + kbin.VarintLen(int32(len(r.Headers))) //nolint:gosec // events have few attributes
	for i := range r.Headers {
		h := &r.Headers[i]
		n += kbin.VarintLen(int32(len(h.Key))) + len(h.Key) + lengthOf(h.Value) //nolint:gosec // bounded by maxMessage
	}
	b = kbin.AppendVarint(b, int32(n)) //nolint:gosec // likewise
	b = append(b, 0)                   // attributes
	b = kbin.AppendVarlong(b, 0)       // later than the batch's first by
	b = kbin.AppendVarint(b, delta)
	b = kbin.AppendVarintBytes(b, r.Key)
	b = kbin.AppendVarintBytes(b, r.Value)
	b = kbin.AppendVarint(b, int32(len(r.Headers))) //nolint:gosec // likewise
	for i := range r.Headers {
		b = kbin.AppendVarintString(b, r.Headers[i].Key)
		b = kbin.AppendVarintBytes(b, r.Headers[i].Value)
	}
	return b
}

// lengthOf is what nullable bytes take.
func lengthOf(v []byte) int {
	if v == nil {
		return kbin.VarintLen(-1)
	}
	return kbin.VarintLen(int32(len(v))) + len(v) //nolint:gosec // bounded by maxMessage
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
