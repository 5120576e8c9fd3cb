package kafka

import (
	"context"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weft-mesh/weft/pkg/fault"
)

// classify is the fault of what a broker answered or a connection met; nil for nil.
// ctx is that of the call: where it ended, that is what is said.
func classify(ctx context.Context, op string, err error) error {
	if err == nil {
		return nil
	}
	var known *fault.Error
	if errors.As(err, &known) {
		return known // of the options: a secret that is missing, for one
	}
	if ctx.Err() != nil {
		return fault.From(ctx.Err())
	}
	e := &fault.Error{Class: fault.Unavailable, Op: op, Reason: "store-refused", RetryAfter: time.Second, Err: err, Msg: "the event store refused"}
	set := func(c fault.Class, reason, msg string) error {
		e.Class, e.Reason, e.Msg = c, reason, msg
		if c != fault.Unavailable && c != fault.Throttled {
			e.RetryAfter = 0
		}
		return e
	}
	var answer *kerr.Error
	if !errors.As(err, &answer) {
		if errors.Is(err, kgo.ErrClientClosed) {
			return set(fault.Unavailable, "store-closed", "the store is closed")
		}
		var eof *kgo.ErrFirstReadEOF
		if errors.As(err, &eof) {
			e.Err = errors.New("the server closed the connection before it answered: it may want TLS, or SASL")
		}
		return set(fault.Unavailable, "store-unreachable", "the event store cannot be reached")
	}
	switch answer {
	case kerr.UnknownTopicOrPartition, kerr.UnknownTopicID:
		return set(fault.NotFound, "unknown-topic", "the event store has no such topic")
	case kerr.GroupIDNotFound:
		return set(fault.NotFound, "unknown-group", "the event store has no such group")
	case kerr.SaslAuthenticationFailed, kerr.UnsupportedSaslMechanism, kerr.IllegalSaslState, kerr.TopicAuthorizationFailed,
		kerr.GroupAuthorizationFailed, kerr.ClusterAuthorizationFailed, kerr.TransactionalIDAuthorizationFailed:
		return set(fault.Unavailable, "store-access-denied", "the event store does not take the mesh's credentials for this")
	case kerr.MessageTooLarge, kerr.RecordListTooLarge:
		return set(fault.TooLarge, "event-too-large", "the event is larger than the event store takes")
	case kerr.ThrottlingQuotaExceeded:
		e.RetryAfter = 200 * time.Millisecond
		return set(fault.Throttled, "store-busy", "the event store is busy; nothing was kept")
	case kerr.InvalidRecord, kerr.InvalidTimestamp, kerr.InvalidTopicException, kerr.PolicyViolation, kerr.InvalidConfig, kerr.InvalidPartitions, kerr.InvalidReplicationFactor:
		return set(fault.Invalid, "store-refused", "the event store does not take this")
	case kerr.LeaderNotAvailable, kerr.NotLeaderForPartition, kerr.BrokerNotAvailable, kerr.CoordinatorNotAvailable, kerr.CoordinatorLoadInProgress,
		kerr.NotCoordinator, kerr.NetworkException, kerr.RequestTimedOut:
		return set(fault.Unavailable, "store-unreachable", "the event store cannot be reached")
	}
	return e
}
