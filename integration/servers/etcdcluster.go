package servers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// EtcdTools builds etcdctl and etcdutl of etcd's version, once, and gives their
// folder. They are not part of this module: they would bring their dependencies
// into it. progress is told about the build; it may be nil.
func EtcdTools(ctx context.Context, progress func(string)) (dir string, err error) {
	return once("etcdtools-"+etcdVersion, progressOf(progress), func(dir string) error {
		src, err := os.MkdirTemp("", "weft-etcdtools-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(src)
		const ctl, utl = "go.etcd.io/etcd/etcdctl/v3", "go.etcd.io/etcd/etcdutl/v3"
		for _, args := range [][]string{{"mod", "init", "etcdtools"}, {"get", ctl + "@v" + etcdVersion, utl + "@v" + etcdVersion}, {"build", "-trimpath", "-o", dir + "/", ctl, utl}} {
			cmd := exec.CommandContext(ctx, "go", args...)
			cmd.Dir = src
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod", "GOWORK=off")
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
			}
		}
		return nil
	})
}

// EtcdMember is one server of a cluster.
type EtcdMember struct {
	*Process
	// Name of the member; Endpoint and Peer are "http://host:port".
	Name, Endpoint, Peer string
	data                 string
}

// EtcdCluster is an etcd of several members, each a process of its own.
type EtcdCluster struct {
	Members  []*EtcdMember
	dir      string
	tools    string
	restored int
	cluster  string
}

// EtcdClusterOptions change what StartEtcdCluster starts.
type EtcdClusterOptions struct {
	// Members is how many; 3 when 0.
	Members int
	// Args are more flags of etcd.
	Args []string
	// DataDir gives the folder of a member's data; one of the cluster's own
	// when nil.
	DataDir func(member int) string
	// PeerProxy, if set, gives the address, host:port, at which the other
	// members reach a member that listens for them on addr.
	PeerProxy func(addr string) (string, error)
	// Progress is told about builds; may be nil.
	Progress func(string)
}

// StartEtcdCluster starts members with empty data and waits until all serve.
func StartEtcdCluster(ctx context.Context, o EtcdClusterOptions) (_ *EtcdCluster, err error) {
	bin, err := EtcdBinary(ctx, o.Progress)
	if err != nil {
		return nil, err
	}
	tools, err := EtcdTools(ctx, o.Progress)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "weft-etcds-")
	if err != nil {
		return nil, err
	}
	c := &EtcdCluster{dir: dir, tools: tools}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
		}
	}()
	if o.Members == 0 {
		o.Members = 3
	}
	var cluster []string
	var listen []string
	for i := range o.Members {
		port, err := FreePort(1)
		if err != nil {
			return nil, err
		}
		m := &EtcdMember{Name: "m" + strconv.Itoa(i), Endpoint: "http://127.0.0.1:" + strconv.Itoa(port), data: filepath.Join(dir, "m"+strconv.Itoa(i))}
		peer := "127.0.0.1:" + strconv.Itoa(port+1)
		listen = append(listen, "http://"+peer)
		if o.PeerProxy != nil {
			if peer, err = o.PeerProxy(peer); err != nil {
				return nil, err
			}
		}
		if o.DataDir != nil {
			m.data = filepath.Join(o.DataDir(i), "data")
		}
		m.Peer = "http://" + peer
		cluster = append(cluster, m.Name+"="+m.Peer)
		c.Members = append(c.Members, m)
	}
	c.cluster = strings.Join(cluster, ",")
	for i, m := range c.Members {
		m.Process = &Process{Name: "etcd-" + m.Name, Log: filepath.Join(dir, m.Name+".log"), Ready: serves,
			Args: append([]string{bin, "--name=" + m.Name, "--data-dir=" + m.data,
				"--listen-client-urls=" + m.Endpoint, "--advertise-client-urls=" + m.Endpoint,
				"--listen-peer-urls=" + listen[i], "--initial-advertise-peer-urls=" + m.Peer,
				"--initial-cluster=" + c.cluster, "--heartbeat-interval=50", "--election-timeout=500", "--log-level=warn"}, o.Args...)}
	}
	return c, c.Start(ctx)
}

// serves does not wait for the other members: the first ones start without.
func serves(context.Context, []byte) error { return nil }

// Start starts every member that does not run and waits until all are healthy.
func (c *EtcdCluster) Start(ctx context.Context) error {
	for _, m := range c.Members {
		if !m.Alive() {
			if err := m.Start(ctx); err != nil {
				return err
			}
		}
	}
	return c.Healthy(ctx)
}

// Healthy waits until every member is ready: it has a leader and serves.
func (c *EtcdCluster) Healthy(ctx context.Context) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for _, m := range c.Members {
		ready := answers(m.Endpoint + "/readyz")
		for {
			cctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			err := ready(cctx, nil)
			cancel()
			if err == nil {
				break
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return fmt.Errorf("%s: %w: %w; its log ends with:\n%s", m.Name, ctx.Err(), err, m.tail())
			}
		}
	}
	return nil
}

// Endpoints of all members, as etcd's clients take them.
func (c *EtcdCluster) Endpoints() []string {
	var out []string
	for _, m := range c.Members {
		out = append(out, m.Endpoint)
	}
	return out
}

// Save writes a backup of the cluster to a file.
func (c *EtcdCluster) Save(ctx context.Context, file string) error {
	var errs []error
	for _, m := range c.Members { // whichever lives
		if !m.Alive() {
			continue
		}
		cctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		// A member that was away may lack what the others have: it is healthy
		// once it has answered a linearizable read.
		etcdctl := filepath.Join(c.tools, "etcdctl")
		err := run(cctx, c.dir, etcdctl, "--endpoints="+m.Endpoint, "endpoint", "health", "--command-timeout=15s")
		if err == nil {
			err = run(cctx, c.dir, etcdctl, "--endpoints="+m.Endpoint, "snapshot", "save", file)
		}
		cancel()
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("no member gives a backup: %w", errors.Join(errs...))
}

// RestoreRevisions is by how much Restore raises the revision: more than could
// have been written since the backup.
const RestoreRevisions = 1_000_000

// Restore ends every member and starts all of them with the content of a backup.
// With bump, revisions go on above all that was ever seen, as docs/restore.md
// says; without, etcd goes back.
func (c *EtcdCluster) Restore(ctx context.Context, file string, bump bool) error {
	c.restored++
	for _, m := range c.Members {
		if err := m.Kill(); err != nil {
			return err
		}
		if err := os.RemoveAll(m.data); err != nil {
			return err
		}
		args := []string{"snapshot", "restore", file, "--name", m.Name, "--initial-cluster", c.cluster,
			"--initial-advertise-peer-urls", m.Peer, "--data-dir", m.data, "--initial-cluster-token", "restored-" + strconv.Itoa(c.restored)}
		if bump {
			args = append(args, "--bump-revision", strconv.Itoa(RestoreRevisions), "--mark-compacted")
		}
		if err := run(ctx, c.dir, filepath.Join(c.tools, "etcdutl"), args...); err != nil {
			return err
		}
	}
	return c.Start(ctx)
}

// Stop ends every member and removes the data.
func (c *EtcdCluster) Stop() error {
	var errs []error
	for _, m := range c.Members {
		if m.Process != nil {
			errs = append(errs, m.Kill())
		}
	}
	return errors.Join(append(errs, os.RemoveAll(c.dir))...)
}
