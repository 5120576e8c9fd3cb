// Command bench measures the mesh beside what it stands on: the client of the
// middleware itself, the engine itself, on the same servers, alternated in one
// run, with the same events and the same bytes in flight. It prints ratios and
// the CPU that each event costs, which is steadier than any rate on a machine
// that is shared, and ends with the figures that are aimed at. It judges nothing:
// a slow machine fails no build.
//
//	go run ./integration/bench -run 'publish|consume' -slice 5s -rounds 5 -out bench.txt
//
// Servers are those of the environment (WEFT_TEST_ROCKETMQ), else its own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// settings of a run.
type settings struct {
	slice  time.Duration // of each measurement
	rounds int           // how often each is repeated, alternated
	size   int           // bytes of an event's data
	// profiles is a folder for CPU profiles of the proxy and of this process; none when
	// empty.
	profiles string
	// curves is the file that the picture of the curves is written to; none when
	// empty.
	curves string
	// share is how many CPUs Kafka's broker has, as where it serves others besides; 0: as
	// many as there are.
	share float64
}

// figure is one thing that is measured.
type figure struct {
	name string
	run  func(ctx context.Context, r *run) error
}

var figures = []figure{
	{"filters", filters},
	{"transport", transport},
	{"publish-rocketmq", publishRocketMQ},
	{"publish-kafka", publishKafka},
	{"publish-replicated", publishReplicated},
	{"publish-embedded", publishEmbedded},
	{"latency-rocketmq", latencyRocketMQ},
	{"latency-kafka", latencyKafka},
	{"latency-embedded", latencyEmbedded},
	{"consume-rocketmq", consumeRocketMQ},
	{"consume-kafka", consumeKafka},
	{"consume-embedded", consumeEmbedded},
	{"receive-kafka", receiveKafka},
	{"leases", leases},
	{"move", move},
	{"idle", idle},
	{"peer-nats", natsPeer},
	{"peer-dapr", daprPeer},
	{"peer-http", httpPeer},
	{"fleet", fleet},
	{"fleet-alone", fleetAlone},
	{"fleet-resumes", resume},
	{"churn", churn},
	{"curves", curves},
	{"admin", adminApplies},
	{"start", startProxy},
	{"sidecar", sidecar},
}

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A first argument may make it one of the servers that are measured.
	var err error
	switch command := append(os.Args[1:], "")[0]; command {
	case linearCommand:
		err = serveLinear(ctx, os.Args[2:])
	case bareCommand:
		err = serveBare(ctx, os.Args[2:])
	case relayCommand:
		err = serveRelay(ctx, os.Args[2:])
	case withoutStoreCommand:
		err = serveWithoutStore(ctx, os.Args[2:])
	default:
		err = bench(ctx, os.Args[1:], os.Stdout)
	}
	cancel()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	which := flags.String("run", ".", "regular expression of the figures to measure: "+names())
	file := flags.String("out", "", "also write to this file")
	var s settings
	flags.DurationVar(&s.slice, "slice", 4*time.Second, "length of one measurement")
	flags.IntVar(&s.rounds, "rounds", 3, "measurements of each kind, alternated")
	flags.IntVar(&s.size, "size", 1024, "bytes of an event's data")
	flags.StringVar(&s.profiles, "profiles", "", "folder for CPU profiles of the proxy and of this process, for each way of using them")
	flags.StringVar(&s.curves, "curves", "", "file for the picture of the curves, SVG")
	flags.Float64Var(&s.share, "share", 0, "give Kafka's broker so many CPUs, as where it serves others besides: what binds is then the broker")
	if err := flags.Parse(args); err != nil {
		return err
	}
	match, err := regexp.Compile(*which)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if s.slice <= 0 || s.slice > 10*time.Minute || s.rounds < 1 || s.rounds > 100 || s.size < 1 || s.size > 1<<20 {
		return errors.New("-slice is at most 10m, -rounds 1 to 100, -size 1 to 1048576")
	}
	if s.share != 0 && (s.share < 0.1 || s.share > float64(runtime.NumCPU())) {
		return fmt.Errorf("-share is 0.1 to %d CPUs", runtime.NumCPU())
	}
	if *file != "" {
		f, err := os.Create(*file)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		out = io.MultiWriter(out, f)
	}
	r, err := newRun(ctx, s, out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	r.printf("%s, %s/%s, %d CPUs, Go %s; %d-byte events, %d measurements of %s each, alternated; medians [least..most]\n",
		time.Now().UTC().Format(time.DateOnly), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version(), s.size, s.rounds, s.slice)
	for _, f := range figures {
		if !match.MatchString(f.name) {
			continue
		}
		r.printf("\n== %s\n", f.name)
		if err := f.run(ctx, r); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	r.summary()
	return nil
}

func names() string {
	all := make([]string, len(figures))
	for i, f := range figures {
		all[i] = f.name
	}
	return strings.Join(all, ", ")
}
