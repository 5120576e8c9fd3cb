package client_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/registry/nacos"
	"github.com/weft-mesh/weft/tools/weft"
)

// proxy is the address of the mesh that the examples use; keyFile has the API
// key of the principal "shop".
var proxy, keyFile string

const configuration = `
apiVersion: weft/v1alpha1
kind: Topic
metadata: {namespace: demo, name: orders}
spec: {store: main}
---
apiVersion: weft/v1alpha1
kind: Topic
metadata: {namespace: demo, name: payments}
spec: {store: main}
---
apiVersion: weft/v1alpha1
kind: Topic
metadata: {namespace: demo, name: prices}
spec: {store: main}
---
apiVersion: weft/v1alpha1
kind: Subscription
metadata: {namespace: demo, name: billing}
spec: {topics: [payments], start: beginning}
---
apiVersion: weft/v1alpha1
kind: Topic
metadata: {namespace: demo, name: invoices}
spec: {store: main}
---
apiVersion: weft/v1alpha1
kind: Subscription
metadata: {namespace: demo, name: nightly}
spec: {topics: [invoices], start: beginning}
---
apiVersion: weft/v1alpha1
kind: Topic
metadata: {namespace: demo, name: questions}
spec: {store: main}
---
apiVersion: weft/v1alpha1
kind: Subscription
metadata: {namespace: demo, name: answerers}
spec: {topics: [questions], start: beginning}
---
apiVersion: weft/v1alpha1
kind: AccessPolicy
metadata: {namespace: demo, name: examples}
spec:
  rules:
    - {name: events, effect: allow, principals: [local], actions: [publish, subscribe], topics: [orders, payments, prices, invoices, questions]}
    - {name: billing, effect: allow, principals: [local], actions: [consume], subscriptions: [billing, nightly, answerers]}
    - {name: shop, effect: allow, principals: [shop], actions: [publish], topics: [orders]}
`

// TestMain runs the examples against a mesh of one process.
func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "weft-client-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	ctx, stop := context.WithCancel(context.Background())
	var out buffer
	ended := make(chan int, 1)
	go func() {
		args := []string{"up", "--data", filepath.Join(dir, "data")}
		for _, name := range []string{"admin", "discovery", "control-plane-ops", "http", "grpc", "health", "ops"} {
			args = append(args, "--"+name+"=127.0.0.1:0")
		}
		ended <- weft.Main(ctx, args, strings.NewReader(""), &out, &out)
	}()
	defer func() {
		stop()
		<-ended
	}()
	for !strings.Contains(out.String(), "Ctrl-C stops it") {
		select {
		case code := <-ended:
			ended <- code
			fmt.Fprintln(os.Stderr, out.String())
			return 1
		case <-time.After(10 * time.Millisecond):
		}
	}
	proxy = regexp.MustCompile(`gRPC +(\S+)`).FindStringSubmatch(out.String())[1]
	admin := regexp.MustCompile(`admin API +(\S+)`).FindStringSubmatch(out.String())[1]
	keyFile = filepath.Join(dir, "shop.key")
	var identity bytes.Buffer
	for _, step := range []func() int{
		func() int {
			return weft.Main(ctx, []string{"apikey", "shop", "--key-file", keyFile}, strings.NewReader(""), &identity, os.Stderr)
		},
		func() int {
			return weft.Main(ctx, []string{"apply", "--server", admin, "-f", "-"}, strings.NewReader(identity.String()+"---"+configuration), &out, os.Stderr)
		},
		func() int {
			return weft.Main(ctx, []string{"status", "--server", admin, "--wait", "1m"}, strings.NewReader(""), &out, os.Stderr)
		},
	} {
		if code := step(); code != 0 {
			return code
		}
	}
	return m.Run()
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// connect makes the client of the examples.
func connect() *client.Client {
	c, err := client.New(client.Config{Addresses: []string{proxy}})
	if err != nil {
		panic(err)
	}
	return c
}

