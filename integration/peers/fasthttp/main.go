// Command fasthttp is an HTTP server on fasthttp that reads a body and answers, as the
// bare transport of integration/bench does on net/http. It has a module of its own, so
// that nothing of it is among the dependencies of Weft; integration/bench builds and
// runs it.
//
//	fasthttp ADDRESS
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/valyala/fasthttp"
)

const answer = `{"position":"AQ0ZIb6ZIEbAn1YPqf4iM7EBgICAgAEA"}` + "\n"

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	s := &fasthttp.Server{NoDefaultServerHeader: true, Handler: func(c *fasthttp.RequestCtx) {
		_ = c.PostBody()
		c.SetContentType("application/json")
		c.SetBodyString(answer)
	}}
	ended := make(chan error, 1)
	go func() { ended <- s.ListenAndServe(os.Args[1]) }()
	select {
	case err := <-ended:
		fmt.Fprintln(os.Stderr, "fasthttp:", err)
		os.Exit(1)
	case <-ctx.Done():
	}
	_ = s.Shutdown()
}
