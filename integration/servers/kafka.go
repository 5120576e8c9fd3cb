package servers

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
)

// kafkaVersion is the one that java/kafka/pom.xml names.
const kafkaVersion = "4.4.0"

// Kafka is a cluster of nodes that are brokers and controllers (KRaft).
type Kafka struct {
	// Brokers are "host:port" of each node, for clients.
	Brokers []string
	// Internal are the listeners between nodes: in the clear, and whoever comes
	// there may do everything.
	Internal []string
	// Nodes are the processes.
	Nodes []*Process
	dir   string
}

// KafkaOptions change what StartKafka starts. The zero value is one node, which
// acknowledges what its operating system has.
type KafkaOptions struct {
	// Nodes is how many; 1 when 0. Of three or more, what is acknowledged is on two.
	Nodes int
	// Users have clients prove by SASL (PLAIN; also SCRAM-SHA-512, see SetUser)
	// who they are: passwords by name.
	Users map[string]string
	// KeyStore is a PEM file with a key (PKCS #8) and its certificate: clients
	// speak TLS.
	KeyStore string
	// Advertise, where set, is where a node tells clients to reach it, by where it
	// listens.
	Advertise func(addr string) string
	// Properties are more lines for each node's configuration; a later line prevails.
	Properties []string
	// Progress is told about downloads; may be nil.
	Progress func(string)
}

// StartKafka starts nodes with empty data and waits until all serve.
func StartKafka(ctx context.Context, o KafkaOptions) (_ *Kafka, err error) {
	dist, err := javaDir(ctx, "kafka", kafkaVersion, progressOf(o.Progress))
	if err != nil {
		return nil, err
	}
	cp, err := classPath(dist)
	if err != nil {
		return nil, err
	}
	if err := need("java", "openjdk-17-jdk-headless"); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "weft-kafka-")
	if err != nil {
		return nil, err
	}
	k := &Kafka{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.Stop())
		}
	}()
	n := max(o.Nodes, 1)
	var voters, listeners, advertised []string
	for i := range n {
		port, err := FreePort(1, 2)
		if err != nil {
			return nil, err
		}
		at := func(offset int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port+offset)) }
		k.Brokers, k.Internal = append(k.Brokers, at(0)), append(k.Internal, at(1))
		voters = append(voters, fmt.Sprintf("%d@%s", i+1, at(2)))
		listeners = append(listeners, fmt.Sprintf("CLIENT://%s,INTERNAL://%s", at(0), at(1)))
		client := at(0)
		if o.Advertise != nil {
			client = o.Advertise(client)
		}
		advertised = append(advertised, fmt.Sprintf("CLIENT://%s,INTERNAL://%s", client, at(1)))
	}
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails
	random[0] &= 0x7f           // or the id may begin with "-", which the tool takes for a flag
	cluster := base64.RawURLEncoding.EncodeToString(random[:])
	for i := range n {
		name := fmt.Sprintf("node%d", i+1)
		file, data := filepath.Join(dir, name+".properties"), filepath.Join(dir, name)
		_, controller, _ := strings.Cut(voters[i], "@")
		lines := append(o.properties(n),
			"node.id="+strconv.Itoa(i+1),
			"log.dirs="+data,
			"controller.quorum.voters="+strings.Join(voters, ","),
			"listeners="+listeners[i]+",CONTROLLER://"+controller,
			"advertised.listeners="+advertised[i])
		if err := writeLines(file, append(lines, o.Properties...)...); err != nil {
			return nil, err
		}
		if err := run(ctx, dir, "java", "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", cp, "kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", cluster, "-c", file); err != nil {
			return nil, err
		}
		k.Nodes = append(k.Nodes, &Process{Name: "Kafka " + name, Log: filepath.Join(dir, name+".log"), Ready: printed("Kafka Server started"),
			Args: []string{"java", "-Xms64m", "-Xmx640m", "-XX:+UseSerialGC", "-Djava.io.tmpdir=" + dir, "-Duser.home=" + dir, "-cp", cp, "kafka.Kafka", file}})
	}
	var g errgroup.Group
	for _, p := range k.Nodes {
		g.Go(func() error { return p.Start(ctx) })
	}
	return k, g.Wait()
}

