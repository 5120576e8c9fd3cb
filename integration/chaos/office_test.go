package chaos

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weft-mesh/weft/controlplane/election"
	"github.com/weft-mesh/weft/integration/servers"
)

// A candidate is this test's own program, told so by its environment.
const (
	envCandidate = "WEFT_TEST_CANDIDATE"
	envOffice    = "WEFT_TEST_OFFICE"
	envAt        = "WEFT_TEST_OFFICE_ETCD"
)

// candidate stands for election and, in office, writes its name again and again,
// without a look at whether it is still in office: only the fence is between it
// and etcd, as where a program is stopped just before it writes.
func candidate(name string) int {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{os.Getenv(envAt)}, DialTimeout: 5 * time.Second})
	if err != nil {
		fmt.Fprintln(os.Stdout, err)
		return 1
	}
	key := os.Getenv(envOffice)
	election.Run(context.Background(), election.Config{Client: client, Key: key, TTL: time.Second, Log: slog.Default()}, func(_ context.Context, term election.Term) error {
		fmt.Fprintln(os.Stdout, "elected")
		for {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			err := term.Write(ctx, client, clientv3.OpPut(key+"-holder", name))
			cancel()
			if errors.Is(err, election.ErrOver) {
				fmt.Fprintln(os.Stdout, "refused")
				return err
			}
			if err != nil {
				fmt.Fprintln(os.Stdout, err)
			}
		}
	})
	return 0
}

// TestPausedHolder: who holds an office and is stopped for longer than its lease
// lasts writes nothing any more once another holds it.
func TestPausedHolder(t *testing.T) {
	etcd := servers.SharedEtcd(t)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{etcd}, DialTimeout: 5 * time.Second})
	must(err)
	defer client.Close()
	office := "/" + servers.Namespace(t) + "/office"
	self, err := os.Executable()
	must(err)
	start := func(name string) *servers.Process {
		p := &servers.Process{Name: name, Args: []string{self}, Env: []string{envCandidate + "=" + name, envOffice + "=" + office, envAt + "=" + etcd},
			Log: filepath.Join(t.TempDir(), name), Ready: func(context.Context, []byte) error { return nil }}
		must(p.Start(ctx))
		t.Cleanup(func() { must(p.Kill()) })
		return p
	}
	says := func(p *servers.Process, what string) {
		t.Helper()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for !bytes.Contains(p.Output(), []byte(what)) {
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatalf("%s does not say %s but %s", p.Name, what, p.Output())
			}
		}
	}
	wctx, stop := context.WithCancel(ctx)
	defer stop()
	watch := client.Watch(wctx, office+"-holder")
	holders := make(chan string, 1<<20)
	go func() {
		defer close(holders)
		for resp := range watch {
			for _, ev := range resp.Events {
				holders <- string(ev.Kv.Value)
			}
		}
	}()
	holds := func(name string) {
		t.Helper()
		for {
			select {
			case got := <-holders:
				if got == name {
					return
				}
			case <-ctx.Done():
				t.Fatalf("%s never writes", name)
			}
		}
	}
	a := start("a")
	holds("a")
	b := start("b")
	must(a.Pause())
	holds("b") // the lease has ended
	must(a.Resume())
	says(a, "refused")
	must(a.Pause()) // it does not stand again
	holds("b")
	must(b.Kill())
	stop()
	for got := range holders {
		if got == "a" {
			t.Fatal("the holder that was stopped has written after the other")
		}
	}
	if n := strings.Count(string(a.Output()), "elected"); n != 1 {
		t.Errorf("a was elected %d times", n)
	}
	if s := bufio.NewScanner(bytes.NewReader(b.Output())); !s.Scan() || s.Text() != "elected" {
		t.Errorf("b says %q", b.Output())
	}
}
