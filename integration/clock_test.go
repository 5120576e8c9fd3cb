package integration

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// measures are the files that may keep what time.Now gives, and why it is no
// wall time there. What becomes of it only within one function is seen without.
var measures = map[string]string{
	"pkg/clock/clock.go":                    "is where wall time is read",
	"pkg/jwtauth/keys.go":                   "time since keys were looked at",
	"pkg/tlsconf/tlsconf.go":                "time since files were looked at",
	"pkg/outage/outage.go":                  "how long an outage lasts",
	"controlplane/census/records.go":        "how old a record is",
	"dataplane/denied/denied.go":            "for how long nothing was denied",
	"dataplane/report/report.go":            "time since the last report",
	"controlplane/nodestream/nodestream.go": "how often a node says something",
	"controlplane/discovery/stream.go":      "time from a delta to its answer",
	"controlplane/fleet/fleet.go":           "how long a proxy was not heard of",
	"controlplane/provision/provision.go":   "time since groups were looked for",
	"dataplane/config/age.go":               "for how long no control plane was heard",
	"dataplane/config/demand.go":            "how long a name is not used",
	"dataplane/config/wanted.go":            "how long a name is not used",
	"pkg/clock/boot_other.go":               "what leases are judged by, where no clock counts sleep",
	"store/delay/delay.go":                  "for how long topics are missing",
	"store/delay/member.go":                 "when what failed is tried again",
	"store/kafka/topic.go":                  "how old a topic's metadata are",
	"store/kafka/publish.go":                "for how long a sender is not used",
	"store/kafka/deliver.go":                "since when a request is under way",
	"store/kafka/links.go":                  "until when a quota has a client wait",
	"dataplane/delivery/feed.go":            "where a partition begins of which nothing was read",
	"dataplane/delivery/measure.go":         "for how long a topic is not read",
	"dataplane/delivery/member.go":          "acknowledgements' time-outs",
	"dataplane/delivery/pull.go":            "the lease of who pulls",
	"dataplane/delivery/retry.go":           "when a short retry is due",
	"dataplane/delivery/runtime.go":         "acknowledgements' time-outs",
	"dataplane/delivery/sticky.go":          "for how long a member is not heard of",
	"dataplane/push/client.go":              "for how long an instance is passed over",
	"dataplane/push/handshake.go":           "for how long a request waits for its turn",
	"dataplane/push/secrets.go":             "time since a secret was read",
	"dataplane/push/tls.go":                 "time since TLS files were tried",
	"dataplane/pipeline/publish.go":         "how long a publish takes",
	"dataplane/pipeline/storelog.go":        "time since a store was told of",
	"dataplane/proxy/drain.go":              "how long a drain takes",
	"dataplane/quota/limiter.go":            "how long a quota is used up",
	"dataplane/stores/keeper.go":            "how long a store is not used",
	"registry/nacos/client.go":              "how long a log-in lasts",
	"registry/nacos/nacos.go":               "time since an entry was written",
	"registry/nacos/resolver.go":            "how long a set is doubted",
	"store/rocketmq/looks.go":               "how old a route is",
	"store/rocketmq/keys.go":                "time since keys were read",
	"store/rocketmq/remoting/remoting.go":   "deadlines of a connection, and how long it is silent",
	"store/rocketmq/seal.go":                "how old a route is",
	"dataplane/frontend/http/request.go":    "a deadline of a connection",
	"dataplane/frontend/http/tail.go":       "a deadline of a connection",
}

// wallTime are the places of a file where time.Now may become wall time: every
// call but those whose result stays in a local variable that only time.Since
// reads.
func wallTime(fset *token.FileSet, f *ast.File) []token.Position {
	is := func(n ast.Node, pkg, name string) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return false
		}
		x, ok := sel.X.(*ast.Ident)
		return ok && x.Name == pkg && sel.Sel.Name == name
	}
	nowCall := func(e ast.Expr) bool {
		c, ok := e.(*ast.CallExpr)
		return ok && is(c.Fun, "time", "Now")
	}
	measured := map[token.Pos]bool{} // calls that are fine
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Body == nil {
			continue
		}
		began := map[string][]token.Pos{} // variables and their calls
		uses, since := map[string]int{}, map[string]int{}
		ast.Inspect(fn.Body, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				for i, l := range n.Lhs {
					if id, ok := l.(*ast.Ident); ok && len(n.Lhs) == len(n.Rhs) && nowCall(n.Rhs[i]) {
						began[id.Name] = append(began[id.Name], n.Rhs[i].Pos())
						uses[id.Name]--
					}
				}
			case *ast.CallExpr:
				if is(n.Fun, "time", "Since") {
					if id, ok := n.Args[0].(*ast.Ident); ok {
						since[id.Name]++
					}
				}
			case *ast.Ident:
				uses[n.Name]++
			}
			return true
		})
		for name, calls := range began {
			if uses[name] == since[name] {
				for _, at := range calls {
					measured[at] = true
				}
			}
		}
	}
	var out []token.Position
	ast.Inspect(f, func(n ast.Node) bool {
		switch {
		case n == nil:
		case is(n, "time", "Now"):
			if !measured[n.Pos()] {
				out = append(out, fset.Position(n.Pos()))
			}
		case is(n, "timestamppb", "Now"):
			out = append(out, fset.Position(n.Pos()))
		}
		return true
	})
	return out
}

// TestWallTime: what the product writes down, or compares with what others wrote
// down, is read through pkg/clock, where tests make it jump.
func TestWallTime(t *testing.T) {
	seen := map[string]bool{}
	for _, dir := range []string{"pkg", "controlplane", "dataplane", "store", "registry"} {
		err := filepath.WalkDir(filepath.Join("..", dir), func(path string, d fs.DirEntry, err error) error {
			name := filepath.ToSlash(strings.TrimPrefix(path, ".."+string(filepath.Separator)))
			if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, "store/storetest/") {
				return err
			}
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, path, nil, 0)
			if err != nil {
				return err
			}
			for _, at := range wallTime(fset, f) {
				if seen[name] = true; measures[name] == "" {
					t.Errorf("%v: wall time is read with clock.Clock; where this is none, say why in measures", at)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	for name := range measures {
		if !seen[name] {
			t.Errorf("%s needs no exception", name)
		}
	}
}

// TestWallTimeNotices shows that the rule can fail.
func TestWallTimeNotices(t *testing.T) {
	for body, want := range map[string]int{
		`began := time.Now(); f(time.Since(began))`:           0,
		`began, n := time.Now(), 1; f(time.Since(began), n)`:  0,
		`now := time.Now(); f(now)`:                           1,
		`began := time.Now(); f(time.Since(began)); f(began)`: 1,
		`f(time.Now().Unix())`:                                1,
		`f(timestamppb.Now())`:                                1,
		`f(time.Now)`:                                         1,
	} {
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, "x.go", fmt.Sprintf("package x\nfunc x() { %s }", body), 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(wallTime(fset, f)); got != want {
			t.Errorf("%s: %d places, want %d", body, got, want)
		}
	}
}
