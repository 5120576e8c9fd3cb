package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-mesh/weft/integration/history"
	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
)

// cell is one pattern over one way in and one way out: a namespace of its own in a
// mesh that it shares.
type cell struct {
	*mesh
	w               *world
	name, in, out   string
	index           int
	hooks           string // URL of the webhooks
	secret, keyFile string
	play            func()
	publisher       *client.Client
	boxes           map[string]*inbox // by what fills them
}

// inbox is what came to one Subscription or tail.
type inbox struct {
	*box
	want []event.Event // set once, before judge
	// refuse tells of an event, by how often it has come now, whether it fails;
	// nil takes everything.
	refuse func(e event.Event, times int) bool
	// reply is what a webhook replies to a request; nil replies nothing.
	reply func(event.Event) event.Event

	mu    sync.Mutex
	times map[string]int
	taken []string // ids, in the order in which they were taken for the first time
}

// take is a delivery; false is that it fails.
func (b *inbox) take(e event.Event) bool {
	b.mu.Lock()
	b.times[e.ID]++
	n := b.times[e.ID]
	b.mu.Unlock()
	if b.refuse != nil && b.refuse(e, n) {
		return false
	}
	b.mu.Lock()
	if !slices.Contains(b.taken, e.ID) {
		b.taken = append(b.taken, e.ID)
	}
	b.mu.Unlock()
	b.put(e)
	return true
}

// attempts is how often an event has come.
func (b *inbox) attempts(id string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.times[id]
}

func (c *cell) box(name string) *inbox {
	b := c.boxes[name]
	if b == nil {
		b = &inbox{box: newBox(name), times: map[string]int{}}
		c.boxes[name] = b
	}
	return b
}

// access lets the principal shop of the cell do everything, by a key of its own.
func (c *cell) access() string {
	b := make([]byte, 8)
	_, _ = rand.Read(b)
	id := hex.EncodeToString(b)
	c.secret, c.keyFile = "weft_"+id+"_"+rand.Text(), filepath.Join(c.dir, c.ns+".key")
	c.must(os.WriteFile(c.keyFile, []byte(c.secret), 0o600))
	sum := sha256.Sum256([]byte(c.secret))
	return policyYAML("shop") + fmt.Sprintf("---\napiVersion: weft/v1alpha1\nkind: Identity\nmetadata: {namespace: NS, name: shop}\nspec: {api_keys: {keys: [{id: \"%s\", hash: \"sha256:%s\", principal: shop}]}}\n", id, hex.EncodeToString(sum[:]))
}

// subscription declares a Subscription that is delivered by the way out; more is
// the rest of its spec.
func (c *cell) subscription(name, topics, more string) string {
	b := c.box(name)
	path := "/" + c.ns + "/" + name
	switch c.out {
	case "webhook":
		more = join(more, `push: {url: "`+c.hooks+path+`"}`)
	case "rest":
		more = join(more, `push: {url: "`+c.hooks+path+`", request: {method: PUT, path: "/{id}", query: {source: "{source}"}, headers: {X-Type: "{type}", X-Checksum: "{checksum}"}}}`)
	}
	c.w.mu.Lock()
	c.w.hooks[path] = b
	c.w.mu.Unlock()
	return subscriptionYAML(name, topics, more)
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + ", " + b
}

// serveHooks serves the targets of push for all cells and gives their URL.
func (w *world) serveHooks() string {
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		parts := strings.Split(r.URL.Path, "/")
		w.mu.Lock()
		b := w.hooks[strings.Join(parts[:3], "/")]
		w.mu.Unlock()
		var e event.Event
		if len(parts) == 4 {
			e = event.Event{ID: parts[3], Source: r.URL.Query().Get("source"), Type: r.Header.Get("X-Type"), DataContentType: r.Header.Get("Content-Type"), Data: body}
			e.Ext = event.With(e.Ext, "checksum", r.Header.Get("X-Checksum"))
		} else if e, err = cloudevents.DecodeBinary(r.Header, body); err != nil {
			w.Errorf("a webhook got what is no event: %v", err)
			return
		}
		switch {
		case !b.take(e):
			rw.WriteHeader(http.StatusTeapot)
		case b.reply != nil:
			reply := b.reply(e)
			cloudevents.EncodeBinary(rw.Header(), &reply)
			_, _ = rw.Write(reply.Data)
		}
	}))
	w.Cleanup(s.Close)
	return s.URL
}

