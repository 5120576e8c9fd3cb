package client_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/event"
)

// TestTooLarge: an event whose message no proxy reads is refused where it is published,
// whichever way, and holds up none behind it; one that a proxy reads is refused there.
func TestTooLarge(t *testing.T) {
	c := connect()
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // only guards against hanging
	defer cancel()
	p := c.Publisher("demo", "orders", client.PublisherOptions{})
	asked := event.Event{Ext: []event.Attr{{Name: event.AttrReplyTo, Value: "somebody"}}}
	for name, publish := range map[string]func(event.Event) error{
		"Publish": func(e event.Event) error { _, err := c.Publish(ctx, "demo", "orders", e); return err },
		"PublishBatch": func(e event.Event) error {
			results, err := c.PublishBatch(ctx, "demo", "orders", []event.Event{e})
			if err == nil {
				err = results[0].Err
			}
			return err
		},
		"Request": func(e event.Event) error { _, err := c.Request(ctx, "demo", "orders", e, time.Minute); return err },
		"Reply":   func(e event.Event) error { return c.Reply(ctx, "demo", asked, e) },
		"Publisher": func(e event.Event) error {
			q, err := p.Publish(ctx, e)
			if err == nil {
				_, err = q.Wait(ctx)
			}
			return err
		},
	} {
		for _, tc := range []struct {
			size int
			says string
		}{{8 << 20, "a proxy takes 8388608"}, {8<<20 - 1<<10, ""}} {
			err := publish(event.Event{ID: "large", Source: "/large", Type: "t", Data: make([]byte, tc.size)})
			e, ok := errors.AsType[*client.Error](err)
			if !ok || e.Code != codes.InvalidArgument || e.Retryable() || !strings.Contains(e.Message, tc.says) || tc.says != "" && e.Reason != "event-too-large" ||
				tc.says == "" && (e.Reason == "" || strings.Contains(e.Message, "a proxy takes")) {
				t.Errorf("%s of %d bytes of data: %#v", name, tc.size, err)
			}
		}
	}
	q, err := p.Publish(ctx, event.Event{ID: "small", Source: "/large", Type: "t"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.Wait(ctx); err != nil {
		t.Errorf("the one behind them: %v", err)
	}
	if err := p.Close(ctx); err != nil {
		t.Error(err)
	}
}
