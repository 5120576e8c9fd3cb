// Package proxycmd is the command that runs a proxy. It stands apart, since the
// binary for sidecars has nothing else: neither etcd nor a control plane.
package proxycmd

import (
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/weft-mesh/weft/dataplane/proxy"
	"github.com/weft-mesh/weft/store/binding"
)

// Command runs one proxy.
func Command() *cobra.Command {
	var (
		cfg   proxy.Config
		log   LogFlag
		trace TraceFlag
		push  []string
		plain bool
		mode  SocketModeFlag
		found NacosFlags
	)
	cmd := &cobra.Command{Use: "proxy --control-plane HOST:PORT --data FOLDER", Short: "Run a proxy", Args: cobra.NoArgs,
		Long: `Carries events between applications and stores, by the configuration that a control
plane streams to it. It keeps the last good one in its data folder, and starts
from there when no control plane answers; a new one starts from a file that weft
snapshot made (--snapshot-from). On SIGTERM it drains: it fails readiness,
takes no more connections, lets calls end and gives back what is not settled.`,
		Example: "  weft proxy --control-plane 127.0.0.1:7421 --data /var/lib/weft-proxy",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if cfg.Log, err = log.Logger(cmd); err != nil {
				return err
			}
			if cfg.PushAllow, err = Prefixes(push); err != nil {
				return err
			}
			cfg.AllowPlaintext = plain
			if cfg.SocketMode, err = mode.Mode(); err != nil {
				return err
			}
			defer Ballast()()
			cfg.Drivers, cfg.Options = binding.Drivers(), binding.Options
			stop, err := trace.Set(cmd.Context(), &cfg)
			if err != nil {
				return err
			}
			defer stop()
			leave, err := found.FindServices(&cfg)
			if err != nil {
				return err
			}
			defer leave()
			p, err := proxy.New(cfg)
			if err != nil {
				return err
			}
			a := p.Addrs()
			fmt.Fprintf(cmd.ErrOrStderr(), "proxy %s: clients http %s, grpc %s; readiness %s; operations %s\n", p.NodeID(), a.HTTP, a.GRPC, a.Health, a.Ops)
			Supervise(cmd.Context(), a.Ops)
			return p.Run(cmd.Context())
		}}
	f := cmd.Flags()
	f.StringSliceVar(&cfg.ControlPlane, "control-plane", List(Env("WEFT_CONTROL_PLANE", "127.0.0.1:7421")), "discovery addresses of control planes (WEFT_CONTROL_PLANE)")
	f.StringVar(&cfg.ControlPlaneTLS.CA, "control-plane-ca", Env("WEFT_CONTROL_PLANE_CA", ""), "file with the authority of the control plane's certificate; without TLS files only loopback is connected to (WEFT_CONTROL_PLANE_CA)")
	f.StringVar(&cfg.ControlPlaneTLS.Cert, "control-plane-cert", Env("WEFT_CONTROL_PLANE_CERT", ""), "file with this proxy's certificate for the control plane (WEFT_CONTROL_PLANE_CERT)")
	f.StringVar(&cfg.ControlPlaneTLS.Key, "control-plane-key", Env("WEFT_CONTROL_PLANE_KEY", ""), "file with its key (WEFT_CONTROL_PLANE_KEY)")
	f.StringVar(&cfg.JoinTokenFile, "join-token-file", Env("WEFT_JOIN_TOKEN_FILE", ""), "file with a join token, shown to the control plane while there is no certificate that is good (WEFT_JOIN_TOKEN_FILE)")
	Seldom(f, &cfg.ControlPlaneTimes.AnswerTimeout, "control-plane-answer-timeout", 15*time.Second, "how long a control plane may take to connect and to answer")
	Seldom(f, &cfg.ControlPlaneTimes.Keepalive, "control-plane-keepalive", 15*time.Second, "silence after which the control plane is asked whether it lives")
	Seldom(f, &cfg.ControlPlaneTimes.MaxRetry, "control-plane-max-retry", 10*time.Second, "longest wait between attempts to reach a control plane")
	f.StringVar(&cfg.DataDir, "data", Env("WEFT_DATA", ""), "folder for the node id, the last good configuration and embedded stores (WEFT_DATA)")
	f.StringVar(&cfg.SnapshotFile, "snapshot-from", Env("WEFT_SNAPSHOT_FROM", ""), "file of weft snapshot to start from where the data folder has no configuration as new (WEFT_SNAPSHOT_FROM)")
	f.StringVar(&cfg.SnapshotKeyFile, "snapshot-verify-key", Env("WEFT_SNAPSHOT_VERIFY_KEY", ""), "file with the public Ed25519 key, in PEM, that the snapshot file must be signed for (WEFT_SNAPSHOT_VERIFY_KEY)")
	f.StringVar(&cfg.NodeID, "node-id", Env("WEFT_NODE_ID", ""), "stable id; kept in the data folder when empty (WEFT_NODE_ID)")
	f.StringSliceVar(&cfg.Namespaces, "namespaces", List(Env("WEFT_NAMESPACES", "")), "namespaces to serve; all when empty (WEFT_NAMESPACES)")
	f.BoolVar(&cfg.OnDemand, "on-demand", false, "take of the namespaces only what governs them and the topics and subscriptions that clients use")
	f.StringSliceVar(&cfg.Preload, "preload", List(Env("WEFT_PRELOAD", "")), "on demand: what is used from the start, such as topic/shop/orders,subscription/shop/billing; the proxy is ready once it has them, or knows that they do not exist (WEFT_PRELOAD)")
	f.DurationVar(&cfg.OnDemandIdle, "on-demand-idle", time.Hour, "on demand: how long a name that nobody uses is kept")
	f.DurationVar(&cfg.OnDemandWait, "on-demand-wait", 5*time.Second, "on demand: how long a call waits for a name")
	f.IntVar(&cfg.OnDemandMax, "on-demand-max", 1000, "on demand: most topics and subscriptions in use")
	f.DurationVar(&cfg.StaleAfter, "stale-after", time.Hour, "age from which on a configuration that no control plane confirms is stale")
	f.StringSliceVar(&cfg.OnStale, "on-stale", List(Env("WEFT_ON_STALE", "")), "what a stale configuration may do: serve, the default, or deny; for one namespace NAMESPACE=deny (WEFT_ON_STALE)")
	f.BoolVar(&cfg.LeaveOnStop, "leave-on-stop", false, "leave the mesh's roster when it stops gracefully, so that no move of a topic waits for it; it then starts again only with a control plane. For proxies whose data folder goes with them")
	f.StringVar(&cfg.HTTPAddr, "http", Env("WEFT_HTTP", "127.0.0.1:7410"), "address for clients over HTTP, or unix:/path for a Unix socket (WEFT_HTTP)")
	f.StringVar(&cfg.GRPCAddr, "grpc", Env("WEFT_GRPC", "127.0.0.1:7411"), "address for clients over gRPC, or unix:/path for a Unix socket (WEFT_GRPC)")
	mode.Add(f)
	f.BoolVar(&cfg.TrustLoopback, "trust-loopback", false, "make whoever comes over loopback or a Unix socket without credentials the principal local")
	f.StringVar(&cfg.HealthAddr, "health", Env("WEFT_HEALTH", "127.0.0.1:7418"), "address of /readyz alone, for registries and orchestrators (WEFT_HEALTH)")
	f.StringVar(&cfg.MetricsAddr, "metrics", Env("WEFT_METRICS", ""), "address of /metrics alone, for Prometheus, of any network and without TLS; none when empty (WEFT_METRICS)")
	f.StringVar(&cfg.OpsAddr, "ops", Env("WEFT_OPS", "127.0.0.1:7419"), "loopback address of metrics and debugging (WEFT_OPS)")
	f.StringVar(&cfg.TLS.Cert, "cert", Env("WEFT_CERT", ""), "file with the certificate of the clients' listeners (WEFT_CERT)")
	f.StringVar(&cfg.TLS.Key, "key", Env("WEFT_KEY", ""), "file with its key (WEFT_KEY)")
	f.BoolVar(&plain, "allow-plaintext", false, "listen for clients without TLS on addresses that are not loopback; API keys then cross the network in the clear")
	f.StringVar(&cfg.AdvertiseHost, "advertise", Env("WEFT_ADVERTISE", ""), "host under which clients and registries reach this proxy; it is registered only with one (WEFT_ADVERTISE)")
	f.StringVar(&cfg.Zone, "zone", Env("WEFT_ZONE", ""), "availability zone (WEFT_ZONE)")
	f.Uint32Var(&cfg.Weight, "weight", 100, "share of load relative to other proxies, 1 to 10000")
	f.StringSliceVar(&cfg.CORSOrigins, "cors-origin", List(Env("WEFT_CORS_ORIGIN", "")), "web origins whose pages may ask over HTTP, such as https://shop.example (WEFT_CORS_ORIGIN)")
	f.StringSliceVar(&push, "push-allow", List(Env("WEFT_PUSH_ALLOW", "")), "networks that push, and fetches of keys that an Identity names, may call beside public addresses, such as 10.0.0.0/8 (WEFT_PUSH_ALLOW)")
	f.StringVar(&cfg.PushSecrets, "push-secrets", Env("WEFT_PUSH_SECRETS", ""), "folder with a folder for each namespace, with the secrets that its Subscriptions may sign and authorise pushes with (WEFT_PUSH_SECRETS)")
	found.Add(f, "services that are pushed to are found")
	f.IntVar(&cfg.Window, "window", 0, "events of a partition between delivered and durably settled, which a crash may repeat; the store's default when 0")
	f.DurationVar(&cfg.DrainGrace, "drain-grace", 0, "how long to go on taking connections after readiness has failed")
	f.DurationVar(&cfg.DrainTime, "drain-time", 25*time.Second, "bound on stopping as a whole")
	Seldom(f, &cfg.ClientStall, "client-stall", 20*time.Second, "how long a client that takes nothing is waited for")
	log.Add(cmd, "info")
	trace.Add(cmd)
	return cmd
}

