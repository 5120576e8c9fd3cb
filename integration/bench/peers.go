package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/weft-mesh/weft/integration/servers"
)

// buildPeer builds a peer, which is a module of its own below integration/peers; ""
// where that cannot be done.
func (r *run) buildPeer(ctx context.Context, name string, flags ...string) string {
	program := filepath.Join(r.dir, name)
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-trimpath", "-o", program}, flags...)...) //nolint:gosec // a fixed command
	cmd.Dir = filepath.Join("integration", "peers", name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		r.printf("  left out: go build in %s, from the repository's root: %v\n%s", cmd.Dir, err, out)
		return ""
	}
	return program
}

// natsPeer compares publishing into the embedded store with NATS JetStream, which has
// its store in its process too: the same events, as many in flight, on one disk.
func natsPeer(ctx context.Context, r *run) error {
	program := r.buildPeer(ctx, "nats")
	if program == "" {
		return nil
	}
	m, err := r.startMesh(ctx, "peer-nats", filepath.Join(r.dir, "peer-nats"))
	if err != nil {
		return err
	}
	defer m.end()
	if err := m.apply(ctx, embeddedYAML); err != nil {
		return err
	}
	var all []*natsServer
	for _, sync := range []string{"always", "interval"} {
		n, err := r.startNATS(ctx, program, sync)
		if err != nil {
			return err
		}
		defer func() {
			if err := n.process.Stop(); err != nil {
				r.printf("  stopping: %v\n", err)
			}
		}()
		all = append(all, n)
	}
	pids := map[string]int{"server": m.proxy.PID()}
	for _, l := range []load{{64, 1}, {64, 16}} {
		r.printf(" %v; fsync before the answer, but for NATS as it is set by itself, which syncs every two minutes; the CPU of its client is not shown\n", l)
		weft := m.overGRPC("weft, embedded store, gRPC streams", "mesh", l, pids)
		always, lazy := all[0].publish(r, "NATS JetStream, sync always", l), all[1].publish(r, "NATS JetStream, as it is by itself", l)
		if err := r.compare(ctx, weft, always, lazy); err != nil {
			return err
		}
		for _, n := range []*contender{always, lazy} {
			r.note("publish, %v: %s times the rate of %s, %s times its CPU in the server", l, spread(ratio(weft, n), "%.2f"), n.name, spread(times(weft, n, "server"), "%.2f"))
		}
	}
	return nil
}

// natsServer is a server of NATS.
type natsServer struct {
	program, port string
	process       *servers.Process
}

func (r *run) startNATS(ctx context.Context, program, sync string) (*natsServer, error) {
	port, err := servers.FreePort()
	if err != nil {
		return nil, err
	}
	n := &natsServer{program: program, port: strconv.Itoa(port)}
	n.process = &servers.Process{Name: "NATS", Log: filepath.Join(r.dir, "nats-"+sync+".log"), Args: []string{program, "serve", n.port, filepath.Join(r.dir, "nats-"+sync), sync},
		Ready: func(_ context.Context, output []byte) error {
			if bytes.Contains(output, []byte("ready")) {
				return nil
			}
			return fmt.Errorf("it says %.200q", output)
		}}
	return n, n.process.Start(ctx)
}

// publish runs the load in a process of its own and follows what it says.
func (n *natsServer) publish(r *run, name string, l load) *contender {
	c := &contender{name: name, pids: map[string]int{"server": n.process.PID()}}
	var lines *bufio.Scanner
	var cmd *exec.Cmd
	c.before = func(context.Context) error {
		lines = nil // the process has ended with its measurement
		return nil
	}
	c.workers = []worker{func(ctx context.Context) (int, error) {
		if lines == nil {
			cmd = exec.CommandContext(ctx, n.program, "publish", n.port, strconv.Itoa(l.publishers), strconv.Itoa(l.batch), strconv.Itoa(r.size)) //nolint:gosec // numbers
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				return 0, err
			}
			if err := cmd.Start(); err != nil {
				return 0, err
			}
			lines = bufio.NewScanner(out)
		}
		if !lines.Scan() {
			return 0, fmt.Errorf("the load has ended: %v", cmd.Wait()) //nolint:errorlint // it may be none
		}
		return strconv.Atoi(lines.Text())
	}}
	return c
}
