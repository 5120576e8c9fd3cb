package grpc

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
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
	"github.com/weft-mesh/weft/pkg/listener"
)

// maxAhead bounds, in bytes, the messages of a stream that wait while others are
// with the store; one may pass it. Then the stream is not read.
const maxAhead = 1 << 20

// judgeEvery is how often a stream that waits looks whether its credentials have
// expired: by the clock on the wall, which may jump.
const judgeEvery = time.Second

var errDraining = &fault.Error{Class: fault.Unavailable, Op: "grpc", Reason: "draining", Msg: "this proxy is stopping: publish elsewhere"}

// PublishStream publishes as events come. While some are with the store others
// are read, and go to it together: when it has answered, or where it publishes in two
// halves when one group before them is not answered. So batches grow with the load by
// themselves, nothing waits for a timer, and the order is kept. A store that is slow stops
// the reading. A proxy that stops ends the stream when what it has read is answered;
// credentials that are not good any more end it at once.
func (s *Server) PublishStream(rpc grpc.BidiStreamingServer[eventsv1.PublishStreamRequest, eventsv1.PublishStreamResponse]) error {
	ctx, cancel := context.WithCancel(rpc.Context())
	defer cancel()
	who, err := s.authenticate(ctx)
	if err != nil {
		return toStatus(err)
	}
	in := &inbox{more: make(chan struct{}, 1), room: make(chan struct{}, 1)}
	go in.read(ctx, rpc, s.held, s.cfg.Log)
	st := publishStream{server: s, who: who, next: 1}
	defer st.letGo()
	if err = st.run(ctx, in, &answers{rpc: rpc, fail: cancel, log: s.cfg.Log}); errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// run begins to publish what comes until nothing more does, and waits until all of it is
// answered.
func (st *publishStream) run(ctx context.Context, in *inbox, out *answers) (err error) {
	defer func() {
		if failed := out.end(); failed != nil {
			err = failed
		}
	}()
	for ctx.Err() == nil {
		group, err := in.take(ctx, st)
		if err != nil {
			return err
		}
		p, err := st.begin(ctx, group)
		if err != nil {
			return toStatus(err)
		}
		if p == nil {
			continue
		}
		if err := out.add(ctx, p); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// answers sends the answers of a stream, in order. What is with the store is waited for
// beside who adds more: one publish that is answered next, and one behind it.
type answers struct {
	rpc     grpc.BidiStreamingServer[eventsv1.PublishStreamRequest, eventsv1.PublishStreamResponse]
	fail    func() // ends the stream
	log     *slog.Logger
	queue   chan *published // nil until something is waited for
	waiting atomic.Int32    // what was put there and is not answered
	ended   chan struct{}   // closed with err
	err     error
}

// add answers p in its turn. It waits while another one waits for its turn.
func (a *answers) add(ctx context.Context, p *published) error {
	if p.wait == nil && a.waiting.Load() == 0 {
		return a.answer(ctx, p)
	}
	if a.queue == nil {
		a.queue, a.ended = make(chan *published), make(chan struct{})
		go a.run(ctx)
	}
	a.waiting.Add(1)
	a.queue <- p
	return nil
}

func (a *answers) run(ctx context.Context) {
	defer close(a.ended)
	for p := range a.queue {
		if err := a.turn(ctx, p); err != nil && a.err == nil {
			a.err = err
			a.fail()
		}
		a.waiting.Add(-1)
	}
}

// turn answers p, or where the stream has failed waits for it: also a defect in one leaves
// those behind it their turn.
func (a *answers) turn(ctx context.Context, p *published) (err error) {
	defer listener.Survive(ctx, a.log, &err)
	if a.err == nil {
		return a.answer(ctx, p)
	}
	_, _ = p.finish(ctx)
	return nil
}

func (a *answers) answer(ctx context.Context, p *published) error {
	resp, err := p.finish(ctx)
	if err != nil {
		return toStatus(err)
	}
	return a.rpc.Send(resp)
}

// end waits until what was added is answered. The error is the first.
func (a *answers) end() error {
	if a.queue == nil {
		return nil
	}
	close(a.queue)
	<-a.ended
	return a.err
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
func (in *inbox) read(ctx context.Context, rpc grpc.ServerStream, held prometheus.Observer, log *slog.Logger) {
	for {
		r := newRequest()
		err := receive(ctx, rpc, r, log)
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

// receive reads r. It is not the handler's goroutine, which survives defects.
func receive(ctx context.Context, rpc grpc.ServerStream, r *publishRequest, log *slog.Logger) (err error) {
	defer listener.Survive(ctx, log, &err)
	return rpc.RecvMsg(r)
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
	held             string           // the namespace in which it counts as a connection
	holding          frontend.Holding // that; nil without
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

// published is what was published together.
type published struct {
	group  []*publishRequest
	events []event.Event
	merged *[]event.Event // those of a group with several messages
	res    []frontend.Result
	resp   eventsv1.PublishStreamResponse
	omit   bool
	wait   func(ctx context.Context) error // nil when res is filled in
}

// begin begins to publish the events of messages, none for nothing; the error ends the
// stream.
func (st *publishStream) begin(ctx context.Context, group []*publishRequest) (*published, error) {
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
	p := &published{group: group, events: first.events, omit: st.omit}
	if len(group) > 1 {
		p.merged = merges.Get().(*[]event.Event) //nolint:forcetypeassert // there is nothing else in it
		for _, r := range group {
			*p.merged = append(*p.merged, r.events...)
		}
		p.events = *p.merged
	}
	n := len(p.events)
	if n == 0 {
		return nil, nil
	}
	p.resp.FirstSequence, p.resp.Count = st.next, uint32(n) //nolint:gosec // at most MaxBatch
	st.next += uint64(n)
	p.res = make([]frontend.Result, n)
	for i, err := range first.wrong {
		if err != nil {
			p.res[i].Err = badEvent(err)
		}
	}
	st.write(ctx, p)
	return p, nil
}

// finish waits for the outcome, and gives what is to be told; the error ends the stream.
func (p *published) finish(ctx context.Context) (*eventsv1.PublishStreamResponse, error) {
	if p.wait != nil {
		_ = p.wait(ctx) // the error is the first of the results'
	}
	kept := true
	for i := range p.res {
		if err := p.res[i].Err; err != nil {
			kept = false
			if c := fault.ClassOf(err); c == fault.Unauthenticated {
				return nil, err // the credentials are not valid any more
			}
			p.resp.Failed = append(p.resp.Failed, &eventsv1.FailedResult{Sequence: p.resp.FirstSequence + uint64(i), Error: toError(err)})
		}
		if !p.omit {
			text := ""
			if p.res[i].Err == nil {
				text = p.res[i].Position.String()
			}
			p.resp.Positions = append(p.resp.Positions, text)
		}
	}
	if kept {
		for _, r := range p.group {
			r.release()
		}
		if p.merged != nil {
			clear(p.events)
			*p.merged = p.events[:0]
			merges.Put(p.merged)
		}
	}
	return &p.resp, nil
}

// hold counts the stream as a connection, to each topic of a namespace that it is used for.
func (st *publishStream) hold() error {
	if st.holding != nil && st.held == st.namespace {
		return st.holding.Also(st.topic)
	}
	st.letGo()
	holding, err := st.server.cfg.Mesh.Hold(st.who, st.namespace, st.topic)
	if err == nil {
		st.held, st.holding = st.namespace, holding
	}
	return err
}

func (st *publishStream) letGo() {
	if st.holding != nil {
		st.holding.Close()
	}
	st.held, st.holding = "", nil
}

// write gives events to the mesh. Where one is wrong or denied, nothing is published: the
// others go again, since each event of a stream has its own outcome. Where a quota has no
// room for all, or a store takes something of them not, the messages go one by one, up to
// the first for which there is no room.
func (st *publishStream) write(ctx context.Context, p *published) {
	var err error // the first of the results'
	if p.wait, err = st.server.cfg.Mesh.Begin(ctx, st.who, st.namespace, st.topic, p.events, p.res); err == nil {
		return
	}
	left := make([]int, len(p.events))
	for i := range left {
		left[i] = i
	}
	if left, err = st.others(ctx, p, left, err); err == nil || len(p.group) == 1 {
		return
	}
	switch f := fault.From(err); {
	case f.Class == fault.Invalid, f.Class == fault.TooLarge, f.Reason == quota.Exceeded:
	default:
		return
	}
	for _, i := range left {
		if p.res[i].Err == nil {
			return // a part was published
		}
	}
	end := 0
	for _, r := range p.group {
		end += len(r.events)
		n, _ := slices.BinarySearch(left, end)
		if n == 0 {
			continue
		}
		_, err := st.others(ctx, p, left[:n], st.publish(ctx, p, left[:n]))
		left = left[n:]
		if err != nil && fault.ClassOf(err) == fault.Throttled {
			for _, i := range left {
				p.res[i].Err = err // the order is kept
			}
			return
		}
	}
}

// others publishes those of some events again that were refused for others alone, until
// there are none. It gives the events of the last call, and its outcome.
func (st *publishStream) others(ctx context.Context, p *published, some []int, err error) ([]int, error) {
	for err != nil {
		var again []int
		for _, i := range some {
			if err := p.res[i].Err; err != nil && fault.From(err).Reason == pipeline.BatchRefused {
				again = append(again, i)
			}
		}
		if len(again) == 0 || len(again) == len(some) {
			break
		}
		some, err = again, st.publish(ctx, p, again)
	}
	return some, err
}

// publish publishes some of the events.
func (st *publishStream) publish(ctx context.Context, p *published, some []int) error {
	events, res := make([]event.Event, len(some)), make([]frontend.Result, len(some))
	for n, i := range some {
		events[n] = p.events[i]
	}
	err := st.server.cfg.Mesh.Publish(ctx, st.who, st.namespace, st.topic, events, res)
	for n, i := range some {
		p.res[i] = res[n]
	}
	return err
}
