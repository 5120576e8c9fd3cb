package planes

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// scraped is one answer of /metrics.
type scraped struct {
	text     []byte
	families map[string]*dto.MetricFamily
}

func scrape(t *testing.T, addr string) scraped {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	p := expfmt.NewTextParser(model.UTF8Validation)
	fs, err := p.TextToMetricFamilies(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return scraped{b, fs}
}

// value is that of one series, named as in the text: the number of observations
// of a histogram, and -1 where there is no such series.
func (s scraped) value(series string) float64 {
	name, labels, _ := strings.Cut(strings.TrimSuffix(series, "}"), "{")
	for _, m := range s.families[name].GetMetric() {
		var have []string
		for _, l := range m.Label {
			have = append(have, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
		}
		if strings.Join(have, ",") != labels {
			continue
		}
		if m.Histogram != nil {
			return float64(m.Histogram.GetSampleCount())
		}
		return m.Counter.GetValue() + m.Gauge.GetValue()
	}
	return -1
}

func sum(f *dto.MetricFamily) (total float64) {
	for _, m := range f.GetMetric() {
		total += m.GetHistogram().GetSampleSum()
	}
	return total
}

// checkList compares the table of docs/metrics.md below the marker of a process
// with what it exposes; with -update it writes the table.
func checkList(t *testing.T, process string, s scraped) {
	t.Helper()
	var table strings.Builder
	table.WriteString("| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n")
	for _, name := range slices.Sorted(maps.Keys(s.families)) {
		if !strings.HasPrefix(name, "weft_") {
			continue
		}
		f := s.families[name]
		labels := map[string]bool{}
		for _, m := range f.Metric {
			for _, l := range m.Label {
				labels["`"+l.GetName()+"`"] = true
			}
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", name, strings.ToLower(f.GetType().String()), strings.Join(slices.Sorted(maps.Keys(labels)), ", "), f.GetHelp())
	}
	const page = "../../docs/metrics.md"
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), "<!-- "+process+" -->\n\n")
	listed, after, ok2 := strings.Cut(rest, "\n<!-- end -->")
	if !ok || !ok2 {
		t.Fatalf("%s has no table between <!-- %s --> and <!-- end -->", page, process)
	}
	if listed == table.String() {
		return
	}
	if *update {
		if err := os.WriteFile(page, []byte(before+"<!-- "+process+" -->\n\n"+table.String()+"\n<!-- end -->"+after), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	exposed := slices.Collect(strings.Lines(table.String()))
	lines := slices.Collect(strings.Lines(listed))
	for _, l := range exposed {
		if !slices.Contains(lines, l) {
			t.Errorf("%s lacks what the %s exposes: %s", page, process, l)
		}
	}
	for _, l := range lines {
		if !slices.Contains(exposed, l) {
			t.Errorf("%s lists what the %s does not expose: %s", page, process, l)
		}
	}
	t.Error("go test ./integration/planes -run TestMetrics -update writes the tables")
}
