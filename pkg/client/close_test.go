package client_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/event"
)

// TestCloseEndsAll: what a client has begun ends with it, and says that it was closed.
func TestCloseEndsAll(t *testing.T) {
	c := connect()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // only guards against hanging
	defer cancel()
	open := make(chan struct{}, 64)
	connected := func() { open <- struct{}{} }
	p := c.Publisher("demo", "orders", client.PublisherOptions{MaxPending: 1})
	put := func() error {
		q, err := p.Publish(ctx, event.Event{ID: "1", Source: "/closed", Type: "t"})
		if err == nil {
			_, err = q.Wait(ctx)
		}
		return err
	}
	ended := map[string]chan error{"Subscribe": make(chan error, 1), "Tail": make(chan error, 1)}
	go func() {
		ended["Subscribe"] <- c.Subscribe(ctx, "demo", "billing", func(context.Context, client.Delivery) error { return nil }, client.SubscribeOptions{Connected: connected})
	}()
	go func() {
		ended["Tail"] <- c.Tail(ctx, "demo", []string{"orders"}, client.TailOptions{Connected: connected}, func(client.Delivery) error { return nil })
	}()
	<-open
	<-open
	if err := put(); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	closed := func(what string, err error) {
		t.Helper()
		if e, ok := errors.AsType[*client.Error](err); !ok || e.Code != codes.Canceled {
			t.Errorf("%s ends with %v", what, err)
		}
	}
	for what, err := range ended {
		closed(what, <-err)
	}
	closed("an event of a Publisher", put())
	closed("one more", put())
	closed("the Publisher", p.Close(ctx))
}
