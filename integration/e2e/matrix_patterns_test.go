package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store/position"
)

// pattern is what a cell declares, and how it is played then. The way out of the
// cell is used for everything that it receives.
type pattern func(*cell) (yaml string, play func())

// some is how many events a cell publishes at once.
const some = 12

// share: members at all proxies share a group; each event comes to one of them.
func share(c *cell) (string, func()) {
	return topicYAML("orders") + c.subscription("billing", "orders", ""), func() {
		for i := range c.w.proxies {
			c.receive("billing", i)
		}
		sent := c.events("e", some)
		c.publish("orders", sent)
		c.expect("billing", sent)
	}
}

// pull: one member pulls what was there before it came, and what comes then.
func pull(c *cell) (string, func()) {
	return topicYAML("orders") + c.subscription("billing", "orders", ""), func() {
		sent := c.events("e", some)
		c.publish("orders", sent[:some/2])
		c.receive("billing", c.index)
		c.publish("orders", sent[some/2:])
		c.expect("billing", sent)
	}
}

// oneToMany: each of two Subscriptions gets everything.
func oneToMany(c *cell) (string, func()) {
	return topicYAML("orders") + c.subscription("billing", "orders", "") + c.subscription("shipping", "orders", ""), func() {
		c.receive("billing", 0)
		c.receive("shipping", 1)
		sent := c.events("e", some)
		c.publish("orders", sent)
		c.expect("billing", sent)
		c.expect("shipping", sent)
	}
}

// broadcast: each tail gets everything.
func broadcast(c *cell) (string, func()) {
	return topicYAML("orders"), func() {
		sent := c.events("e", some)
		c.publish("orders", sent[:some/2])
		for i := range 2 {
			c.follow(fmt.Sprint("tail", i), "orders", i)
		}
		c.publish("orders", sent[some/2:])
		for i := range 2 {
			c.expect(fmt.Sprint("tail", i), sent)
		}
	}
}

// following: a pattern of topics has those that match, also those that come, and
// goes on when one goes; deep tells whether it matches shop.a.b.
func following(topics string, deep bool) pattern {
	return func(c *cell) (string, func()) {
		yaml := topicYAML("shop.a", "shop.a.b", "shops")
		tail := c.out == "sse" || c.out == "tail"
		if !tail {
			yaml += c.subscription("all", `"`+topics+`"`, "")
		}
		return yaml, func() {
			if tail {
				c.follow("all", topics, 0)
			} else {
				c.receive("all", 0)
			}
			var want []event.Event
			publish := func(topic string, matches bool) {
				c.Helper()
				sent := c.events(topic, 3)
				c.await("publishing to "+topic, func() error { return c.tryPublish(topic, sent[:1]) })
				c.publish(topic, sent[1:])
				if matches {
					want = append(want, sent...)
				}
			}
			publish("shop.a", true)
			publish("shop.a.b", deep)
			publish("shops", false)
			c.apply(topicYAML("shop.late"))
			publish("shop.late", true)
			c.expect("all", want)
			_, err := c.administer("", "delete", "topic", "shop.late", "-n", c.ns)
			c.must(err)
			c.await("the topic to go", func() error {
				err := c.tryPublish("shop.late", want[len(want)-1:])
				switch {
				case err == nil:
					return errors.New("it is there")
				case !strings.Contains(strings.ToLower(err.Error()), "topic"):
					return err
				}
				return nil
			})
			again := c.events("again", 3)
			c.publish("shop.a", again)
			c.expect("all", append(want, again...))
		}
	}
}

