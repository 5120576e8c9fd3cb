package docs

import (
	"cmp"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/reflect/protoreflect"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/dataplane/delivery"
	fronthttp "github.com/weft-mesh/weft/dataplane/frontend/http"
	"github.com/weft-mesh/weft/dataplane/pipeline"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/manifest"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/tools/weft"
)

var update = flag.Bool("update", false, "write the parts of docs/surface.md that are made")

const surface = "../../docs/surface.md"

func readSurface(t *testing.T) string { return readPage(t, surface) }

func readPage(t *testing.T, page string) string {
	t.Helper()
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestSurface compares the parts of docs/surface.md, docs/errors.md and docs/client.md
// that are made with the program; -update makes them.
func TestSurface(t *testing.T) {
	compare(t, surface, []part{{"contents", contents(t)}, {"grpc", services()}, {"limits", limits()}, {"commands", commands(t)}})
	compare(t, "../../docs/errors.md", []part{{"classes", classes()}, {"reasons", reasons(t)}})
	compare(t, "../../docs/client.md", examples(t))
}

// contents is what stands where on the page, and each command.
func contents(t *testing.T) string {
	t.Helper()
	var links []string
	for line := range strings.Lines(readPage(t, surface)) {
		if title, ok := strings.CutPrefix(strings.TrimSpace(line), "## "); ok {
			links = append(links, fmt.Sprintf("[%s](#%s)", title, strings.ToLower(title)))
		}
	}
	out := strings.Join(links, " · ") + "\n\nCommands:"
	for line := range strings.Lines(commands(t)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "### weft "); ok {
			out += fmt.Sprintf("\n[%s](#weft-%s)", name, strings.ReplaceAll(name, " ", "-"))
		}
	}
	return out + "\n"
}

// part is one of a page that is made, between <!-- name --> and <!-- end -->.
type part struct{ name, want string }

