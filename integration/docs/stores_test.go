package docs

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/binding"
	"github.com/weft-mesh/weft/store/embedded"
	"github.com/weft-mesh/weft/store/kafka"
	"github.com/weft-mesh/weft/store/rocketmq"
)

// TestStores is docs/stores.md, with the shared Kafka.
func TestStores(t *testing.T) {
	broker := servers.SharedKafka(t)
	newShell(t).stores(broker)
}

func (s *shell) stores(broker string) {
	s.Helper()
	s.edit("kafka/kafka.yaml", "127.0.0.1:9092", broker)
	s.edit("kafka/kafka.yaml", "retention: {max_age: 168h}", "physical_name: "+servers.Namespace(s.T))
	s.walk(blocks(s.T, "docs/stores.md", ""),
		step{begins: "weft up", instead: s.up},
		step{begins: "weft apply", says: []string{`eventstore/demo/kafka created`, `subscription/demo/booking created`, `d-1 is kept at`, `(?m)^deposits  d-1  deposit.made  \{"amount": ?20\}$`,
			`Kafka \S+, durability \w+, delay by the mesh at one more write of each delayed event`}})
}

// capabilities are the rows of the table of docs/stores.md.
var capabilities = []struct {
	row string
	of  func(store.Capabilities) string
}{
	{"an event survives, once acknowledged", func(c store.Capabilities) string {
		return [...]string{"", "the death of the process", "power loss", "the loss of one machine"}[c.Durability] + [...]string{"", " (as the servers are set)"}[btoi(!c.Local)]
	}},
	{"proxies that share it", func(c store.Capabilities) string { return [...]string{"any number", "one"}[btoi(c.Local)] }},
	{"longest delay of a retry", func(c store.Capabilities) string {
		return fmt.Sprintf("%d days", c.Delay/(24*time.Hour)) + [...]string{"", ", by the mesh: one more write"}[btoi(c.DelayEmulated)]
	}},
	{"delay", meets(store.Needs{Delay: time.Hour})},
	{"replay from a time or position", meets(store.Needs{Replay: true})},
	{"order by key", meets(store.Needs{Order: true})},
	{"broadcast", meets(store.Needs{Broadcast: true})},
	{"requests with a reply", meets(store.Needs{RequestReply: true})},
	{"retention by topic", func(c store.Capabilities) string {
		return [...]string{"no: one setting of the broker", "yes"}[btoi(c.TopicRetention)]
	}},
	{"largest event, with the mesh's headers", func(c store.Capabilities) string { return fmt.Sprintf("%d KiB", c.MaxEventBytes>>10) }},
	{"events of a partition that a crash of a proxy repeats, at most", func(c store.Capabilities) string { return fmt.Sprint(c.RedeliveryWindow) }},
	{"commits of what is settled", func(c store.Capabilities) string {
		return "every " + c.CommitInterval.String() + ", and at half a window"
	}},
}

// meets is by whom a need is met.
func meets(n store.Needs) func(store.Capabilities) string {
	return func(c store.Capabilities) string {
		a := store.Meet(n, c)[0]
		by := [...]string{store.MeansNone: "no", store.MeansNative: "by the store", store.MeansEmulated: "by the mesh"}[a.Means]
		if a.Word == "Delay" {
			by += ", " + a.Detail[strings.Index(a.Detail, "precision"):]
		}
		return by
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestStoreTable: what docs/stores.md says of each store is what it is observed to
// be; -update makes it so.
func TestStoreTable(t *testing.T) {
	options := map[string]any{
		"embedded": embedded.Options{FS: vfs.NewMem()},
		"rocketmq": rocketmq.Options{NameServers: []string{servers.SharedRocketMQ(t)}},
		"kafka":    kafka.Options{Brokers: []string{servers.SharedKafka(t)}},
	}
	drivers := binding.Drivers()
	kinds := slices.Sorted(maps.Keys(drivers))
	head, rule := "| |", "| --- |"
	lines := make([]string, len(capabilities))
	for i := range lines {
		lines[i] = "| " + capabilities[i].row + " |"
	}
	for _, kind := range kinds {
		caps := observe(t, drivers[kind], options[kind])
		head, rule = head+" "+kind+" |", rule+" --- |"
		for i := range lines {
			lines[i] += " " + capabilities[i].of(caps) + " |"
		}
	}
	made := head + "\n" + rule + "\n" + strings.Join(lines, "\n") + "\n"
	const page = "../../docs/stores.md"
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), head+"\n")
	_, after, ends := strings.Cut(rest, "\n\n")
	if !ok || !ends {
		t.Fatalf("%s has no table of the stores %v", page, kinds)
	}
	switch want := before + made + "\n" + after; {
	case want == string(b):
	case *update:
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil { //nolint:gosec // a page
			t.Fatal(err)
		}
	default:
		t.Errorf("%s says otherwise than\n%s\ngo test ./integration/docs -run TestStoreTable -update makes it", page, made)
	}
}

func observe(t *testing.T, d store.Driver, options any) store.Capabilities {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	st, err := d.Open(ctx, store.Config{Name: "docs", UID: "docs", ClientID: "docs", Dir: "docs", Options: options})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = st.Close(ctx) }()
	caps, err := st.Probe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return caps
}

// TestStoreFaults: each test that the table of faults of docs/stores.md names exists.
func TestStoreFaults(t *testing.T) {
	page, err := os.ReadFile("../../docs/stores.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(page), "\n## When a store fails\n")
	table, _, _ = strings.Cut(table, "\n## ")
	rows := 0
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.Trim(line, "| \n"), " | ")
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| ---") || cells[0] == "what happens" {
			continue
		}
		rows++
		for some := range strings.SplitSeq(cells[len(cells)-1], "; ") {
			folder, names, ok := strings.Cut(strings.TrimPrefix(some, "`"), "` ")
			code := source(t, "../../"+folder)
			for name := range strings.SplitSeq(names, ", ") {
				if !ok || !strings.Contains(code, "\nfunc "+name+"(t *testing.T) {\n") {
					t.Errorf("%s: there is no test %s in %s", cells[0], name, folder)
				}
			}
		}
	}
	if rows < 10 {
		t.Errorf("the table has %d rows", rows)
	}
}

// source is the text of a folder's tests.
func source(t *testing.T, folder string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(text)
	}
	return b.String()
}
