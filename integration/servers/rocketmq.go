package servers

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/pkg/tlsconf"
	"github.com/weft-mesh/weft/store/rocketmq/remoting"
)

// rocketMQVersion is the one that java/rocketmq/pom.xml names.
const rocketMQVersion = "5.3.3"

// RocketMQ is a name server and brokers.
type RocketMQ struct {
	// NameServer is "host:port".
	NameServer string
	// BrokerAddr is "host:port" of the first broker; BrokerName its name in routes.
	BrokerAddr, BrokerName string
	// Data is the folder in which the first broker keeps what it has.
	Data string
	// Names and Broker are the processes of the name server and the first broker.
	Names, Broker *Process
	// Brokers are those of all brokers: broker-a, broker-b and so on.
	Brokers   []*Process
	options   RocketMQOptions
	classPath string
	dir       string
	// accessKey and secretKey of the user who may do everything, if any.
	accessKey, secretKey string
}

// RocketMQOptions change what StartRocketMQ starts. The zero value is what the
// mesh promises on.
type RocketMQOptions struct {
	// Brokers is how many; 1 when 0.
	Brokers int
	// AsyncFlush answers before the event is on disk.
	AsyncFlush bool
	// Broker has more lines for each broker's configuration.
	Broker []string
	// AccessKey and SecretKey, where set, have the broker take signed requests
	// alone: those of this user, who may do everything, and of those whom it
	// makes.
	AccessKey, SecretKey string
	// TLS, where set, has servers and clients speak nothing else, show the certificate
	// (the key in PKCS #8) and ask for one of its authorities. Servers read files that
	// change; a broker as the name servers' client reads them at its start.
	TLS tlsconf.Files
	// Progress is told about downloads; may be nil.
	Progress func(string)
}

// StartRocketMQ starts a name server and brokers with sync flush and waits until all
// serve.
func StartRocketMQ(ctx context.Context, o RocketMQOptions) (_ *RocketMQ, err error) {
	dist, err := javaDir(ctx, "rocketmq", rocketMQVersion, progressOf(o.Progress))
	if err != nil {
		return nil, err
	}
	cp, err := classPath(dist)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "weft-rocketmq-")
	if err != nil {
		return nil, err
	}
	r := &RocketMQ{dir: dir, classPath: cp, options: o, BrokerName: "broker-a", accessKey: o.AccessKey, secretKey: o.SecretKey}
	defer func() {
		if err != nil {
			_ = r.Stop()
		}
	}()
	namesPort, err := FreePort()
	if err != nil {
		return nil, err
	}
	r.NameServer = net.JoinHostPort("127.0.0.1", strconv.Itoa(namesPort))
	namesFile := filepath.Join(dir, "namesrv.properties")
	if err := writeLines(namesFile,
		"listenPort="+strconv.Itoa(namesPort),
		"bindAddress=127.0.0.1",
		"kvConfigPath="+filepath.Join(dir, "namesrv", "kv.json"),
		"rocketmqHome="+dir); err != nil {
		return nil, err
	}
	if err := r.writeTLS(); err != nil {
		return nil, err
	}
	r.Names = &Process{
		Name: "RocketMQ name server", Log: filepath.Join(dir, "namesrv.log"),
		Args:  r.jvm("org.apache.rocketmq.namesrv.NamesrvStartup", namesFile, "128m", "256m"),
		Ready: printed("boot success"),
	}
	r.Data = filepath.Join(dir, "store")
	if r.Broker, r.BrokerAddr, err = r.newBroker(r.BrokerName, filepath.Base(r.Data)); err != nil {
		return nil, err
	}
	r.Brokers = append(r.Brokers, r.Broker)
	for i := 1; i < o.Brokers; i++ {
		name := "broker-" + string(rune('a'+i))
		p, _, err := r.newBroker(name, "store-"+name)
		if err != nil {
			return nil, err
		}
		r.Brokers = append(r.Brokers, p)
	}
	if err := need("java", "openjdk-17-jdk-headless"); err != nil {
		return nil, err
	}
	if err := r.Names.Start(ctx); err != nil {
		return nil, err
	}
	var g errgroup.Group
	for _, p := range r.Brokers {
		g.Go(func() error { return p.Start(ctx) })
	}
	return r, g.Wait()
}

