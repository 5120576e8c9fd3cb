package weft

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/pflag"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/pkg/outage"
	"github.com/weft-mesh/weft/pkg/tlsconf"
	"github.com/weft-mesh/weft/tools/proxycmd"
)

// etcdFlags say where etcd is, and as whom it is asked.
type etcdFlags struct {
	endpoints          []string
	user, passwordFile string
	tls                tlsconf.Files
}

func (e *etcdFlags) add(f *pflag.FlagSet) {
	f.StringSliceVar(&e.endpoints, "etcd", proxycmd.List(proxycmd.Env("WEFT_ETCD", "")), "endpoints of etcd, http://HOST:PORT, or https://HOST:PORT for TLS (WEFT_ETCD)")
	f.StringVar(&e.user, "etcd-user", proxycmd.Env("WEFT_ETCD_USER", ""), "user of etcd (WEFT_ETCD_USER)")
	f.StringVar(&e.passwordFile, "etcd-password-file", proxycmd.Env("WEFT_ETCD_PASSWORD_FILE", ""), "file with its password, which goes to loopback or over TLS alone (WEFT_ETCD_PASSWORD_FILE)")
	f.StringVar(&e.tls.CA, "etcd-ca", proxycmd.Env("WEFT_ETCD_CA", ""), "file with the authorities that etcd's certificate must have; the system's when empty (WEFT_ETCD_CA)")
	f.StringVar(&e.tls.Cert, "etcd-cert", proxycmd.Env("WEFT_ETCD_CERT", ""), "file with the certificate to show etcd, where it asks for one (WEFT_ETCD_CERT)")
	f.StringVar(&e.tls.Key, "etcd-key", proxycmd.Env("WEFT_ETCD_KEY", ""), "file with its key (WEFT_ETCD_KEY)")
}

// etcdEndpoint is what an endpoint says.
type etcdEndpoint struct {
	secure bool
	// here: nobody else hears what is said to it.
	here bool
}

// readEtcdEndpoint reads one as the client of etcd does.
func readEtcdEndpoint(s string) (etcdEndpoint, error) {
	if strings.Contains(s, "@") { // it would be shown
		return etcdEndpoint{}, errors.New("an endpoint has no user and no password: they are named with --etcd-user and --etcd-password-file")
	}
	if strings.HasPrefix(s, "unix:") || strings.HasPrefix(s, "unixs:") {
		return etcdEndpoint{secure: strings.HasPrefix(s, "unixs:"), here: true}, nil
	}
	if !strings.Contains(s, "://") {
		host, _, err := net.SplitHostPort(s)
		if err != nil {
			return etcdEndpoint{}, fmt.Errorf("%q is neither http://HOST:PORT nor https://HOST:PORT", s)
		}
		return etcdEndpoint{here: onLoopback(host)}, nil
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return etcdEndpoint{}, fmt.Errorf("%q is neither http://HOST:PORT nor https://HOST:PORT", s)
	}
	return etcdEndpoint{u.Scheme == "https", onLoopback(u.Hostname())}, nil
}

// onLoopback reports whether a host is this machine, without asking anyone.
func onLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// check refuses what cannot be meant, and tells whether etcd is spoken to by TLS.
func (e *etcdFlags) check() (secure bool, err error) {
	if len(e.endpoints) == 0 {
		return false, errors.New("--etcd: name the endpoints of etcd")
	}
	if (e.user == "") != (e.passwordFile == "") {
		return false, errors.New("--etcd-user and --etcd-password-file go together")
	}
	if (e.tls.Cert == "") != (e.tls.Key == "") {
		return false, errors.New("--etcd-cert and --etcd-key go together")
	}
	for i, s := range e.endpoints {
		at, err := readEtcdEndpoint(s)
		if err != nil {
			return false, fmt.Errorf("--etcd: %w", err)
		}
		if i == 0 {
			secure = at.secure
		}
		switch {
		case at.secure != secure: // the client would take all as it takes the first
			return false, fmt.Errorf("--etcd: %s and %s: either all endpoints are https:// or none is", e.endpoints[0], s)
		case secure:
		case !e.tls.Empty():
			return false, fmt.Errorf("%s: %s is not https://, so no TLS would be spoken: write https:// in --etcd, or leave the files out", e.tlsFlags(), s)
		case e.user != "" && !at.here:
			return false, fmt.Errorf("--etcd-password-file: the password is not sent to %s in the clear: write https:// in --etcd, with the authority of etcd's certificate in --etcd-ca", s)
		}
	}
	return secure, nil
}

// tlsFlags are the flags that name files.
func (e *etcdFlags) tlsFlags() string {
	var given []string
	for _, f := range [][2]string{{"--etcd-ca", e.tls.CA}, {"--etcd-cert", e.tls.Cert}, {"--etcd-key", e.tls.Key}} {
		if f[1] != "" {
			given = append(given, f[0])
		}
	}
	return strings.Join(given, ", ")
}

