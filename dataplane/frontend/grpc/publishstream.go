package grpc

import (
	"cmp"
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/pipeline"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/quota"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
)

// maxAhead bounds, in bytes, the messages of a stream that wait while others are
// with the store; one may pass it. Then the stream is not read.
const maxAhead = 1 << 20

// judgeEvery is how often a stream that waits looks whether its credentials have
// expired: by the clock on the wall, which may jump.
const judgeEvery = time.Second

var errDraining = &fault.Error{Class: fault.Unavailable, Op: "grpc", Reason: "draining", Msg: "this proxy is stopping: publish elsewhere"}

// PublishStream publishes as events come. While some are with the store others
// are read, and go to it together when it has answered: batches grow with the
// load by themselves, nothing waits for a timer, and the order is kept. A store
// that is slow stops the reading. A proxy that stops ends the stream when what it
// has read is answered; credentials that are not good any more end it at once.
func (s *Server) PublishStream(rpc grpc.BidiStreamingServer[eventsv1.PublishStreamRequest, eventsv1.PublishStreamResponse]) error {
	ctx, cancel := context.WithCancel(rpc.Context())
	defer cancel()
	who, err := s.authenticate(ctx)
	if err != nil {
		return toStatus(err)
	}
	in := &inbox{more: make(chan struct{}, 1), room: make(chan struct{}, 1)}
	go in.read(ctx, rpc, s.held)
	st := publishStream{server: s, who: who, next: 1}
	defer st.letGo()
	for {
		group, err := in.take(ctx, &st)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		resp, err := st.publish(ctx, group)
		if err != nil {
			return toStatus(err)
		}
		if resp == nil {
			continue
		}
		if err := rpc.Send(resp); err != nil {
			return err
		}
	}
}

