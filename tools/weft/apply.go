package weft

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/resource"
)

// selection is what is there of a namespace, or of all, with some labels and of some kinds.
type selection struct {
	namespace string
	selector  map[string]string
	kinds     []string
}

func (s *selection) add(cmd *cobra.Command, selector, kinds string) {
	cmd.Flags().StringToStringVarP(&s.selector, "selector", "l", nil, selector)
	cmd.Flags().StringSliceVar(&s.kinds, "kind", nil, kinds)
	completeKindFlag(cmd, "kind")
}

func (s *selection) check() error {
	for i, k := range s.kinds {
		info, ok := resource.Lookup(k)
		if !ok || info.System {
			return fmt.Errorf("--kind: %q is not a kind that is applied", k)
		}
		s.kinds[i] = string(info.Kind)
	}
	return nil
}

// has reports whether a resource is one of these, and users apply it.
func (s *selection) has(r *configv1.Resource) bool {
	kind := resource.KindOf(r)
	if info, ok := resource.Lookup(string(kind)); !ok || info.System {
		return false
	}
	// A Migration says what is to happen once: that files do not have it means nothing.
	if kind == resource.Migration && !slices.Contains(s.kinds, string(kind)) {
		return false
	}
	if s.namespace != "" && r.Metadata.Namespace != s.namespace || len(s.kinds) > 0 && !slices.Contains(s.kinds, string(kind)) {
		return false
	}
	for k, v := range s.selector {
		if r.Metadata.Labels[k] != v {
			return false
		}
	}
	return true
}

// applyFlags say what is applied, and with --prune what is looked after.
type applyFlags struct {
	selection
	files []string
	prune bool
	mass  bool
}

func (f *applyFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringArrayVarP(&f.files, "filename", "f", nil, "file, folder (.yaml, .yml, .json) or - for standard input; may be repeated")
	cmd.Flags().StringVarP(&f.namespace, "namespace", "n", "", "namespace of resources that name none; with --prune the one that is pruned")
	cmd.Flags().BoolVar(&f.prune, "prune", false, "also delete what is in the namespace of -n, with the labels of -l, of the kinds of --kind, and not in the files")
	f.selection.add(cmd, "labels that what is pruned has: key=value,…", "kinds that are pruned; all but migrations when empty")
	cmd.Flags().BoolVar(&f.mass, "allow-mass-removal", false, "the change may remove more than the control plane lets go unasked")
}

// check finds what does not go together, before anything is read.
func (f *applyFlags) check() error {
	if len(f.files) == 0 {
		return errors.New("name what to apply: -f FILE, -f FOLDER, or -f - for standard input")
	}
	if !f.prune && (len(f.selector) > 0 || len(f.kinds) > 0) {
		return errors.New("-l and --kind say what --prune may delete, and go with it")
	}
	if f.prune && f.namespace == "" && len(f.selector) == 0 {
		return errors.New("--prune: say of what, with a namespace (-n), labels (-l) or both: what is there and not in the files is deleted")
	}
	return f.selection.check()
}

// plan is what is to be applied: what the files have, in their order, and then
// what is deleted.
type plan struct {
	items []item
}

// read compares the files with what is there.
func (f *applyFlags) read(cmd *cobra.Command, c adminv1.AdminServiceClient) (*plan, error) {
	docs, err := readManifests(cmd, f.files, f.namespace)
	if err != nil {
		return nil, err
	}
	seen := map[string]string{}
	var rs []*configv1.Resource
	for _, d := range docs {
		name, at := resource.NameOf(d.Resource), fmt.Sprintf("%s:%d", d.File, d.Line)
		if seen[name] != "" {
			return nil, fmt.Errorf("%s: %s is in %s too", at, name, seen[name])
		}
		seen[name] = at
		if f.prune && !f.has(d.Resource) {
			return nil, fmt.Errorf("%s: %s is not of what --prune is to look after: another namespace, other labels or another kind", at, name)
		}
		rs = append(rs, d.Resource)
	}
	p := &plan{}
	current, err := f.current(cmd.Context(), c, rs)
	if err != nil {
		return nil, err
	}
	for _, r := range rs {
		i := item{resource.NameOf(r), current[resource.NameOf(r)], r}
		if i.before != nil && r.Metadata.Version == "" {
			// Not what others change meanwhile is overwritten.
			r.Metadata.Version = i.before.Metadata.Version
		}
		p.items = append(p.items, i)
	}
	if f.prune {
		var gone []item
		for name, r := range current {
			if seen[name] == "" && f.has(r) {
				gone = append(gone, item{name, r, nil})
			}
		}
		slices.SortFunc(gone, func(a, b item) int { return strings.Compare(a.name, b.name) })
		p.items = append(p.items, gone...)
	}
	return p, nil
}