// events makes n events; ids begin with name. Every third is of type order.paid.
func (c *cell) events(name string, n int) []event.Event {
	var out []event.Event
	for i := range n {
		e := event.Event{ID: fmt.Sprintf("%s-%d", name, i), Source: "/shop", Type: "order.created", DataContentType: "application/json"}
		if i%3 == 0 {
			e.Type = "order.paid"
		}
		e.Data = fmt.Appendf(nil, `{"id":"%s","n":%d,"text":"ü \"of\" %s"}`, e.ID, i, c.name)
		e.Ext = event.With(e.Ext, "checksum", history.Sum(e.Data))
		out = append(out, e)
	}
	return out
}

// publish publishes events by the way in; all of them must be kept.
func (c *cell) publish(topic string, events []event.Event) {
	c.Helper()
	c.must(c.again(c.ctx, func() error { return c.tryPublish(topic, events) }))
}

// again repeats f, as clients do, while all that is wrong is that the store did not do it
// in time: on a busy machine a broker may stand still for longer than a proxy waits.
func (c *cell) again(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil || ctx.Err() != nil || !retryable(err) {
			return err
		}
		c.w.Logf("%s: again, after: %.300v", c.name, err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

// retryable tells whether a call may be made again: the client's word over gRPC, over
// HTTP the reason in what was answered.
func retryable(err error) bool {
	if e, ok := errors.AsType[*client.Error](err); ok {
		return e.Retryable()
	}
	return slices.ContainsFunc([]string{"store-unreachable", "store-busy", "ambiguous"}, func(reason string) bool {
		return strings.Contains(err.Error(), "/errors.md#"+reason+`"`)
	})
}

func (c *cell) tryPublish(topic string, events []event.Event) error {
	p := c.w.proxies[c.index%len(c.w.proxies)]
	if c.publisher == nil {
		c.publisher = c.client(c.keyFile, p)
	}
	cl := c.publisher
	post := func(h http.Header, body []byte) error {
		code, answer, err := c.postBytes(http.DefaultClient, "http://"+p.http, topic, "Bearer "+c.secret, h, body)
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("%d %s", code, answer)
		}
		return err
	}
	one := func(f func(e *event.Event) error) error {
		for i := range events {
			if err := f(&events[i]); err != nil {
				return fmt.Errorf("publishing %s: %w", events[i].ID, err)
			}
		}
		return nil
	}
	switch c.in {
	case "http":
		return one(func(e *event.Event) error {
			h := http.Header{}
			cloudevents.EncodeBinary(h, e)
			return post(h, e.Data)
		})
	case "http-structured":
		return one(func(e *event.Event) error {
			return post(http.Header{"Content-Type": {"application/cloudevents+json"}}, cloudevents.AppendJSON(nil, e))
		})
	case "http-batch":
		var all [][]byte
		for i := range events {
			all = append(all, cloudevents.AppendJSON(nil, &events[i]))
		}
		return post(http.Header{"Content-Type": {"application/cloudevents-batch+json"}}, slices.Concat([]byte("["), bytes.Join(all, []byte(",")), []byte("]")))
	case "rest-call":
		return one(func(e *event.Event) error { return c.call(p, topic, e) })
	case "grpc":
		return one(func(e *event.Event) error {
			_, err := cl.Publish(c.ctx, c.ns, topic, *e)
			return err
		})
	case "grpc-batch":
		results, err := cl.PublishBatch(c.ctx, c.ns, topic, events)
		for _, r := range results {
			err = errors.Join(err, r.Err)
		}
		return err
	case "grpc-stream":
		pub := cl.Publisher(c.ns, topic, client.PublisherOptions{})
		var pending []*client.Pending
		err := one(func(e *event.Event) error {
			p, err := pub.Publish(c.ctx, *e)
			pending = append(pending, p)
			return err
		})
		err = errors.Join(err, pub.Close(c.ctx))
		for _, p := range pending {
			_, perr := p.Wait(c.ctx)
			err = errors.Join(err, perr)
		}
		return err
	}
	return fmt.Errorf("there is no way in %q", c.in)
}

// call calls the REST API that calls declares.
func (c *cell) call(p *proxy, topic string, e *event.Event) error {
	req, err := http.NewRequestWithContext(c.ctx, http.MethodPut, "http://"+p.http+"/rest/"+c.ns+"/"+topic+"/"+e.ID, bytes.NewReader(e.Data))
	if err != nil {
		return err
	}
	sum, _ := event.Lookup(e.Ext, "checksum")
	req.Header = http.Header{"Authorization": {"Bearer " + c.secret}, "Content-Type": {e.DataContentType}, "X-Type": {e.Type}, "X-Checksum": {sum}}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusAccepted {
		return fmt.Errorf("%s %s %w", resp.Status, body, err)
	}
	return nil
}

var errRefused = errors.New("refused by the test")

// receive begins to receive a Subscription by the way out, at one proxy. What is
// pushed comes by itself.
func (c *cell) receive(name string, at int) {
	c.Helper()
	b, p := c.box(name), c.w.proxies[at%len(c.w.proxies)]
	ctx, cancel := context.WithCancel(c.w.ctx)
	var f func() error
	switch cl := c.w.client(c.keyFile, p); c.out {
	case "stream":
		f = func() error {
			return cl.Subscribe(ctx, c.ns, name, func(_ context.Context, d client.Delivery) error {
				if !b.take(d.Event) {
					return errRefused
				}
				return nil
			}, client.SubscribeOptions{Credit: 16})
		}
	case "pull-grpc":
		f = func() error { return c.pullGRPC(ctx, cl, name, b) }
	case "pull-http":
		f = func() error { return c.pullHTTP(ctx, p, name, b) }
	default: // pushed
		cancel()
		return
	}
	c.background(ctx, cancel, name, f)
}

// background runs f until the matrix ends, which ends ctx; f must not end before.
func (c *cell) background(ctx context.Context, cancel func(), name string, f func() error) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := f(); ctx.Err() == nil {
			c.w.Errorf("%s of %s ended: %v", name, c.name, err)
		}
	}()
	c.w.Cleanup(func() {
		cancel()
		<-ended
	})
}

