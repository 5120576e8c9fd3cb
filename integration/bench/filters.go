package main

import (
	"context"
	"fmt"
	"time"

	"github.com/weft-mesh/weft/dataplane/route"
	"github.com/weft-mesh/weft/pkg/event"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
)

// filters measures what it costs to find the rule of a Route for an event: one rule,
// ten, and as many as there may be, in turns. Each event has another rule that matches.
func filters(ctx context.Context, r *run) error {
	sizes := []int{1, 10, route.MaxRules}
	for _, kind := range []string{"exact", "prefix", "suffix"} {
		tables := make([]*route.Table, len(sizes))
		for i, n := range sizes {
			in := &configv1.Route{}
			for at := range n {
				m := map[string]string{"subject": filterValue(kind, at)}
				f := map[string]*configv1.Filter{"exact": {Exact: m}, "prefix": {Prefix: m}, "suffix": {Suffix: m}}[kind]
				in.Rules = append(in.Rules, &configv1.RouteRule{Filter: f, To: []*configv1.Destination{{Topic: "to"}}})
			}
			var err error
			if tables[i], err = route.CompileTable(in); err != nil {
				return err
			}
		}
		took := make([][]float64, len(sizes)) // nanoseconds
		for range r.rounds {
			for i, n := range sizes {
				ns, err := resolve(ctx, r.slice/10, tables[i], kind, n)
				if err != nil {
					return err
				}
				took[i] = append(took[i], ns)
			}
		}
		for i, n := range sizes {
			r.printf("  %s, rules: %5d   %s ns an event\n", kind, n, spread(took[i], "%.0f"))
		}
		one, all := median(took[0]), median(took[len(took)-1])
		r.note("%s filters: %d cost %.0f ns an event, %.1f times one (%.0f ns)", kind, route.MaxRules, all, all/one, one)
	}
	return nil
}

// filterValue is what the filter of rule i wants of the subject.
func filterValue(kind string, i int) string {
	if kind == "suffix" {
		return fmt.Sprintf("/item/%04d", i)
	}
	return fmt.Sprintf("orders/%04d/", i)
}

// resolve asks the table for so long, and tells how many nanoseconds an event takes.
func resolve(ctx context.Context, long time.Duration, t *route.Table, kind string, rules int) (float64, error) {
	events := make([]*event.Event, 64)
	for i := range events {
		subject := filterValue(kind, i*7%rules)
		switch kind {
		case "prefix":
			subject += "new"
		case "suffix":
			subject = "orders" + subject
		}
		events[i] = &event.Event{ID: "1", Source: "/shop", Type: "com.shop.order", Subject: subject}
	}
	n, began := 0, time.Now()
	for ctx.Err() == nil && time.Since(began) < long {
		for range 1000 {
			if _, ok := t.Resolve(events[n%len(events)], "", nil); !ok {
				return 0, fmt.Errorf("no rule of %d matches", rules)
			}
			n++
		}
	}
	return float64(time.Since(began)) / float64(n), ctx.Err()
}
