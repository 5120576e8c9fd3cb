package kafka

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// TestPartitionsUnderneath: somebody adds partitions to a topic while it is written and
// read. They are written to and read without anything being opened anew, and a group
// that began at the end of the others has them from their beginning: nothing of them is
// lost.
func TestPartitionsUnderneath(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	s := open(t, Options{Brokers: []string{servers.SharedKafka(t)}}, 0)
	shut(t, s.Close)
	other := open(t, s.op, 0) // who does it behind the store's back
	shut(t, other.Close)
	topic := prepare(ctx, t, s, 2)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.Publish(ctx, topic, one("before", "k"), make([]store.Result, 1)))
	must(s.EnsureGroup(ctx, topic, groupOf(topic)+"-end", store.Start{End: true}))
	ends, all := newTally(), newTally()
	fctx, stop := context.WithCancel(ctx)
	var work sync.WaitGroup
	t.Cleanup(func() { stop(); work.Wait() })
	for group, y := range map[string]*tally{groupOf(topic): all, groupOf(topic) + "-end": ends} {
		for range 2 { // members
			sub, err := s.Subscribe(ctx, store.SubscribeRequest{Topic: topic, Group: group, Ordered: y == ends})
			must(err)
			shut(t, sub.Close)
			work.Go(func() { consume(fctx, sub, y.add) })
		}
	}
	tail, err := s.Tail(ctx, store.TailRequest{Topic: topic})
	must(err)
	shut(t, tail.Close)
	tailed := newTally()
	work.Go(func() {
		dst := make([]store.Message, 16)
		for {
			n, err := tail.Next(fctx, dst)
			if err != nil && fault.ClassOf(err) != fault.Unavailable {
				return
			}
			for i := range dst[:n] {
				tailed.add(dst[i].ID)
			}
		}
	})

	// It goes on until each of the new partitions has something that was acknowledged.
	const grown = 6
	new, published := map[string]bool{}, 0
	for len(new) < grown-2 {
		if published == 100 {
			must(other.EnsureTopic(ctx, store.TopicSpec{Name: topic, Partitions: grown}))
		}
		res := make([]store.Result, 1)
		must(s.Publish(ctx, topic, one(fmt.Sprint("e", published), fmt.Sprint("k", published%50)), res))
		published++
		if p := res[0].Pos.Partition; p != "0" && p != "1" {
			new[p] = true
		}
	}
	all.wait(ctx, t, published+1)
	ends.wait(ctx, t, published)
	tailed.wait(ctx, t, published+1)
}

// acl forbids a user something of a topic.
type acl struct {
	by          *kadm.Client
	user, topic string
	operation   kmsg.ACLOperation
}

// set forbids it, or no longer does.
func (a acl) set(ctx context.Context, t *testing.T, there bool) {
	t.Helper()
	b := kadm.NewACLs().Deny("User:" + a.user).DenyHosts("*").Topics(a.topic).ResourcePatternType(kadm.ACLPatternLiteral).Operations(a.operation)
	var err error
	if there {
		var made kadm.CreateACLsResults
		if made, err = a.by.CreateACLs(ctx, b); err == nil && len(made) > 0 {
			err = made[0].Err
		}
	} else {
		var gone kadm.DeleteACLsResults
		if gone, err = a.by.DeleteACLs(ctx, b); err == nil && (len(gone) != 1 || len(gone[0].Deleted) != 1) {
			err = fmt.Errorf("%d were removed", len(gone))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestOneTopicDenied: a broker forbids the store's user one topic while it is used.
// Whoever publishes to it or reads it is told so; another topic goes on. When it may
// again, the same members and publishers go on by themselves, and nothing is lost.
func TestOneTopicDenied(t *testing.T) {
	servers.NeedServers(t)
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	const user, password = "weft", "s3cret"
	k := start(ctx, t, servers.KafkaOptions{Users: map[string]string{}})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(k.SetUser(ctx, user, password))
	admin := open(t, Options{Brokers: k.Internal}, 0)
	shut(t, admin.Close)
	s := open(t, Options{Brokers: k.Brokers, Mechanism: ScramSHA512, Credentials: func() (Credentials, error) { return Credentials{user, password}, nil }}, 0)
	shut(t, s.Close)
	denied, free := prepare(ctx, t, admin, 2), prepare(ctx, t, admin, 2)
	came := map[string]*tally{}
	refused := make(chan error, 1)
	fctx, stop := context.WithCancel(ctx)
	var work sync.WaitGroup
	t.Cleanup(func() { stop(); work.Wait() })
	for _, topic := range []string{denied, free} {
		y := newTally()
		came[topic] = y
		sub, err := s.Subscribe(ctx, store.SubscribeRequest{Topic: topic, Group: groupOf(topic)})
		must(err)
		shut(t, sub.Close)
		work.Go(func() {
			dst := make([]store.Message, 8)
			for fctx.Err() == nil {
				n, err := sub.Fetch(fctx, dst)
				if err != nil && fctx.Err() == nil {
					if topic == free {
						t.Errorf("the other topic: %v", err)
					}
					select {
					case refused <- err:
					default:
					}
				}
				for i := range dst[:n] {
					sub.Settle([]*store.Message{&dst[i]})
					y.add(dst[i].ID)
				}
			}
		})
	}
	n := 0
	// publish publishes to the other topic, which always works, and to the one.
	publish := func() (err error) {
		n++
		must(s.Publish(ctx, free, one(fmt.Sprint("e", n), ""), make([]store.Result, 1)))
		return s.Publish(ctx, denied, one(fmt.Sprint("e", n), ""), make([]store.Result, 1))
	}
	must(publish())
	kept := 1
	until := func(denied bool) {
		t.Helper()
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			err := publish()
			if err == nil {
				kept++
			} else if fault.ClassOf(err) != fault.Unavailable || store.Why(err) != "AccessDenied" || fault.From(err).RetryAfter <= 0 {
				t.Fatalf("to the topic that is denied: %v", err)
			}
			if (err != nil) == denied {
				return
			}
			<-tick.C
		}
	}
	// Where a topic has any rule, nothing goes that none allows.
	all, err := admin.adm.CreateACLs(ctx, kadm.NewACLs().Allow("User:"+user).AllowHosts("*").Topics(denied).ResourcePatternType(kadm.ACLPatternLiteral).Operations(kmsg.ACLOperationAll))
	if err == nil {
		err = all[0].Err
	}
	must(err)
	write := acl{admin.adm, user, denied, kmsg.ACLOperationWrite}
	write.set(ctx, t, true)
	until(true)
	must(s.Check(ctx))
	write.set(ctx, t, false)
	until(false)
	came[denied].wait(ctx, t, kept)

	read := acl{admin.adm, user, denied, kmsg.ACLOperationRead}
	read.set(ctx, t, true)
	for len(refused) > 0 {
		<-refused
	}
	select {
	case err := <-refused:
		if store.Why(err) != "AccessDenied" {
			t.Errorf("to a member: %v", err)
		}
	case <-ctx.Done():
		t.Fatal("no member is told")
	}
	for range 20 {
		must(publish())
		kept++
	}
	read.set(ctx, t, false)
	came[denied].wait(ctx, t, kept)
	came[free].wait(ctx, t, n)
}
