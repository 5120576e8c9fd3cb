package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/event"
)

// shared publishes with the Go client as its users do: all publishers share one
// Publisher, which sends together what waits, as clients of middleware do.
func (m *mesh) shared(name, topic string, l load, pids map[string]int) (_ *contender, stop func() error, err error) {
	c, err := client.New(client.Config{Addresses: []string{m.grpc}, APIKey: func() (string, error) { return m.key, nil }})
	if err != nil {
		return nil, nil, err
	}
	p := c.Publisher(m.r.ns, topic, client.PublisherOptions{MaxPending: 2 * l.publishers * l.batch, OmitPositions: true})
	out := &contender{name: name, pids: pids, ops: m.ops, id: fmt.Sprint(l.batch)}
	for i := range l.publishers {
		data := bytes.Repeat([]byte{'x'}, m.r.size)
		e := event.Event{ID: fmt.Sprintf("p%d", i), Source: source, Type: "bench", Data: data}
		out.workers = append(out.workers, func(ctx context.Context) (int, error) {
			pending := make([]*client.Pending, l.batch)
			for j := range pending {
				q, err := p.Publish(ctx, e)
				if err != nil {
					return 0, err
				}
				pending[j] = q
			}
			kept := 0
			for _, q := range pending {
				_, err := q.Wait(ctx)
				if e, ok := errors.AsType[*client.Error](err); ok && e.Retryable() {
					wait(ctx, afterBusy)
					continue
				}
				if err != nil {
					return kept, err
				}
				kept++
			}
			return kept, nil
		})
	}
	return out, func() error { return errors.Join(p.Close(m.r.ctx), c.Close()) }, nil
}
