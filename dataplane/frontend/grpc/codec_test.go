package grpc

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	cev1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/pipeline"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/pkg/buffers"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/fuzztest"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
)

// poison is a pool that spoils what is given back, so that whoever still reads it
// notices.
type poison struct{ mem.BufferPool }

func (p poison) Put(b *[]byte) {
	whole := (*b)[:cap(*b)]
	for i := range whole {
		whole[i] = 0xdb
	}
	p.BufferPool.Put(b)
}

// large is an event whose data tell its id, larger than what is copied.
func large(id string) *cev1.CloudEvent {
	e := ce(id)
	e.Data = &cev1.CloudEvent_BinaryData{BinaryData: dataOf(id)}
	return e
}

func dataOf(id string) []byte { return []byte(strings.Repeat(id+".", 2048/len(id))) }

// judge looks whether events have the data that they came with, before and after
// they are published.
type judge struct {
	frontend.Mesh
	t *testing.T
	// fail makes publishing fail, as a store that has not answered; kept are the
	// events of then, which such a store may still read.
	mu   sync.Mutex
	fail bool
	kept [][]event.Event
}

func (j *judge) look(when string, events []event.Event) {
	for i := range events {
		if e := &events[i]; !bytes.Equal(e.Data, dataOf(e.ID)) {
			j.t.Errorf("%s, event %q has data of another one: %.40q", when, e.ID, e.Data)
		}
	}
}

func (j *judge) Begin(ctx context.Context, who *policy.Principal, namespace, topic string, events []event.Event, res []frontend.Result) (func(context.Context) error, error) {
	return nil, j.Publish(ctx, who, namespace, topic, events, res)
}

func (j *judge) Publish(ctx context.Context, who *policy.Principal, namespace, topic string, events []event.Event, res []frontend.Result) error {
	j.look("before", events)
	j.mu.Lock()
	fail := j.fail
	if fail {
		j.kept = append(j.kept, events)
	}
	j.mu.Unlock()
	err := j.Mesh.Publish(ctx, who, namespace, topic, events, res)
	j.look("after", events)
	if fail {
		err = fault.New(fault.Ambiguous, "test", "ambiguous", "nobody knows")
		for i := range res {
			res[i].Err = err
		}
	}
	return err
}

// TestBuffers: events keep their bytes until they are published; where nobody
// knows whether a store is done with them, for ever. What one call or stream said
// is not said for another one.
func TestBuffers(t *testing.T) {
	j := &judge{t: t}
	api, _ := serve(t, func(m frontend.Mesh) frontend.Mesh {
		j.Mesh = m
		return j
	})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	send := func() {
		var wg sync.WaitGroup
		for s := range 4 {
			wg.Go(func() {
				st, err := api.PublishStream(ctx)
				if err != nil {
					t.Error(err)
					return
				}
				want, topic := 0, "orders"
				for i := range 20 {
					req := &eventsv1.PublishStreamRequest{Namespace: "demo", Topic: topic}
					for n := range 1 + (i+s)%12 {
						req.Events = append(req.Events, large(fmt.Sprintf("s%d-%d-%d", s, i, n)))
					}
					if want, topic = want+len(req.Events), ""; st.Send(req) != nil {
						break
					}
				}
				_ = st.CloseSend()
				for {
					resp, err := st.Recv()
					if err != nil {
						if err != io.EOF || want != 0 { //nolint:errorlint // as it comes
							t.Errorf("%d events have no answer: %v", want, err)
						}
						return
					}
					want -= int(resp.Count)
				}
			})
			wg.Go(func() {
				for i := range 10 {
					_, _ = api.Publish(ctx, &eventsv1.PublishRequest{Namespace: "demo", Topic: "orders", Event: large(fmt.Sprintf("u%d-%d", s, i))})
					_, _ = api.PublishBatch(ctx, &eventsv1.PublishBatchRequest{Namespace: "demo", Topic: "orders",
						Events: []*cev1.CloudEvent{large(fmt.Sprintf("b%d-%d", s, i)), large(fmt.Sprintf("c%d-%d", s, i))}})
				}
			})
		}
		wg.Wait()
	}
	send()
	j.mu.Lock()
	j.fail = true
	j.mu.Unlock()
	send()
	j.mu.Lock()
	j.fail = false
	j.mu.Unlock()
	send()
	if len(j.kept) == 0 {
		t.Error("nothing was published while publishing failed")
	}
	for _, events := range j.kept {
		j.look("long after", events)
	}
	for range 50 { // requests that are used again
		if _, err := api.Publish(ctx, &eventsv1.PublishRequest{Namespace: "demo", Event: large("x")}); reason(err) != "bad-name" {
			t.Fatalf("without a topic: %v", err)
		}
	}
}