func compare(t *testing.T, file string, parts []part) {
	t.Helper()
	page := readPage(t, file)
	for _, part := range parts {
		before, rest, ok := strings.Cut(page, "<!-- "+part.name+" -->\n\n")
		got, after, ok2 := strings.Cut(rest, "\n<!-- end -->")
		if !ok || !ok2 {
			t.Fatalf("%s has no part between <!-- %s --> and <!-- end -->", file, part.name)
		}
		if got == part.want {
			continue
		}
		if *update {
			page = before + "<!-- " + part.name + " -->\n\n" + part.want + "\n<!-- end -->" + after
			continue
		}
		have, want := slices.Collect(strings.Lines(got)), slices.Collect(strings.Lines(part.want))
		for _, l := range want {
			if !slices.Contains(have, l) {
				t.Errorf("%s, %s: it lacks %s", file, part.name, l)
			}
		}
		for _, l := range have {
			if !slices.Contains(want, l) {
				t.Errorf("%s, %s: it has, and the program has not, %s", file, part.name, l)
			}
		}
		t.Error("go test ./integration/docs -run TestSurface -update makes it")
	}
	if *update {
		if err := os.WriteFile(file, []byte(page), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// classes is the table of the classes.
func classes() string {
	var b strings.Builder
	b.WriteString("| class | HTTP | gRPC | what to do |\n| --- | --- | --- | --- |\n")
	for _, c := range fault.Classes() {
		a := c.Answer()
		fmt.Fprintf(&b, "| %s | %d | %s | %s |\n", c, a.HTTP, a.GRPC, a.Advice)
	}
	return b.String()
}

// services lists the calls of the gRPC APIs.
func services() string {
	var b strings.Builder
	b.WriteString("| service | call | from the client | to the client |\n| --- | --- | --- | --- |\n")
	stream := map[bool]string{true: "stream of "}
	for _, f := range []protoreflect.FileDescriptor{eventsv1.File_weft_events_v1alpha1_events_proto, adminv1.File_weft_admin_v1alpha1_admin_proto} {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				fmt.Fprintf(&b, "| `%s` | `%s` | %s`%s` | %s`%s` |\n", s.FullName(), m.Name(), stream[m.IsStreamingClient()], m.Input().Name(), stream[m.IsStreamingServer()], m.Output().Name())
			}
		}
	}
	return b.String()
}

// limits are the program's own constants.
func limits() string {
	var b strings.Builder
	b.WriteString("| what | at most |\n| --- | --- |\n")
	for _, l := range []struct {
		what string
		n    int
	}{
		{"events of one batch", pipeline.MaxBatch},
		{"attributes of an event", event.MaxAttributes},
		{"characters of an attribute's name", event.MaxAttributeName},
		{"bytes of an attribute's value", event.MaxAttributeValue},
		{"bytes of an event's attributes together", event.MaxAttributeBytes},
		{"characters of a namespace", names.MaxNamespace},
		{"characters of a name, after escaping", names.MaxName},
		{"members of a Subscription on one proxy", delivery.MaxMembers},
		{"tails of a proxy", delivery.MaxTails},
		{"topics and patterns of a tail", delivery.MaxTailTopics},
		{"bytes of a request's body over HTTP", fronthttp.MaxBody},
		{"bytes of one change of the configuration", configstore.MaxWriteBytes},
		{"writes of one change; a new Topic takes two", configstore.MaxWrites},
		{"bytes of one file of resources", manifest.MaxBytes},
		{"resources of one file", manifest.MaxDocuments},
	} {
		fmt.Fprintf(&b, "| %s | %d |\n", l.what, l.n)
	}
	return b.String()
}

// reasons are those that the data plane's errors have, as they stand in the
// source: each call of fault.New and fault.Wrap, each fault.Error.
func reasons(t *testing.T) string {
	t.Helper()
	r := reasonsOf{classes: map[string]map[string]bool{}, names: map[string]string{}}
	for _, c := range fault.Classes() {
		// The constants are the texts in one word, but for one.
		r.names[strings.TrimPrefix(strings.ReplaceAll(c.String(), " ", ""), "failed")] = c.String()
	}
	for _, root := range []string{"../../dataplane", "../../store", "../../pkg/fault", "../../pkg/event"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() || d.Name() == "storetest" {
				return err
			}
			r.folder(t, path)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var b strings.Builder
	b.WriteString("| reason | class | HTTP | gRPC | what happened, and what to do |\n| --- | --- | --- | --- | --- |\n")
	advice := advice()
	for _, reason := range slices.Sorted(maps.Keys(r.classes)) {
		// What the problem's type leads to.
		_, anchor, _ := strings.Cut((&fault.Error{Reason: reason}).Type(), "#")
		var names, statuses, codes []string
		for _, c := range fault.Classes() {
			if r.classes[reason][c.String()] {
				status := fronthttp.Status(&fault.Error{Class: c, Reason: reason})
				names, statuses, codes = append(names, c.String()), append(statuses, strconv.Itoa(status)), append(codes, c.Answer().GRPC.String())
			}
		}
		row := func(list []string) string { return strings.Join(list, "<br>") }
		fmt.Fprintf(&b, "| <a id=%q></a>`%s` | %s | %s | %s | %s |\n", anchor, reason, row(names), row(statuses), row(codes), advice[reason])
		if advice[reason] == "" {
			t.Errorf("advice has nothing for %s", reason)
		}
		delete(advice, reason)
	}
	for reason := range advice {
		t.Errorf("advice has %s, which nothing gives", reason)
	}
	return b.String()
}

type reasonsOf struct {
	classes map[string]map[string]bool // by reason
	names   map[string]string          // of classes, by constants in lower case
}

func (r reasonsOf) folder(t *testing.T, dir string) {
	t.Helper()
	sources, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	for _, path := range sources {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	values := map[string][]string{}  // literals by the name of the constant or variable
	helpers := map[string]ast.Expr{} // functions whose first argument is the reason, and their class
	inspect := func(f func(*ast.FuncDecl, ast.Node)) {
		for _, file := range files {
			for _, d := range file.Decls {
				fn, _ := d.(*ast.FuncDecl)
				ast.Inspect(d, func(n ast.Node) bool { f(fn, n); return true })
			}
		}
	}
	set := func(name ast.Expr, value ast.Expr) {
		if id, ok := name.(*ast.Ident); ok {
			values[id.Name] = append(values[id.Name], literal(value)...)
		}
	}
	inspect(func(_ *ast.FuncDecl, n ast.Node) {
		switch n := n.(type) {
		case *ast.ValueSpec:
			for i := range n.Values {
				set(n.Names[i], n.Values[i])
			}
		case *ast.AssignStmt:
			for i := range min(len(n.Lhs), len(n.Rhs)) {
				set(n.Lhs[i], n.Rhs[i])
			}
		}
	})
	add := func(fn *ast.FuncDecl, class, reason ast.Expr) {
		for _, l := range literal(reason) {
			r.add(class, l)
		}
		id, ok := reason.(*ast.Ident)
		if !ok {
			return
		}
		if fn != nil && len(fn.Type.Params.List) > 0 && fn.Type.Params.List[0].Names[0].Name == id.Name {
			helpers[fn.Name.Name] = class
			return
		}
		for _, l := range values[id.Name] {
			r.add(class, l)
		}
	}
	inspect(func(fn *ast.FuncDecl, n ast.Node) {
		switch n := n.(type) {
		case *ast.CallExpr:
			if f, ok := n.Fun.(*ast.SelectorExpr); ok && (f.Sel.Name == "New" || f.Sel.Name == "Wrap") && len(n.Args) > 2 && fmt.Sprint(f.X) == "fault" {
				add(fn, n.Args[0], n.Args[2])
			}
		case *ast.CompositeLit:
			var class, reason ast.Expr
			for _, e := range n.Elts {
				if kv, ok := e.(*ast.KeyValueExpr); ok {
					switch fmt.Sprint(kv.Key) {
					case "Class":
						class = kv.Value
					case "Reason":
						reason = kv.Value
					}
				}
			}
			if class != nil && reason != nil {
				add(fn, class, reason)
			}
		}
	})
	inspect(func(_ *ast.FuncDecl, n ast.Node) {
		if call, ok := n.(*ast.CallExpr); ok && len(call.Args) > 0 {
			if id, ok := call.Fun.(*ast.Ident); ok && helpers[id.Name] != nil {
				for _, l := range literal(call.Args[0]) {
					r.add(helpers[id.Name], l)
				}
			}
		}
	})
}

// literal is the text of a string literal, if it is one.
func literal(e ast.Expr) []string {
	if lit, ok := e.(*ast.BasicLit); ok && lit.Kind == token.STRING {
		if s, err := strconv.Unquote(lit.Value); err == nil {
			return []string{s}
		}
	}
	return nil
}

func (r reasonsOf) add(class ast.Expr, reason string) {
	name := ""
	switch c := class.(type) {
	case *ast.SelectorExpr:
		name = c.Sel.Name
	case *ast.Ident:
		name = c.Name
	}
	if name = r.names[strings.ToLower(name)]; name == "" {
		return
	}
	if r.classes[reason] == nil {
		r.classes[reason] = map[string]bool{}
	}
	r.classes[reason][name] = true
}

// commands lists the command line.
func commands(t *testing.T) string {
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, "WEFT_") || strings.HasPrefix(name, "OTEL_") {
			t.Setenv(name, "")
		}
	}
	t.Setenv("XDG_DATA_HOME", "$XDG_DATA_HOME")
	var b strings.Builder
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Hidden {
			return
		}
		if c.Runnable() && c.HasParent() {
			fmt.Fprintf(&b, "### %s\n\n%s.\n\n    %s\n", c.CommandPath(), c.Short, c.UseLine())
			rows := ""
			c.NonInheritedFlags().VisitAll(func(f *pflag.Flag) {
				if f.Hidden || f.Name == "help" {
					return
				}
				name := "`--" + f.Name + "`"
				if f.Shorthand != "" {
					name = "`-" + f.Shorthand + "`, " + name
				}
				value := f.DefValue
				if value == "" || value == "[]" || value == "false" {
					value = ""
				} else {
					value = "`" + value + "`"
				}
				rows += fmt.Sprintf("| %s | %s | %s |\n", name, value, strings.ReplaceAll(f.Usage, "|", `\|`))
			})
			if rows != "" {
				b.WriteString("\n| flag | default | meaning |\n| --- | --- | --- |\n" + rows)
			}
			b.WriteString("\n")
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	root := weft.Command()
	root.InitDefaultCompletionCmd()
	walk(root)
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// TestSurfacePorts: the ports of the page are the defaults of the flags.
func TestSurfacePorts(t *testing.T) {
	listed := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| (\\d+) \\| `weft ([a-z-]+) --([a-z-]+)` \\|").FindAllStringSubmatch(readSurface(t), -1) {
		listed[m[2]+" --"+m[3]] = "127.0.0.1:" + m[1]
	}
	for _, a := range addresses {
		t.Setenv(a.env, "")
	}
	is := map[string]string{}
	for _, c := range weft.Command().Commands() {
		if c.Name() == "proxy" || c.Name() == "control-plane" {
			c.Flags().VisitAll(func(f *pflag.Flag) {
				if strings.HasPrefix(f.DefValue, "127.0.0.1:") {
					is[c.Name()+" --"+f.Name] = f.DefValue
				}
			})
		}
	}
	if !maps.Equal(listed, is) {
		t.Errorf("the page has %v\nthe program %v", listed, is)
	}
}

// TestSurfaceVariables: every environment variable of the program is on the
// page.
func TestSurfaceVariables(t *testing.T) {
	page := readSurface(t)
	found := 0
	for _, root := range []string{"../../tools/weft", "../../tools/proxycmd", "../../tools/cmd/weft", "../../tools/cmd/weft-proxy", "../../pkg", "../../dataplane", "../../controlplane", "../../registry", "../../store"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			b, err := os.ReadFile(path)
			for _, m := range regexp.MustCompile(`(?:Getenv|LookupEnv|Env)\("([A-Z_]+)"`).FindAllSubmatch(b, -1) {
				found++
				if !strings.Contains(page, string(m[1])) {
					t.Errorf("%s reads %s, which is not on the page", path, m[1])
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if found < 30 {
		t.Errorf("%d variables were found: does the test look for them in the right way?", found)
	}
}

// TestSurfacePaths: what the page lists is served, and what is served is on the
// page.
func TestSurfacePaths(t *testing.T) {
	page := readSurface(t)
	rows := regexp.MustCompile("(?m)^\\| (http|health|ops of a [a-z ]+) \\| `([A-Z]+) ([^ `]+)` \\|").FindAllStringSubmatch(page, -1)
	listed := map[string][]string{}
	for _, r := range rows {
		listed[r[1]] = append(listed[r[1]], r[2]+" "+r[3])
	}

	// The small pages are handlers of a ServeMux, which stand in the source.
	for listener, source := range map[string]struct {
		file, function string
	}{"health": {"../../dataplane/proxy/ops.go", "health"}, "ops of a proxy": {"../../dataplane/proxy/ops.go", "operations"}, "ops of a control plane": {"../../controlplane/server/server.go", "operations"}} {
		got := slices.Sorted(slices.Values(patterns(t, source.file, source.function)))
		want := slices.Sorted(slices.Values(listed[listener]))
		for _, more := range []string{"profile", "symbol", "trace"} {
			if slices.Contains(want, "GET /debug/pprof/") {
				want = append(want, "GET /debug/pprof/"+more)
			}
		}
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: the page lists %v, served are %v", listener, want, got)
		}
	}

	// The clients' listener itself says what it has.
	s := newShell(t)
	s.up()
	_, help := s.get(http.MethodGet, "http://127.0.0.1:7410/")
	told := regexp.MustCompile(`[A-Z]+ /v1/[a-z/{}:]+`).FindAllString(help, -1)
	if slices.Sort(told); !slices.Equal(told, slices.Sorted(slices.Values(listed["http"]))) {
		t.Errorf("the page lists %v, the listener says %v", listed["http"], told)
	}
	ports := map[string]string{"http": "7410", "health": "7418", "ops of a proxy": "7419", "ops of a control plane": "7429"}
	fill := strings.NewReplacer("{namespace}", "demo", "{topic}", "never", "{subscription}", "never")
	for _, r := range rows {
		code, body := s.get(r[2], "http://127.0.0.1:"+ports[r[1]]+fill.Replace(r[3]))
		if code == http.StatusMethodNotAllowed || code == http.StatusNotFound || code == http.StatusForbidden && r[1] != "http" {
			t.Errorf("%s %s on %s: %d %s", r[2], r[3], r[1], code, body)
		}
	}
}

// get asks and gives status and body.
func (s *shell) get(method, url string) (int, string) {
	s.Helper()
	cmd, out := s.start(fmt.Sprintf("curl -sS -m 20 -w '\\n%%{http_code}' -X %s '%s'\n", method, url))
	if err := cmd.Wait(); err != nil {
		s.Fatalf("%s %s: %v\n%s", method, url, err, out)
	}
	lines := strings.Split(out.String(), "\n")
	code, err := strconv.Atoi(lines[len(lines)-1])
	s.must(err)
	return code, strings.Join(lines[:len(lines)-1], "\n")
}

// patterns are what a function gives to a ServeMux.
func patterns(t *testing.T, file, function string) []string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Name.Name != function {
			continue
		}
		ast.Inspect(fn, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if sel, ok := call.Fun.(*ast.SelectorExpr); ok && strings.HasPrefix(sel.Sel.Name, "Handle") && len(call.Args) > 0 {
					if lit, ok := call.Args[0].(*ast.BasicLit); ok {
						p, err := strconv.Unquote(lit.Value)
						if err != nil {
							t.Fatal(err)
						}
						out = append(out, p)
					}
				}
			}
			return true
		})
	}
	slices.SortFunc(out, cmp.Compare)
	return out
}