// follow begins to tail topics from their beginning by the way out.
func (c *cell) follow(name, topics string, at int) {
	c.Helper()
	b, p := c.box(name), c.w.proxies[at%len(c.w.proxies)]
	if c.out == "sse" {
		c.must(c.again(c.ctx, func() error {
			stream, err := c.mesh.tryEvents(http.DefaultClient, "http://"+p.http, topics, "Bearer "+c.secret)
			if err == nil {
				b.box = stream.box
			}
			return err
		}))
		return
	}
	ctx, cancel := context.WithCancel(c.w.ctx)
	cl := c.w.client(c.keyFile, p)
	c.background(ctx, cancel, name, func() error {
		return cl.Tail(ctx, c.ns, []string{topics}, client.TailOptions{Beginning: true}, func(d client.Delivery) error {
			b.take(d.Event)
			return nil
		})
	})
}

// pullWait is the longest wait of one pull.
const pullWait = 10 * time.Second

// deliveryOver is the reason why a delivery of a partition that moved to another
// member meanwhile, or whose ack time-out passed, is not settled: it comes again.
const deliveryOver = "delivery-over"

func (c *cell) pullGRPC(ctx context.Context, cl *client.Client, name string, b *inbox) error {
	for {
		var got []client.Pulled
		err := c.again(ctx, func() (err error) {
			got, err = cl.Pull(ctx, c.ns, name, client.PullOptions{MaxEvents: 8, Wait: pullWait})
			return err
		})
		if err != nil {
			return err
		}
		var s client.Settlement
		for _, d := range got {
			if b.take(d.Event) {
				s.Ack = append(s.Ack, d.ID)
			} else {
				s.Nack = append(s.Nack, client.Nack{IDs: []string{d.ID}})
			}
		}
		if len(got) == 0 {
			continue
		}
		unsettled, err := cl.Settle(ctx, c.ns, name, s)
		if err != nil {
			return fmt.Errorf("settling: %w", err)
		}
		for _, u := range unsettled {
			if e, ok := errors.AsType[*client.Error](u); !ok || e.Reason != deliveryOver {
				return fmt.Errorf("settling: %w", u)
			}
		}
	}
}

