package weft

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/admin"
	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/embedetcd"
	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/dataplane/proxy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/listener"
	"github.com/weft-mesh/weft/pkg/manifest"
	"github.com/weft-mesh/weft/pkg/unixaddr"
	"github.com/weft-mesh/weft/registry/memory"
	"github.com/weft-mesh/weft/store/binding"

	"github.com/weft-mesh/weft/tools/proxycmd"
)

// demo is the configuration of a new data folder.
const demo = `
apiVersion: weft/v1alpha1
kind: EventStore
metadata: {namespace: demo, name: main}
spec: {embedded: {}}
---
apiVersion: weft/v1alpha1
kind: Topic
metadata: {namespace: demo, name: hello}
spec: {store: main, retention: {max_age: 168h, max_bytes: 1GiB}}
---
apiVersion: weft/v1alpha1
kind: AccessPolicy
metadata: {namespace: demo, name: local}
spec:
  rules:
    - name: local-hello
      effect: allow
      principals: [local]
      actions: [publish, subscribe]
      topics: [hello]
`

func upCommand() *cobra.Command {
	var (
		data       string
		log        proxycmd.LogFlag
		trace      proxycmd.TraceFlag
		s          server.Config
		p          proxy.Config
		pushAllows []string
		found      proxycmd.NacosFlags
		mode       proxycmd.SocketModeFlag
	)
	cmd := &cobra.Command{Use: "up", Short: "Run the whole mesh in one process", Args: cobra.NoArgs,
		Long: `Runs etcd, the control plane, one proxy and the embedded store in one process,
durable under the data folder. The planes talk over a real discovery stream on
loopback, as separate processes do. Whoever comes over loopback or a Unix socket
without credentials is the principal "local".`,
		Example: "  weft up\n  weft up --data ./data --http 127.0.0.1:8080",
		RunE: func(cmd *cobra.Command, _ []string) error {
			logger, err := log.Logger(cmd)
			if err != nil {
				return err
			}
			if p.PushAllow, err = proxycmd.Prefixes(pushAllows); err != nil {
				return err
			}
			if p.SocketMode, err = mode.Mode(); err != nil {
				return err
			}
			s.Log, p.Log = logger, logger
			stop, err := trace.Set(cmd.Context(), &p)
			if err != nil {
				return err
			}
			defer stop()
			leave, err := found.FindServices(&p)
			if err != nil {
				return err
			}
			defer leave()
			return up(cmd, data, s, p)
		}}
	f := cmd.Flags()
	f.StringVar(&data, "data", proxycmd.Env("WEFT_DATA", defaultData()), "data folder (WEFT_DATA)")
	f.StringVar(&s.AdminAddr, "admin", proxycmd.Env("WEFT_ADMIN", "127.0.0.1:7420"), "address of the admin API (WEFT_ADMIN)")
	f.StringVar(&s.DiscoveryAddr, "discovery", proxycmd.Env("WEFT_DISCOVERY", "127.0.0.1:7421"), "address of discovery (WEFT_DISCOVERY)")
	f.StringVar(&s.OpsAddr, "control-plane-ops", proxycmd.Env("WEFT_CONTROL_PLANE_OPS", "127.0.0.1:7429"), "address of the control plane's operations (WEFT_CONTROL_PLANE_OPS)")
	f.StringVar(&p.HTTPAddr, "http", proxycmd.Env("WEFT_HTTP", "127.0.0.1:7410"), "address for clients over HTTP, or unix:/path for a Unix socket (WEFT_HTTP)")
	f.StringVar(&p.GRPCAddr, "grpc", proxycmd.Env("WEFT_GRPC", "127.0.0.1:7411"), "address for clients over gRPC, or unix:/path for a Unix socket (WEFT_GRPC)")
	mode.Add(f)
	f.StringVar(&p.HealthAddr, "health", proxycmd.Env("WEFT_HEALTH", "127.0.0.1:7418"), "address of the proxy's /readyz (WEFT_HEALTH)")
	f.StringVar(&p.OpsAddr, "ops", proxycmd.Env("WEFT_OPS", "127.0.0.1:7419"), "address of the proxy's operations (WEFT_OPS)")
	f.StringSliceVar(&pushAllows, "push-allow", []string{"127.0.0.0/8"}, "networks that push may call beside public addresses")
	f.StringVar(&p.PushSecrets, "push-secrets", proxycmd.Env("WEFT_PUSH_SECRETS", ""), "folder with a folder for each namespace, with the secrets that its Subscriptions may sign and authorise pushes with; secrets in the data folder when empty (WEFT_PUSH_SECRETS)")
	found.Add(f, "services that are pushed to are found")
	log.Add(cmd, "warn")
	trace.Add(cmd)
	return cmd
}