// FuzzPublishRequest: the hand-written decoder takes what generated code takes
// and reads the same; events are bounded.
func FuzzPublishRequest(f *testing.F) {
	b, err := proto.Marshal(&eventsv1.PublishStreamRequest{Namespace: "demo", Topic: "orders", Events: ces(2), OmitPositions: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	fuzztest.Seeds(f, "publish*")
	b, err = proto.Marshal(&eventsv1.RequestRequest{Namespace: "demo", Topic: "orders", Event: ce("1"), Timeout: durationpb.New(1500 * time.Millisecond)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	several := []byte{3<<3 | 2, 10, 8<<3 | 2, 3, 2<<3 | 2, 1, 'p', 6<<3 | 2, 3, 'b', 'i', 'n'} // of its data the last ones count
	f.Add(append(b, several...))
	f.Add(protowire.AppendVarint(protowire.AppendTag(nil, 3, protowire.BytesType), 1<<31))
	f.Fuzz(func(t *testing.T, b []byte) {
		in := bytes.Clone(b)
		var mine publishRequest
		var err error
		if n := fuzztest.Allocated(func() { err = mine.unmarshal(in) }); n > 512*uint64(len(b))+256<<10 {
			t.Errorf("%d bytes for %d", n, len(b))
		}
		if mine.wrong != nil && (len(mine.wrong) > len(mine.events) || mine.wrong[len(mine.wrong)-1] == nil) {
			t.Errorf("%d events, errors %v", len(mine.events), mine.wrong)
		}
		var gen eventsv1.PublishStreamRequest
		if proto.Unmarshal(b, &gen) != nil {
			return // also bytes that are not UTF-8, which validation refuses here
		}
		if err != nil {
			t.Fatalf("%v, the generated code reads %v", err, &gen)
		}
		if mine.namespace != gen.Namespace || mine.topic != gen.Topic || mine.omitPositions != gen.OmitPositions {
			t.Errorf("%+v\n%v", mine, &gen)
		}
		if want := min(len(gen.Events), pipeline.MaxBatch); len(mine.events) != want || mine.tooMany != (len(gen.Events) > want) {
			t.Fatalf("%d events, the generated code reads %d", len(mine.events), len(gen.Events))
		}
		for i := range mine.events {
			same(t, &mine, i, gen.Events[i])
		}
		one, first := publishRequest{single: true}, eventsv1.PublishRequest{}
		if err := one.unmarshal(in); err != nil {
			t.Fatal(err)
		}
		if proto.Unmarshal(b, &first) == nil {
			same(t, &one, 0, first.Event)
		}
		var asked eventsv1.RequestRequest
		if proto.Unmarshal(b, &asked) == nil {
			waits, err := one.wait()
			if want := asked.Timeout; (one.timeout != nil) != (want != nil) || err == nil && waits != want.AsDuration() || err != nil && want.CheckValid() == nil && want.AsDuration() > 0 {
				t.Errorf("%v, %v; the generated code reads %v", waits, err, want)
			}
		}
		// Nothing but the data is part of the buffer.
		before := slices.Clone(mine.events)
		for i := range before {
			before[i].Data = nil
		}
		text := fmt.Sprint(before)
		for i := range in {
			in[i] ^= 0xff
		}
		if after := fmt.Sprint(before); after != text {
			t.Errorf("with another buffer %q becomes %q", text, after)
		}
	})
}

// same compares an event of r with what generated code reads.
func same(t *testing.T, r *publishRequest, i int, gen *cev1.CloudEvent) {
	t.Helper()
	if i < len(r.wrong) && r.wrong[i] != nil {
		return // what is wrong with it is judged here alone
	}
	b, err := proto.Marshal(gen)
	if err != nil {
		t.Fatal(err)
	}
	want, err := cloudevents.DecodeProto(b)
	mine := r.events[i]
	if mine.Validate() != nil {
		return // an attribute twice, of which generated code keeps the last
	}
	if len(mine.Ext) == 0 {
		mine.Ext = nil
	}
	if len(mine.Data) == 0 {
		mine.Data, want.Data = nil, nil
	}
	if err != nil || !reflect.DeepEqual(mine, want) {
		t.Errorf("%v\n%+v\n%+v", err, mine, want)
	}
}

// deliveriesOf is n deliveries of one event each, and the message that they are.
func deliveriesOf(n int, d delivery.Delivery) (list []delivery.Delivery, want *eventsv1.SubscribeResponse) {
	all := &eventsv1.Deliveries{}
	for range n {
		list = append(list, d)
		e := &cev1.CloudEvent{}
		if err := proto.Unmarshal(cloudevents.AppendProto(nil, d.Event), e); err != nil {
			return nil, nil // its attributes are not UTF-8, so it was not let in
		}
		all.Deliveries = append(all.Deliveries, &eventsv1.Delivery{Id: d.ID, Topic: d.Topic, Position: d.Position.String(), Attempt: uint32(d.Attempt), Event: e}) //nolint:gosec // small
		d.ID++
	}
	return list, &eventsv1.SubscribeResponse{Message: &eventsv1.SubscribeResponse_Deliveries{Deliveries: all}}
}

const topicUID = "11111111-1111-4111-8111-111111111111"

// FuzzDeliveries: what is encoded by hand is what generated code encodes, whatever
// its lengths.
func FuzzDeliveries(f *testing.F) {
	for _, size := range []int{0, 1, 60, 100, 120, 127, 128, 1000, 4095, 4096, 16200, 16383, 16384, 2 << 20} {
		f.Add(uint8(1), uint64(1), "orders", uint16(1), "", uint64(7), "1", "/s", "2026-01-02T03:04:05Z", "k", uint8(1), size)
	}
	f.Add(uint8(20), uint64(1), "orders", uint16(1), "", uint64(7), "1", "/s", "", "k", uint8(1), 5000)
	f.Add(uint8(200), uint64(1)<<63, "t", uint16(9), "broker-a/3", uint64(1)<<60, "id", "/source", "", strings.Repeat("v", 300), uint8(64), 10)
	pool := buffers.New()
	for n := 256; n <= 8<<20; n *= 2 {
		b := pool.Get(n)
		for i := range *b {
			(*b)[i] = 0xff // as other messages leave it
		}
		defer pool.Put(b)
	}
	f.Fuzz(func(t *testing.T, n uint8, id uint64, topic string, attempt uint16, partition string, offset uint64, eid, source, at, value string, ext uint8, size int) {
		e := &event.Event{ID: eid, Source: source, Type: "t", Time: at, Subject: value}
		for i := range ext % 65 {
			e.Ext = append(e.Ext, event.Attr{Name: fmt.Sprintf("x%02d", i), Value: value})
		}
		if topic == "" || len(partition) > 256 || e.Validate() != nil || size < 0 || size > 4<<20 || int(n)*(size+100) > 4<<20 {
			return
		}
		e.Data = make([]byte, size)
		list, want := deliveriesOf(int(n), delivery.Delivery{ID: id, Topic: topic, Attempt: 1 + int(attempt), Event: e,
			Position: position.Token{TopicUID: topicUID, Epoch: 1, Pos: store.Position{Partition: partition, Offset: offset}}})
		buf := (&deliveries{list: list}).marshal(pool)
		defer buf.Free()
		got := &eventsv1.SubscribeResponse{}
		if err := proto.Unmarshal(buf.Materialize(), got); err != nil {
			if _, merr := proto.Marshal(want); merr != nil {
				return // a topic that is not UTF-8
			}
			t.Fatal(err)
		}
		if !proto.Equal(got, want) || buf.Len() != proto.Size(want) {
			t.Errorf("%d bytes, %d expected\n%v\n%v", buf.Len(), proto.Size(want), got, want)
		}
	})
}

// TestLargeData: large data is sent from where it is, whatever stands beside it, and what is
// copied is there until the message was sent.
func TestLargeData(t *testing.T) {
	pool := buffers.New()
	for _, sizes := range [][]int{{byReference}, {byReference - 1}, {0, 1 << 20, 5, byReference, 9 << 10, 1}, {2 << 20, 2 << 20}} {
		for _, shared := range []bool{false, true} {
			var list []delivery.Delivery
			want := &eventsv1.Deliveries{}
			for i, n := range sizes {
				one, all := deliveriesOf(1, delivery.Delivery{ID: uint64(i + 1), Topic: "orders", Attempt: 1, Position: position.Token{TopicUID: topicUID, Epoch: 1}, //nolint:gosec // small
					Event: &event.Event{ID: strconv.Itoa(i), Source: "/s", Type: "t", Data: bytes.Repeat([]byte{byte('a' + i)}, n)}})
				if shared {
					one[0].Shared = &delivery.Shared{}
				}
				list = append(list, one...)
				want.Deliveries = append(want.Deliveries, all.GetDeliveries().GetDeliveries()...)
			}
			others := slices.Clone(list)
			for i := range others {
				others[i].Topic, others[i].Shared = "others", nil
			}
			for range 2 { // what is shared is there already
				msg := (&deliveries{list: list}).marshal(pool)
				next := (&deliveries{list: others}).marshal(pool) // not in the same buffer
				got := &eventsv1.SubscribeResponse{}
				if err := proto.Unmarshal(msg.Materialize(), got); err != nil || !proto.Equal(got.GetDeliveries(), want) {
					t.Fatalf("%v, shared %v: %v", sizes, shared, err)
				}
				for _, d := range list {
					same := func(b mem.Buffer) bool {
						return b.Len() == len(d.Event.Data) && b.Len() > 0 && &b.ReadOnlyData()[0] == &d.Event.Data[0]
					}
					if large := len(d.Event.Data) >= byReference; slices.ContainsFunc(msg, same) != large {
						t.Errorf("%v, shared %v: data of %d bytes is copied: %v", sizes, shared, len(d.Event.Data), large)
					}
				}
				msg.Free()
				next.Free()
			}
		}
	}
}

// batch is a message of n events of 1 KiB.
func batch(tb testing.TB, n int) []byte {
	req := &eventsv1.PublishStreamRequest{Namespace: "demo", Topic: "orders"}
	for i := range n {
		e := ce(fmt.Sprintf("id-%d", i))
		e.Data = &cev1.CloudEvent_BinaryData{BinaryData: make([]byte, 1024)}
		req.Events = append(req.Events, e)
	}
	b, err := proto.Marshal(req)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// frames is b as a transport hands it over.
func frames(b []byte) (out mem.BufferSlice) {
	for part := range slices.Chunk(b, 16<<10) {
		out = append(out, mem.SliceBuffer(part))
	}
	return out
}

func hundred() []delivery.Delivery {
	list, _ := deliveriesOf(100, delivery.Delivery{ID: 1, Topic: "orders", Attempt: 1, Position: position.Token{TopicUID: topicUID, Epoch: 1, Pos: store.Position{Offset: 7}},
		Event: &event.Event{ID: "1", Source: "/s", Type: "t", Time: "2026-01-02T03:04:05Z", Data: make([]byte, 1024)}})
	return list
}

// TestCodecAllocations: what a message of 100 events takes of the heap does not
// grow with its events.
func TestCodecAllocations(t *testing.T) {
	c := codec{buffers.New()}
	in := frames(batch(t, 100))
	decode := func() {
		r := newRequest()
		if err := c.Unmarshal(in, r); err != nil || len(r.events) != 100 {
			t.Fatal(err)
		}
		r.release()
	}
	if n := testing.AllocsPerRun(100, decode); n > 12 {
		t.Errorf("%.0f allocations to decode a message of 100 events", n)
	}
	least := uint64(math.MaxUint64) // the garbage collector may have emptied a pool
	for range 10 {
		least = min(least, fuzztest.Allocated(decode))
	}
	if least > 8<<10 {
		t.Errorf("%d bytes to decode a message of 100 events of 1 KiB", least)
	}
	out := &deliveries{list: hundred()}
	if n := testing.AllocsPerRun(100, func() {
		b, err := c.Marshal(out)
		if err != nil {
			t.Fatal(err)
		}
		b.Free()
	}); n > 4 {
		t.Errorf("%.0f allocations to encode 100 deliveries", n)
	}
}

// BenchmarkDecode is a message of 100 events by hand and by generated code.
func BenchmarkDecode(b *testing.B) {
	in := batch(b, 100)
	c := codec{buffers.New()}
	b.Run("codec", func(b *testing.B) {
		b.ReportAllocs()
		data := frames(in)
		for b.Loop() {
			r := newRequest()
			if err := c.Unmarshal(data, r); err != nil {
				b.Fatal(err)
			}
			r.release()
		}
	})
	b.Run("generated", func(b *testing.B) {
		b.ReportAllocs()
		data := frames(in)
		for b.Loop() {
			if err := c.Unmarshal(data, &eventsv1.PublishStreamRequest{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkEncode is a message of 100 deliveries by hand and by generated code,
// whose message is there already.
func BenchmarkEncode(b *testing.B) {
	c := codec{buffers.New()}
	list := hundred()
	_, want := deliveriesOf(100, list[0])
	for name, v := range map[string]any{"codec": &deliveries{list: list}, "generated": want} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				out, err := c.Marshal(v)
				if err != nil {
					b.Fatal(err)
				}
				out.Free()
			}
		})
	}
}
