package e2e

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/store/binding"
)

// The matrix: every pattern, over ways in and out of every protocol, on every
// driver. A cell is written in>out. A new pattern is a line here and a function in
// matrix_patterns_test.go.
var patterns = []struct {
	name string
	play pattern
	ways string
}{
	{"publish-subscribe", share, "http>stream grpc>stream http>pull-grpc grpc>pull-http"},
	{"publish", share, "http-structured>stream http-batch>stream grpc-batch>pull-http grpc-stream>stream grpc-stream>webhook"},
	{"one-to-many", oneToMany, "http>stream grpc>pull-http http>webhook"},
	{"broadcast", broadcast, "http>sse grpc>sse http>tail grpc>tail"},
	{"pull", pull, "http>pull-http grpc>pull-http http>pull-grpc grpc>pull-grpc"},
	{"push", share, "http>webhook grpc>webhook"},
	{"rest", share, "http>rest grpc>rest"},
	{"topics-one-segment", following("shop.*", false), "http>stream grpc>pull-http http>webhook http>sse grpc>tail"},
	{"topics-all-below", following("shop.>", true), "grpc>stream http>pull-grpc grpc>rest grpc>sse http>tail"},
	{"start-end", startAt("end"), "http>stream grpc>pull-http"},
	{"start-beginning", startAt("beginning"), "grpc>stream http>pull-grpc"},
	{"start-at", startAt("a time"), "http>pull-http grpc>stream"},
	{"start-positions", startAt("positions"), "http>stream grpc>pull-http"},
	{"filter", filtered(`{exact: {type: order.paid}}`), "http>stream grpc>pull-http grpc>webhook"},
	{"filter-sql", filtered(`{sql: "type = 'order.paid' AND LENGTH(id) > 0"}`), "grpc>stream http>pull-grpc http>rest"},
	{"transform", transformed, "http>stream grpc>pull-http grpc>webhook"},
	{"route-by-filter", routedByFilter, "http>stream grpc>pull-http grpc-stream>webhook"},
	{"route-by-weight", routedByWeight, "grpc>stream http-batch>pull-grpc"},
	{"retry", retried(fast, 2), "http>stream grpc>pull-http http>pull-grpc grpc>webhook http>rest"},
	{"retry-later", retried(slow, 1), "grpc>stream http>pull-http http>webhook"},
	{"dead-letters", deadLetters, "grpc>stream http>pull-http grpc>pull-grpc http>webhook grpc>rest"},
	{"order-by-key", ordered, "http>stream grpc>pull-http grpc>stream http>webhook"},
	{"forward", forwarded, "http>stream grpc>pull-http grpc-stream>webhook grpc>sse"},
	{"calls", calls, "rest-call>stream rest-call>pull-http rest-call>webhook rest-call>rest"},
	{"requests", requested, "http>stream grpc>stream http>pull-grpc grpc>pull-http http>webhook grpc>webhook rest-call>stream"},
	{"peak-shaving", paced, "http-batch>stream grpc-stream>pull-http grpc-batch>webhook"},
}

// drivers are the stores of the matrix, each with how many proxies share it.
var drivers = map[string]struct {
	store   func(*testing.T) string
	proxies int
}{
	"embedded": {func(*testing.T) string { return onDisk }, 1},
	"rocketmq": {onRocketMQ, 2},
	"kafka":    {onKafka, 2},
}

// Ways of each protocol, by the name of its front end.
var (
	waysIn  = map[string][]string{"http": {"http", "http-structured", "http-batch", "rest-call"}, "grpc": {"grpc", "grpc-batch", "grpc-stream"}}
	waysOut = map[string][]string{"http": {"sse", "pull-http"}, "grpc": {"stream", "tail", "pull-grpc"}}
	pushed  = []string{"webhook", "rest"}
)

// matrixCells bounds the cells that run at once.
const matrixCells = 10

// TestMatrixWhole: the table has every driver and every protocol that there is,
// and each way of them.
func TestMatrixWhole(t *testing.T) {
	t.Parallel()
	if got, want := slices.Sorted(maps.Keys(drivers)), slices.Sorted(maps.Keys(binding.Drivers())); !slices.Equal(got, want) {
		t.Errorf("the matrix has the drivers %v, there are %v", got, want)
	}
	dirs, err := os.ReadDir("../../dataplane/frontend")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		if d.IsDir() && (waysIn[d.Name()] == nil || waysOut[d.Name()] == nil) {
			t.Errorf("the matrix has no way in and out over %s", d.Name())
		}
	}
	in, out := map[string]bool{}, map[string]bool{}
	for name := range expectedCells(t) {
		way := name[strings.LastIndex(name, "/")+1:]
		i, o, _ := strings.Cut(way, ">")
		in[i], out[o] = true, true
	}
	for _, tc := range []struct {
		used map[string]bool
		want []string
	}{{in, slices.Concat(slices.Collect(maps.Values(waysIn))...)}, {out, slices.Concat(append(slices.Collect(maps.Values(waysOut)), pushed)...)}} {
		slices.Sort(tc.want)
		if got := slices.Sorted(maps.Keys(tc.used)); !slices.Equal(got, tc.want) {
			t.Errorf("the cells use the ways %v, there are %v", got, tc.want)
		}
	}
}