func defaultData() string {
	if dir := os.Getenv("XDG_DATA_HOME"); dir != "" {
		return filepath.Join(dir, "weft")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "weft-data"
	}
	return filepath.Join(home, ".local", "share", "weft")
}

// startTimeout bounds the time until the mesh serves, closeTimeout that of giving
// up what has ended already.
const (
	startTimeout = time.Minute
	closeTimeout = 5 * time.Second
)

func up(cmd *cobra.Command, data string, s server.Config, p proxy.Config) error {
	data, err := filepath.Abs(data)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(data, 0o700); err != nil {
		return fmt.Errorf("--data: %w", err)
	}
	// The proxy comes first: it takes the folder, so that a second process
	// hears so at once.
	p.DataDir, p.TrustLoopback = filepath.Join(data, "proxy"), true
	if p.PushSecrets == "" {
		p.PushSecrets = filepath.Join(data, "secrets")
		if err := os.MkdirAll(p.PushSecrets, 0o700); err != nil {
			return fmt.Errorf("--data: %w", err)
		}
	}
	p.Drivers, p.Options = binding.Drivers(), binding.Options
	s.Drivers, s.Options = binding.Drivers(), binding.AdminOptions
	p.ControlPlane = []string{s.DiscoveryAddr}
	if _, err := netip.ParseAddrPort(s.DiscoveryAddr); err != nil {
		return fmt.Errorf("--discovery: %w", err)
	}
	start, cancel := context.WithTimeout(cmd.Context(), startTimeout)
	defer cancel()
	unlock, err := lock(data)
	if err != nil {
		return err
	}
	defer unlock()
	isNew, err := fresh(data)
	if err != nil {
		return fmt.Errorf("--data: %w", err)
	}
	etcd, err := embedetcd.Start(start, filepath.Join(data, "etcd"))
	if err != nil {
		return err
	}
	defer etcd.Close()
	s.Etcd = etcd.Client()
	found := memory.New()
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), closeTimeout)
		defer cancel()
		_ = found.Close(ctx)
	}()
	// Clients of the proxy are many, of the control plane few.
	files, err := listener.FileLimit()
	if err != nil {
		return err
	}
	s.Descriptors, p.Descriptors = files/4, files-files/4
	if s.Registry = found; !unixaddr.Is(p.GRPCAddr) {
		p.AdvertiseHost = "127.0.0.1"
	}
	cp, err := server.New(s)
	if err != nil {
		return portHint(err)
	}
	p.ControlPlane = []string{cp.Addrs().Discovery}
	px, err := proxy.New(p)
	if err != nil {
		return portHint(err)
	}
	// The proxy stops first, then the control plane, then etcd.
	cpCtx, stopCP := context.WithCancel(context.WithoutCancel(cmd.Context()))
	defer stopCP()
	ctx, stopAll := context.WithCancel(cmd.Context())
	defer stopAll()
	proxycmd.Supervise(cmd.Context(), px.Addrs().Ops)
	g, gctx := errgroup.WithContext(ctx)
	cpEnded := make(chan error, 1)
	go func() { cpEnded <- cp.Run(cpCtx) }()
	g.Go(func() error {
		// The proxy has a control plane to ask when it starts.
		if err := cp.Ready(start); err != nil && gctx.Err() == nil {
			return errors.Join(err, px.Close())
		}
		defer stopAll() // it may have been told to drain
		return px.Run(gctx)
	})
	g.Go(func() error {
		select {
		case err := <-cpEnded:
			cpEnded <- err
			return err
		case <-gctx.Done():
			return nil
		}
	})
	g.Go(func() error {
		if err := ready(start, cp, px, isNew); err != nil {
			if gctx.Err() != nil {
				return nil
			}
			return err
		}
		if isNew {
			if err := os.Remove(filepath.Join(data, freshMark)); err != nil {
				return fmt.Errorf("--data: %w", err)
			}
		}
		greet(cmd, cp.Addrs(), px.Addrs(), data, isNew)
		return nil
	})
	err = g.Wait()
	stopCP()
	return errors.Join(err, <-cpEnded)
}