// manyGets is from how many resources on they are listed, not asked for one by one.
const manyGets = 50

// current is what there is of rs and, with --prune, of all that may be pruned.
func (f *applyFlags) current(ctx context.Context, c adminv1.AdminServiceClient, rs []*configv1.Resource) (map[string]*configv1.Resource, error) {
	out := map[string]*configv1.Resource{}
	if !f.prune && len(rs) <= manyGets {
		for _, r := range rs {
			name := resource.NameOf(r)
			cctx, cancel := context.WithTimeout(ctx, callTimeout)
			got, err := c.Get(cctx, &adminv1.GetRequest{Name: name})
			cancel()
			switch status.Code(err) {
			case codes.OK:
				out[name] = got.Resource
			case codes.NotFound, codes.InvalidArgument: // Apply says what is wrong with it
			default:
				return nil, err
			}
		}
		return out, nil
	}
	namespaces := []string{f.namespace}
	if !f.prune {
		namespaces = nil
		for _, r := range rs {
			namespaces = append(namespaces, r.Metadata.Namespace)
		}
		slices.Sort(namespaces)
		namespaces = slices.Compact(namespaces)
	}
	for _, ns := range namespaces {
		if err := userResources(ctx, c, ns, out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// userResources adds to out what a namespace, or the mesh, has that users apply.
func userResources(ctx context.Context, c adminv1.AdminServiceClient, namespace string, out map[string]*configv1.Resource) error {
	return eachResource(ctx, c, &adminv1.ListRequest{Namespace: namespace, PageSize: 1000}, func(r *configv1.Resource) {
		if info, _ := resource.Lookup(string(resource.KindOf(r))); !info.System {
			out[r.Name] = r
		}
	})
}

// eachResource goes through all pages of a list.
func eachResource(ctx context.Context, c adminv1.AdminServiceClient, req *adminv1.ListRequest, each func(*configv1.Resource)) error {
	for {
		cctx, cancel := context.WithTimeout(ctx, callTimeout)
		resp, err := c.List(cctx, req)
		cancel()
		if err != nil {
			return err
		}
		for _, r := range resp.Resources {
			each(r)
		}
		if req.PageToken = resp.NextPageToken; req.PageToken == "" {
			return nil
		}
	}
}

// Bounds of a stage, which is one transaction: the control plane's, and of bytes
// less than half of that, since the audit record has what was there and what
// comes.
const (
	stageResources = 100
	stageWrites    = 120
	stageBytes     = 400 << 10
)

// writes is how many keys a change of i writes: what the control plane has for it
// goes along.
func (i item) writes() int {
	topic, sub := i.after.GetTopic() != nil || i.before.GetTopic() != nil, i.before.GetSubscription() != nil
	switch {
	case topic && i.after == nil:
		return 3
	case topic && i.before == nil || sub && i.after == nil:
		return 2
	}
	return 1
}

// stages are the transactions of a plan. What fits in one is one, with what does
// not change. Otherwise what others refer to comes first, and deletions last, the
// other way round.
func (p *plan) stages() [][]item {
	if parts := cut(p.items); len(parts) <= 1 {
		return parts
	}
	var put, gone []item
	for _, i := range p.items {
		switch {
		case i.after == nil:
			gone = append(gone, i)
		case i.changed():
			put = append(put, i)
		}
	}
	rank := func(i item) int {
		kind, _, _ := strings.Cut(i.name, "/")
		return rankOf(resource.Kind(kind))
	}
	slices.SortStableFunc(put, func(a, b item) int { return rank(a) - rank(b) })
	slices.SortStableFunc(gone, func(a, b item) int { return rank(b) - rank(a) })
	return cut(append(put, gone...))
}

// rankOf is where a kind is among all: what others refer to comes first.
func rankOf(kind resource.Kind) int {
	return slices.IndexFunc(resource.Kinds(), func(i resource.Info) bool { return i.Kind == kind })
}

// cut puts as many items into each part as a transaction takes.
func cut(items []item) [][]item {
	var out [][]item
	writes, bytes := 0, 0
	for n, i := range items {
		w, b := i.writes(), proto.Size(i.after)+proto.Size(i.before)
		if n == 0 || len(out[len(out)-1]) == stageResources || writes+w > stageWrites || bytes+b > stageBytes {
			out, writes, bytes = append(out, nil), 0, 0
		}
		out[len(out)-1] = append(out[len(out)-1], i)
		writes, bytes = writes+w, bytes+b
	}
	return out
}

// requestOf is the call for the first of some stages. It tells what they all
// remove: the control plane judges that as a whole.
func requestOf(stages [][]item, dryRun, mass bool) *adminv1.ApplyRequest {
	req := &adminv1.ApplyRequest{DryRun: dryRun, AllowMassRemoval: mass}
	if len(stages) > 1 {
		req.PlannedRemovals = map[string]uint32{}
		for _, i := range slices.Concat(stages...) {
			if i.after == nil {
				req.PlannedRemovals[i.before.Metadata.Namespace]++
			}
		}
	}
	for _, i := range stages[0] {
		if i.after != nil {
			req.Resources = append(req.Resources, i.after)
		} else {
			req.Delete = append(req.Delete, &adminv1.DeleteTarget{Name: i.name, Version: i.before.Metadata.Version})
		}
	}
	return req
}

func applyCommand() *cobra.Command {
	var (
		admin    adminFlags
		what     applyFlags
		dryRun   bool
		yes      bool
		showDiff bool
		wait     time.Duration
		output   string
	)
	cmd := &cobra.Command{Use: "apply -f FILE|FOLDER|- …", Short: "Create, update and, with --prune, delete resources",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("files are named with -f: weft apply -f %s", args[0])
			}
			return nil
		},
		Long: `Reads resources from files, folders or standard input, and creates or updates them
in one transaction: all or none. What is wrong is said at once, with the file and
line, or the resource and field. A resource that carries the version at which it
was read (weft get -o yaml) is refused where another one changed it meanwhile.

On a terminal the changes are shown as diffs, and it asks before it makes them,
unless --yes is given. Elsewhere --diff shows them.

Of folders those within are read too, but for hidden ones.

With --prune it also deletes what is there and not in the files, of the namespace
of -n, with the labels of -l, of the kinds of --kind. What the control plane writes
itself is never pruned, and a set of files without resources prunes nothing.

A set that no one transaction takes (100 resources, 120 writes, 400 KiB) is applied
in stages, each of them all or nothing: what others refer to first, deletions last.
Where one fails, it says which are in force; the same command goes on from there.`,
		Example: "  weft apply -f examples/orders/\n  weft apply --dry-run -f topic.yaml\n  weft get topic orders -o yaml | sed 's/168h/24h/' | weft apply -f -\n  weft apply -f mesh/ -n shop --prune --yes",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(checkOutput(output), what.check()); err != nil {
				return err
			}
			c, done, err := admin.dial()
			if err != nil {
				return err
			}
			defer done()
			p, err := what.read(cmd, c)
			if err != nil {
				return err
			}
			stages := p.stages()
			told := false // what the needs of the first stage cost
			// On a terminal it asks; not where standard input has the files.
			ask := !yes && !dryRun && output == "text" && isTerminal(cmd.OutOrStdout()) && isTerminal(cmd.InOrStdin()) && !slices.Contains(what.files, "-")
			if ask || showDiff {
				var first *adminv1.ApplyResponse
				if len(stages) > 0 && !dryRun {
					// What would be refused is said before anybody is asked.
					if first, err = applyStage(cmd.Context(), c, requestOf(stages, true, what.mass)); err != nil {
						return err
					}
				}
				to := cmd.OutOrStdout()
				if output != "text" {
					to = cmd.ErrOrStderr()
				}
				n, err := writeDiff(to, p.items)
				if err != nil {
					return err
				}
				printNeeds(to, first)
				told = true
				if ask && n > 0 {
					if err := confirm(cmd, change(n)+". Apply?"); err != nil {
						return err
					}
				}
			}
			resp, err := applyStages(cmd, c, stages, applyOptions{dryRun: dryRun, mass: what.mass, text: output == "text", told: told})
			if err != nil {
				return err
			}
			report := cmd.OutOrStdout()
			if output != "text" {
				if err := writeMessage(report, resp, output); err != nil {
					return err
				}
				report = cmd.ErrOrStderr()
			} else {
				printApplied(report, p, len(stages), resp, dryRun)
			}
			if wait == 0 || dryRun {
				return nil
			}
			progress, began := progressOf(cmd.ErrOrStderr()), time.Now()
			revision, err := awaitTopics(cmd.Context(), c, p, resp.Revision, wait, progress)
			if err != nil {
				return err
			}
			return waiting{revision: revision}.run(cmd.Context(), c, max(wait-time.Since(began), time.Millisecond), report, progress)
		}}
	admin.add(cmd)
	what.add(cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check and show what would happen, change nothing")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait until its topics are made and every proxy has it, as weft wait does, at most so long")
	cmd.Flags().BoolVar(&showDiff, "diff", false, "show what changes, also where it does not ask")
	completeNamespace(cmd, &admin)
	outputFlag(cmd, &output)
	return cmd
}

