package client_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/weft-mesh/weft/pkg/client"
)

// A Subscribe that no proxy has answered ends with its context.
func TestSubscribeEndsWhileNoProxyAnswers(t *testing.T) {
	c, err := client.New(client.Config{Addresses: []string{"127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- c.Subscribe(ctx, "demo", "billing", func(context.Context, client.Delivery) error { return nil }, client.SubscribeOptions{})
	}()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("it ended with %v", err)
		}
	case <-time.After(2 * time.Minute): // only guards against hanging
		t.Fatal("it goes on after its context has ended")
	}
}