// expectedCells are the names of the cells of one driver, with their patterns.
func expectedCells(t *testing.T) map[string]pattern {
	t.Helper()
	out := map[string]pattern{}
	for _, p := range patterns {
		for _, way := range strings.Fields(p.ways) {
			name := p.name + "/" + way
			if out[name] != nil {
				t.Errorf("the cell %s stands twice in the table", name)
			}
			out[name] = p.play
		}
	}
	return out
}

// TestMatrixEmbedded: every cell of the matrix, on the embedded store.
func TestMatrixEmbedded(t *testing.T) { playMatrix(t, "embedded") }

// TestMatrixRocketMQ: every cell of the matrix, on RocketMQ, between two proxies.
func TestMatrixRocketMQ(t *testing.T) { playMatrix(t, "rocketmq") }

// TestMatrixKafka: every cell of the matrix, on Kafka, between two proxies.
func TestMatrixKafka(t *testing.T) { playMatrix(t, "kafka") }

// playMatrix plays the cells of a driver in one mesh, each in a namespace of its
// own: what is published with a checksum comes, all of it and nothing else. A cell
// that was not played to its end fails the matrix.
func playMatrix(t *testing.T, driver string) {
	t.Parallel()
	store := drivers[driver].store(t)
	newMesh(t, servers.SharedEtcd(t)).playMatrix(store, drivers[driver].proxies)
}

func (m *mesh) playMatrix(store string, proxies int) {
	t := m.T
	w := &world{mesh: m, hooks: map[string]*inbox{}}
	hooks := w.serveHooks()
	for i := range proxies {
		w.proxies = append(w.proxies, m.proxy(fmt.Sprint("p", i+1), "--push-allow", "127.0.0.0/8"))
	}
	expected := expectedCells(t)
	var cells []*cell
	var docs []string
	for i, name := range slices.Sorted(maps.Keys(expected)) {
		way := name[strings.LastIndex(name, "/")+1:]
		here := *m
		c := &cell{mesh: &here, w: w, name: name, index: i, hooks: hooks, boxes: map[string]*inbox{}}
		c.in, c.out, _ = strings.Cut(way, ">")
		c.ns = fmt.Sprintf("%s-%d", m.ns, i)
		yaml, play := expected[name](c)
		c.play = play
		docs = append(docs, strings.ReplaceAll(store+yaml+c.access(), "namespace: NS,", "namespace: "+c.ns+","))
		cells = append(cells, c)
	}
	const together = 10 // cells of one transaction, which has 100 resources
	for some := range slices.Chunk(docs, together) {
		_, err := m.administer(strings.Join(some, "\n---"), "apply", "-f", "-")
		m.must(err)
	}
	_, err := m.administer("", "status", "--wait", "4m")
	m.must(err)

	var played sync.Map
	var whole atomic.Int64
	var running errgroup.Group
	running.SetLimit(matrixCells)
	for _, c := range cells {
		running.Go(func() error {
			t.Run(c.name, func(t *testing.T) {
				c.T = t
				c.play()
				if !t.Failed() {
					played.Store(c.name, true)
					whole.Add(1)
				}
			})
			return nil
		})
	}
	_ = running.Wait()
	for _, c := range cells {
		if _, ok := played.Load(c.name); ok {
			c.judge(t) // what came too much may have come late
		}
	}
	if chosen := flag.Lookup("test.run").Value.String(); strings.Contains(chosen, "/") {
		t.Logf("%d cells were chosen", whole.Load())
		return
	}
	for name := range expected {
		if _, ok := played.Load(name); !ok {
			t.Errorf("the cell %s was not played to its end", name)
		}
	}
	t.Logf("%d of %d cells", whole.Load(), len(expected))
}

// world is what the cells of one driver share.
type world struct {
	*mesh
	proxies []*proxy

	mu    sync.Mutex
	hooks map[string]*inbox // by path
}
