// Package weft is the command line: the mesh in one process, its planes one by
// one, and the verbs for people and scripts.
package weft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/census"
	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/tlsconf"
	"github.com/weft-mesh/weft/pkg/version"
	"github.com/weft-mesh/weft/tools/proxycmd"
)

// Main runs the command line and returns the exit status: 0, or 1 after an
// error, which it has printed; weft diff and weft schema check have their own.
func Main(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	out, errOut = forPeople(out), forPeople(errOut)
	root := Command()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	if err := root.ExecuteContext(ctx); err != nil {
		code := 1
		if e, ok := errors.AsType[exitStatus](err); ok {
			if code = e.code; e.error == nil {
				return code
			}
			err = e.error
		}
		fmt.Fprintln(errOut, "weft: "+explain(err))
		return code
	}
	return 0
}

// Command is the root command.
func Command() *cobra.Command {
	root := &cobra.Command{Use: "weft", Short: "An event mesh: what a service mesh is to calls, for events",
		Long: `Weft takes events in over what applications speak, applies policy, and moves them
to and from the middleware that stores them.

  weft up                 the whole mesh in one process, to try it
  weft apply -f FILE      change the configuration
  weft status             who has it, who has not, and what is not ready and why
  weft publish, subscribe send and see events
  weft request, reply     ask, and answer
  weft eval               where an event would go, from files
  weft schema check       whether schemas, changes of them and data are right, from files
  weft trace, why         what happened to an event, and why it did not arrive
  weft dlq                what could not be delivered, and to deliver it again
  weft migrate            move a topic to another store while it is used

Every command has examples: weft COMMAND --help. The exit status is 0, or 1 after
an error (weft diff: 1 where something differs, weft schema check: 1 where something is
wrong, both 2 after an error); Ctrl-C stops what runs gracefully. On a terminal control
characters of events are shown escaped, through a pipe they are as they are. "source <(weft
completion bash)" makes a shell complete commands, kinds and names.`,
		SilenceUsage: true, SilenceErrors: true, Version: version.String()}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w\n%s --help lists what there is", err, cmd.CommandPath())
	})
	root.AddCommand(upCommand(), controlPlaneCommand(), proxycmd.Command(), applyCommand(), diffCommand(), getCommand(), exportCommand(), deleteCommand(), historyCommand(), rollbackCommand(), statusCommand(), waitCommand(), snapshotCommand(), proxiesCommand(), adminCommand(),
		publishCommand(), requestCommand(), replyCommand(), subscribeCommand(), pullCommand(), settleCommand(), dlqCommand(), migrateCommand(), traceCommand(), whyCommand(), evalCommand(), schemaCommand(), apiKeyCommand(), benchCommand(), versionCommand())
	sayUsage(root)
	return root
}

// sayUsage lets errors about arguments end with how each command is used.
func sayUsage(parent *cobra.Command) {
	for _, c := range parent.Commands() {
		if args := c.Args; args != nil && !c.HasSubCommands() {
			c.Args = func(cmd *cobra.Command, in []string) error {
				err := args(cmd, in)
				if none := cobra.NoArgs(cmd, in); err != nil && none != nil && err.Error() == none.Error() { // no command is looked for
					err = fmt.Errorf("%s takes flags alone, and has %q", cmd.CommandPath(), in[0])
				}
				if err != nil {
					return fmt.Errorf("%w\nusage: %s", err, cmd.UseLine())
				}
				return nil
			}
		}
		sayUsage(c)
	}
}

// group gives cmd its commands; by itself it is its help, and says so where a command is
// spelled wrong.
func group(cmd *cobra.Command, of ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(of...)
	cmd.SuggestionsMinimumDistance = 2
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		meant := ""
		for _, s := range cmd.SuggestionsFor(args[0]) {
			meant += "\n\t" + s
		}
		if meant != "" {
			meant = "\n\nDid you mean this?" + meant + "\n"
		}
		return fmt.Errorf("unknown command %q for %q%s\n%s --help lists what there is", args[0], cmd.CommandPath(), meant, cmd.CommandPath())
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return cmd
}

func versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs, Example: "  weft version", RunE: func(cmd *cobra.Command, _ []string) error {
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "weft", version.String())
		return err
	}}
}

