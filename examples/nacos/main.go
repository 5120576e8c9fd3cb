// Command nacos is a service that knows the mesh by its name only: it finds the
// proxies in Nacos, publishes orders, receives them as a member of a Subscription,
// and ends when all of its own came back. docs/separate.md runs it.
//
//	go run ./examples/nacos -nacos http://127.0.0.1:8848/nacos -nacos-user nacos \
//	    -nacos-password-file nacos.password -mesh shop -namespace shop -api-key-file shop.key
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/registry/nacos"
)

type settings struct {
	nacos, user, passwordFile, mesh, namespace, apiKeyFile string
	orders                                                 int
	timeout                                                time.Duration
}

func main() {
	var s settings
	flag.StringVar(&s.nacos, "nacos", "http://127.0.0.1:8848/nacos", "URL of Nacos's API")
	flag.StringVar(&s.user, "nacos-user", "", "user of Nacos; empty without authentication")
	flag.StringVar(&s.passwordFile, "nacos-password-file", "", "file with its password")
	flag.StringVar(&s.mesh, "mesh", "weft", "name of the mesh: the service in Nacos")
	flag.StringVar(&s.namespace, "namespace", "shop", "namespace of the topic orders and the Subscription billing")
	flag.StringVar(&s.apiKeyFile, "api-key-file", "", "file with the API key")
	flag.IntVar(&s.orders, "orders", 3, "how many orders to publish")
	flag.DurationVar(&s.timeout, "timeout", time.Minute, "how long all of it may take")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	if err := run(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "nacos:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, s settings) error {
	cfg := nacos.Config{URL: s.nacos}
	if s.user != "" {
		cfg.Credentials = func() (user, password string, err error) {
			b, err := os.ReadFile(s.passwordFile)
			return s.user, strings.TrimSpace(string(b)), err
		}
	}
	reg, err := nacos.New(cfg)
	if err != nil {
		return err
	}
	defer func() { _ = reg.Close(context.WithoutCancel(ctx)) }()
	c, err := client.New(client.Config{Target: nacos.Scheme + ":///" + s.mesh, Resolver: reg.Resolver(nacos.Choice{Namespace: s.namespace}), APIKey: client.APIKeyFile(s.apiKeyFile)})
	if err != nil {
		return err
	}
	defer c.Close()

	mine := map[string]bool{}
	run := time.Now().Format("150405.000")
	for i := range s.orders {
		e := event.Event{ID: fmt.Sprintf("order-%s-%d", run, i+1), Source: "/shop", Type: "order.created", Subject: "customer-1",
			DataContentType: "application/json", Data: fmt.Appendf(nil, `{"order": %d}`, i+1)}
		if _, err := c.Publish(ctx, s.namespace, "orders", e); err != nil {
			return fmt.Errorf("publish %s: %w", e.ID, err)
		}
		fmt.Fprintln(os.Stdout, "published", e.ID)
		mine[e.ID] = true
	}

	// Handlers run one at a time with a credit of 1; what they return nil for
	// is settled.
	rctx, enough := context.WithCancel(ctx)
	defer enough()
	err = c.Subscribe(rctx, s.namespace, "billing", func(_ context.Context, d client.Delivery) error {
		fmt.Fprintln(os.Stdout, "received", d.Event.ID, string(d.Event.Data))
		delete(mine, d.Event.ID)
		if len(mine) == 0 {
			enough()
		}
		return nil
	}, client.SubscribeOptions{Credit: 1})
	if len(mine) > 0 {
		return fmt.Errorf("%d orders did not come back: %w", len(mine), err)
	}
	if !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