func (c *cell) pullHTTP(ctx context.Context, p *proxy, name string, b *inbox) error {
	try := func(verb string, in, out any) error {
		body, err := json.Marshal(in)
		if err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+p.http+"/v1/"+c.ns+"/subscriptions/"+name+verb, bytes.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+c.secret)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if body, err = io.ReadAll(resp.Body); err != nil {
			return err
		}
		if s := resp.StatusCode; s != http.StatusOK && (verb != ":settle" || s != http.StatusMultiStatus && s != http.StatusPreconditionFailed) {
			return fmt.Errorf("%s answers %s %s", verb, resp.Status, body)
		}
		return json.Unmarshal(body, out)
	}
	call := func(verb string, in, out any) error {
		return c.again(ctx, func() error { return try(verb, in, out) })
	}
	type nack struct {
		IDs []string `json:"delivery_ids"`
	}
	for {
		var got struct {
			Deliveries []struct {
				ID    string `json:"delivery_id"`
				Event json.RawMessage
			}
		}
		if err := call(":pull", map[string]any{"max_events": 8, "wait": pullWait.String()}, &got); err != nil {
			return err
		}
		var settle struct {
			Ack  []string `json:"ack,omitempty"`
			Nack []nack   `json:"nack,omitempty"`
		}
		for _, d := range got.Deliveries {
			e, err := cloudevents.DecodeJSON(d.Event)
			if err != nil {
				return err
			}
			if b.take(e) {
				settle.Ack = append(settle.Ack, d.ID)
			} else {
				settle.Nack = append(settle.Nack, nack{[]string{d.ID}})
			}
		}
		if len(got.Deliveries) == 0 {
			continue
		}
		var left struct {
			Unsettled []struct {
				ID    string                  `json:"delivery_id"`
				Error struct{ Reason string } `json:"error"`
			}
		}
		if err := call(":settle", settle, &left); err != nil {
			return err
		}
		for _, u := range left.Unsettled {
			if u.Error.Reason != deliveryOver {
				return fmt.Errorf("%s is not settled: %s", u.ID, u.Error.Reason)
			}
		}
	}
}

// expect waits until what came to a Subscription or a tail is want, with its
// checksums, and nothing else.
func (c *cell) expect(name string, want []event.Event) {
	c.Helper()
	b := c.box(name)
	b.want = want
	c.awaitAll(b.box, want)
	for _, w := range want {
		got, _ := b.get(w.ID)
		sum, _ := event.Lookup(w.Ext, "checksum")
		if s, _ := event.Lookup(got.Ext, "checksum"); s != sum {
			c.Errorf("%s: %s came with the checksum %q, sent was %q", b.name, w.ID, s, sum)
		}
	}
}

// judge looks once more whether something came that was not expected.
func (c *cell) judge(t *testing.T) {
	for _, b := range c.boxes {
		b.box.mu.Lock()
		if b.want != nil && len(b.got) != len(b.want) {
			t.Errorf("%s: %s has %d events, expected were %d", c.name, b.name, len(b.got), len(b.want))
		}
		b.box.mu.Unlock()
	}
}
