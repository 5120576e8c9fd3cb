package main

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weft-mesh/weft/integration/servers"
)

// relayCommand, as the first argument, makes this program a relay: it takes connections and
// hands on each byte, both ways, and looks at none. What a proxy costs beyond it is what the
// proxy does; nothing between a client and a broker costs less, but in the kernel.
const relayCommand = "relay"

// relay is that process, before one server.
type relay struct {
	addr    string
	process *servers.Process
}

func (r *run) startRelay(ctx context.Context, target string) (*relay, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	out := &relay{}
	if err := addresses(&out.addr); err != nil {
		return nil, err
	}
	out.process = &servers.Process{Name: "relay", Log: filepath.Join(r.dir, "relay.log"), Args: []string{self, relayCommand, out.addr, target},
		Ready: func(ctx context.Context, _ []byte) error {
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", out.addr)
			if err != nil {
				return err
			}
			return c.Close()
		}}
	return out, out.process.Start(ctx)
}

// through has a client of Kafka reach every broker through the relay.
func (r *relay) through() kgo.Opt {
	return kgo.Dialer(func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, r.addr)
	})
}

// serveRelay is the process: args are its address and the server's.
func serveRelay(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("it takes two addresses")
	}
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	var ways sync.WaitGroup
	defer ways.Wait()
	for {
		from, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		to, err := (&net.Dialer{}).DialContext(ctx, "tcp", args[1])
		if err != nil {
			return errors.Join(err, from.Close())
		}
		both := func() {
			_ = from.Close()
			_ = to.Close()
		}
		ended := context.AfterFunc(ctx, both)
		for _, way := range [][2]net.Conn{{from, to}, {to, from}} {
			ways.Go(func() {
				defer ended()
				defer both()
				handOn(way[0], way[1])
			})
		}
	}
}

// handOn copies as a process does that could look at what it copies: io.Copy would leave it
// to the kernel.
func handOn(from, to net.Conn) {
	b := make([]byte, 256<<10)
	for {
		n, err := from.Read(b)
		if _, werr := to.Write(b[:n]); err != nil || werr != nil {
			return
		}
	}
}
