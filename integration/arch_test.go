// Package integration has the tests of the whole: what folders may import,
// the mesh as processes against real servers, faults, and the mutants that show
// that tests can fail.
package integration

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/weft-mesh/weft/"

// allowed says what each folder may import of this module, beside itself and
// what is below it. The first prefix that fits a package decides. It is the
// picture in ARCHITECTURE.md.
var allowed = []struct {
	folder  string
	imports []string
	why     string
}{
	{"proto/", nil, "contracts stand alone"},
	{"pkg/", []string{"pkg/", "proto/gen/"}, "pkg could be a repository of its own"},
	{"store/binding", []string{"pkg/", "proto/gen/", "store", "store/delay", "store/embedded", "store/kafka", "store/rocketmq"}, "the one place that knows the drivers' options"},
	{"store/storetest", []string{"pkg/", "store"}, "the suite judges drivers and knows none"},
	{"store/", []string{"pkg/", "store", "store/ackwindow", "store/sendqueue", "store/storetest"}, "a driver knows the contract, not the mesh"},
	{"registry/", []string{"pkg/", "registry", "registry/registrytest"}, "a registry knows the contract, not the mesh"},
	{"controlplane/", []string{"pkg/", "proto/gen/", "store", "store/position", "registry", "controlplane/"}, "planes meet on the wire; drivers come from the composition"},
	{"dataplane/", []string{"pkg/", "proto/gen/", "store", "store/position", "dataplane/"}, "planes meet on the wire; drivers come from the composition"},
	{"tools/", []string{""}, "composition"},
	{"integration/", []string{""}, "tests of the whole"},
	{"examples/", []string{"pkg/", "proto/gen/", "registry/"}, "what a user would import"},
}

type pkgInfo struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func goList(t *testing.T, args ...string) []pkgInfo {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Deps"}, args...)...)
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var pkgs []pkgInfo
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkgInfo
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// fits reports whether the folder or prefix rule covers path. A rule that ends
// in "/" covers what is below; another covers only itself.
func fits(rule, path string) bool {
	if rule == "" {
		return true
	}
	if strings.HasSuffix(rule, "/") {
		return strings.HasPrefix(path, rule)
	}
	return path == rule
}

// violations are the imports that the table forbids.
func violations(pkgs []pkgInfo) []string {
	var bad []string
	for _, p := range pkgs {
		path := strings.TrimPrefix(p.ImportPath, module)
		i := slices.IndexFunc(allowed, func(a struct {
			folder  string
			imports []string
			why     string
		}) bool {
			return fits(a.folder, path) || strings.TrimSuffix(a.folder, "/") == path || !strings.HasSuffix(a.folder, "/") && strings.HasPrefix(path, a.folder+"/")
		})
		if i < 0 {
			bad = append(bad, path+" is in no folder of the table")
			continue
		}
		rule := allowed[i]
		for _, imp := range p.Imports {
			imp, ours := strings.CutPrefix(imp, module)
			if !ours || strings.HasPrefix(imp, path+"/") {
				continue
			}
			if !slices.ContainsFunc(rule.imports, func(r string) bool { return fits(r, imp) }) && !sameFolder(rule.folder, path, imp) {
				bad = append(bad, path+" imports "+imp+": "+rule.why)
			}
		}
	}
	return bad
}

// sameFolder: a driver's or registry's own subpackages ("store/rocketmq/remoting")
// belong to it.
func sameFolder(folder, path, imp string) bool {
	if !strings.HasSuffix(folder, "/") {
		return false
	}
	own, _, _ := strings.Cut(strings.TrimPrefix(path, folder), "/")
	return strings.HasPrefix(imp, folder+own+"/") || imp == folder+own
}

func TestImports(t *testing.T) {
	for _, v := range violations(goList(t, "./...")) {
		t.Error(v)
	}
}

// TestImportsNotices shows that the rules can fail.
func TestImportsNotices(t *testing.T) {
	for _, p := range []pkgInfo{
		{ImportPath: module + "dataplane/pipeline", Imports: []string{module + "controlplane/admin"}},
		{ImportPath: module + "controlplane/admin", Imports: []string{module + "dataplane/policy"}},
		{ImportPath: module + "controlplane/server", Imports: []string{module + "store/rocketmq"}},
		{ImportPath: module + "pkg/event", Imports: []string{module + "store"}},
		{ImportPath: module + "store/embedded", Imports: []string{module + "store/rocketmq"}},
		{ImportPath: module + "store/embedded", Imports: []string{module + "dataplane/snapshot"}},
		{ImportPath: module + "proto/gen/x", Imports: []string{module + "pkg/event"}},
		{ImportPath: module + "newplane/x", Imports: nil},
	} {
		if len(violations([]pkgInfo{p})) == 0 {
			t.Errorf("%s importing %v is not noticed", p.ImportPath, p.Imports)
		}
	}
}

// forbidden are packages that a sidecar's proxy must not link: it would carry
// what it never uses, and bring its faults.
func forbidden(deps []string) []string {
	var bad []string
	for _, d := range deps {
		for _, f := range []string{"go.etcd.io/etcd/", module + "controlplane/", module + "tools/weft", module + "registry/memory", "github.com/nacos-group/", "buf.build/go/protovalidate"} {
			if strings.HasPrefix(d, f) {
				bad = append(bad, d)
			}
		}
	}
	return bad
}

// TestSidecar: the proxy's own binary has neither etcd nor a control plane in
// it; the command with everything has, so the test can tell.
func TestSidecar(t *testing.T) {
	for _, p := range goList(t, "./tools/cmd/weft-proxy", "./tools/cmd/weft") {
		bad := forbidden(p.Deps)
		switch {
		case strings.HasSuffix(p.ImportPath, "/weft-proxy"):
			if len(p.Deps) == 0 || len(bad) > 0 {
				t.Errorf("of %d packages that weft-proxy links, these are too many: %v", len(p.Deps), bad)
			}
		case len(bad) == 0:
			t.Error("the test finds no control plane in weft")
		}
	}
}

// TestMutantsApply keeps the mutants alive: `make mutants` runs them.
func TestMutantsApply(t *testing.T) {
	cmd := exec.Command("go", "run", "./tools/cmd/mutants", "-check")
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestNothingIsSkipped: the reasons for which a test may be skipped are -short, in
// servers.NeedServers, and a clone without history, in servers.NeedBaseline.
func TestNothingIsSkipped(t *testing.T) {
	const where = "integration/servers/shared.go"
	const allowed = 2
	seen := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.Contains(path, "/proto/gen/") {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, call := range []string{".Skip" + "(", ".Skip" + "f(", ".Skip" + "Now("} {
			if strings.Contains(string(b), "t"+call) || strings.Contains(string(b), "tb"+call) || strings.Contains(string(b), "b"+call) {
				if strings.HasSuffix(path, where) {
					seen += strings.Count(string(b), "t"+call)
				} else {
					t.Errorf("%s skips a test: a skip hides a promise", path)
				}
			}
		}
		return nil
	})
	if err != nil || seen != allowed {
		t.Errorf("%v; of the %d that are allowed %d were found", err, allowed, seen)
	}
}