// newBroker is a broker that keeps its data in a folder, and where it will serve.
func (r *RocketMQ) newBroker(name, folder string) (_ *Process, addr string, err error) {
	// It also listens on its port less 2 and plus 1.
	port, err := FreePort(-2, 1)
	if err != nil {
		return nil, "", err
	}
	flush := "SYNC_FLUSH"
	if r.options.AsyncFlush {
		flush = "ASYNC_FLUSH"
	}
	lines := []string{
		"brokerClusterName=DefaultCluster",
		"brokerName=" + name,
		"brokerId=0",
		"brokerIP1=127.0.0.1",
		"bindAddress=127.0.0.1",
		"listenPort=" + strconv.Itoa(port),
		"namesrvAddr=" + r.NameServer,
		"storePathRootDir=" + filepath.Join(r.dir, folder),
		"storePathCommitLog=" + filepath.Join(r.dir, folder, "commitlog"),
		"mappedFileSizeCommitLog=67108864",
		"mappedFileSizeConsumeQueue=600000",
		"maxIndexNum=100000",
		"maxHashSlotNum=25000",
		"diskMaxUsedSpaceRatio=99",
		"timerWheelEnable=true",
		"autoCreateTopicEnable=false",
		"autoCreateSubscriptionGroup=true",
		"flushDiskType=" + flush,
	}
	lines = append(lines, r.options.Broker...)
	if r.accessKey != "" {
		lines = append(lines, accessControl(r.accessKey, r.secretKey)...)
	}
	file := filepath.Join(r.dir, name+".properties")
	if err := writeLines(file, lines...); err != nil {
		return nil, "", err
	}
	addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	return &Process{
		Name: "RocketMQ " + name, Log: filepath.Join(r.dir, name+".log"),
		Args:  r.jvm("org.apache.rocketmq.broker.BrokerStartup", file, "512m", "512m"),
		Ready: func(ctx context.Context, output []byte) error { return r.brokerReady(ctx, addr, output) },
	}, addr, nil
}

// jvm is a process of RocketMQ's.
func (r *RocketMQ) jvm(main, file, direct, heap string) []string {
	mode, enable := "permissive", "false"
	if !r.options.TLS.Empty() {
		mode, enable = "enforcing", "true"
	}
	return []string{"java", "-Dtls.config.file=" + r.tlsFile(), "-Dtls.server.mode=" + mode, "-Dtls.enable=" + enable, "-Drocketmq.home.dir=" + r.dir, "-Duser.home=" + r.dir, "-Djava.io.tmpdir=" + r.dir,
		"--add-exports=java.base/jdk.internal.ref=ALL-UNNAMED",
		"--add-opens=java.base/sun.nio.ch=ALL-UNNAMED", "--add-opens=java.base/java.nio=ALL-UNNAMED",
		"-Xms128m", "-Xmx" + heap, "-XX:MaxDirectMemorySize=" + direct, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=4",
		"-cp", r.classPath, main, "-c", file}
}

func (r *RocketMQ) tlsFile() string { return filepath.Join(r.dir, "tls.properties") }

// writeTLS writes what both servers read of TLS.
func (r *RocketMQ) writeTLS() error {
	f := r.options.TLS
	if f.Empty() {
		return nil
	}
	lines := []string{"tls.test.mode.enable=false", "tls.server.need.client.auth=require", "tls.server.authClient=true", "tls.client.authServer=true"}
	for _, side := range []string{"server", "client"} {
		lines = append(lines, "tls."+side+".certPath="+f.Cert, "tls."+side+".keyPath="+f.Key, "tls."+side+".trustCertPath="+f.CA)
	}
	return writeLines(r.tlsFile(), lines...)
}

// dial connects to one of the servers, as they do to each other.
func (r *RocketMQ) dial(ctx context.Context, addr string) (*remoting.Conn, error) {
	if r.options.TLS.Empty() {
		return remoting.Dial(ctx, addr, nil, nil)
	}
	return remoting.Dial(ctx, addr, func() (*tls.Config, error) { return tlsconf.Client(r.options.TLS) }, nil)
}

// accessControl is the broker's configuration for RocketMQ's access control, with
// one user.
func accessControl(accessKey, secretKey string) []string {
	const auth = "org.apache.rocketmq.auth."
	return []string{
		"authenticationEnabled=true",
		"authenticationProvider=" + auth + "authentication.provider.DefaultAuthenticationProvider",
		"authenticationMetadataProvider=" + auth + "authentication.provider.LocalAuthenticationMetadataProvider",
		fmt.Sprintf(`initAuthenticationUser={"username":%q,"password":%q}`, accessKey, secretKey),
		fmt.Sprintf(`innerClientAuthenticationCredentials={"accessKey":%q,"secretKey":%q}`, accessKey, secretKey),
		"authorizationEnabled=true",
		"authorizationProvider=" + auth + "authorization.provider.DefaultAuthorizationProvider",
		"authorizationMetadataProvider=" + auth + "authorization.provider.LocalAuthorizationMetadataProvider",
	}
}