// printApplied says what became of each resource, or of how many.
func printApplied(w io.Writer, p *plan, stages int, resp *adminv1.ApplyResponse, dryRun bool) {
	if stages == 1 {
		for _, r := range resp.Results {
			fmt.Fprintf(w, "%s %s\n", r.Name, outcome(r.Outcome, dryRun))
		}
	}
	if stages != 1 || len(resp.Results) < len(p.items) {
		printSummary(w, p.items, dryRun)
	}
}

// confirm asks on the terminal.
func confirm(cmd *cobra.Command, question string) error {
	fmt.Fprint(cmd.OutOrStdout(), question+" [y/N] ")
	line, err := bufio.NewReader(inputOf(cmd)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if a := strings.ToLower(strings.TrimSpace(line)); a != "y" && a != "yes" {
		return errors.New("nothing was changed")
	}
	return nil
}

func applyStage(ctx context.Context, c adminv1.AdminServiceClient, req *adminv1.ApplyRequest) (*adminv1.ApplyResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return c.Apply(ctx, req)
}

// applyOptions say how stages are applied.
type applyOptions struct {
	dryRun, mass bool
	text         bool // on standard output; else there is what a program reads
	told         bool // what the needs of the first stage cost was said
}

// applyStages applies one stage after the other and says so; and before each, what the
// mesh does in the place of stores for it.
func applyStages(cmd *cobra.Command, c adminv1.AdminServiceClient, stages [][]item, o applyOptions) (*adminv1.ApplyResponse, error) {
	all := &adminv1.ApplyResponse{}
	if len(stages) > 1 && o.dryRun {
		// A later stage stands on the earlier ones, which are not made.
		fmt.Fprintf(cmd.ErrOrStderr(), "%d stages: only the first is checked by the control plane, the others stand on it\n", len(stages))
		resp, err := applyStage(cmd.Context(), c, requestOf(stages, true, o.mass))
		printNeeds(cmd.ErrOrStderr(), resp)
		return resp, err
	}
	to := cmd.OutOrStdout()
	if !o.text {
		to = cmd.ErrOrStderr()
	}
	for n, stage := range stages {
		say := func(format string, args ...any) {
			if len(stages) > 1 {
				fmt.Fprintf(to, format, args...)
			}
		}
		failed := func(err error) error {
			if say("failed\n"); len(stages) > 1 {
				return stageFailed(n, len(stages), err)
			}
			return err
		}
		head := fmt.Sprintf("stage %d of %d: %s … ", n+1, len(stages), counted(len(stage), "resource", "resources"))
		if told := o.dryRun || o.told && n == 0; !told && slices.ContainsFunc(stage, item.changesNeeds) {
			// Where it would be refused, applying it says why, and is in the audit records.
			if would, err := applyStage(cmd.Context(), c, requestOf(stages[n:], true, o.mass)); err == nil {
				printNeeds(to, would)
			}
		}
		say("%s", head)
		began := time.Now()
		resp, err := applyStage(cmd.Context(), c, requestOf(stages[n:], o.dryRun, o.mass))
		if err != nil {
			return nil, failed(err)
		}
		say("done (%s)\n", time.Since(began).Round(time.Millisecond))
		if o.dryRun {
			printNeeds(to, resp)
		}
		all.Revision = resp.Revision
		all.Results = append(all.Results, resp.Results...)
	}
	return all, nil
}

// changesNeeds tells whether i makes a Topic or changes one.
func (i item) changesNeeds() bool { return i.after.GetTopic() != nil && i.changed() }

// printNeeds says of each Topic that a change makes or changes what its store does not
// do itself: what the mesh does at which price, and what nobody does, or knows.
func printNeeds(w io.Writer, resp *adminv1.ApplyResponse) {
	for _, r := range resp.GetResults() {
		if r.Outcome != adminv1.ApplyResult_OUTCOME_CREATED && r.Outcome != adminv1.ApplyResult_OUTCOME_UPDATED {
			continue
		}
		for _, n := range r.Needs {
			switch n.Means {
			case adminv1.NeedAnswer_MEANS_NATIVE:
			case adminv1.NeedAnswer_MEANS_EMULATED:
				fmt.Fprintf(w, "%s needs %s: emulated, %s\n", r.Name, n.Need, n.Detail)
			case adminv1.NeedAnswer_MEANS_REFUSED:
				fmt.Fprintf(w, "%s needs %s: refused, %s; the topic is not ready as long\n", r.Name, n.Need, n.Detail)
			default:
				fmt.Fprintf(w, "%s needs %s: %s; the topic is not ready as long\n", r.Name, n.Need, n.Detail)
			}
		}
	}
}

// stageFailed says what is in force after stage n (from 0) of all has failed.
func stageFailed(n, all int, err error) error {
	done := "nothing is in force"
	switch {
	case n == 1:
		done = "stage 1 is in force"
	case n > 1:
		done = fmt.Sprintf("stages 1 to %d are in force", n)
	}
	this := "nothing of it was made"
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Unknown, codes.Internal:
		this = "it may have been made"
	}
	rest := "nothing of the later ones was"
	if n+1 == all {
		rest = "it was the last one"
	}
	return fmt.Errorf("stage %d of %d failed: %s; %s, %s.\nMend that and give the same command again: what is in force is left alone.\n%s", n+1, all, done, this, rest, explain(err))
}

func outcome(o adminv1.ApplyResult_Outcome, dryRun bool) string {
	what := strings.ToLower(strings.TrimPrefix(o.String(), "OUTCOME_"))
	if dryRun && o != adminv1.ApplyResult_OUTCOME_UNCHANGED {
		what = "would be " + what
	}
	return what
}

func printSummary(w io.Writer, items []item, dryRun bool) {
	created, updated, deleted, unchanged := 0, 0, 0, 0
	for _, i := range items {
		switch {
		case i.after == nil:
			deleted++
		case i.before == nil:
			created++
		case i.changed():
			updated++
		default:
			unchanged++
		}
	}
	would := ""
	if dryRun {
		would = "would be: "
	}
	fmt.Fprintf(w, "%s%d created, %d updated, %d deleted, %d unchanged\n", would, created, updated, deleted, unchanged)
}