// explain makes an error's text for people.
func explain(err error) string {
	if e, ok := errors.AsType[*client.Error](err); ok {
		if e.Reason == "" && (e.Code == codes.Unavailable || e.Code == codes.DeadlineExceeded) {
			return strings.TrimPrefix(e.Message, "latest balancer error: ") + "\nis a proxy there, and is that its port for gRPC (7411 if nothing else was said)? it is named with --proxy (WEFT_PROXY)"
		}
		if e.Reason == "access-denied" && strings.HasPrefix(e.Message, "no AccessPolicy ") {
			return e.Message + "\nis the name right? weft get says what there is; an AccessPolicy lets others in"
		}
		return e.Message
	}
	st, ok := status.FromError(err)
	if !ok {
		return err.Error()
	}
	for _, d := range st.Details() {
		if br, ok := d.(*errdetails.BadRequest); ok {
			var b strings.Builder
			fmt.Fprintf(&b, "refused, nothing was changed:")
			for _, v := range br.FieldViolations {
				fmt.Fprintf(&b, "\n  %s: %s", v.Field, v.Description)
			}
			return b.String()
		}
	}
	if st.Code() == codes.NotFound && strings.HasSuffix(st.Message(), " does not exist") {
		// It may be in another namespace, or be spelled otherwise.
		if kind, _, ok := strings.Cut(st.Message(), "/"); ok {
			return st.Message() + "; weft get " + kind + " -A lists what does"
		}
	}
	if st.Code() == codes.Unimplemented {
		return "what is at this address has no such call: is it a proxy, or a control plane of another version? --server (WEFT_SERVER) names the admin API, whose port is 7420 if nothing else was said"
	}
	if st.Code() == codes.Unauthenticated && st.Message() != "" {
		return st.Message() + "\n--server-token-file (WEFT_TOKEN_FILE) or --server-cert say who you are"
	}
	// What a control plane itself answers says by itself what to do.
	if st.Code() == codes.Unavailable && ofConnection(st.Message()) {
		return st.Message() + "\nis the control plane there, and does it know the certificate of --server-cert, where it asks for one? it is named with --server (WEFT_SERVER)"
	}
	return st.Message()
}

// ofConnection reports whether a message is gRPC's own, of a server that it does not reach or
// whose connection broke.
func ofConnection(message string) bool {
	for _, words := range []string{"connection", "transport", "resolver", "error reading", "HTTP status", "keepalive", "EOF", "tcp ", "unix ", "tls: ", "x509: "} {
		if strings.Contains(message, words) {
			return true
		}
	}
	return false
}

// callTimeout bounds one call of the admin API.
const callTimeout = 15 * time.Second

// adminFlags say where the admin API is.
type adminFlags struct {
	server    string
	tls       tlsconf.Files
	tokenFile string
}

// adminDefaults are what the environment says, or what weft up serves.
func adminDefaults() adminFlags {
	return adminFlags{server: proxycmd.Env("WEFT_SERVER", "127.0.0.1:7420"),
		tls:       tlsconf.Files{CA: proxycmd.Env("WEFT_SERVER_CA", ""), Cert: proxycmd.Env("WEFT_SERVER_CERT", ""), Key: proxycmd.Env("WEFT_SERVER_KEY", "")},
		tokenFile: proxycmd.Env("WEFT_TOKEN_FILE", "")}
}

func (f *adminFlags) add(cmd *cobra.Command) {
	d := adminDefaults()
	cmd.Flags().StringVar(&f.server, "server", d.server, "address of the admin API (WEFT_SERVER)")
	cmd.Flags().StringVar(&f.tls.CA, "server-ca", d.tls.CA, "file with the authority of the control plane's certificate; without it the connection is plaintext, for loopback (WEFT_SERVER_CA)")
	cmd.Flags().StringVar(&f.tls.Cert, "server-cert", d.tls.Cert, "file with the own certificate (WEFT_SERVER_CERT)")
	cmd.Flags().StringVar(&f.tls.Key, "server-key", d.tls.Key, "file with its key (WEFT_SERVER_KEY)")
	cmd.Flags().StringVar(&f.tokenFile, "server-token-file", d.tokenFile, "file with the token to show the control plane (WEFT_TOKEN_FILE; the token itself may be in WEFT_TOKEN)")
}

