package kafka

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// TestRestarts: nodes of which each partition needs two are restarted in order (SIGTERM)
// under load, so that leaders go while batches wait for replicas, and those that follow them
// take nothing for a while. What was acknowledged is there, and what was told not to have
// been kept is not.
func TestRestarts(t *testing.T) {
	if os.Getenv("WEFT_TEST_SOAK") == "" {
		return // it is of make soak
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*servers.StartTimeout)
	defer cancel()
	k := start(ctx, t, servers.KafkaOptions{Nodes: 3})
	s := open(t, Options{Brokers: k.Brokers, Replicas: 2}, 0)
	shut(t, s.Close)
	const partitions = 24
	topic := prepare(ctx, t, s, partitions)
	keys := map[int32]string{}
	for i := 0; len(keys) < partitions; i++ {
		key := fmt.Sprint("k", i)
		keys[partitionOf(key, partitions)] = key
	}
	var (
		mu       sync.Mutex
		told     = map[string]error{} // nil: acknowledged
		kept     [partitions]int      // acknowledged, by partition
		failures int
		news     = make(chan struct{}, 1)
	)
	pctx, stop := context.WithCancel(ctx)
	var publishers sync.WaitGroup
	for p, key := range keys {
		publishers.Go(func() {
			retry := minRetry
			for i := 0; pctx.Err() == nil; i++ {
				id := fmt.Sprintf("%d/%d", p, i)
				err := s.Publish(ctx, topic, one(id, key), make([]store.Result, 1))
				mu.Lock()
				if told[id] = err; err == nil {
					kept[p]++
				} else {
					failures++
				}
				mu.Unlock()
				poke(news)
				if err != nil {
					pause(ctx, &retry)
				}
			}
		})
	}
	await := func(what string, reached func() bool) {
		t.Helper()
		for {
			mu.Lock()
			ok := reached()
			mu.Unlock()
			if ok {
				return
			}
			select {
			case <-news:
			case <-ctx.Done():
				t.Fatalf("%s: %v", what, ctx.Err())
			}
		}
	}
	everywhere := func() {
		t.Helper()
		mu.Lock()
		before := kept
		mu.Unlock()
		await("all partitions take events", func() bool {
			for p := range kept {
				if kept[p] < before[p]+50 {
					return false
				}
			}
			return true
		})
	}
	for range 2 {
		for _, node := range k.Nodes {
			everywhere()
			if err := node.Terminate(ctx); err != nil {
				t.Fatal(err)
			}
			mu.Lock()
			before := failures
			mu.Unlock()
			await("partitions of the node refuse", func() bool { return failures >= before+partitions })
			if err := node.Start(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	everywhere()
	stop()
	publishers.Wait()
	tail, err := s.Tail(ctx, store.TailRequest{Topic: topic})
	if err != nil {
		t.Fatal(err)
	}
	shut(t, tail.Close)
	passed, err := tail.Mark(ctx)
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for dst := make([]store.Message, 256); !passed(); {
		n, err := tail.Next(ctx, dst)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range dst[:n] {
			there[m.ID] = true
		}
	}
	classes := map[fault.Class]int{}
	for id, err := range told {
		switch {
		case err == nil && !there[id]:
			t.Errorf("%s was acknowledged, and is not there", id)
		case err != nil && fault.ClassOf(err) != fault.Ambiguous && there[id]:
			t.Errorf("%s was told not to have been kept, and is there: %v", id, err)
		}
		if err != nil {
			classes[fault.ClassOf(err)]++
		}
	}
	t.Logf("%d events, of which failed: %v", len(told), classes)
}