// startAt: a Subscription that comes later begins where it says.
func startAt(where string) pattern {
	return func(c *cell) (string, func()) {
		later := c.subscription("later", "orders", "")
		return topicYAML("orders"), func() {
			before, after := c.events("before", some), c.events("after", some)
			c.publish("orders", before)
			start, rest := "start: "+where, []event.Event(nil)
			switch where {
			case "positions":
				positions, behind := c.middle("orders", before)
				start, rest = "start_positions: ["+strings.Join(positions, ", ")+"]", behind
			case "a time":
				// Stores tell times of milliseconds apart.
				at := time.Now().Add(2 * time.Millisecond)
				for time.Now().Before(at) {
				}
				start = fmt.Sprintf("start_at: %q", at.UTC().Format(time.RFC3339Nano))
			}
			c.apply(strings.Replace(later, "start: beginning", start, 1))
			_, err := c.administer("", "status", "--wait", "4m", "-n", c.ns)
			c.must(err)
			c.publish("orders", after)
			c.receive("later", 0)
			if where == "beginning" {
				rest = before
			}
			c.expect("later", slices.Concat(rest, after))
		}
	}
}

// middle is where half of these events ends, which are all that the topic has: a position
// of each partition, and what comes behind them.
func (c *cell) middle(topic string, all []event.Event) (positions []string, behind []event.Event) {
	c.Helper()
	last, seen := map[string]string{}, map[string]bool{}
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	err := c.client(c.keyFile, c.w.proxies[0]).Tail(ctx, c.ns, []string{topic}, client.TailOptions{Beginning: true}, func(d client.Delivery) error {
		at, err := position.Parse(d.Position)
		if err != nil {
			return err
		}
		last[at.Pos.Partition], seen[d.Event.ID] = strconv.Quote(d.Position), true
		if len(seen) == len(all)/2 {
			cancel()
			return ctx.Err()
		}
		return nil
	})
	if len(seen) != len(all)/2 {
		c.Fatalf("%d of %d events were seen: %v", len(seen), len(all), err)
	}
	return slices.Sorted(maps.Values(last)), which(all, func(e event.Event) bool { return !seen[e.ID] })
}

func paid(e event.Event) bool { return e.Type == "order.paid" }

// which are the events that f holds for.
func which(events []event.Event, f func(event.Event) bool) (out []event.Event) {
	for _, e := range events {
		if f(e) {
			out = append(out, e)
		}
	}
	return out
}

// filtered: only what a filter of order.paid lets through comes.
func filtered(filter string) pattern {
	return func(c *cell) (string, func()) {
		return topicYAML("orders") + c.subscription("paid", "orders", "filter: "+filter), func() {
			c.receive("paid", 0)
			sent := c.events("e", some)
			c.publish("orders", sent)
			c.expect("paid", which(sent, paid))
		}
	}
}

// transformed: another event comes of each.
func transformed(c *cell) (string, func()) {
	return topicYAML("orders", "dead") + c.subscription("other", "orders", `dead_letter_topic: dead, transform: {cel: {attributes: {type: "\"v2.\" + event.type"}, data: "{\"n\": data.n + 100}"}}`), func() {
		c.receive("other", 0)
		sent := c.events("e", some)
		c.publish("orders", sent)
		want := slices.Clone(sent)
		for i := range want {
			want[i].Type = "v2." + want[i].Type
			want[i].Data = fmt.Appendf(nil, `{"n":%d}`, i+100)
		}
		c.expect("other", want)
	}
}

// routeYAML declares a Route of the topic orders.
func routeYAML(rules string) string {
	return "\napiVersion: weft/v1alpha1\nkind: Route\nmetadata: {namespace: NS, name: orders}\nspec: {topic: orders, rules: [" + rules + "]}\n---"
}

// routedByFilter: what matches is kept in another topic, the rest where it came.
func routedByFilter(c *cell) (string, func()) {
	return topicYAML("orders", "paid") + routeYAML("{filter: {exact: {type: order.paid}}, to: [{topic: paid}]}") + c.subscription("orders", "orders", "") + c.subscription("paid", "paid", ""), func() {
		c.receive("orders", 0)
		c.receive("paid", 1)
		sent := c.events("e", some)
		c.publish("orders", sent)
		c.expect("orders", which(sent, func(e event.Event) bool { return !paid(e) }))
		c.expect("paid", which(sent, paid))
	}
}

