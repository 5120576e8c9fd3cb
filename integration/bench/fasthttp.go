package main

import (
	"context"
	"path/filepath"

	"github.com/weft-mesh/weft/integration/servers"
)

// httpPeer compares net/http, which the proxy stands on, with fasthttp: both read a
// body and answer.
func httpPeer(ctx context.Context, r *run) error {
	program := r.buildPeer(ctx, "fasthttp")
	if program == "" {
		return nil
	}
	b, err := r.startBare(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if err := b.stop(); err != nil {
			r.printf("  stopping: %v\n", err)
		}
	}()
	var addr string
	if err := addresses(&addr); err != nil {
		return err
	}
	p := &servers.Process{Name: "fasthttp", Log: filepath.Join(r.dir, "fasthttp.log"), Ready: answers("http://" + addr + "/"), Args: []string{program, addr}}
	if err := p.Start(ctx); err != nil {
		return err
	}
	defer func() {
		if err := p.Stop(); err != nil {
			r.printf("  stopping: %v\n", err)
		}
	}()
	server := func(addr, name string, pid int) *contender {
		return (&mesh{r: r, http: addr}).singleHTTP(name, "mesh", 64, map[string]int{"server": pid})
	}
	stock, fast := server(b.http, "net/http", b.process.PID()), server(addr, "fasthttp", p.PID())
	if err := r.compare(ctx, stock, fast); err != nil {
		return err
	}
	r.note("HTTP, one event a request, 64 clients: fasthttp takes %s times the CPU of net/http, %s µs against %s", spread(times(fast, stock, "server"), "%.2f"), spread(fast.cpu["server"], "%.2f"), spread(stock.cpu["server"], "%.2f"))
	return nil
}
