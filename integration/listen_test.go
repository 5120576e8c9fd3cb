package integration

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// serving is what makes a listener or a server, by import path.
var serving = map[string][]string{
	"net":                    {"Listen", "ListenTCP", "ListenPacket", "ListenUDP", "ListenUnix", "ListenConfig", "FileListener"},
	"crypto/tls":             {"Listen"},
	"net/http":               {"Server", "ListenAndServe", "ListenAndServeTLS", "Serve", "ServeTLS"},
	"google.golang.org/grpc": {"NewServer"},
}

// listens names what in a file makes a listener or a server.
func listens(file *ast.File) []string {
	packages := map[string]string{}
	for _, imp := range file.Imports {
		path := strings.Trim(imp.Path.Value, `"`)
		name := path[strings.LastIndexByte(path, '/')+1:]
		if imp.Name != nil {
			name = imp.Name.Name
		}
		packages[name] = path
	}
	var found []string
	look := func(n ast.Expr) {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if p, ok := s.X.(*ast.Ident); ok && slices.Contains(serving[packages[p.Name]], s.Sel.Name) {
				found = append(found, p.Name+"."+s.Sel.Name)
			}
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch x := n.(type) {
		case *ast.CallExpr:
			look(x.Fun)
		case *ast.CompositeLit:
			look(x.Type)
		}
		return true
	})
	return found
}

// TestListens: only pkg/listener makes listeners and servers, so that there is
// none without limits. Examples are programs of others.
func TestListens(t *testing.T) {
	files := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		rel := filepath.ToSlash(strings.TrimPrefix(path, "../"))
		switch {
		case err != nil:
			return err
		case d.IsDir() && (rel == "integration" || rel == "pkg/listener" || rel == "proto" || rel == "examples" || len(rel) > 2 && strings.HasPrefix(rel, ".")):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(rel, ".go") || strings.HasSuffix(rel, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		files++
		for _, what := range listens(file) {
			t.Errorf("%s has %s: listen with pkg/listener", rel, what)
		}
		return nil
	})
	if err != nil || files < 50 {
		t.Errorf("%d files, %v", files, err)
	}
}

// TestListensNotices shows that the rule can fail.
func TestListensNotices(t *testing.T) {
	for _, src := range []string{
		`package x; import "net"; func f() { net.Listen("tcp", "") }`,
		`package x; import "net/http"; var s = &http.Server{}`,
		`package x; import web "net/http"; func f() { web.ListenAndServe("", nil) }`,
		`package x; import "google.golang.org/grpc"; func f() { grpc.NewServer() }`,
		`package x; import "net"; func f() { (&net.ListenConfig{}).Listen(nil, "", "") }`,
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "x.go", src, 0)
		if err != nil {
			t.Fatal(err)
		}
		if len(listens(file)) != 1 {
			t.Errorf("%s is not noticed", src)
		}
	}
}
