package kafka

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
)

// TestJava: Kafka's stock Java client with the CloudEvents SDK reads what the mesh
// writes, and the mesh reads what it writes, in both modes, and native records.
func TestJava(t *testing.T) {
	broker := servers.SharedKafka(t)
	topic := names.Physical(servers.Namespace(t), "java")
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	s := open(t, Options{Brokers: []string{broker}}, 0)
	defer func() { _ = s.Close(ctx) }()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.EnsureTopic(ctx, store.TopicSpec{Name: topic, Partitions: 1}))
	_, err := servers.KafkaEvents(ctx, "write", broker, topic)
	must(err)
	tail, err := s.Tail(ctx, store.TailRequest{Topic: topic})
	must(err)
	var got []event.Event
	for len(got) < 3 {
		msgs := make([]store.Message, 3)
		n, err := tail.Next(ctx, msgs)
		must(err)
		for i := range msgs[:n] {
			got = append(got, msgs[i].Event)
		}
	}
	must(tail.Close(ctx))
	for i, id := range []string{"java-BINARY", "java-STRUCTURED"} {
		e := got[i]
		number, _ := e.Attribute("number")
		at, err := e.ParseTime()
		if e.ID != id || e.Source != "/java" || e.Type != "t" || e.Subject != "\u00e9" || err != nil || !at.Equal(time.Date(2018, 4, 5, 3, 56, 24, 0, time.UTC)) ||
			e.Key("") != "k" || number != "7" || e.DataContentType != "text/plain" || string(e.Data) != "hello" || len(e.Mesh) != 0 {
			t.Errorf("%s is %+v", id, e)
		}
	}
	if e := got[2]; e.ID != "0-2" || e.Source != "/kafka/"+topic || e.Key("") != "k" || string(e.Data) != "native" {
		t.Errorf("the native record is %+v", e)
	}

	mine := topic + "-mine"
	must(s.EnsureTopic(ctx, store.TopicSpec{Name: mine, Partitions: 1}))
	nested := event.Event{ID: "nested", Source: "/mesh", Type: "t", DataContentType: "application/cloudevents+json", Data: []byte(`{"id":"inner"}`)}
	bare := event.Event{ID: "bare", Source: "/mesh", Type: "t"}
	full := whole
	must(s.Publish(ctx, mine, []store.Outgoing{{Event: &full, Key: "k"}, {Event: &nested}, {Event: &bare}}, make([]store.Result, 3)))
	out, err := servers.KafkaEvents(ctx, "read", broker, mine, "3")
	must(err)
	for _, want := range []string{
		"key=k\ndatacontenttype=application/avro\ndataschema=/schema\nid=i\nsource=/s\nspecversion=1.0\nsubject=sub\ntime=2018-04-05T03:56:24Z\ntype=t\ncontenttype=x\npartitionkey=k\ntraceparent=00-1-2-01\ndata=x\n",
		"key=null\ndatacontenttype=application/cloudevents+json\nid=nested\nsource=/mesh\nspecversion=1.0\ntype=t\ndata={\"id\":\"inner\"}\n",
		"key=null\nid=bare\nsource=/mesh\nspecversion=1.0\ntype=t\ndata=none\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("it reads\n%s\nnot\n%s", out, want)
		}
	}
}