// freshMark is a file of a data folder whose mesh has not been up yet.
const freshMark = "new"

// fresh reports whether a mesh was never up with this data folder. It may have been started,
// and have ended since a port was taken: it still gets its demo configuration.
func fresh(data string) (bool, error) {
	mark := filepath.Join(data, freshMark)
	if _, err := os.Stat(filepath.Join(data, "etcd")); errors.Is(err, fs.ErrNotExist) {
		return true, os.WriteFile(mark, nil, 0o600)
	}
	_, err := os.Stat(mark)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// portHint says what to do about a port that is taken.
func portHint(err error) error {
	return fmt.Errorf("%w\n(is another mesh running? every address has a flag: weft up --help)", err)
}

// ready waits until the mesh serves, and gives a new one its demo configuration.
func ready(ctx context.Context, cp *server.Server, px *proxy.Proxy, isNew bool) error {
	if err := cp.Ready(ctx); err != nil {
		return err
	}
	if isNew {
		if err := applyDemo(ctx, cp.Addrs().Admin); err != nil {
			return err
		}
	}
	for {
		snap, replaced := px.Snapshot()
		if snap.Lineage != "" && snap.Origin == snapshot.Live {
			waiting := false
			for _, t := range snap.Topics {
				waiting = waiting || t.NotReady != "" && isNew
			}
			if !waiting && (!isNew || len(snap.Topics) > 0) {
				return nil
			}
		}
		select {
		case <-replaced:
		case <-ctx.Done():
			return errors.New("the mesh did not get ready in time; look at its log with --log-level info")
		}
	}
}

func applyDemo(ctx context.Context, addr string) error {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	docs, err := manifest.Decode("demo", []byte(demo), "demo")
	if err != nil {
		return err
	}
	var rs []*configv1.Resource
	for _, d := range docs {
		rs = append(rs, d.Resource)
	}
	_, err = adminv1.NewAdminServiceClient(conn).Apply(ctx, &adminv1.ApplyRequest{Resources: rs})
	return err
}

// program is what this command was called as, to be called so again.
func program() string {
	if name := os.Args[0]; filepath.Base(name) == "weft" {
		return name
	}
	return "weft"
}

func greet(cmd *cobra.Command, cp server.Addrs, px proxy.Addrs, data string, isNew bool) {
	w := cmd.OutOrStdout()
	shown := "http://" + px.HTTP
	asked := shown // by curl
	if path, err := unixaddr.Path(px.HTTP); err == nil {
		shown, asked = px.HTTP, "--unix-socket '"+path+"' http://localhost"
	}
	fmt.Fprintf(w, `The mesh is up. Data: %s

  clients over HTTP    %s
  clients over gRPC    %s
  admin API            %s
  metrics              http://%s/metrics (proxy), http://%s/metrics (control plane)

Try, in another terminal:

  curl -N %s/v1/demo/topics/hello/events

  curl %s/v1/demo/topics/hello -H 'ce-specversion: 1.0' -H 'ce-id: 1' \
       -H 'ce-source: /me' -H 'ce-type: greeting' -H 'content-type: application/json' -d '{"hello": "world"}'

  %s status

Ctrl-C stops it.
`, data, shown, px.GRPC, cp.Admin, px.Ops, cp.Ops, asked, asked, program())
	if isNew {
		fmt.Fprintln(w, "The folder was new: it has a demo topic, demo/hello, that \"local\" may use.")
	}
}

func controlPlaneCommand() *cobra.Command {
	var (
		cfg      server.Config
		log      proxycmd.LogFlag
		etcd     etcdFlags
		found    nacosFlags
		auditMiB int64
	)
	cmd := &cobra.Command{Use: "control-plane --etcd URL", Short: "Run a control-plane replica", Args: cobra.NoArgs,
		Long: `Keeps the configuration in etcd, checks every change, and streams it to proxies. Any
number of replicas may run on one etcd. Events never pass through it.`,
		Example: "  weft control-plane --etcd http://127.0.0.1:2379\n  weft control-plane --etcd https://etcd.example:2379 --etcd-ca ca.pem --etcd-cert weft.pem --etcd-key weft.key\n  weft control-plane --etcd http://127.0.0.1:2379 --nacos http://127.0.0.1:8848/nacos --mesh shop",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if cfg.Log, err = log.Logger(cmd); err != nil {
				return err
			}
			if auditMiB < 1 || auditMiB > 1<<20 {
				return errors.New("--audit-max-mib must be 1 to 1048576")
			}
			cfg.AuditBytes = auditMiB << 20
			if err := etcd.open(&cfg); err != nil {
				return err
			}
			defer cfg.Etcd.Close()
			cfg.Drivers, cfg.Options = binding.Drivers(), binding.AdminOptions
			closeRegistry, err := found.open(&cfg)
			if err != nil {
				return err
			}
			defer closeRegistry()
			s, err := server.New(cfg)
			if err != nil {
				return err
			}
			a := s.Addrs()
			fmt.Fprintf(cmd.ErrOrStderr(), "control plane: admin %s, discovery %s, operations %s\n", a.Admin, a.Discovery, a.Ops)
			proxycmd.Supervise(cmd.Context(), a.Ops)
			return s.Run(cmd.Context())
		}}
	f := cmd.Flags()
	etcd.add(f)
	f.StringVar(&cfg.Prefix, "etcd-prefix", "/weft/v1/", "where the mesh's keys begin; ends with a slash")
	f.StringVar(&cfg.AdminAddr, "admin", proxycmd.Env("WEFT_ADMIN", "127.0.0.1:7420"), "address of the admin API (WEFT_ADMIN)")
	f.StringVar(&cfg.AdminAdvertise, "admin-advertise", proxycmd.Env("WEFT_ADMIN_ADVERTISE", ""), "address of the admin API as other replicas reach it; that of --admin when empty (WEFT_ADMIN_ADVERTISE)")
	f.StringVar(&cfg.AdminTLS.Cert, "admin-cert", "", "file with the admin API's certificate; without TLS files only loopback is listened on")
	f.StringVar(&cfg.AdminTLS.Key, "admin-key", "", "file with its key")
	f.StringVar(&cfg.AdminTLS.CA, "admin-ca", "", "file with the authority of those who may administer")
	f.StringVar(&cfg.AdminAccess, "admin-access", proxycmd.Env("WEFT_ADMIN_ACCESS", ""), "file that says who may administer what, read again when it changes; without it all who come over loopback, or with a certificate of --admin-ca, may everything (WEFT_ADMIN_ACCESS)")
	f.Float64Var(&cfg.Guard.Share, "mass-removal-share", admin.DefaultRemovalShare, "share of what is in a namespace, or in the mesh, that one change may remove without --allow-mass-removal")
	f.DurationVar(&cfg.Guard.Window, "mass-removal-window", admin.DefaultRemovalWindow, "how long what somebody has removed counts with what he removes next, at most 24h")
	f.IntVar(&cfg.Guard.Least, "mass-removal-least", admin.DefaultRemovalLeast, "how many resources one change may always remove")
	f.Int64Var(&auditMiB, "audit-max-mib", configstore.DefaultAuditBytes>>20, "how much room audit records take in etcd, in MiB; the oldest are removed before there are more")
	f.StringVar(&cfg.DiscoveryAddr, "discovery", proxycmd.Env("WEFT_DISCOVERY", "127.0.0.1:7421"), "address of discovery (WEFT_DISCOVERY)")
	f.StringVar(&cfg.DiscoveryTLS.Cert, "discovery-cert", "", "file with discovery's certificate; without TLS files only loopback is listened on")
	f.StringVar(&cfg.DiscoveryTLS.Key, "discovery-key", "", "file with its key")
	f.StringVar(&cfg.DiscoveryTLS.CA, "discovery-ca", "", "file with the authority of the proxies' certificates")
	f.StringVar(&cfg.OpsAddr, "ops", proxycmd.Env("WEFT_CONTROL_PLANE_OPS", "127.0.0.1:7429"), "loopback address of metrics and debugging (WEFT_CONTROL_PLANE_OPS)")
	f.StringVar(&cfg.HealthAddr, "health", proxycmd.Env("WEFT_CONTROL_PLANE_HEALTH", ""), "address of /readyz alone, for orchestrators, of any network; none when empty (WEFT_CONTROL_PLANE_HEALTH)")
	f.StringVar(&cfg.MetricsAddr, "metrics", proxycmd.Env("WEFT_CONTROL_PLANE_METRICS", ""), "address of /metrics alone, for Prometheus, of any network and without TLS; none when empty (WEFT_CONTROL_PLANE_METRICS)")
	f.StringVar(&cfg.SnapshotKeyFile, "snapshot-key", proxycmd.Env("WEFT_SNAPSHOT_KEY", ""), "file with the private Ed25519 key, PKCS #8 in PEM, that exported snapshots are signed with; unsigned when empty (WEFT_SNAPSHOT_KEY)")
	proxycmd.Seldom(f, &cfg.Times.EtcdMaxRetry, "etcd-max-retry", 5*time.Second, "longest wait before etcd is read again")
	proxycmd.Seldom(f, &cfg.Times.EtcdProbe, "etcd-probe", 5*time.Second, "how often etcd is asked whether it went back")
	proxycmd.Seldom(f, &cfg.Times.StreamAge, "stream-age", time.Hour, "how long a discovery stream lasts, or a fifth more or less")
	proxycmd.Seldom(f, &cfg.Times.ElectionTTL, "election-ttl", 10*time.Second, "how long an elected replica may be out of etcd's sight, in whole seconds")
	proxycmd.Seldom(f, &cfg.Times.Provision, "provision-every", 30*time.Second, "time between two looks at the stores while nothing changes")
	proxycmd.Seldom(f, &cfg.Times.Register, "register-every", 2*time.Second, "time between two looks at the registry")
	proxycmd.Seldom(f, &cfg.Times.RegisterGrace, "register-grace", 30*time.Second, "how long a replica removes no proxy from the registry after its election")
	proxycmd.Seldom(f, &cfg.Times.Forget, "register-forget", 10*time.Minute, "after how long a proxy that is neither connected nor alive is removed from the registry")
	proxycmd.Seldom(f, &cfg.Times.ForgetStatus, "status-forget", 10*time.Minute, "for how long a proxy that is gone is shown in the status, in whole seconds")
	found.add(f, &cfg)
	log.Add(cmd, "info")
	return cmd
}
