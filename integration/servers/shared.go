package servers

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Environment variables with the addresses of servers that are shared by all
// packages of a test run; `testservers` sets them.
const (
	EnvRocketMQ = "WEFT_TEST_ROCKETMQ" // name server, host:port
	EnvEtcd     = "WEFT_TEST_ETCD"     // endpoint, http://host:port
	EnvNacos    = "WEFT_TEST_NACOS"    // host:port
	EnvKafka    = "WEFT_TEST_KAFKA"    // broker, host:port
	// EnvTurn is a file that packages lock while they run: those with real
	// servers and processes take turns, so that each has the machine. Those of
	// drivers, which wait for servers most of the time, have theirs together.
	EnvTurn = "WEFT_TEST_TURN"
)

// StartTimeout bounds a start, downloads not counted; generous, since machines
// are small and busy.
const StartTimeout = 5 * time.Minute

// shared are the servers that this test process has started for its tests.
var shared struct {
	sync.Mutex
	stops []func() error
	addrs map[string]string
}

// Main runs the tests of a package that uses real servers, when it is its turn,
// and stops those that it started. Call it from TestMain: os.Exit(servers.Main(m)).
func Main(m *testing.M) int { return inTurn(m, syscall.LOCK_EX) }

// DriverMain is Main for the tests of a driver.
func DriverMain(m *testing.M) int { return inTurn(m, syscall.LOCK_SH) }

func inTurn(m *testing.M, lock int) int {
	if file := os.Getenv(EnvTurn); file != "" {
		turn, err := os.OpenFile(file, os.O_RDWR, 0)
		if err == nil {
			err = syscall.Flock(int(turn.Fd()), lock) // until the process ends
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "servers: waiting for a turn:", err)
			return 1
		}
		defer turn.Close()
		os.Unsetenv(EnvTurn) // what a test runs is part of its turn
	}
	code := m.Run()
	shared.Lock()
	defer shared.Unlock()
	for _, stop := range shared.stops {
		if err := stop(); err != nil {
			fmt.Fprintln(os.Stderr, "servers:", err)
			code = max(code, 1)
		}
	}
	return code
}

// SharedRocketMQ is the name server of a RocketMQ with sync flush that other
// tests use too. Under -short the test is skipped.
func SharedRocketMQ(t testing.TB) string {
	return sharedAddr(t, EnvRocketMQ, func(ctx context.Context) (string, func() error, error) {
		r, err := StartRocketMQ(ctx, RocketMQOptions{})
		if err != nil {
			return "", nil, err
		}
		return r.NameServer, r.Stop, nil
	})
}

// SharedEtcd is the endpoint of an etcd that other tests use too: use a prefix
// of your own. Under -short the test is skipped.
func SharedEtcd(t testing.TB) string {
	return sharedAddr(t, EnvEtcd, func(ctx context.Context) (string, func() error, error) {
		e, err := StartEtcd(ctx, EtcdOptions{})
		if err != nil {
			return "", nil, err
		}
		return e.Endpoint, e.Stop, nil
	})
}

// SharedNacos is the address of a Nacos that other tests use too; its
// administrator is NacosUser with NacosPassword. Under -short the test is
// skipped.
func SharedNacos(t testing.TB) string {
	return sharedAddr(t, EnvNacos, func(ctx context.Context) (string, func() error, error) {
		n, err := StartNacos(ctx, NacosOptions{})
		if err != nil {
			return "", nil, err
		}
		return n.Addr, n.Stop, nil
	})
}

// SharedKafka is the broker of a Kafka of one node that other tests use too. Under
// -short the test is skipped.
func SharedKafka(t testing.TB) string {
	return sharedAddr(t, EnvKafka, func(ctx context.Context) (string, func() error, error) {
		k, err := StartKafka(ctx, KafkaOptions{})
		if err != nil {
			return "", nil, err
		}
		return k.Brokers[0], k.Stop, nil
	})
}

func sharedAddr(t testing.TB, env string, start func(context.Context) (string, func() error, error)) string {
	t.Helper()
	NeedServers(t)
	if addr := os.Getenv(env); addr != "" {
		return addr
	}
	shared.Lock()
	defer shared.Unlock()
	if addr := shared.addrs[env]; addr != "" {
		return addr
	}
	ctx, cancel := context.WithTimeout(context.Background(), StartTimeout)
	defer cancel()
	addr, stop, err := start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if shared.addrs == nil {
		shared.addrs = map[string]string{}
	}
	shared.addrs[env] = addr
	shared.stops = append(shared.stops, stop)
	return addr
}

// NeedServers skips a test that starts real servers when -short is given. Beside
// NeedBaseline it is the only reason for which a test of this repository may be
// skipped.
func NeedServers(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: needs real servers")
	}
}

var namespaces atomic.Uint32

// NeedBaseline is the command weft of the Baseline. The test is skipped under
// -short, and where the clone lacks that commit.
func NeedBaseline(t testing.TB) string {
	t.Helper()
	NeedServers(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*StartTimeout)
	defer cancel()
	bin, err := BaselineBinary(ctx, func(s string) { t.Log(s) })
	if errors.Is(err, ErrNoHistory) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// Namespace is a namespace that no other test has, [a-z0-9-], at most 32
// characters, so that tests share servers without meeting.
func Namespace(t testing.TB) string {
	h := fnv.New32a()
	fmt.Fprint(h, t.Name(), os.Getpid(), time.Now().UnixNano())
	return "t-" + strings.ToLower(strconv.FormatUint(uint64(h.Sum32()), 36)) + "-" + strconv.Itoa(int(namespaces.Add(1)))
}
