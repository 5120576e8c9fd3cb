package weft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
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
		w, paint = own(w), func(code, text string) string { return "\x1b[" + code + "m" + text + "\x1b[0m" }
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
		fmt.Fprintln(&b, paint("1", escaped("--- "+from)))
		fmt.Fprintln(&b, paint("1", escaped("+++ "+to)))
		for _, line := range unified(before, after) {
			line = escaped(line)
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

// exitStatus is an error with an exit status of its own; without a text it is not
// printed.
type exitStatus struct {
	code int
	error
}

func (e exitStatus) Error() string {
	if e.error == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.error.Error()
}

func (e exitStatus) Unwrap() error { return e.error }

// Exit statuses of weft diff and weft schema check, as diff(1) has them.
const (
	differs = 1
	trouble = 2
)

// badUse lets errors of a command's arguments and flags end with trouble too.
func badUse(cmd *cobra.Command) {
	args := cmd.Args
	cmd.Args = func(cmd *cobra.Command, in []string) error {
		if err := args(cmd, in); err != nil {
			return exitStatus{trouble, fmt.Errorf("%w\nusage: %s", err, cmd.UseLine())}
		}
		return nil
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return exitStatus{trouble, cmd.Root().FlagErrorFunc()(cmd, err)}
	})
}

func diffCommand() *cobra.Command {
	var (
		admin     adminFlags
		what      applyFlags
		kind, one string
	)
	cmd := &cobra.Command{Use: "diff -f FILE|FOLDER|- … | REVISION [REVISION]", Short: "Show what weft apply would change, or what differs between revisions", Args: cobra.MaximumNArgs(2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 1 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return completeRevisions(cmd, &admin)
		},
		Long: `With -f, shows what weft apply would change, after the control plane has judged it
as it would be judged then. With a revision, shows what differs between it and now,
or a second one; weft history lists revisions.

The exit status is that of diff(1): 0 where nothing differs, 1 where something
does, 2 after an error.`,
		Example: "  weft diff -f examples/orders/\n  weft diff 1042\n  weft diff 1042 1100 -n shop --only-kind topic",
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := diff(cmd, args, &admin, &what, kind, one)
			switch {
			case err != nil:
				return exitStatus{trouble, err}
			case n > 0:
				return exitStatus{code: differs}
			}
			return nil
		}}
	admin.add(cmd)
	what.add(cmd)
	cmd.Flags().StringVar(&kind, "only-kind", "", "between revisions: only this kind")
	cmd.Flags().StringVar(&one, "only", "", "between revisions: only this resource, as KIND/NAMESPACE/NAME")
	completeKindFlag(cmd, "only-kind")
	_ = cmd.RegisterFlagCompletionFunc("only", func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		return completeCanonical(cmd, &admin, typed)
	})
	completeNamespace(cmd, &admin)
	badUse(cmd)
	return cmd
}

func diff(cmd *cobra.Command, args []string, admin *adminFlags, what *applyFlags, kind, one string) (int, error) {
	if (len(args) > 0) == (len(what.files) > 0) {
		return 0, errors.New("give files with -f, or one or two revisions")
	}
	var items []item
	if len(args) > 0 {
		req := &adminv1.DiffRequest{Kind: kind, Namespace: what.namespace, Name: one}
		var err error
		if req.FromRevision, err = revision(args[0]); err != nil {
			return 0, err
		}
		if len(args) == 2 {
			if req.ToRevision, err = revision(args[1]); err != nil {
				return 0, err
			}
		}
		c, done, err := admin.dial()
		if err != nil {
			return 0, err
		}
		defer done()
		ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
		defer cancel()
		resp, err := c.Diff(ctx, req)
		if err != nil {
			return 0, err
		}
		items = itemsOf(resp.Changes)
	} else {
		if err := what.check(); err != nil {
			return 0, err
		}
		c, done, err := admin.dial()
		if err != nil {
			return 0, err
		}
		defer done()
		p, err := what.read(cmd, c)
		if err != nil {
			return 0, err
		}
		if _, err := applyStages(cmd, c, p.stages(), applyOptions{dryRun: true, mass: what.mass}); err != nil {
			return 0, err
		}
		items = p.items
	}
	return writeDiff(cmd.OutOrStdout(), items)
}

func itemsOf(changes []*adminv1.ResourceDiff) []item {
	var items []item
	for _, d := range changes {
		items = append(items, item{d.Name, d.Before, d.After})
	}
	return items
}