func (f *adminFlags) dial() (adminv1.AdminServiceClient, func(), error) {
	if scheme, rest, ok := strings.Cut(f.server, "://"); ok {
		return nil, nil, fmt.Errorf("--server: name the address alone, without %s://: %s", scheme, strings.TrimRight(rest, "/"))
	}
	host, _, err := net.SplitHostPort(f.server)
	if err != nil {
		return nil, nil, fmt.Errorf("--server: %q is not HOST:PORT; the admin API's port is 7420, if nothing else was said", f.server)
	}
	opts := []grpc.DialOption{grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(census.MaxAnswer))}
	creds := insecure.NewCredentials()
	if !f.tls.Empty() {
		files, err := tlsconf.Open("server", f.tls, nil)
		if err != nil {
			return nil, nil, err
		}
		creds = files.Credentials(nil)
	}
	secret, err := f.token()
	if err != nil {
		return nil, nil, err
	}
	if secret != "" {
		if f.tls.Empty() && !onLoopback(host) {
			return nil, nil, fmt.Errorf("the token is not sent to %s in the clear: name the authority of its certificate with --server-ca", f.server)
		}
		opts = append(opts, grpc.WithPerRPCCredentials(bearer(secret)))
	}
	conn, err := grpc.NewClient(f.server, append(opts, grpc.WithTransportCredentials(creds))...)
	if err != nil {
		return nil, nil, fmt.Errorf("--server: %w", err)
	}
	return adminv1.NewAdminServiceClient(conn), func() { _ = conn.Close() }, nil
}

// token is what to show the control plane; "" for nothing.
func (f *adminFlags) token() (string, error) {
	if f.tokenFile == "" {
		return strings.TrimSpace(os.Getenv("WEFT_TOKEN")), nil
	}
	b, err := os.ReadFile(f.tokenFile)
	if err != nil {
		return "", fmt.Errorf("--server-token-file: %w", err)
	}
	secret := strings.TrimSpace(string(b))
	if secret == "" || strings.ContainsAny(secret, " \r\n") {
		return "", fmt.Errorf("--server-token-file: %s has not one token", f.tokenFile)
	}
	return secret, nil
}

// bearer is a token that goes with every call. That it does so only over TLS or
// loopback is seen to where it is made.
type bearer string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (b bearer) RequireTransportSecurity() bool { return false }

// proxyFlags say where a proxy is and who asks.
type proxyFlags struct {
	proxies []string
	tls     tlsconf.Files
	keyFile string
}

func (f *proxyFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&f.proxies, "proxy", strings.Split(proxycmd.Env("WEFT_PROXY", "127.0.0.1:7411"), ","), "gRPC addresses of proxies, HOST:PORT or unix:/path (WEFT_PROXY)")
	cmd.Flags().StringVar(&f.tls.CA, "proxy-ca", proxycmd.Env("WEFT_PROXY_CA", ""), "file with the authority of the proxies' certificates; without it the connection is plaintext (WEFT_PROXY_CA)")
	cmd.Flags().StringVar(&f.tls.Cert, "proxy-cert", proxycmd.Env("WEFT_PROXY_CERT", ""), "file with the own certificate (WEFT_PROXY_CERT)")
	cmd.Flags().StringVar(&f.tls.Key, "proxy-key", proxycmd.Env("WEFT_PROXY_KEY", ""), "file with its key (WEFT_PROXY_KEY)")
	cmd.Flags().StringVar(&f.keyFile, "api-key-file", proxycmd.Env("WEFT_API_KEY_FILE", ""), "file with the API key (WEFT_API_KEY_FILE; the key itself may be in WEFT_API_KEY)")
}

func (f *proxyFlags) dial() (*client.Client, error) {
	cfg := client.Config{Addresses: f.proxies, TLSFiles: f.tls}
	switch key := strings.TrimSpace(os.Getenv("WEFT_API_KEY")); {
	case f.keyFile != "":
		cfg.APIKey = client.APIKeyFile(f.keyFile)
		if _, err := cfg.APIKey(); err != nil { // the client would wait until it can be read
			return nil, fmt.Errorf("--api-key-file: %w", err)
		}
	case key != "":
		cfg.APIKey = func() (string, error) { return key, nil }
	}
	return client.New(cfg)
}

// reachTimeout is how long a command that is over soon waits for a proxy to be there.
const reachTimeout = 5 * time.Second

// reach is dial for commands that are over soon: it fails where no proxy is there.
func (f *proxyFlags) reach(ctx context.Context) (*client.Client, error) {
	c, err := f.dial()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	if err := c.Connect(ctx); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}