// properties are those that all nodes have.
func (o *KafkaOptions) properties(nodes int) []string {
	replicas, insync := 1, 1
	if nodes >= 3 {
		replicas, insync = 3, 2
	}
	protocol := "PLAINTEXT"
	switch {
	case o.Users != nil && o.KeyStore != "":
		protocol = "SASL_SSL"
	case o.Users != nil:
		protocol = "SASL_PLAINTEXT"
	case o.KeyStore != "":
		protocol = "SSL"
	}
	lines := []string{
		"process.roles=broker,controller",
		"controller.listener.names=CONTROLLER",
		"inter.broker.listener.name=INTERNAL",
		"listener.security.protocol.map=CLIENT:" + protocol + ",INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
		// What comes in by the internal listeners has no name.
		"authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
		"super.users=User:ANONYMOUS",
		"allow.everyone.if.no.acl.found=true",
		"auto.create.topics.enable=false",
		"default.replication.factor=" + strconv.Itoa(replicas),
		"min.insync.replicas=" + strconv.Itoa(insync),
		"group.initial.rebalance.delay.ms=0",
		"controlled.shutdown.enable=true",
		// A broker that was killed comes back after its session, of 9 s by default.
		"broker.session.timeout.ms=2000",
		"broker.heartbeat.interval.ms=500",
		"log.cleaner.dedupe.buffer.size=16777216",
		"log.index.size.max.bytes=1048576",
		"num.network.threads=2",
		"num.io.threads=4",
	}
	for _, topic := range []string{"offsets.topic", "transaction.state.log", "share.coordinator.state.topic"} {
		lines = append(lines, topic+".num.partitions=4", topic+".replication.factor="+strconv.Itoa(replicas), topic+".min.isr="+strconv.Itoa(insync))
	}
	if o.KeyStore != "" {
		lines = append(lines, "ssl.keystore.type=PEM", "ssl.keystore.location="+o.KeyStore)
	}
	if o.Users != nil {
		const listener, login = "listener.name.client.", "org.apache.kafka.common.security."
		var users strings.Builder
		for name, password := range o.Users {
			fmt.Fprintf(&users, " user_%s=%q", name, password)
		}
		lines = append(lines,
			listener+"sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512",
			listener+"plain.sasl.jaas.config="+login+"plain.PlainLoginModule required"+users.String()+";",
			listener+"scram-sha-512.sasl.jaas.config="+login+"scram.ScramLoginModule required;")
	}
	return lines
}

// admin is a client that may do everything.
func (k *Kafka) admin() (*kadm.Client, error) {
	c, err := kgo.NewClient(kgo.SeedBrokers(k.Internal...))
	if err != nil {
		return nil, err
	}
	return kadm.NewClient(c), nil
}

// SetUser makes a user of SCRAM-SHA-512, or changes the password of one.
func (k *Kafka) SetUser(ctx context.Context, name, password string) error {
	a, err := k.admin()
	if err != nil {
		return err
	}
	defer a.Close()
	done, err := a.AlterUserSCRAMs(ctx, nil, []kadm.UpsertSCRAM{{User: name, Mechanism: kadm.ScramSha512, Iterations: 4096, Password: password}})
	if err != nil {
		return err
	}
	return done.Error()
}

// Grant makes ACLs.
func (k *Kafka) Grant(ctx context.Context, all ...*kadm.ACLBuilder) error {
	a, err := k.admin()
	if err != nil {
		return err
	}
	defer a.Close()
	for _, b := range all {
		done, err := a.CreateACLs(ctx, b)
		if err != nil {
			return err
		}
		for _, r := range done {
			if r.Err != nil {
				return r.Err
			}
		}
	}
	return nil
}

// Stop ends every node and removes the data.
func (k *Kafka) Stop() error {
	var errs []error
	for _, p := range k.Nodes {
		// The data go away with it: there is nothing to flush for.
		errs = append(errs, p.Kill())
	}
	return errors.Join(append(errs, os.RemoveAll(k.dir))...)
}

// KafkaEvents runs java/kafkaclient's program, of Kafka's stock client and the
// CloudEvents SDK for Java, and gives what it prints.
func KafkaEvents(ctx context.Context, args ...string) (string, error) {
	dist, err := javaDir(ctx, "kafkaclient", kafkaVersion, progressOf(nil))
	if err != nil {
		return "", err
	}
	cp, err := classPath(dist)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "java", append([]string{"-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
		"-cp", filepath.Join(dist, "classes") + string(os.PathListSeparator) + cp, "Events"}, args...)...) //nolint:gosec // a test's own program
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, stderr.String())
	}
	return string(out), nil
}