// routedByWeight: each event is kept in exactly one of two topics, and both have
// some.
func routedByWeight(c *cell) (string, func()) {
	return topicYAML("orders", "a", "b") + routeYAML("{to: [{topic: a, weight: 1}, {topic: b, weight: 1}]}") + c.subscription("a", "a", "") + c.subscription("b", "b", ""), func() {
		c.receive("a", 0)
		c.receive("b", 1)
		sent := c.events("e", 4*some)
		c.publish("orders", sent)
		inA := func(e event.Event) bool { _, ok := c.box("a").get(e.ID); return ok }
		inB := func(e event.Event) bool { _, ok := c.box("b").get(e.ID); return ok }
		c.await("all in one of the two", func() error {
			if n := len(which(sent, func(e event.Event) bool { return inA(e) || inB(e) })); n < len(sent) {
				return fmt.Errorf("%d of %d came", n, len(sent))
			}
			return nil
		})
		a := which(sent, inA)
		if len(a) == 0 || len(a) == len(sent) {
			c.Errorf("%d of %d events are in one of two topics", len(a), len(sent))
		}
		c.expect("a", a)
		c.expect("b", which(sent, func(e event.Event) bool {
			return !slices.ContainsFunc(a, func(o event.Event) bool { return o.ID == e.ID })
		}))
	}
}

// fast is a schedule of retries.
const fast = "min_backoff: 10ms, max_backoff: 20ms"

// slow is a schedule by which what fails is held back in the store.
const slow = "min_backoff: 1.5s, max_backoff: 1.5s"

// retried: what fails so often comes once more, on a schedule.
func retried(schedule string, failures int) func(*cell) (string, func()) {
	return func(c *cell) (string, func()) {
		yaml := c.subscription("billing", "orders", "retry: {max_attempts: 10, "+schedule+"}")
		c.box("billing").refuse = func(e event.Event, times int) bool { return paid(e) && times <= failures }
		return topicYAML("orders") + yaml, func() {
			c.receive("billing", 0)
			sent := c.events("e", some)
			c.publish("orders", sent)
			c.expect("billing", sent)
			for _, e := range which(sent, paid) {
				if n := c.box("billing").attempts(e.ID); n <= failures {
					c.Errorf("%s was taken at attempt %d, refused were %d", e.ID, n, failures)
				}
			}
		}
	}
}

// deadLetters: what always fails becomes a dead letter, all of it, and comes again
// when it is given back.
func deadLetters(c *cell) (string, func()) {
	yaml := c.subscription("billing", "orders", "dead_letter_topic: dead, retry: {max_attempts: 2, "+fast+"}")
	var mended atomic.Bool
	c.box("billing").refuse = func(e event.Event, _ int) bool { return paid(e) && !mended.Load() }
	return topicYAML("orders", "dead") + yaml, func() {
		c.receive("billing", 0)
		sent := c.events("e", some)
		c.publish("orders", sent)
		failed := which(sent, paid)
		cl := c.client(c.keyFile, c.w.proxies[0])
		filter := client.DeadLetterFilter{Subscription: "billing"}
		c.await("the dead letters", func() error {
			dead := map[string][]byte{}
			_, err := cl.DeadLetters(c.ctx, c.ns, filter, client.ListOptions{}, func(l client.DeadLetter) error {
				dead[l.Event.ID] = l.Event.Data
				return nil
			})
			if err == nil && len(dead) != len(failed) {
				err = fmt.Errorf("there are %d, expected are %d", len(dead), len(failed))
			}
			for _, e := range failed {
				if err == nil && !bytes.Equal(dead[e.ID], e.Data) {
					err = fmt.Errorf("%s is %q", e.ID, dead[e.ID])
				}
			}
			return err
		})
		mended.Store(true)
		var back client.Redriven
		c.await("a redrive", func() (err error) { // a proxy has a bound of those at once
			back, err = cl.Redrive(c.ctx, c.ns, filter, client.RedriveOptions{Rate: 1000}, func(client.Redriven) {})
			return err
		})
		if int(back.Redriven+back.Already) != len(failed) || back.Refused != 0 {
			c.Errorf("given back were %+v, dead letters are %d", back, len(failed))
		}
		c.expect("billing", sent)
	}
}