// inbox has what was read of a stream and not published yet.
type inbox struct {
	more, room chan struct{} // capacity 1

	mu    sync.Mutex
	list  []*publishRequest
	bytes int
	err   error // why nothing more comes
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// read fills the inbox until the stream ends. held observes for how long it waited for
// room.
func (in *inbox) read(ctx context.Context, rpc grpc.ServerStream, held prometheus.Observer) {
	for {
		r := newRequest()
		err := rpc.RecvMsg(r)
		in.mu.Lock()
		if err != nil {
			in.err = err
			r.release()
		} else {
			in.list = append(in.list, r)
			in.bytes += r.size
		}
		full := in.bytes > maxAhead
		in.mu.Unlock()
		poke(in.more)
		if err != nil {
			return
		}
		if !full {
			continue
		}
		began := time.Now()
		for full {
			select {
			case <-in.room:
			case <-ctx.Done():
				return
			}
			in.mu.Lock()
			full = in.bytes > maxAhead
			in.mu.Unlock()
		}
		held.Observe(time.Since(began).Seconds())
	}
}

// take waits for messages and takes those that can be published together.
func (in *inbox) take(ctx context.Context, st *publishStream) ([]*publishRequest, error) {
	for {
		in.mu.Lock()
		if len(in.list) > 0 {
			n := st.together(in.list)
			group := in.list[:n:n]
			if in.list = in.list[n:]; len(in.list) == 0 {
				in.list = nil
			}
			for _, r := range group {
				in.bytes -= r.size
			}
			in.mu.Unlock()
			poke(in.room)
			return group, nil
		}
		err := in.err
		in.mu.Unlock()
		if err != nil {
			return nil, err
		}
		now, changed, err := st.server.cfg.Mesh.Current(st.who)
		if err != nil {
			return nil, toStatus(err)
		}
		var judge <-chan time.Time
		if now.Expires != 0 {
			judge = time.After(judgeEvery)
		}
		select {
		case <-in.more:
		case <-changed:
		case <-judge:
		case <-st.server.draining:
			return nil, toStatus(errDraining)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// publishStream is what a stream remembers.
type publishStream struct {
	server           *Server
	who              *policy.Principal
	namespace, topic string
	next             uint64
	omit             bool
	held             string // the namespace in which it counts as a connection
	release          func() // ends that
}

// together is how many of the first messages may be published in one call: those
// for the topic of the first, up to one with an event that cannot be decoded,
// which goes alone.
func (st *publishStream) together(list []*publishRequest) int {
	namespace, topic := cmp.Or(list[0].namespace, st.namespace), cmp.Or(list[0].topic, st.topic)
	omit := st.omit || list[0].omitPositions
	events := 0
	for i, r := range list {
		other := r.namespace != "" && r.namespace != namespace || r.topic != "" && r.topic != topic || r.omitPositions && !omit
		if events += len(r.events); other || r.wrong != nil || r.tooMany || events > pipeline.MaxBatch {
			return max(i, 1)
		}
	}
	return len(list)
}

// merges have room for the events of messages that are published together.
var merges = sync.Pool{New: func() any { return new([]event.Event) }}

// publish publishes the events of messages; the error ends the stream.
func (st *publishStream) publish(ctx context.Context, group []*publishRequest) (*eventsv1.PublishStreamResponse, error) {
	first := group[0]
	if first.namespace != "" {
		st.namespace = first.namespace
	}
	if first.topic != "" {
		st.topic = first.topic
	}
	if err := st.hold(); err != nil {
		return nil, err
	}
	st.omit = st.omit || first.omitPositions
	if first.tooMany {
		// Its events have no sequences: an answer would acknowledge others.
		return nil, fault.New(fault.Invalid, "grpc", "bad-batch", "a message has at most %d events", pipeline.MaxBatch)
	}
	events, merged := first.events, (*[]event.Event)(nil)
	if len(group) > 1 {
		merged = merges.Get().(*[]event.Event) //nolint:forcetypeassert // there is nothing else in it
		for _, r := range group {
			*merged = append(*merged, r.events...)
		}
		events = *merged
	}
	n := len(events)
	if n == 0 {
		return nil, nil
	}
	resp := &eventsv1.PublishStreamResponse{FirstSequence: st.next, Count: uint32(n)} //nolint:gosec // at most MaxBatch
	st.next += uint64(n)
	res := make([]frontend.Result, n)
	for i, err := range first.wrong {
		if err != nil {
			res[i].Err = badEvent(err)
		}
	}
	st.write(ctx, group, events, res)
	kept := true
	for i := range res {
		if err := res[i].Err; err != nil {
			kept = false
			if c := fault.ClassOf(err); c == fault.Unauthenticated {
				return nil, err // the credentials are not valid any more
			}
			resp.Failed = append(resp.Failed, &eventsv1.FailedResult{Sequence: resp.FirstSequence + uint64(i), Error: toError(err)})
		}
		if !st.omit {
			text := ""
			if res[i].Err == nil {
				text = res[i].Position.String()
			}
			resp.Positions = append(resp.Positions, text)
		}
	}
	if kept {
		for _, r := range group {
			r.release()
		}
		if merged != nil {
			clear(events)
			*merged = events[:0]
			merges.Put(merged)
		}
	}
	return resp, nil
}

// hold counts the stream as a connection, to the first topic of a namespace.
func (st *publishStream) hold() error {
	if st.held == st.namespace {
		return nil
	}
	st.letGo()
	release, err := st.server.cfg.Mesh.Hold(st.who, st.namespace, st.topic)
	if err == nil {
		st.held, st.release = st.namespace, release
	}
	return err
}

func (st *publishStream) letGo() {
	if st.release != nil {
		st.release()
	}
	st.held, st.release = "", nil
}

// write gives events to the mesh. Where one is wrong, or a quota has no room for
// all, nothing is published, and each message has its own outcome: then they go
// one by one, up to the first for which there is no room.
func (st *publishStream) write(ctx context.Context, group []*publishRequest, events []event.Event, res []frontend.Result) {
	// The error is the first of the results'.
	err := st.server.cfg.Mesh.Publish(ctx, st.who, st.namespace, st.topic, events, res)
	if err == nil || len(group) == 1 {
		return
	}
	switch f := fault.From(err); {
	case f.Class == fault.Invalid, f.Class == fault.TooLarge, f.Reason == quota.Exceeded:
	default:
		return
	}
	for i := range res {
		if res[i].Err == nil {
			return // a part was published
		}
	}
	clear(res)
	for _, r := range group {
		n := len(r.events)
		err := st.server.cfg.Mesh.Publish(ctx, st.who, st.namespace, st.topic, events[:n], res[:n])
		events, res = events[n:], res[n:]
		if err != nil && fault.ClassOf(err) == fault.Throttled {
			for i := range res {
				res[i].Err = err // the order is kept
			}
			return
		}
	}
}
