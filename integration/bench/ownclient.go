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

// byClient receives with the Go client as its users do: a function for each event, of a
// subscription as many at once as there is credit.
func (d reader) byClient(ctx context.Context) error {
	c, err := client.New(client.Config{Addresses: []string{d.m.grpc}, APIKey: func() (string, error) { return d.m.key, nil }})
	if err != nil {
		return err
	}
	if d.tail {
		err = c.Tail(ctx, d.m.r.ns, []string{"mesh"}, client.TailOptions{Beginning: true}, func(client.Delivery) error {
			d.one()
			return nil
		})
	} else {
		err = c.Subscribe(ctx, d.m.r.ns, d.subscription, func(context.Context, client.Delivery) error {
			d.one()
			return nil
		}, client.SubscribeOptions{Credit: credit})
	}
	return errors.Join(err, c.Close())
}
