package kafka

import (
	"bytes"
	"context"
	bin "encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// answers are what a broker is made to have said to batches that it has kept, in turn;
// behind them is what it says.
type answers struct {
	mu   sync.Mutex
	next []int16
}

func (a *answers) take() (code int16) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.next) > 0 {
		code, a.next = a.next[0], a.next[1:]
	}
	return code
}

// changed is a connection to a broker on which answers to batches are other ones.
type changed struct {
	net.Conn
	answers *answers

	mu       sync.Mutex
	produces map[int32]int16 // versions, by correlation id
	rest     bytes.Reader    // of an answer
}

func (c *changed) Write(p []byte) (int, error) {
	if len(p) >= 12 && int16(bin.BigEndian.Uint16(p[4:])) == kmsg.Produce.Int16() { //nolint:gosec // a key
		c.mu.Lock()
		c.produces[int32(bin.BigEndian.Uint32(p[8:]))] = int16(bin.BigEndian.Uint16(p[6:])) //nolint:gosec // an id and a version
		c.mu.Unlock()
	}
	return c.Conn.Write(p)
}

func (c *changed) Read(p []byte) (int, error) {
	if c.rest.Len() == 0 {
		var size [4]byte
		if _, err := io.ReadFull(c.Conn, size[:]); err != nil {
			return 0, err
		}
		answer := make([]byte, bin.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(c.Conn, answer); err != nil {
			return 0, err
		}
		answer, err := c.change(answer)
		if err != nil {
			return 0, err
		}
		c.rest.Reset(append(bin.BigEndian.AppendUint32(nil, uint32(len(answer))), answer...)) //nolint:gosec // small
	}
	return c.rest.Read(p)
}

func (c *changed) change(answer []byte) ([]byte, error) {
	c.mu.Lock()
	version, ok := c.produces[int32(bin.BigEndian.Uint32(answer))] //nolint:gosec // an id
	c.mu.Unlock()
	if !ok {
		return answer, nil
	}
	resp := kmsg.NewPtrProduceResponse()
	resp.SetVersion(version)
	head := 4
	if resp.IsFlexible() {
		head++ // no tags
	}
	if err := resp.ReadFrom(answer[head:]); err != nil {
		return nil, err
	}
	if p := &resp.Topics[0].Partitions[0]; p.ErrorCode == 0 {
		if code := c.answers.take(); code != 0 {
			p.ErrorCode, p.BaseOffset = code, -1
		}
	}
	return resp.AppendTo(answer[:head:head]), nil
}

// TestKeptAndNotTold: a leader that has a batch in its log and stops to be the leader while
// it waits for replicas says that it is not the leader, or something else; what the next one
// says then of the batch need not be that it has it. The outcome is unknown, and the next
// event is not taken for this one.
func TestKeptAndNotTold(t *testing.T) {
	a := &answers{}
	var dialer net.Dialer
	extra = []kgo.Opt{kgo.Dialer(func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dialer.DialContext(ctx, network, addr)
		return &changed{Conn: c, answers: a, produces: map[int32]int16{}}, err
	})}
	t.Cleanup(func() { extra = nil })
	s, topic := open(t, Options{Brokers: []string{servers.SharedKafka(t)}}, 0), servers.Namespace(t)
	shut(t, s.Close)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.EnsureTopic(ctx, store.TopicSpec{Name: topic, Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	publish := func(events ...store.Outgoing) (store.Position, error) {
		res := make([]store.Result, len(events))
		err := s.Publish(ctx, topic, events, res)
		for err != nil && fault.ClassOf(err) == fault.Unavailable && ctx.Err() == nil { // it came as what waited was refused, with the one before
			err = s.Publish(ctx, topic, events, res)
		}
		return res[len(res)-1].Pos, err
	}
	pos, err := publish(one("a", "")...)
	if err != nil {
		t.Fatal(err)
	}
	kept := pos.Offset + 1
	for _, first := range []*kerr.Error{kerr.NotLeaderForPartition, kerr.NotEnoughReplicasAfterAppend, kerr.RequestTimedOut, kerr.UnknownServerError, kerr.KafkaStorageError,
		kerr.LeaderNotAvailable, kerr.BrokerNotAvailable} {
		for _, then := range []*kerr.Error{kerr.TopicAuthorizationFailed, kerr.MessageTooLarge} {
			a.mu.Lock()
			a.next = []int16{first.Code, then.Code}
			a.mu.Unlock()
			batch := append(one("a", ""), one("b", "")...)
			if _, err := publish(batch...); fault.ClassOf(err) != fault.Ambiguous {
				t.Errorf("%s and then %s: a batch that was kept is told as %v", first.Message, then.Message, err)
			}
			a.mu.Lock()
			if again := len(a.next) == 0; again != first.Retriable {
				t.Errorf("%s and then %s: it is sent again: %v", first.Message, then.Message, again)
			}
			a.next = nil
			a.mu.Unlock()
			kept += 2
			for range 2 {
				pos, err := publish(append(one("c", ""), one("d", "")...)...)
				if kept += 2; err != nil || pos.Offset != kept-1 {
					t.Errorf("%s and then %s: the next ones are at %d of %d, %v", first.Message, then.Message, pos.Offset, kept-1, err)
				}
			}
		}
	}
	// What surely was not kept is told so, and the next one does not go on with its numbers.
	a.mu.Lock()
	a.next = []int16{kerr.PolicyViolation.Code}
	a.mu.Unlock()
	if _, err := publish(one("a", "")...); fault.ClassOf(err) != fault.Invalid {
		t.Errorf("a refusal is told as %v", err)
	}
	kept++ // by a broker that does not know what it says
	if pos, err := publish(one("b", "")...); err != nil || pos.Offset != kept {
		t.Errorf("after a refusal: the next one is at %d of %d, %v", pos.Offset, kept, err)
	}
}
