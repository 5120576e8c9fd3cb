// Command nats is NATS with JetStream as a peer of the mesh: its server, and a load
// of its own client. It has a module of its own, so that nothing of it is among the
// dependencies of Weft; integration/bench builds and runs it.
//
//	nats serve PORT FOLDER SYNC     SYNC is always or interval
//	nats publish PORT PUBLISHERS BATCH SIZE
//
// publish prints a line for each batch that was acknowledged, with its events.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "nats:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 4 && args[0] == "serve":
		return serve(ctx, args[1], args[2], args[3] == "always")
	case len(args) == 5 && args[0] == "publish":
		var n [3]int
		for i := range n {
			var err error
			if n[i], err = strconv.Atoi(args[2+i]); err != nil || n[i] < 1 {
				return fmt.Errorf("%q is not a number from 1", args[2+i])
			}
		}
		return publish(ctx, args[1], n[0], n[1], n[2])
	}
	return errors.New("it takes serve PORT FOLDER SYNC, or publish PORT PUBLISHERS BATCH SIZE")
}

const subject = "bench"

func serve(ctx context.Context, port, dir string, always bool) error {
	p, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: p, JetStream: true, StoreDir: dir, SyncAlways: always, NoSigs: true, NoLog: true})
	if err != nil {
		return err
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		return errors.New("the server does not get ready")
	}
	nc, err := nats.Connect(s.ClientURL())
	if err != nil {
		return err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "bench", Subjects: []string{subject}, Storage: jetstream.FileStorage, MaxBytes: 4 << 30}); err != nil {
		return err
	}
	nc.Close()
	fmt.Fprintln(os.Stdout, "ready")
	<-ctx.Done()
	s.Shutdown()
	s.WaitForShutdown()
	return nil
}

// publish publishes until ctx ends: each publisher has a connection and one batch
// in flight, every event of which is acknowledged.
func publish(ctx context.Context, port string, publishers, batch, size int) error {
	var mu sync.Mutex
	out := bufio.NewWriterSize(os.Stdout, 1<<10)
	ended := make(chan error, publishers)
	for p := range publishers {
		go func() {
			ended <- func() error {
				nc, err := nats.Connect("nats://127.0.0.1:" + port)
				if err != nil {
					return err
				}
				defer nc.Close()
				js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(batch))
				if err != nil {
					return err
				}
				data := bytes.Repeat([]byte{'x'}, size)
				acks := make([]jetstream.PubAckFuture, batch)
				for ctx.Err() == nil {
					for i := range acks {
						// The attributes of an event are headers, as CloudEvents over NATS has them.
						m := &nats.Msg{Subject: subject, Data: data, Header: nats.Header{"ce-specversion": {"1.0"}, "ce-id": {fmt.Sprintf("p%d-%d", p, i)}, "ce-source": {"/bench"}, "ce-type": {"bench"}}}
						if acks[i], err = js.PublishMsgAsync(m); err != nil {
							return err
						}
					}
					for _, a := range acks {
						select {
						case <-a.Ok():
						case err := <-a.Err():
							return err
						case <-ctx.Done():
							return nil
						}
					}
					mu.Lock()
					fmt.Fprintln(out, batch)
					err := out.Flush()
					mu.Unlock()
					if err != nil {
						return err
					}
				}
				return nil
			}()
		}()
	}
	for range publishers {
		if err := <-ended; err != nil {
			return err
		}
	}
	return nil
}