// ballast is how much of the heap is never used.
const ballast = 64 << 20

// Ballast makes the heap look larger than it is, until the returned function is
// called: a proxy that moves 100 MB/s through a heap of 10 MB would collect
// garbage ten times a second. The memory is never touched, so the kernel gives
// none; it bounds the garbage that waits for a collection. Whoever sets GOGC or
// GOMEMLIMIT has it their way.
func Ballast() (release func()) {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return func() {}
	}
	b := make([]byte, ballast)
	return func() { runtime.KeepAlive(b) }
}

// Seldom adds a flag for a time that nobody needs to set but in tests and
// emergencies; docs/operations.md lists them, --help does not.
func Seldom(f *pflag.FlagSet, to *time.Duration, name string, value time.Duration, usage string) {
	f.DurationVar(to, name, value, usage)
	f.Lookup(name).Hidden = true
}

// List reads a comma-separated list; "" is an empty one.
func List(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// Prefixes reads networks.
func Prefixes(in []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range in {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("--push-allow: %q is not a network such as 10.0.0.0/8", s)
		}
		out = append(out, p)
	}
	return out, nil
}

// Env is a flag's default from the environment.
func Env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// SocketModeFlag is the mode of Unix sockets.
type SocketModeFlag struct{ mode string }

// Add adds the flag.
func (m *SocketModeFlag) Add(f *pflag.FlagSet) {
	f.StringVar(&m.mode, "socket-mode", Env("WEFT_SOCKET_MODE", "0660"), "mode of Unix sockets for clients, in octal: who may write to one may connect (WEFT_SOCKET_MODE)")
}

// Mode reads it.
func (m *SocketModeFlag) Mode() (fs.FileMode, error) {
	n, err := strconv.ParseUint(m.mode, 8, 32)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("--socket-mode: %q is not a mode in octal such as 0660", m.mode)
	}
	return fs.FileMode(n), nil
}

// LogFlag makes a logger to the command's error output.
type LogFlag struct{ level string }

// Add adds the flag to cmd.
func (f *LogFlag) Add(cmd *cobra.Command, otherwise string) {
	cmd.Flags().StringVar(&f.level, "log-level", Env("WEFT_LOG_LEVEL", otherwise), "debug, info, warn or error (WEFT_LOG_LEVEL)")
}

// Logger makes the logger.
func (f *LogFlag) Logger(cmd *cobra.Command) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(f.level)); err != nil {
		return nil, fmt.Errorf("--log-level: %q is not debug, info, warn or error", f.level)
	}
	return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: l})), nil
}
