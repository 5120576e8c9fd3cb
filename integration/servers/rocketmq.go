package servers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/weft-mesh/weft/store/rocketmq/remoting"
)

// rocketMQVersion is the one that java/rocketmq/pom.xml names.
const rocketMQVersion = "5.3.3"

// RocketMQ is a name server and one broker.
type RocketMQ struct {
	// NameServer is "host:port".
	NameServer string
	// BrokerAddr is "host:port"; BrokerName its name in routes.
	BrokerAddr, BrokerName string
	// Names and Broker are the processes.
	Names, Broker *Process
	dir           string
	// accessKey and secretKey of the user who may do everything, if any.
	accessKey, secretKey string
}

// RocketMQOptions change what StartRocketMQ starts. The zero value is what the
// mesh promises on.
type RocketMQOptions struct {
	// AsyncFlush answers before the event is on disk.
	AsyncFlush bool
	// Broker has more lines for the broker's configuration.
	Broker []string
	// AccessKey and SecretKey, where set, have the broker take signed requests
	// alone: those of this user, who may do everything, and of those whom it
	// makes.
	AccessKey, SecretKey string
	// Progress is told about downloads; may be nil.
	Progress func(string)
}

// StartRocketMQ starts a name server and a broker with sync flush and waits
// until both serve.
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
	r := &RocketMQ{dir: dir, BrokerName: "broker-a", accessKey: o.AccessKey, secretKey: o.SecretKey}
	defer func() {
		if err != nil {
			_ = r.Stop()
		}
	}()
	namesPort, err := FreePort()
	if err != nil {
		return nil, err
	}
	// The broker also listens on its port less 2 and plus 1.
	brokerPort, err := FreePort(-2, 1)
	if err != nil {
		return nil, err
	}
	r.NameServer = net.JoinHostPort("127.0.0.1", strconv.Itoa(namesPort))
	r.BrokerAddr = net.JoinHostPort("127.0.0.1", strconv.Itoa(brokerPort))

	flush := "SYNC_FLUSH"
	if o.AsyncFlush {
		flush = "ASYNC_FLUSH"
	}
	namesFile, brokerFile := filepath.Join(dir, "namesrv.properties"), filepath.Join(dir, "broker.properties")
	if err := writeLines(namesFile,
		"listenPort="+strconv.Itoa(namesPort),
		"bindAddress=127.0.0.1",
		"kvConfigPath="+filepath.Join(dir, "namesrv", "kv.json"),
		"rocketmqHome="+dir); err != nil {
		return nil, err
	}
	if o.AccessKey != "" {
		o.Broker = append(o.Broker, accessControl(o.AccessKey, o.SecretKey)...)
	}
	if err := writeLines(brokerFile, append([]string{
		"brokerClusterName=DefaultCluster",
		"brokerName=" + r.BrokerName,
		"brokerId=0",
		"brokerIP1=127.0.0.1",
		"bindAddress=127.0.0.1",
		"listenPort=" + strconv.Itoa(brokerPort),
		"namesrvAddr=" + r.NameServer,
		"storePathRootDir=" + filepath.Join(dir, "store"),
		"storePathCommitLog=" + filepath.Join(dir, "store", "commitlog"),
		"mappedFileSizeCommitLog=67108864",
		"mappedFileSizeConsumeQueue=600000",
		"maxIndexNum=100000",
		"maxHashSlotNum=25000",
		"diskMaxUsedSpaceRatio=99",
		"timerWheelEnable=true",
		"autoCreateTopicEnable=false",
		"autoCreateSubscriptionGroup=true",
		"flushDiskType=" + flush,
	}, o.Broker...)...); err != nil {
		return nil, err
	}
	jvm := func(main, file, direct, heap string) []string {
		return []string{"java", "-Drocketmq.home.dir=" + dir, "-Duser.home=" + dir, "-Djava.io.tmpdir=" + dir,
			"--add-exports=java.base/jdk.internal.ref=ALL-UNNAMED",
			"--add-opens=java.base/sun.nio.ch=ALL-UNNAMED", "--add-opens=java.base/java.nio=ALL-UNNAMED",
			"-Xms128m", "-Xmx" + heap, "-XX:MaxDirectMemorySize=" + direct, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=4",
			"-cp", cp, main, "-c", file}
	}
	r.Names = &Process{
		Name: "RocketMQ name server", Log: filepath.Join(dir, "namesrv.log"),
		Args:  jvm("org.apache.rocketmq.namesrv.NamesrvStartup", namesFile, "128m", "256m"),
		Ready: printed("boot success"),
	}
	r.Broker = &Process{
		Name: "RocketMQ broker", Log: filepath.Join(dir, "broker.log"),
		Args:  jvm("org.apache.rocketmq.broker.BrokerStartup", brokerFile, "512m", "512m"),
		Ready: r.brokerReady,
	}
	if err := need("java", "openjdk-17-jdk-headless"); err != nil {
		return nil, err
	}
	if err := r.Names.Start(ctx); err != nil {
		return nil, err
	}
	return r, r.Broker.Start(ctx)
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
func (r *RocketMQ) brokerReady(ctx context.Context, output []byte) error {
	if err := printed("boot success")(ctx, output); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := remoting.Dial(ctx, r.NameServer, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	cmd, err := c.Call(ctx, reqCluster, nil, nil)
	if err != nil {
		return err
	}
	if !bytes.Contains(cmd.Body, []byte(r.BrokerAddr)) {
		return fmt.Errorf("the name server does not know the broker at %s", r.BrokerAddr)
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
	var entries []map[string]any
	for _, res := range resources {
		entries = append(entries, map[string]any{"resource": res, "actions": []string{"Pub", "Sub", "Get"}, "decision": "Allow"})
	}
	subject := "User:" + user
	body, err := json.Marshal(map[string]any{"subject": subject, "policies": []any{map[string]any{"policyType": "CUSTOM", "entries": entries}}})
	if err != nil {
		return err
	}
	return r.administer(ctx, reqCreateACL, map[string]string{"subject": subject}, body)
}

func (r *RocketMQ) administer(ctx context.Context, code int, fields map[string]string, body []byte) error {
	c, err := remoting.Dial(ctx, r.BrokerAddr, nil)
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

// Stop ends both processes and removes their data.
func (r *RocketMQ) Stop() error {
	var errs []error
	for _, p := range []*Process{r.Broker, r.Names} {
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
