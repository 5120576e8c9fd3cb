package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strings"
	"testing"
)

// examples are those of the Go client, which its own tests run, as parts of a page.
func examples(t *testing.T) []part {
	t.Helper()
	const name = "../../pkg/client/example_test.go"
	src, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, src, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var out []part
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || !strings.HasPrefix(f.Name.Name, "Example") {
			continue
		}
		body := string(src[set.Position(f.Body.Lbrace).Offset+2 : set.Position(f.Body.Rbrace).Offset])
		lines := strings.Split(strings.TrimSuffix(body, "\n"), "\n")
		for i, l := range lines {
			lines[i] = strings.TrimPrefix(l, "\t")
		}
		out = append(out, part{f.Name.Name, "```go\n" + strings.Join(lines, "\n") + "\n```\n"})
	}
	if len(out) == 0 {
		t.Fatalf("%s has no examples", name)
	}
	return out
}
