// Command testservers starts real servers on loopback and runs a command that
// uses them, or, without one, keeps them until it is interrupted:
//
//	testservers -rocketmq -kafka -etcd -nacos -- go test ./...
//
// The command gets the addresses in its environment (WEFT_TEST_ROCKETMQ,
// WEFT_TEST_KAFKA, WEFT_TEST_ETCD, WEFT_TEST_NACOS), and a file that test packages
// lock to take turns (WEFT_TEST_TURN); its exit status is passed on. With -env they
// are written to a file too, for a shell to source, with etcd's process id
// (WEFT_TEST_ETCD_PID).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/integration/servers"
)

func main() {
	rocketmq := flag.Bool("rocketmq", false, "start RocketMQ (name server and broker, sync flush)")
	kafka := flag.Bool("kafka", false, "start Kafka (one node)")
	etcd := flag.Bool("etcd", false, "start etcd")
	nacos := flag.Bool("nacos", false, "start Nacos 3 (user nacos, password weft-test-password)")
	env := flag.String("env", "", "a file for the addresses, written once all servers run")
	flag.Parse()
	code, err := run(*rocketmq, *kafka, *etcd, *nacos, *env, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "testservers:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// server is one that runs.
type server struct {
	env, addr string
	more      string // another line of the file for -env
	stop      func() error
}

func run(rocketmq, kafka, etcd, nacos bool, envFile string, command []string) (code int, err error) {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()

	var mu sync.Mutex
	var running []server
	defer func() {
		for _, s := range running {
			err = errors.Join(err, s.stop())
		}
	}()
	progress := func(s string) { fmt.Fprintln(os.Stderr, "testservers:", s) }
	sctx, scancel := context.WithTimeout(ctx, 3*servers.StartTimeout)
	defer scancel()
	g, sctx := errgroup.WithContext(sctx)
	start := func(wanted bool, f func() (server, error)) {
		if !wanted {
			return
		}
		g.Go(func() error {
			s, err := f()
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			running = append(running, s)
			progress(s.env + "=" + s.addr)
			return nil
		})
	}
	start(rocketmq, func() (server, error) {
		r, err := servers.StartRocketMQ(sctx, servers.RocketMQOptions{Progress: progress})
		if err != nil {
			return server{}, err
		}
		return server{servers.EnvRocketMQ, r.NameServer, "", r.Stop}, nil
	})
	start(kafka, func() (server, error) {
		k, err := servers.StartKafka(sctx, servers.KafkaOptions{Progress: progress})
		if err != nil {
			return server{}, err
		}
		return server{servers.EnvKafka, k.Brokers[0], "", k.Stop}, nil
	})
	start(etcd, func() (server, error) {
		e, err := servers.StartEtcd(sctx, servers.EtcdOptions{Progress: progress})
		if err != nil {
			return server{}, err
		}
		return server{servers.EnvEtcd, e.Endpoint, fmt.Sprintf("export %s_PID=%d\n", servers.EnvEtcd, e.PID()), e.Stop}, nil
	})
	start(nacos, func() (server, error) {
		n, err := servers.StartNacos(sctx, servers.NacosOptions{Progress: progress})
		if err != nil {
			return server{}, err
		}
		return server{servers.EnvNacos, n.Addr, "", n.Stop}, nil
	})
	if err := g.Wait(); err != nil {
		return 1, err
	}
	if envFile != "" {
		var b strings.Builder
		for _, s := range running {
			fmt.Fprintf(&b, "export %s=%s\n%s", s.env, s.addr, s.more)
		}
		if err := os.WriteFile(envFile, []byte(b.String()), 0o600); err != nil {
			return 1, err
		}
		progress("a shell gets the addresses with: source " + envFile)
	}
	if len(command) == 0 {
		progress("running; Ctrl-C ends them and removes their data")
		<-ctx.Done()
		return 0, nil
	}
	turn, err := os.CreateTemp("", "weft-turn-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, turn.Close(), os.Remove(turn.Name())) }()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), servers.EnvTurn+"="+turn.Name())
	for _, s := range running {
		cmd.Env = append(cmd.Env, s.env+"="+s.addr)
	}
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
	case <-ctx.Done():
		// The command shares the terminal's Ctrl-C; a SIGTERM is passed on.
		_ = cmd.Process.Signal(syscall.SIGTERM)
		err = <-ended
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}
