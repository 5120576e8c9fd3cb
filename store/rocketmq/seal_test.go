package rocketmq

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

var marker = &event.Event{ID: "cut", Source: "/s", Type: "t", Mesh: []event.Attr{{Name: "cut", Value: "x"}}}

// sealed are the partitions that a Seal wrote into.
func sealed(ctx context.Context, s *Store, topic string) (names []string, err error) {
	at, err := s.Seal(ctx, topic, marker)
	for _, p := range at {
		names = append(names, p.Partition)
	}
	return names, err
}

// restrict sets how many queues of a topic are read and written, and what a broker lets
// be done, and waits until the name server says so.
func restrict(ctx context.Context, t *testing.T, s *Store, topic string, read, write, perm int) {
	t.Helper()
	r, err := s.c.route(ctx, topic, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range r.brokers {
		if _, err := s.c.ask(ctx, addr, reqCreateTopic, map[string]string{"topic": topic, "defaultTopic": "TBW102", "readQueueNums": strconv.Itoa(read), "writeQueueNums": strconv.Itoa(write),
			"perm": strconv.Itoa(perm), "topicFilterType": "SINGLE_TAG", "topicSysFlag": "0", "order": "false"}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if perm&permWrite == 0 {
		write = 0
	}
	for tick := time.NewTicker(50 * time.Millisecond); ; <-tick.C {
		r, err := s.c.route(ctx, topic, true)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.read) == read && len(r.write) == write {
			return
		}
	}
}

// TestSealQueues: events may be in queues that are not written any more, and readers
// must learn where those end, too.
func TestSealQueues(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	s, topic := prepare(ctx, t, servers.SharedRocketMQ(t), 4)
	defer func() {
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
	}()
	all, err := sealed(ctx, s, topic)
	if err != nil || len(all) != 4 {
		t.Fatalf("%q, %v", all, err)
	}
	restrict(ctx, t, s, topic, 4, 2, permRead|permWrite)
	if got, err := sealed(ctx, s, topic); err != nil || !slices.Equal(got, all) {
		t.Errorf("with two queues that are only read: %q, want %q; %v", got, all, err)
	}
	restrict(ctx, t, s, topic, 4, 4, permRead)
	if got, err := sealed(ctx, s, topic); err != nil || !slices.Equal(got, all) {
		t.Errorf("of a topic that clients are told not to write to: %q, want %q; %v", got, all, err)
	}
}

// twoBrokers starts a RocketMQ with two brokers, and gives also the second one, broker-b.
func twoBrokers(ctx context.Context, t *testing.T) (*servers.RocketMQ, *servers.Process) {
	t.Helper()
	r, err := servers.StartRocketMQ(ctx, servers.RocketMQOptions{Brokers: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Stop(); err != nil {
			t.Error(err)
		}
	})
	return r, r.Brokers[1]
}

// TestSealBrokers: every broker's queues are sealed. While one that has the topic is
// away, or does not answer, nothing is said to be.
func TestSealBrokers(t *testing.T) {
	servers.NeedServers(t)
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	r, b := twoBrokers(ctx, t)
	s, topic := prepare(ctx, t, r.NameServer, 2)
	want := []string{"broker-a/0", "broker-a/1", "broker-b/0", "broker-b/1"}
	if got, err := sealed(ctx, s, topic); err != nil || !slices.Equal(got, want) {
		t.Fatalf("%q, %v; want %q", got, err, want)
	}

	if err := b.Pause(); err != nil {
		t.Fatal(err)
	}
	short, end := context.WithTimeout(ctx, time.Second)
	if got, err := sealed(short, s, topic); err == nil || len(got) > 0 {
		t.Errorf("while a broker hangs: %q", got)
	}
	end()
	if err := b.Resume(); err != nil {
		t.Fatal(err)
	}
	if got, err := sealed(ctx, s, topic); err != nil || !slices.Equal(got, want) {
		t.Errorf("after it hung: %q, %v", got, err)
	}

	named := func(brokers ...string) *Store {
		st, err := Driver{}.Open(ctx, store.Config{Name: "test", ClientID: "named", Options: Options{NameServers: []string{r.NameServer}, Brokers: brokers}})
		if err != nil {
			t.Fatal(err)
		}
		shut(t, st.Close)
		return st.(*Store)
	}
	without := named("broker-a")
	if got, err := sealed(ctx, without, topic); err != nil || !slices.Equal(got, want) {
		t.Errorf("while a broker that is not named is there: %q, %v", got, err)
	}
	if err := b.Kill(); err != nil {
		t.Fatal(err)
	}
	for there := 2; there > 1; { // the name server forgets it
		m, err := s.c.masters(ctx)
		if err != nil {
			t.Fatal(err)
		}
		there = len(m)
	}
	if got, err := sealed(ctx, s, topic); err == nil || fault.ClassOf(err) != fault.Unavailable || !strings.Contains(fmt.Sprint(err), "broker-b") || len(got) > 0 {
		t.Errorf("while a broker is away: %q, %v", got, err)
	}
	if got, err := s.Extents(ctx, topic); err == nil || fault.ClassOf(err) != fault.Unavailable {
		t.Errorf("extents, while a broker is away: %+v, %v", got, err)
	}
	if got, err := s.Lag(ctx, topic, groupOf(topic)); err == nil || fault.ClassOf(err) != fault.Unavailable {
		t.Errorf("lag, while a broker is away: %+v, %v", got, err)
	}
	// Who comes now does not know that it had the topic, unless that is said.
	if got, err := named("broker-a", "broker-b").Extents(ctx, topic); err == nil || fault.ClassOf(err) != fault.Unavailable || !strings.Contains(fmt.Sprint(err), "broker-b") {
		t.Errorf("extents, while a broker that is named is away: %+v, %v", got, err)
	}
	// Nobody waits for one that is said to be no part of the cluster any more.
	if got, err := sealed(ctx, without, topic); err != nil || !slices.Equal(got, want[:2]) {
		t.Errorf("without a broker that was removed: %q, %v", got, err)
	}
	// After a while it was removed, for those who only look.
	s.c.mu.Lock()
	s.c.had[topic]["broker-b"] = had{at: time.Now().Add(-2 * removedAfter)}
	s.c.mu.Unlock()
	if got, err := s.Extents(ctx, topic); err != nil || len(got) != 2 {
		t.Errorf("extents, after a broker was removed: %+v, %v", got, err)
	}
	if got, err := sealed(ctx, s, topic); err == nil || len(got) > 0 {
		t.Errorf("after a broker was away for long: %q", got)
	}
	if err := b.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if got, err := sealed(ctx, s, topic); err != nil || !slices.Equal(got, want) {
		t.Errorf("after it came back: %q, %v", got, err)
	}
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
}

// TestRouteTogether: what two name servers say of a topic, of which one is behind, is
// one route; a broker without a master is away.
func TestRouteTogether(t *testing.T) {
	var all routeData
	for _, answer := range []string{
		`{"brokerDatas":[{"brokerName":"a","brokerAddrs":{"0":"h:1"}},{"brokerName":"b","brokerAddrs":{"1":"h:2"}},{"brokerName":"c","brokerAddrs":{"1":"h:3"}}],
		 "queueDatas":[{"brokerName":"a","perm":6,"readQueueNums":2,"writeQueueNums":1},{"brokerName":"b","perm":4,"readQueueNums":1,"writeQueueNums":1},{"brokerName":"c","perm":6,"readQueueNums":1,"writeQueueNums":1}]}`,
		`{"brokerDatas":[{"brokerName":"b","brokerAddrs":{"0":"h:4"}}],"queueDatas":[{"brokerName":"b","perm":6,"readQueueNums":1,"writeQueueNums":2},{"brokerName":"a","perm":6,"readQueueNums":1,"writeQueueNums":1}]}`,
	} {
		var one routeData
		if err := decodeJSON([]byte(answer), &one); err != nil {
			t.Fatal(err)
		}
		all.add(one)
	}
	r, err := all.route(time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(r.all, r.read, r.write, r.away, r.brokers)
	want := fmt.Sprint([]queue{{"a", 0}, {"a", 1}, {"b", 0}, {"b", 1}}, []queue{{"a", 0}, {"a", 1}, {"b", 0}}, []queue{{"a", 0}, {"b", 0}, {"b", 1}}, []string{"c"}, map[string]string{"a": "h:1", "b": "h:4"})
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