// brokerReady is ready once the broker serves and the name server says where it
// is. A registration that fails, as on a machine that is busy, is tried again by
// the broker half a minute later, long after it has printed that it is up.
func (r *RocketMQ) brokerReady(ctx context.Context, addr string, output []byte) error {
	if err := printed("boot success")(ctx, output); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := r.dial(ctx, r.NameServer)
	if err != nil {
		return err
	}
	defer c.Close()
	cmd, err := c.Call(ctx, reqCluster, nil, nil)
	if err != nil {
		return err
	}
	if !bytes.Contains(cmd.Body, []byte(addr)) {
		return fmt.Errorf("the name server does not know the broker at %s", addr)
	}
	return nil
}

// reqCluster asks the name server for its brokers.
const reqCluster = 106

// Codes of the broker's requests about users.
const (
	reqCreateUser = 3001
	reqUpdateUser = 3002
	reqCreateACL  = 3006
)

// SetUser makes a user without rights, or changes the password of one. It needs
// RocketMQOptions.AccessKey.
func (r *RocketMQ) SetUser(ctx context.Context, name, password string) error {
	body, err := json.Marshal(map[string]string{"username": name, "password": password, "userType": "Normal", "userStatus": "enable"})
	if err != nil {
		return err
	}
	fields := map[string]string{"username": name}
	created := r.administer(ctx, reqCreateUser, fields, body)
	if created == nil {
		return nil
	}
	if err := r.administer(ctx, reqUpdateUser, fields, body); err != nil {
		return errors.Join(created, err)
	}
	return nil
}

// Allow lets a user publish to, subscribe in and ask about resources ("Topic:*").
func (r *RocketMQ) Allow(ctx context.Context, user string, resources ...string) error {
	return r.decide(ctx, user, "Allow", resources)
}

// Deny takes from a user what Allow gives.
func (r *RocketMQ) Deny(ctx context.Context, user string, resources ...string) error {
	return r.decide(ctx, user, "Deny", resources)
}

func (r *RocketMQ) decide(ctx context.Context, user, decision string, resources []string) error {
	var entries []map[string]any
	for _, res := range resources {
		entries = append(entries, map[string]any{"resource": res, "actions": []string{"Pub", "Sub", "Get"}, "decision": decision})
	}
	subject := "User:" + user
	body, err := json.Marshal(map[string]any{"subject": subject, "policies": []any{map[string]any{"policyType": "CUSTOM", "entries": entries}}})
	if err != nil {
		return err
	}
	return r.administer(ctx, reqCreateACL, map[string]string{"subject": subject}, body)
}

func (r *RocketMQ) administer(ctx context.Context, code int, fields map[string]string, body []byte) error {
	c, err := r.dial(ctx, r.BrokerAddr)
	if err != nil {
		return err
	}
	defer c.Close()
	cmd, err := c.Call(ctx, code, remoting.Sign(fields, body, r.accessKey, r.secretKey), body)
	if err != nil {
		return err
	}
	if cmd.Code != 0 {
		return fmt.Errorf("request %d of the broker: code %d: %s", code, cmd.Code, cmd.Remark)
	}
	return nil
}

// Stop ends all processes and removes their data.
func (r *RocketMQ) Stop() error {
	var errs []error
	for _, p := range append(r.Brokers, r.Names) {
		if p != nil {
			// The data go away with it: there is nothing to flush for.
			errs = append(errs, p.Kill())
		}
	}
	return errors.Join(append(errs, os.RemoveAll(r.dir))...)
}

// printed is ready once the process has printed s.
func printed(s string) func(context.Context, []byte) error {
	return func(_ context.Context, output []byte) error {
		if bytes.Contains(output, []byte(s)) {
			return nil
		}
		return fmt.Errorf("it has not printed %q", s)
	}
}

func writeLines(file string, lines ...string) error {
	return os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600)
}

func progressOf(f func(string)) func(string) {
	if f == nil {
		return func(string) {}
	}
	return f
}
