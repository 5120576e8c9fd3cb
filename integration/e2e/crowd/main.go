// Command crowd is many clients of one proxy, each on a connection of its own that leads
// through this process, which can cut them all in one instant. It is a command, since a
// process has not as many descriptors, and under the race detector not as many
// goroutines, as there are to be clients.
//
//	crowd -ops HOST:PORT -http HOST:PORT -grpc HOST:PORT -key-file FILE -ns NAMESPACE -topic TOPIC -subscription NAME -sse 100 -tails 100 -members 50
//
// Over -ops it is told what to do: POST /cut cuts, POST /mark begins to count who comes
// back without that, and POST /status, with the numbers of events (whose ids are e1, e2
// …), answers with what has become of the clients.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/tlsconf"
)

// Status is what has become of the clients.
type Status struct {
	// Clients that there are, those of them that are connected anew since the last
	// mark, and those that follow the topic and have every event that was asked for.
	Clients, Back, Followers, Complete int
	// Missing are events that no member of the Subscription has.
	Missing []int
}

// one is a client.
type one struct {
	mu          sync.Mutex
	opens, mark int
	has         []uint64 // a bit for each event
}

func (o *one) opened() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.opens++
}

func (o *one) got(id string) {
	n, err := strconv.Atoi(strings.TrimPrefix(id, "e"))
	if err != nil || n < 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for n/64 >= len(o.has) {
		o.has = append(o.has, 0)
	}
	o.has[n/64] |= 1 << (n % 64)
}

func (o *one) hasAll(want []int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, n := range want {
		if n/64 >= len(o.has) || o.has[n/64]&(1<<(n%64)) == 0 {
			return false
		}
	}
	return true
}

type crowd struct {
	http, grpc *relay
	ns, topic  string
	sub        string
	key        string
	tls        *tls.Config

	followers, all []*one
	members        one // what all of them have
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "crowd:", err)
		os.Exit(1)
	}
}

func run() error {
	c := &crowd{}
	ops := flag.String("ops", "", "where it is told what to do")
	overHTTP, overGRPC := flag.String("http", "", "the proxy's address"), flag.String("grpc", "", "its address for gRPC")
	ca := flag.String("ca", "", "the authority of its certificate; without it there is no TLS")
	flag.StringVar(&c.key, "key-file", "", "file with the API key")
	flag.StringVar(&c.ns, "ns", "", "the namespace")
	flag.StringVar(&c.topic, "topic", "", "the topic")
	flag.StringVar(&c.sub, "subscription", "", "the Subscription")
	sse, tails, members := flag.Int("sse", 0, "clients over HTTP"), flag.Int("tails", 0, "tails over gRPC"), flag.Int("members", 0, "members of the Subscription")
	flag.Parse()
	var err error
	if *ca != "" {
		if c.tls, err = tlsconf.Client(tlsconf.Files{CA: *ca}); err != nil {
			return err
		}
	}
	if c.http, err = newRelay(*overHTTP); err != nil {
		return err
	}
	if c.grpc, err = newRelay(*overGRPC); err != nil {
		return err
	}
	failed := make(chan error, 1)
	begin := func(n int, o func() *one, run func(*one) error) {
		for range n {
			o := o()
			go func() {
				if err := run(o); err != nil {
					select {
					case failed <- err:
					default:
					}
				}
			}()
		}
	}
	member := func() *one {
		o := &one{}
		c.all = append(c.all, o)
		return o
	}
	follower := func() *one {
		o := member()
		c.followers = append(c.followers, o)
		return o
	}
	begin(*sse, follower, c.overHTTP)
	begin(*tails, follower, c.tail)
	begin(*members, member, c.member)

	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /mark", func(http.ResponseWriter, *http.Request) { c.mark() })
	mux.HandleFunc("POST /cut", func(http.ResponseWriter, *http.Request) {
		c.mark()
		c.http.cut()
		c.grpc.cut()
	})
	mux.HandleFunc("POST /status", func(w http.ResponseWriter, r *http.Request) {
		var want []int
		if err := json.NewDecoder(r.Body).Decode(&want); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_ = json.NewEncoder(w).Encode(c.status(want))
	})
	go func() {
		failed <- (&http.Server{Addr: *ops, Handler: mux, ReadHeaderTimeout: time.Minute}).ListenAndServe()
	}()
	return <-failed
}

func (c *crowd) mark() {
	for _, o := range c.all {
		o.mu.Lock()
		o.mark = o.opens
		o.mu.Unlock()
	}
}

func (c *crowd) status(want []int) Status {
	s := Status{Clients: len(c.all), Followers: len(c.followers)}
	for _, o := range c.all {
		o.mu.Lock()
		if o.opens > o.mark {
			s.Back++
		}
		o.mu.Unlock()
	}
	for _, o := range c.followers {
		if o.hasAll(want) {
			s.Complete++
		}
	}
	for _, n := range want {
		if !c.members.hasAll([]int{n}) {
			s.Missing = append(s.Missing, n)
		}
	}
	return s
}

func (c *crowd) client() (*client.Client, error) {
	return client.New(client.Config{Addresses: []string{c.grpc.addr()}, TLS: c.tls, APIKey: client.APIKeyFile(c.key)})
}

func (c *crowd) tail(o *one) error {
	cl, err := c.client()
	if err != nil {
		return err
	}
	return cl.Tail(context.Background(), c.ns, []string{c.topic}, client.TailOptions{Beginning: true, Connected: o.opened}, func(d client.Delivery) error {
		o.got(d.Event.ID)
		return nil
	})
}

func (c *crowd) member(o *one) error {
	cl, err := c.client()
	if err != nil {
		return err
	}
	return cl.Subscribe(context.Background(), c.ns, c.sub, func(_ context.Context, d client.Delivery) error {
		c.members.got(d.Event.ID)
		return nil
	}, client.SubscribeOptions{Credit: 16, Connected: o.opened})
}

// dialTime bounds how long a proxy may take to take a connection.
const dialTime = 10 * time.Second

// acceptAgain is the pause where there are no descriptors left.
const acceptAgain = 100 * time.Millisecond

// relay leads connections to an address.
type relay struct {
	to string
	l  net.Listener

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

func newRelay(to string) (*relay, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &relay{to: to, l: l, conns: map[net.Conn]struct{}{}}
	go func() {
		for {
			in, err := l.Accept()
			if errors.Is(err, syscall.EMFILE) {
				// Clients try again sooner than what they gave up is done here.
				<-time.After(acceptAgain)
				continue
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, "crowd:", err)
				os.Exit(1)
			}
			go r.lead(in)
		}
	}()
	return r, nil
}

func (r *relay) addr() string { return r.l.Addr().String() }

func (r *relay) lead(in net.Conn) {
	defer in.Close()
	out, err := net.DialTimeout("tcp", r.to, dialTime)
	if err != nil {
		return
	}
	defer out.Close()
	r.keep(in, out)
	defer r.forget(in, out)
	ended := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{out, in}, {in, out}} {
		go func() {
			// Not as the kernel would do it, with a pipe for each way: those are four
			// descriptors of a connection.
			_, _ = io.CopyBuffer(struct{ io.Writer }{way[0]}, struct{ io.Reader }{way[1]}, make([]byte, 4<<10))
			ended <- struct{}{}
		}()
	}
	<-ended
}

func (r *relay) keep(cs ...net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range cs {
		r.conns[c] = struct{}{}
	}
}

func (r *relay) forget(cs ...net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range cs {
		delete(r.conns, c)
	}
}

// cut ends all connections.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		_ = c.Close()
	}
}
