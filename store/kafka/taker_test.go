package kafka

import (
	be "encoding/binary"
	"io"
	"net"
	"runtime"
	"strconv"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store"
)

// taker is a broker that takes whatever is written to a topic of so many partitions, and
// keeps nothing.
type taker struct {
	*testing.T
	addr       *net.TCPAddr
	partitions int32
}

func take(t *testing.T, partitions int32) *taker {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	k := &taker{t, l.Addr().(*net.TCPAddr), partitions}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go k.serve(c)
		}
	}()
	return k
}

func (k *taker) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	for {
		var size [4]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		b := make([]byte, be.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		req := kmsg.RequestForKey(int16(be.BigEndian.Uint16(b)))
		req.SetVersion(int16(be.BigEndian.Uint16(b[2:])))
		body := b[10+be.BigEndian.Uint16(b[8:]):] // behind the client's id
		if req.IsFlexible() {
			body = body[1:]
		}
		if err := req.ReadFrom(body); err != nil {
			k.Error(err)
			return
		}
		resp := k.answer(req)
		resp.SetVersion(req.GetVersion())
		out := append(make([]byte, 4, 64), b[4:8]...)
		if _, first := req.(*kmsg.ApiVersionsRequest); resp.IsFlexible() && !first {
			out = append(out, 0)
		}
		out = resp.AppendTo(out)
		be.BigEndian.PutUint32(out, uint32(len(out)-4))
		if _, err := c.Write(out); err != nil {
			return
		}
	}
}

func (k *taker) answer(req kmsg.Request) kmsg.Response {
	resp := req.ResponseKind()
	switch r := resp.(type) {
	case *kmsg.ApiVersionsResponse:
		for key, most := range map[int16]int16{0: 9, 3: 9, 18: 3, 22: 4} {
			r.ApiKeys = append(r.ApiKeys, kmsg.ApiVersionsResponseApiKey{ApiKey: key, MaxVersion: most})
		}
	case *kmsg.MetadataResponse:
		r.Brokers = []kmsg.MetadataResponseBroker{{NodeID: 1, Host: k.addr.IP.String(), Port: int32(k.addr.Port)}}
		for _, t := range req.(*kmsg.MetadataRequest).Topics {
			topic := kmsg.MetadataResponseTopic{Topic: t.Topic}
			for p := range k.partitions {
				topic.Partitions = append(topic.Partitions, kmsg.MetadataResponseTopicPartition{Partition: p, Leader: 1, Replicas: []int32{1}, ISR: []int32{1}})
			}
			r.Topics = append(r.Topics, topic)
		}
	case *kmsg.InitProducerIDResponse:
		r.ProducerID = 1
	case *kmsg.ProduceResponse:
		t := req.(*kmsg.ProduceRequest).Topics[0]
		r.Topics = []kmsg.ProduceResponseTopic{{Topic: t.Topic, Partitions: []kmsg.ProduceResponseTopicPartition{{Partition: t.Partitions[0].Partition}}}}
	default:
		k.Errorf("a broker is asked %T", req)
	}
	return resp
}

// TestIdlePartitions: a partition to which large batches went holds no memory once
// nothing is on its way there.
func TestIdlePartitions(t *testing.T) {
	const partitions, size = 32, 1_900_000
	k := take(t, partitions)
	s := open(t, Options{Brokers: []string{k.addr.String()}}, 0)
	shut(t, s.Close)
	e := []store.Outgoing{{Event: &event.Event{ID: "1", Source: "/s", Type: "t", Data: make([]byte, size)}}}
	used := map[string]bool{}
	held := func() int64 {
		runtime.GC()
		runtime.GC() // what pools have is kept over one
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := held()
	for i := range partitions * 20 {
		e[0].Key = strconv.Itoa(i)
		res := make([]store.Result, 1)
		if err := s.Publish(t.Context(), "t", e, res); err != nil {
			t.Fatal(err)
		}
		if used[res[0].Pos.Partition] = true; len(used) == partitions {
			break
		}
	}
	if more := held() - before; len(used) < partitions || more > partitions*size/4 {
		t.Errorf("%d partitions hold %d bytes", len(used), more)
	}
}
