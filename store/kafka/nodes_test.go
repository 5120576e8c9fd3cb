package kafka

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// sequence is what came of the events of some keys, which are numbered.
type sequence struct {
	mu      sync.Mutex
	last    map[string]int // the highest number settled, by key
	repeats int
	wrong   []string
	came    chan struct{} // capacity 1
}

func (q *sequence) add(id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	key, text, _ := strings.Cut(id, "/")
	n, _ := strconv.Atoi(text)
	switch last := q.last[key]; {
	case n > last+1:
		q.wrong = append(q.wrong, fmt.Sprintf("%s came after %d of its key", id, last))
	case n <= last:
		q.repeats++
	}
	q.last[key] = max(q.last[key], n)
	poke(q.came)
}

// TestConformanceNodes: the whole suite against three nodes, of which one is killed.
func TestConformanceNodes(t *testing.T) {
	if os.Getenv("WEFT_TEST_SOAK") == "" {
		return // it is of make soak
	}
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	k := start(ctx, t, servers.KafkaOptions{Nodes: 3})
	if err := k.Nodes[1].Kill(); err != nil {
		t.Fatal(err)
	}
	s := open(t, Options{Brokers: k.Brokers}, 0)
	for range 6 { // whomever it asks first
		if _, err := s.Probe(ctx); err != nil {
			t.Errorf("while nobody has noticed that a node is gone: %v", err)
		}
	}
	// The others notice when its session is over, and lead from then on what it led.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for there := 3; there > 2; {
		meta, err := s.adm.BrokerMetadata(ctx)
		if err == nil {
			there = len(meta.Brokers)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%d nodes are there, %v", there, err)
		}
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	conform(t, k.Brokers, store.DurabilityReplicated)
}

// TestNodes: each of three nodes is killed (-9) and started again, one after the
// other, under load. Nothing acknowledged is lost, and no key's order is broken.
func TestNodes(t *testing.T) {
	if os.Getenv("WEFT_TEST_SOAK") == "" {
		return // it is of make soak
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*servers.StartTimeout)
	defer cancel()
	k := start(ctx, t, servers.KafkaOptions{Nodes: 3})
	s := open(t, Options{Brokers: k.Brokers}, 256)
	shut(t, s.Close)
	caps, err := s.Probe(ctx)
	if err != nil || caps.Durability != store.DurabilityReplicated {
		t.Fatalf("%+v, %v", caps, err)
	}
	topic := prepare(ctx, t, s, 6)
	q := &sequence{last: map[string]int{}, came: make(chan struct{}, 1)}
	fctx, stop := context.WithCancel(ctx)
	defer stop()
	var work, publishers sync.WaitGroup
	for range 2 {
		member := open(t, s.op, 256)
		shut(t, member.Close)
		sub, err := member.Subscribe(ctx, store.SubscribeRequest{Topic: topic, Group: groupOf(topic), Ordered: true})
		if err != nil {
			t.Fatal(err)
		}
		shut(t, sub.Close)
		work.Go(func() {
			dst := make([]store.Message, 16)
			for fctx.Err() == nil {
				n, err := sub.Fetch(fctx, dst)
				if err != nil && fault.ClassOf(err) != fault.Unavailable {
					return
				}
				for i := range dst[:n] {
					q.mu.Lock()
					held := sub.Holds(&dst[i])
					q.mu.Unlock()
					if held {
						q.add(dst[i].ID)
						sub.Settle([]*store.Message{&dst[i]})
					}
				}
			}
		})
	}
	t.Cleanup(func() { stop(); work.Wait() })

	const keys = 8
	acknowledged := make([]int, keys)
	over := make(chan struct{})
	progress := make(chan struct{}, 1)
	var mu sync.Mutex
	longest, ambiguities, total := time.Duration(0), 0, 0
	for key := range keys {
		publishers.Go(func() {
			for n := 1; ctx.Err() == nil; n++ {
				began := time.Now()
				err := error(fault.New(fault.Unavailable, "", "", ""))
				for err != nil && ctx.Err() == nil {
					err = s.Publish(ctx, topic, one(fmt.Sprintf("k%d/%d", key, n), fmt.Sprint("k", key)), make([]store.Result, 1))
					if err != nil && !fault.Retryable(err) {
						t.Errorf("Publish: %v", err)
						return
					}
					if err != nil && fault.ClassOf(err) == fault.Ambiguous {
						mu.Lock()
						ambiguities++
						mu.Unlock()
					}
				}
				took := time.Since(began)
				mu.Lock()
				longest, total, acknowledged[key] = max(longest, took), total+1, n
				mu.Unlock()
				poke(progress)
				select {
				case <-over:
					return
				default:
				}
			}
		})
	}
	more := func(n int) {
		t.Helper()
		mu.Lock()
		until := total + n
		mu.Unlock()
		for {
			mu.Lock()
			have := total
			mu.Unlock()
			if have >= until {
				return
			}
			select {
			case <-progress:
			case <-ctx.Done():
				t.Fatalf("%d of %d were acknowledged", have, until)
			}
		}
	}
	more(2000)
	for _, node := range k.Nodes {
		if err := node.Kill(); err != nil {
			t.Fatal(err)
		}
		more(2000)
		if err := node.Start(ctx); err != nil {
			t.Fatal(err)
		}
		more(2000)
	}
	close(over)
	publishers.Wait()
	for key := 0; key < keys; {
		q.mu.Lock()
		have := q.last[fmt.Sprint("k", key)]
		q.mu.Unlock()
		if have >= acknowledged[key] {
			key++
			continue
		}
		select {
		case <-q.came:
		case <-ctx.Done():
			t.Fatalf("%d of %d events of key %d came", have, acknowledged[key], key)
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, w := range q.wrong[:min(len(q.wrong), 10)] {
		t.Error(w)
	}
	t.Logf("%d events acknowledged, %d came again; the longest wait of a publisher was %v, and %d times the outcome was unknown", total, q.repeats, longest, ambiguities)
}
