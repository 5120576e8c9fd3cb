package docs

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/weft-mesh/weft/integration/servers"
)

const monitoring = "../../docs/monitoring"

// alertRules is what alerts.yaml has of interest here.
type alertRules struct {
	Groups []struct {
		Name  string
		Rules []struct {
			Alert, Expr         string
			Labels, Annotations map[string]string
		}
	}
}

// dashboard is what a dashboard of Grafana has of interest here.
type dashboard struct {
	UID, Title string
	Panels     []struct {
		ID      int
		Title   string
		Targets []struct{ Expr string }

		FieldConfig struct{ Defaults struct{ Unit string } }
	}
	Templating struct {
		List []struct{ Name, Query string }
	}
}

func read(t *testing.T, path string, into any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	decode := json.Unmarshal
	if strings.HasSuffix(path, ".yaml") {
		decode = func(b []byte, into any) error { return yaml.Unmarshal(b, into) }
	}
	if err := decode(b, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// expressions are those of the alerts and of the dashboards, by where they stand.
func expressions(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	var rules alertRules
	read(t, monitoring+"/alerts.yaml", &rules)
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if out[r.Alert] != "" {
				t.Errorf("%s is twice", r.Alert)
			}
			out[r.Alert] = r.Expr
			if r.Labels["severity"] != "critical" && r.Labels["severity"] != "warning" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s has no severity, summary or description", r.Alert)
			}
			if err := there(r.Annotations["page"]); err != nil {
				t.Errorf("%s: %v", r.Alert, err)
			}
		}
	}
	files, err := filepath.Glob(monitoring + "/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d dashboards: %v", len(files), err)
	}
	for _, f := range files {
		var d dashboard
		read(t, f, &d)
		seen := map[int]bool{}
		for _, p := range d.Panels {
			if seen[p.ID] {
				t.Errorf("%s: panel %d is twice", f, p.ID)
			}
			seen[p.ID] = true
			for i, target := range p.Targets {
				out[fmt.Sprintf("%s, %s, %d", d.Title, p.Title, i+1)] = target.Expr
				if strings.HasPrefix(p.FieldConfig.Defaults.Unit, "percent") && strings.Contains(target.Expr, "sum") && !strings.Contains(target.Expr, "/") {
					t.Errorf("%s, %s: a sum is in percent: %s", d.Title, p.Title, target.Expr)
				}
			}
		}
		for _, v := range d.Templating.List {
			if metric, ok := strings.CutPrefix(v.Query, "label_values("); ok {
				metric, label, _ := strings.Cut(strings.TrimSuffix(metric, ")"), ", ")
				out[d.Title+", $"+v.Name] = "count by (" + label + ") (" + metric + ")"
			}
		}
	}
	return out
}

// there reports whether a page of docs, and the heading that follows #, exists.
func there(page string) error {
	name, anchor, _ := strings.Cut(page, "#")
	b, err := os.ReadFile(filepath.Join("../../docs", name))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		if heading, ok := strings.CutPrefix(line, "#"); ok && strings.ReplaceAll(strings.ToLower(strings.Trim(heading, "# \n")), " ", "-") == anchor {
			return nil
		}
	}
	if anchor != "" {
		return fmt.Errorf("%s has no heading %q", name, anchor)
	}
	return nil
}

var (
	metricRow  = regexp.MustCompile("(?m)^\\| `(weft_\\w+|tls_\\w+)` \\| (\\w+) \\| (.*?) \\|")
	metricName = regexp.MustCompile(`\bweft_\w+`)
	grouped    = regexp.MustCompile(`\bby \(([^)]*)\)`)
	matched    = regexp.MustCompile(`(\w+) ?(?:=~|!~|!=|=) ?"`)
)