// ordered: of each key one event after the other is taken, in order, over the members
// at all proxies, also where one fails at first.
func ordered(c *cell) (string, func()) {
	const keys = 4
	yaml := c.subscription("shipping", "orders", "ordering: by_key, retry: {max_attempts: 10, "+fast+"}")
	c.box("shipping").refuse = func(e event.Event, times int) bool { return paid(e) && times == 1 }
	return topicYAML("orders") + yaml, func() {
		for i := range c.w.proxies {
			c.receive("shipping", i)
		}
		sent := c.events("e", 2*some)
		for i := range sent {
			sent[i].Ext = event.With(sent[i].Ext, event.AttrPartitionKey, fmt.Sprint("k", i%keys))
		}
		c.publish("orders", sent)
		c.expect("shipping", sent)
		b := c.box("shipping")
		b.mu.Lock()
		defer b.mu.Unlock()
		for k := range keys {
			last := -1
			for i := k; i < len(sent); i += keys {
				at := slices.Index(b.taken, sent[i].ID)
				if at < last {
					c.Errorf("of key k%d, %s was taken before one that was published earlier: %v", k, sent[i].ID, b.taken)
				}
				last = at
			}
		}
	}
}

// forwarded: what a Subscription forwards is in the other topic, and where it was.
func forwarded(c *cell) (string, func()) {
	tail := c.out == "sse"
	yaml := topicYAML("orders", "audit", "dead") + subscriptionYAML("copy", "orders", "filter: {exact: {type: order.paid}}, forward: {topic: audit}, dead_letter_topic: dead")
	if !tail {
		yaml += c.subscription("orders", "orders", "") + c.subscription("audit", "audit", "")
	}
	return yaml, func() {
		for i, name := range []string{"orders", "audit"} {
			if tail {
				c.follow(name, name, i)
			} else {
				c.receive(name, i)
			}
		}
		sent := c.events("e", some)
		c.publish("orders", sent)
		c.expect("orders", sent)
		c.expect("audit", which(sent, paid))
	}
}

// calls: calls of a REST API become events; one that is repeated is the same event.
func calls(c *cell) (string, func()) {
	binding := `
apiVersion: weft/v1alpha1
kind: HttpBinding
metadata: {namespace: NS, name: api}
spec: {rules: [{method: PUT, path: "/orders/{order}", topic: orders, attributes: {type: "{header.X-Type}", source: /shop, id: "{order}", checksum: "{header.X-Checksum}"}}]}
---`
	return topicYAML("orders") + binding + c.subscription("billing", "orders", ""), func() {
		c.receive("billing", 0)
		sent := c.events("e", some)
		c.publish("orders", sent)
		c.publish("orders", sent[:1])
		c.expect("billing", sent)
	}
}

// paced: a burst waits in the mesh, which delivers it no faster than the rate.
func paced(c *cell) (string, func()) {
	const burst, perSecond = 30, 20
	return topicYAML("orders") + c.subscription("slow", "orders", fmt.Sprintf("rate: {deliveries: %d, burst: 1}", perSecond)), func() {
		c.receive("slow", 0)
		began := time.Now()
		sent := c.events("e", burst)
		c.publish("orders", sent)
		c.expect("slow", sent)
		// Each proxy has the rate; half of what it takes is no matter of luck.
		least := time.Duration(burst-len(c.w.proxies)) * time.Second / perSecond / time.Duration(len(c.w.proxies)) / 2
		if took := time.Since(began); took < least {
			c.Errorf("%d events at %d a second came in %v", burst, perSecond, took)
		}
	}
}