// files opens those of TLS. They are tried one by one, so that the error names the flag.
func (e *etcdFlags) files(log *slog.Logger) (*tlsconf.Source, error) {
	if _, err := tlsconf.Open("etcd", tlsconf.Files{CA: e.tls.CA}, log); err != nil {
		return nil, fmt.Errorf("--etcd-ca: %w", err)
	}
	files, err := tlsconf.Open("etcd", e.tls, log)
	if err != nil {
		return nil, fmt.Errorf("--etcd-cert, --etcd-key: %w", err)
	}
	return files, nil
}

// etcdTime bounds an attempt to connect, and the wait between two: a replica is back
// soon after etcd is, or after files are right.
const etcdTime = 5 * time.Second

// open sets cfg's client of etcd, which the caller closes.
func (e *etcdFlags) open(cfg *server.Config) error {
	secure, err := e.check()
	if err != nil {
		return err
	}
	conns := &etcdConns{log: cfg.Log, logs: map[string]*outage.Log{}}
	creds := etcdCredentials{insecure.NewCredentials(), secure, conns}
	if secure {
		files, err := e.files(cfg.Log)
		if err != nil {
			return err
		}
		if creds.TransportCredentials = files.Credentials(nil); !e.tls.Empty() {
			cfg.TLSSources = append(cfg.TLSSources, files)
		}
	}
	// What the client would log comes back as errors too. It takes the last credentials
	// that it is given.
	c := clientv3.Config{Logger: zap.NewNop(), Endpoints: e.endpoints, DialTimeout: etcdTime, DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 5 * time.Second, Username: e.user,
		DialOptions: []grpc.DialOption{grpc.WithTransportCredentials(creds),
			grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: etcdTime, Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 2, Jitter: 0.2, MaxDelay: etcdTime}})}}
	if e.passwordFile != "" {
		b, err := os.ReadFile(e.passwordFile)
		if err != nil {
			return fmt.Errorf("--etcd-password-file: %w", err)
		}
		if c.Password = strings.TrimSpace(string(b)); c.Password == "" {
			return fmt.Errorf("--etcd-password-file: %s is empty", e.passwordFile)
		}
	}
	if cfg.Etcd, err = clientv3.New(c); err != nil {
		// With a user it has waited for a connection, and says only that it had none.
		return fmt.Errorf("--etcd: %w", cmp.Or(conns.failed(), err))
	}
	cfg.Log.Debug("etcd", "endpoints", e.endpoints)
	return nil
}

// etcdConns tells of connections that fail once they are made: the client tries again,
// and tells nobody.
type etcdConns struct {
	log *slog.Logger

	mu   sync.Mutex
	logs map[string]*outage.Log // by endpoint
	last error
}

// failed is why the last attempt did; nil where it did not.
func (e *etcdConns) failed() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.last
}

// tell says how it went with an endpoint.
func (e *etcdConns) tell(endpoint string, err error) {
	if errors.Is(err, context.Canceled) { // by the client that is closed
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last = err
	l := e.logs[endpoint]
	if l == nil {
		l = outage.New(e.log.With("endpoint", endpoint), "no connection to etcd", "there is a connection to etcd again")
		e.logs[endpoint] = l
	}
	l.Is(err)
}

func etcdAdvice() tlsconf.Advice {
	return tlsconf.Advice{CA: "--etcd-ca", Cert: "--etcd-cert", Name: "name etcd in --etcd as its certificate does",
		Plain: "name etcd with http:// in --etcd, or a port that does", Secure: "https:// in --etcd turns on"}
}

// etcdCredentials are credentials whose connections are told of.
type etcdCredentials struct {
	credentials.TransportCredentials
	secure bool
	to     *etcdConns
}

// ClientHandshake implements credentials.TransportCredentials. The client gives each
// endpoint's own host and port as the authority.
func (c etcdCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		err = etcdAdvice().Handshake(err)
		c.to.tell(authority, err)
		return nil, nil, err
	}
	return &etcdConn{Conn: conn, tell: func(err error) {
		if err != nil {
			err = etcdAdvice().Unanswered(c.secure, err)
		}
		c.to.tell(authority, err)
	}}, info, nil
}

// Clone implements credentials.TransportCredentials.
func (c etcdCredentials) Clone() credentials.TransportCredentials {
	c.TransportCredentials = c.TransportCredentials.Clone()
	return c
}

// etcdConn tells how a connection begins: with TLS 1.3 a server refuses a certificate
// when the client's handshake is done, so that the first read or write fails.
type etcdConn struct {
	net.Conn
	begun atomic.Bool
	tell  func(error)
}

// Read implements net.Conn.
func (c *etcdConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.begins(nil)
	} else if err != nil {
		c.begins(err)
	}
	return n, err
}

// Write implements net.Conn. That it works says nothing of the other side.
func (c *etcdConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err != nil {
		c.begins(err)
	}
	return n, err
}

func (c *etcdConn) begins(err error) {
	if c.begun.Load() || errors.Is(err, net.ErrClosed) /* by this side */ || c.begun.Swap(true) {
		return
	}
	c.tell(err)
}