// documented are the labels of each metric of docs/metrics.md, which a test of its
// own holds to what processes say. Those of a histogram are under its three names.
func documented(t *testing.T) map[string][]string {
	t.Helper()
	b, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	for _, row := range metricRow.FindAllStringSubmatch(string(b), -1) {
		names, labels := []string{row[1]}, []string{"instance"}
		for label := range strings.SplitSeq(strings.ReplaceAll(row[3], "`", ""), ",") {
			labels = append(labels, strings.TrimSpace(label))
		}
		if strings.HasPrefix(row[1], "tls_") {
			names = []string{"weft_proxy_" + row[1], "weft_controlplane_" + row[1]}
		}
		if row[2] == "histogram" {
			names, labels = []string{row[1] + "_bucket", row[1] + "_sum", row[1] + "_count"}, append(labels, "le")
		}
		for _, name := range names {
			out[name] = labels
		}
	}
	if len(out) < 50 {
		t.Fatalf("docs/metrics.md has %d metrics", len(out))
	}
	return out
}

// wrong says what of an expression's names there is not.
func wrong(expr string, metrics map[string][]string) (problems []string) {
	var labels []string
	names := metricName.FindAllString(expr, -1)
	for _, name := range names {
		if _, ok := metrics[name]; !ok {
			problems = append(problems, name+" is no metric")
		}
		labels = append(labels, metrics[name]...)
	}
	if len(names) == 0 {
		problems = append(problems, "it asks for nothing")
	}
	var used []string
	for _, m := range grouped.FindAllStringSubmatch(expr, -1) {
		for label := range strings.SplitSeq(m[1], ",") {
			used = append(used, strings.TrimSpace(label))
		}
	}
	for _, m := range matched.FindAllStringSubmatch(expr, -1) {
		used = append(used, m[1])
	}
	for _, label := range used {
		if !slices.Contains(labels, label) {
			problems = append(problems, label+" is no label of it")
		}
	}
	return problems
}

// TestMonitoring: alerts and dashboards ask for metrics and labels that exist.
func TestMonitoring(t *testing.T) {
	metrics := documented(t)
	for where, expr := range expressions(t) {
		for _, problem := range wrong(expr, metrics) {
			t.Errorf("%s: %s: %s", where, expr, problem)
		}
	}
	for _, expr := range []string{`weft_proxy_redy == 0`, `weft_proxy_ready{node="x"}`, `sum by (topic) (weft_proxy_ready)`, `rate(weft_proxy_publish_duration_seconds[5m])`, `1 > 2`} {
		if len(wrong(expr, metrics)) == 0 {
			t.Errorf("nothing is wrong with %s", expr)
		}
	}
}

// TestAlerts: Prometheus takes every expression, and each alert fires when it is to,
// and not otherwise.
func TestAlerts(t *testing.T) {
	servers.NeedServers(t)
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	promtool, err := servers.Promtool(ctx)
	if err != nil {
		t.Fatal(err)
	}
	type rule struct {
		Record string `yaml:"record"`
		Expr   string `yaml:"expr"`
	}
	var all []rule
	exprs := expressions(t)
	for i, where := range slices.Sorted(maps.Keys(exprs)) {
		expr := strings.NewReplacer("$__rate_interval", "5m", "$namespace", ".*").Replace(exprs[where])
		all = append(all, rule{fmt.Sprintf("weft:e%d", i), expr})
	}
	b, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "all", "rules": all}}})
	if err != nil {
		t.Fatal(err)
	}
	generated := filepath.Join(t.TempDir(), "all.yaml")
	if err := os.WriteFile(generated, b, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"check", "rules", generated}, {"check", "rules", monitoring + "/alerts.yaml"}, {"test", "rules", monitoring + "/alerts_test.yaml"}} {
		if out, err := exec.CommandContext(ctx, promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	var cases struct {
		Tests []struct {
			Rules []struct {
				Name   string           `yaml:"alertname"`
				Expect []map[string]any `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	read(t, monitoring+"/alerts_test.yaml", &cases)
	tried := map[string]bool{}
	for _, c := range cases.Tests {
		for _, r := range c.Rules {
			tried[fmt.Sprint(r.Name, len(r.Expect) > 0)] = true
		}
	}
	var rules alertRules
	read(t, monitoring+"/alerts.yaml", &rules)
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if !tried[r.Alert+"true"] || !tried[r.Alert+"false"] {
				t.Errorf("alerts_test.yaml does not have %s both fire and not fire", r.Alert)
			}
		}
	}
}
