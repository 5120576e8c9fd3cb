package rocketmq

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// TestKeysOfBrokersAway: while a broker is away its queues keep their keys, and it is
// looked for; one that was removed keeps none, as the options say or as the time has
// shown, nor does one that is to be written no more.
func TestKeysOfBrokersAway(t *testing.T) {
	both, one := []queue{{"a", 0}, {"a", 1}, {"b", 0}, {"b", 1}}, []queue{{"a", 0}, {"a", 1}}
	for name, c := range map[string]struct {
		brokers []string      // of the options
		perm    int           // what b let be done
		gone    time.Duration // since b was seen
		want    []queue
		age     time.Duration
	}{
		"for a minute":    {nil, permRead | permWrite, time.Minute, both, time.Second},
		"for long":        {nil, permRead | permWrite, removedAfter, one, routeAge},
		"named, for long": {[]string{"a", "b"}, permRead | permWrite, removedAfter, both, time.Second},
		"not named":       {[]string{"a"}, permRead | permWrite, time.Minute, one, routeAge},
		"drained":         {nil, permRead, time.Minute, one, routeAge},
	} {
		t.Run(name, func(t *testing.T) {
			cl := newCluster(Options{Brokers: c.brokers}, nil, nil)
			defer cl.close()
			told := func(brokers string, queues string, ago time.Duration) *route {
				r, err := decodeRoute([]byte(`{"brokerDatas":[`+brokers+`],"queueDatas":[`+queues+`]}`), time.Now().Add(-ago))
				if err != nil {
					t.Fatal(err)
				}
				cl.rememberLocked("t", r)
				return r
			}
			brokerA, queuesA := `{"brokerName":"a","brokerAddrs":{"0":"h:1"}}`, `{"brokerName":"a","perm":6,"readQueueNums":2,"writeQueueNums":2}`
			r := told(brokerA+`,{"brokerName":"b","brokerAddrs":{"0":"h:2"}}`, queuesA+fmt.Sprintf(`,{"brokerName":"b","perm":%d,"readQueueNums":2,"writeQueueNums":2}`, c.perm), c.gone)
			if age, beat := cl.age(r), cl.heartbeat("t"); !slices.Equal(r.keyed, r.write) || age != routeAge || beat != heartbeatEvery {
				t.Errorf("while all are there: %v, for %v; members look again after %v", r.keyed, age, beat)
			}
			r = told(brokerA, queuesA, 0)
			if age := cl.age(r); !slices.Equal(r.keyed, c.want) || !slices.Equal(r.write, one) || age != c.age {
				t.Errorf("%v, %v, for %v; want %v, for %v", r.keyed, r.write, age, c.want, c.age)
			}
			if beat := cl.heartbeat("t"); (beat < heartbeatEvery) != (c.age < routeAge) {
				t.Errorf("members look again after %v", beat)
			}
		})
	}
}

// TestOneBrokerAway: of two brokers one goes. Events without a key go to the other one,
// also those that are delayed, and nobody notices. Those whose key has a queue of the one that is away wait for it:
// they must not overtake what is in it. Nobody waits for it once the topic is taken from it.
func TestOneBrokerAway(t *testing.T) {
	servers.NeedServers(t)
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	mq, other := twoBrokers(ctx, t)
	s, topic := prepare(ctx, t, mq.NameServer, 2)
	shut(t, s.Close)
	publish := func(key string) (string, error) {
		res := make([]store.Result, 1)
		err := s.Publish(ctx, topic, []store.Outgoing{{Event: &event.Event{ID: "x", Source: "/s", Type: "t"}, Key: key}}, res)
		return res[0].Pos.Partition, err
	}
	const keys = 20
	at := map[string]string{}
	for i := range keys {
		key := fmt.Sprint("k", i)
		partition, err := publish(key)
		must(err)
		at[key] = partition
	}
	// check publishes to each key, and some without one, while broker-b is away.
	check := func(when string) {
		t.Helper()
		for range 8 {
			if p, err := publish(""); err != nil || !strings.HasPrefix(p, "broker-a/") {
				t.Errorf("%s, without a key: %s, %v", when, p, err)
			}
			later := []store.Outgoing{{Event: &event.Event{ID: "later", Source: "/s", Type: "t"}}}
			if err := s.PublishDelayed(ctx, topic, later, []time.Time{time.Now().Add(time.Hour)}, make([]store.Result, 1)); err != nil {
				t.Errorf("%s, delayed: %v", when, err)
			}
		}
		for key, before := range at {
			p, err := publish(key)
			if strings.HasPrefix(before, "broker-a/") {
				if err != nil || p != before {
					t.Errorf("%s, a key of %s: %s, %v", when, before, p, err)
				}
			} else if fault.ClassOf(err) != fault.Unavailable || fault.From(err).RetryAfter <= 0 {
				t.Errorf("%s, a key of %s: %s, %v", when, before, p, err)
			}
		}
	}
	r, err := s.c.route(ctx, topic, true)
	must(err)
	conn, err := s.c.conn(ctx, r.brokers["broker-b"])
	must(err)

	// Nobody says that it is away.
	must(mq.Names.Kill())
	must(other.Kill())
	<-conn.Done()
	check("before that is known")

	// The name server forgets it, and everything else, and hears of the other one.
	must(mq.Names.Start(ctx))
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	until := func(what string, is func() bool) {
		t.Helper()
		for !is() {
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatal(what)
			}
		}
	}
	until("the name server does not know the broker that is there", func() bool {
		r, err := s.c.route(ctx, topic, true)
		return err == nil && len(r.brokers) == 1
	})
	check("once the name server has forgotten it")

	must(other.Start(ctx))
	for key, before := range at {
		until("nothing is taken of key "+key, func() bool {
			p, err := publish(key)
			if err == nil && p != before {
				t.Errorf("after it came back, a key of %s: %s", before, p)
			}
			return err == nil
		})
	}

	// The topic is taken from a broker that is there: nobody waits for it.
	r, err = s.c.route(ctx, topic, true)
	must(err)
	_, err = s.c.ask(ctx, r.brokers["broker-b"], reqDeleteTopic, map[string]string{"topic": topic}, nil)
	must(err)
	_, err = s.c.ask(ctx, mq.NameServer, reqDeleteRoute, map[string]string{"topic": topic}, nil)
	must(err)
	_, err = s.c.ask(ctx, r.brokers["broker-a"], reqCreateTopic, topicConfig{ReadQueueNums: 2, WriteQueueNums: 2, Perm: permRead | permWrite, TopicFilterType: "SINGLE_TAG"}.fields(topic), nil)
	must(err)
	stranger := open(t, mq.NameServer, 0) // s does not look while the topic is nowhere
	shut(t, stranger.Close)
	until("the name server does not know where the topic is", func() bool {
		r, err = stranger.c.route(ctx, topic, true)
		return err == nil && len(r.brokers) == 1
	})
	r, err = s.c.route(ctx, topic, true)
	if err != nil || !slices.Equal(r.keyed, r.write) {
		t.Errorf("keys have %v, of %v, %v", r.keyed, r.write, err)
	}
	// Nor does a seal, however long it was away.
	s.c.mu.Lock()
	s.c.had[topic]["broker-b"] = had{at: time.Now().Add(-2 * removedAfter)}
	s.c.mu.Unlock()
	if got, err := sealed(ctx, s, topic); err != nil || !slices.Equal(got, []string{"broker-a/0", "broker-a/1"}) {
		t.Errorf("the seal of a topic that was taken from a broker: %q, %v", got, err)
	}
}
