package weft

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/manifest"
)

// item is one resource before and after a change: without before it is created,
// without after deleted.
type item struct {
	name          string
	before, after *configv1.Resource
}

// plain is a resource as people write it: without what the control plane draws.
func plain(r *configv1.Resource) *configv1.Resource {
	if r == nil {
		return nil
	}
	r = proto.Clone(r).(*configv1.Resource)
	r.Name = ""
	if md := r.Metadata; md != nil {
		md.Version, md.Uid, md.CreatedAt = "", "", nil
	}
	return r
}

func (i item) changed() bool { return !proto.Equal(plain(i.before), plain(i.after)) }

// writeDiff writes what a change does, as unified diffs of YAML: one for each
// resource that differs. It tells how many there were.
func writeDiff(w io.Writer, items []item) (int, error) {
	yaml := func(r *configv1.Resource) ([]string, error) {
		if r == nil {
			return nil, nil
		}
		b, err := manifest.YAML(plain(r))
		return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n"), err
	}
	paint := func(code, text string) string { return text }
	if isTerminal(w) {
		paint = func(code, text string) string { return "\x1b[" + code + "m" + text + "\x1b[0m" }
	}
	n := 0
	for _, i := range items {
		if !i.changed() {
			continue
		}
		n++
		before, err := yaml(i.before)
		if err != nil {
			return n, err
		}
		after, err := yaml(i.after)
		if err != nil {
			return n, err
		}
		from, to := "a/"+i.name, "b/"+i.name
		if i.before == nil {
			from = "/dev/null"
		}
		if i.after == nil {
			to = "/dev/null"
		}
		var b strings.Builder
		fmt.Fprintln(&b, paint("1", "--- "+from))
		fmt.Fprintln(&b, paint("1", "+++ "+to))
		for _, line := range unified(before, after) {
			switch line[0] {
			case '+':
				line = paint("32", line)
			case '-':
				line = paint("31", line)
			case '@':
				line = paint("36", line)
			}
			fmt.Fprintln(&b, line)
		}
		if _, err := io.WriteString(w, b.String()); err != nil {
			return n, err
		}
	}
	return n, nil
}

// isTerminal reports whether w, or a reader, is one.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// diffContext is how many lines stand around a change.
const diffContext = 3

// maxCells bounds the work of one diff; beyond, all that differs in the middle is
// one change.
const maxCells = 4 << 20

// unified are the hunks of a unified diff.
func unified(a, b []string) []string {
	type line struct {
		op   byte
		text string
	}
	start := 0
	for start < len(a) && start < len(b) && a[start] == b[start] {
		start++
	}
	end := 0
	for end < len(a)-start && end < len(b)-start && a[len(a)-1-end] == b[len(b)-1-end] {
		end++
	}
	var lines []line
	for _, s := range a[:start] {
		lines = append(lines, line{' ', s})
	}
	x, y := a[start:len(a)-end], b[start:len(b)-end]
	// common[i][j] is the longest common subsequence of x[i:] and y[j:].
	var common [][]int32
	if len(x)*len(y) <= maxCells {
		common = make([][]int32, len(x)+1)
		for i := range common {
			common[i] = make([]int32, len(y)+1)
		}
		for i := len(x) - 1; i >= 0; i-- {
			for j := len(y) - 1; j >= 0; j-- {
				if x[i] == y[j] {
					common[i][j] = common[i+1][j+1] + 1
				} else {
					common[i][j] = max(common[i+1][j], common[i][j+1])
				}
			}
		}
	}
	for i, j := 0, 0; i < len(x) || j < len(y); {
		switch {
		case common != nil && i < len(x) && j < len(y) && x[i] == y[j]:
			lines = append(lines, line{' ', x[i]})
			i, j = i+1, j+1
		case i < len(x) && (j == len(y) || common == nil || common[i+1][j] >= common[i][j+1]):
			lines = append(lines, line{'-', x[i]})
			i++
		default:
			lines = append(lines, line{'+', y[j]})
			j++
		}
	}
	for _, s := range a[len(a)-end:] {
		lines = append(lines, line{' ', s})
	}

	var out []string
	na, nb := 1, 1 // of the next line, in a and b
	for at := 0; at < len(lines); {
		if lines[at].op == ' ' {
			at, na, nb = at+1, na+1, nb+1
			continue
		}
		// A hunk: until so many lines in a row are the same.
		from := max(0, at-diffContext)
		to, same := at, 0
		for to < len(lines) && same <= 2*diffContext {
			if same++; lines[to].op != ' ' {
				same = 0
			}
			to++
		}
		to -= max(0, same-diffContext)
		fa, fb := na-(at-from), nb-(at-from)
		ca, cb := 0, 0
		var hunk []string
		for _, l := range lines[from:to] {
			hunk = append(hunk, string(l.op)+l.text)
			if l.op != '+' {
				ca++
			}
			if l.op != '-' {
				cb++
			}
		}
		na, nb, at = fa+ca, fb+cb, to
		if ca == 0 {
			fa--
		}
		if cb == 0 {
			fb--
		}
		out = append(out, fmt.Sprintf("@@ -%d,%d +%d,%d @@", fa, ca, fb, cb))
		out = append(out, hunk...)
	}
	return out
}