func ExampleClient_Publish() {
	c, err := client.New(client.Config{Addresses: []string{proxy}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	// The store has the event when Publish returns.
	position, err := c.Publish(ctx, "demo", "orders", event.Event{ID: "order-1", Source: "/shop", Type: "order.created",
		DataContentType: "application/json", Data: []byte(`{"order": 1}`)})
	fmt.Println(position != "", err)

	// A refusal has a code, a stable reason, and the rule in its text.
	_, err = c.Publish(ctx, "demo", "secrets", event.Event{ID: "1", Source: "/shop", Type: "t"})
	if e, ok := errors.AsType[*client.Error](err); ok {
		fmt.Println(e.Code, e.Reason, e.Retryable())
		fmt.Println(e)
	}
	// Output:
	// true <nil>
	// PermissionDenied access-denied false
	// no AccessPolicy of namespace demo allows local to publish topic secrets
}

func ExampleClient_PublishBatch() {
	c := connect()
	defer c.Close()

	// One call, one result for each event. Where one is wrong, none is kept.
	results, err := c.PublishBatch(context.Background(), "demo", "orders", []event.Event{
		{ID: "order-2", Source: "/shop", Type: "order.created", Data: []byte("two")},
		{ID: "order-3", Source: "/shop", Type: "order.created", Data: []byte("three")},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, r := range results {
		fmt.Println(r.Position != "", r.Err)
	}
	// Output:
	// true <nil>
	// true <nil>
}

func ExampleClient_Publisher() {
	c := connect()
	defer c.Close()
	ctx := context.Background()

	// A stream: events are handed over, and their outcomes come later, in order.
	p := c.Publisher("demo", "orders", client.PublisherOptions{})
	var pending []*client.Pending
	for i := range 1000 {
		q, err := p.Publish(ctx, event.Event{ID: fmt.Sprintf("streamed-%d", i), Source: "/shop", Type: "order.created"})
		if err != nil {
			fmt.Println(err)
			return
		}
		pending = append(pending, q)
	}
	kept := 0
	for _, q := range pending {
		if _, err := q.Wait(ctx); err == nil {
			kept++
		}
	}
	fmt.Println(kept, p.Close(ctx))
	// Output: 1000 <nil>
}

func ExampleClient_Subscribe() {
	c := connect()
	defer c.Close()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	for _, id := range []string{"payment-1", "payment-2"} {
		if _, err := c.Publish(ctx, "demo", "payments", event.Event{ID: id, Source: "/shop", Type: "payment.made"}); err != nil {
			fmt.Println(err)
			return
		}
	}

	// A credit of 1 is one Handler at a time.
	done := 0
	err := c.Subscribe(ctx, "demo", "billing", func(_ context.Context, d client.Delivery) error {
		if d.Event.ID == "payment-1" && d.Attempt == 1 {
			fmt.Println(d.Event.ID, "again, please")
			return &client.Retry{Delay: 50 * time.Millisecond, Reason: "the bank is busy"}
		}
		d.Extend(time.Minute) // this may take longer than the ack time-out
		fmt.Println(d.Event.ID, "is settled")
		if done++; done == 2 {
			stop()
		}
		return nil
	}, client.SubscribeOptions{Credit: 1})
	fmt.Println(err)
	// Unordered output:
	// payment-1 again, please
	// payment-2 is settled
	// payment-1 is settled
	// context canceled
}

func ExampleClient_Request() {
	c := connect()
	defer c.Close()
	ctx, stop := context.WithTimeout(context.Background(), 30*time.Second)
	defer stop()

	// Whoever receives a request may reply to it, at any proxy.
	answering := make(chan error, 1)
	go func() {
		answering <- c.Subscribe(ctx, "demo", "answerers", func(ctx context.Context, d client.Delivery) error {
			err := c.Reply(ctx, "demo", d.Event, event.Event{ID: "to-" + d.Event.ID, Source: "/prices", Type: "price", Data: []byte("42")})
			if e, ok := errors.AsType[*client.Error](err); ok && e.Reason == "reply-late" {
				return nil // nobody waits any more
			}
			return err
		}, client.SubscribeOptions{})
	}()

	reply, err := c.Request(ctx, "demo", "questions", event.Event{ID: "question-1", Source: "/shop", Type: "price.asked"}, 20*time.Second)
	fmt.Println(reply.ID, string(reply.Data), err)
	stop()
	<-answering

	ctx = context.Background()
	_, err = c.Request(ctx, "demo", "questions", event.Event{ID: "question-2", Source: "/shop", Type: "price.asked"}, 50*time.Millisecond)
	if e, ok := errors.AsType[*client.Error](err); ok {
		fmt.Println(e.Code, e.Reason)
	}
	err = c.Reply(ctx, "demo", reply, reply) // which asks for none
	if e, ok := errors.AsType[*client.Error](err); ok {
		fmt.Println(e.Code, e.Reason)
	}
	// Output:
	// to-question-1 42 <nil>
	// DeadlineExceeded no-reply
	// InvalidArgument no-request
}

func ExampleClient_Pull() {
	c := connect()
	defer c.Close()
	ctx := context.Background()
	if _, err := c.Publish(ctx, "demo", "invoices", event.Event{ID: "invoice-1", Source: "/shop", Type: "invoice.due"}); err != nil {
		fmt.Println(err)
		return
	}

	// A job that runs now and then takes what is there, and no more.
	events, err := c.Pull(ctx, "demo", "nightly", client.PullOptions{MaxEvents: 100, Wait: 30 * time.Second})
	if err != nil {
		fmt.Println(err)
		return
	}
	var done client.Settlement
	for _, e := range events {
		fmt.Println(e.Event.ID)
		done.Ack = append(done.Ack, e.ID)
	}
	unsettled, err := c.Settle(ctx, "demo", "nightly", done)
	fmt.Println(len(unsettled), err)
	// Output:
	// invoice-1
	// 0 <nil>
}

func ExampleClient_Tail() {
	c := connect()
	defer c.Close()
	ctx := context.Background()
	for _, price := range []string{"10", "11", "12"} {
		e := event.Event{ID: "price-" + price, Source: "/shop", Type: "price", Data: []byte(price),
			Ext: []event.Attr{{Name: event.AttrPartitionKey, Value: "apples"}}}
		if _, err := c.Publish(ctx, "demo", "prices", e); err != nil {
			fmt.Println(err)
			return
		}
	}

	// The positions of what was seen are where another tail goes on, in another
	// process too. One of each partition, beside which Beginning or Since says where
	// others begin; here there is one.
	enough := errors.New("enough")
	var seen []string
	err := c.Tail(ctx, "demo", []string{"prices"}, client.TailOptions{Beginning: true}, func(d client.Delivery) error {
		fmt.Printf("%s\n", d.Event.Data)
		seen = append(seen, d.Position)
		if len(seen) == 2 {
			return enough
		}
		return nil
	})
	fmt.Println(err)
	err = c.Tail(ctx, "demo", []string{"prices"}, client.TailOptions{After: seen[len(seen)-1:]}, func(d client.Delivery) error {
		fmt.Printf("resumed with %s\n", d.Event.Data)
		return enough
	})
	fmt.Println(err)
	// Output:
	// 10
	// 11
	// enough
	// resumed with 12
	// enough
}

func ExampleAPIKeyFile() {
	// The file is read at each call: a new key in it takes effect by itself.
	// Without TLS the key is kept on this machine.
	c, err := client.New(client.Config{Addresses: []string{proxy}, APIKey: client.APIKeyFile(keyFile)})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	_, err = c.Publish(context.Background(), "demo", "orders", event.Event{ID: "order-4", Source: "/shop", Type: "order.created"})
	fmt.Println(err)
	_, err = c.Publish(context.Background(), "demo", "hello", event.Event{ID: "1", Source: "/shop", Type: "greeting"})
	fmt.Println(err)

	_, err = client.New(client.Config{Addresses: []string{"192.0.2.1:7411"}, APIKey: client.APIKeyFile(keyFile)})
	fmt.Println(err)
	// Output:
	// <nil>
	// no AccessPolicy of namespace demo allows demo/shop to publish topic hello
	// client: an API key is not sent to 192.0.2.1:7411 without TLS
}

// With TLS, and a certificate of the client's own that an Identity knows.
func ExampleNew_tls() {
	pem, err := os.ReadFile("proxy-ca.pem")
	if err != nil {
		fmt.Println(err)
		return
	}
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(pem)
	own, err := tls.LoadX509KeyPair("service.pem", "service.key")
	if err != nil {
		fmt.Println(err)
		return
	}
	c, err := client.New(client.Config{Addresses: []string{"proxy-1.example.com:7411", "proxy-2.example.com:7411"},
		TLS: &tls.Config{RootCAs: authorities, Certificates: []tls.Certificate{own}, MinVersion: tls.VersionTLS13}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
}

// Proxies that are found in Nacos by the mesh's name; examples/nacos is a whole
// service.
func ExampleNew_nacos() {
	registry, err := nacos.New(nacos.Config{URL: "http://nacos.example.com:8848/nacos"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = registry.Close(context.Background()) }()
	c, err := client.New(client.Config{Target: nacos.Scheme + ":///weft", Resolver: registry.Resolver(nacos.Choice{Namespace: "shop", Zone: "eu-1a"})})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
}
