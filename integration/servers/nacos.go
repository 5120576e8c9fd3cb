package servers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// nacosVersion is the one that java/nacos/pom.xml names.
const nacosVersion = "3.1.0"

// The administrator of every Nacos that is started here.
const (
	NacosUser     = "nacos"
	NacosPassword = "weft-test-password" //nolint:gosec // of servers on loopback that end with the tests
)

// Nacos is one standalone Nacos server with authentication.
type Nacos struct {
	*Process
	// Addr is "host:port" of its HTTP API; its gRPC port is 1000 above.
	Addr string
	// User and Password of its administrator.
	User, Password string
	dir, conf      string
	port           int
	answering      func(ctx context.Context, output []byte) error
}

// NacosOptions change what StartNacos starts.
type NacosOptions struct {
	// Properties are lines for its application.properties; a later line prevails.
	Properties []string
	// Progress is told about downloads; may be nil.
	Progress func(string)
}

// StartNacos starts a server with an empty data folder and waits until it
// serves and has its administrator.
func StartNacos(ctx context.Context, o NacosOptions) (_ *Nacos, err error) {
	dist, err := javaDir(ctx, "nacos", nacosVersion, progressOf(o.Progress))
	if err != nil {
		return nil, err
	}
	// Both of these have the same classes; without this order pushes to
	// subscribers fail silently.
	cp, err := classPath(dist, "hessian-4.")
	if err != nil {
		return nil, err
	}
	if err := need("java", "openjdk-17-jdk-headless"); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "weft-nacos-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	port, err := FreePort(1000, 1001, -1000)
	if err != nil {
		return nil, err
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	conf := filepath.Join(dir, "conf")
	n := &Nacos{Addr: addr, User: NacosUser, Password: NacosPassword, dir: dir, conf: conf, port: port,
		answering: answers("http://" + addr + "/nacos/v3/admin/core/state/readiness"), Process: &Process{
			Name: "Nacos", Log: filepath.Join(dir, "nacos.log"),
			Args: []string{"java", "-Dnacos.standalone=true", "-Dnacos.home=" + filepath.Join(dir, "home"), "-Duser.home=" + dir, "-Djava.io.tmpdir=" + dir,
				"-Dnacos.remote.grpc.listen.ip=127.0.0.1", "-Dderby.stream.error.file=" + filepath.Join(dir, "derby.log"), "-Xms128m", "-Xmx512m", "-XX:+UseSerialGC",
				"--add-opens=java.base/java.lang=ALL-UNNAMED", "--add-opens=java.base/java.util=ALL-UNNAMED",
				"-cp", cp, "Launcher", "--spring.config.additional-location=file:" + conf + "/"},
		}}
	if err := n.Configure(o.Properties...); err != nil {
		return nil, err
	}
	if err := n.Begin(ctx); err != nil {
		return nil, err
	}
	return n, nil
}

// Configure sets the properties that hold from the next start on: those that a
// test needs, and more, of which later ones prevail.
func (n *Nacos) Configure(more ...string) error {
	if err := os.MkdirAll(n.conf, 0o700); err != nil {
		return err
	}
	return writeLines(filepath.Join(n.conf, "application.properties"), append([]string{
		"nacos.server.main.port=" + strconv.Itoa(n.port),
		"server.port=" + strconv.Itoa(n.port),
		"server.address=127.0.0.1",
		"nacos.inetutils.ip-address=127.0.0.1",
		"spring.sql.init.platform=derby",
		"db.pool.config.connectionTimeout=120000",
		"nacos.core.auth.enabled=true",
		"nacos.core.auth.admin.enabled=true",
		"nacos.core.auth.system.type=nacos",
		"nacos.core.auth.server.identity.key=weft-test",
		"nacos.core.auth.server.identity.value=weft-test",
		"nacos.core.auth.plugin.nacos.token.secret.key=d2VmdC10ZXN0LXdlZnQtdGVzdC13ZWZ0LXRlc3Qtd2VmdC10ZXN0",
		"nacos.core.auth.plugin.nacos.token.expire.seconds=18000",
	}, more...)...)
}

// Begin starts a server that does not run with an empty data folder, and waits
// until it serves and has its administrator.
func (n *Nacos) Begin(ctx context.Context) error {
	if err := os.RemoveAll(filepath.Join(n.dir, "home")); err != nil {
		return err
	}
	n.Ready = n.answering
	if err := n.Start(ctx); err != nil {
		return err
	}
	if err := n.makeAdministrator(ctx); err != nil {
		return errors.Join(err, n.Kill())
	}
	// From here on ready means that the user can log in, which a server refuses
	// for a while after each start.
	n.Ready = func(ctx context.Context, output []byte) error {
		if err := n.answering(ctx, output); err != nil {
			return err
		}
		return n.postForm(ctx, "/nacos/v3/auth/user/login", url.Values{"username": {n.User}, "password": {n.Password}})
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := n.Ready(ctx, nil)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("the user cannot log in: %w", err), n.Kill())
		}
	}
}

// makeAdministrator sets the password, which a new server has none of. The
// server answers before it is quite able to.
func (n *Nacos) makeAdministrator(ctx context.Context) error {
	for {
		err := n.postForm(ctx, "/nacos/v3/auth/user/admin", url.Values{"password": {n.Password}})
		if err == nil {
			return nil
		}
		timer := time.NewTimer(200 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("make the administrator: %w", err)
		}
	}
}

func (n *Nacos) postForm(ctx context.Context, path string, form url.Values) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+n.Addr+path, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", path, resp.Status)
	}
	return nil
}

// Stop ends the server and removes its data.
func (n *Nacos) Stop() error { return errors.Join(n.Kill(), os.RemoveAll(n.dir)) }
