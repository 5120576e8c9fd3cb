package weft

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/census"
	"github.com/weft-mesh/weft/pkg/resource"
)

func waitCommand() *cobra.Command {
	var (
		admin   adminFlags
		w       waiting
		timeout time.Duration
	)
	cmd := &cobra.Command{Use: "wait", Short: "Wait until every proxy has a revision of the configuration", Args: cobra.NoArgs,
		Long: `Waits until every proxy that lives has all of a revision in force: it has
acknowledged it, refuses nothing of it, and nothing of it is withheld from it. A
proxy lives while it is connected to any replica of the control plane, and for 10
minutes after, unless it left (--leave-on-stop) or was declared dead; --connected-only
leaves out those that are not connected now.

Where that does not come in time, the exit status is 1, and those that have not
all of it are named, with the reason. weft apply --wait waits for what it applied, and
first until its topics are made in their stores.`,
		Example: `  weft wait
  weft wait --revision 4711 --timeout 30s`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if w.revision < 0 || timeout <= 0 {
				return errors.New("--revision must not be negative, and --timeout must be longer than nothing")
			}
			c, done, err := admin.dial()
			if err != nil {
				return err
			}
			defer done()
			return w.run(cmd.Context(), c, timeout, cmd.OutOrStdout(), progressOf(cmd.ErrOrStderr()))
		}}
	admin.add(cmd)
	cmd.Flags().Int64Var(&w.revision, "revision", 0, "the revision; the newest when 0")
	completeRevisionFlag(cmd, &admin, "revision")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "wait at most so long")
	cmd.Flags().BoolVar(&w.connectedOnly, "connected-only", false, "do not wait for proxies that are not connected")
	return cmd
}

// waiting is what is waited for.
type waiting struct {
	revision      int64 // 0 is the newest
	connectedOnly bool
}

// named is how many proxies are named that have not what is waited for.
const named = 20

// run waits and says on out that all have it. progress is told how far it is.
func (w waiting) run(ctx context.Context, c adminv1.AdminServiceClient, timeout time.Duration, out io.Writer, progress *progress) error {
	req := &adminv1.GetStatusRequest{AtRevision: w.revision, MaxProxies: named, WithoutResources: true}
	if w.connectedOnly {
		req.MaxProxies = 20000 // those that are not connected are among them
	}
	st, complete, err := poll(ctx, c, req, timeout, func(st *adminv1.GetStatusResponse) bool {
		if req.AtRevision == 0 {
			req.AtRevision = st.Revision // what comes later is not waited for
		}
		have, want := w.count(st.Fleet)
		progress.show("%s revision %d", proxiesHave(have, want), req.AtRevision)
		return want > 0 && have == want && st.Revision >= req.AtRevision
	})
	progress.end()
	switch {
	case err != nil:
		return err
	case complete:
		have, _ := w.count(st.Fleet)
		_, err := fmt.Fprintf(out, "revision %d is in force at %s\n", req.AtRevision, counted(have, "proxy", "proxies"))
		return err
	}
	if st.Revision < req.AtRevision {
		return fmt.Errorf("revision %d is not there yet, the newest is %d; weft history lists them. %w", req.AtRevision, st.Revision, w.late(st, req.AtRevision, timeout))
	}
	return w.late(st, req.AtRevision, timeout)
}

// count tells how many proxies have what is waited for, and how many must.
func (w waiting) count(f *adminv1.FleetSummary) (have, want uint32) {
	if w.connectedOnly {
		return f.Current, f.Connected
	}
	return f.Current, f.Known
}

// late is the error that names who has not the revision, and why.
func (w waiting) late(st *adminv1.GetStatusResponse, revision int64, timeout time.Duration) error {
	have, want := w.count(st.Fleet)
	if want == 0 {
		return fmt.Errorf("no proxy is connected to any replica of the control plane that answered, for %s", timeout)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s not all of revision %d after %s:", proxiesHave(want-have, want), revision, timeout)
	listed := uint32(0)
	for _, p := range st.Proxies {
		lack := census.LackOf(p, st.Lineage, revision)
		if !lack.Any() || lack.Disconnected && w.connectedOnly || listed == named {
			continue
		}
		listed++
		fmt.Fprintf(&b, "\n  %s %s", p.NodeId, strings.Join(whyLacking(p, lack, st, time.Now()), "; "))
	}
	if n := want - have - listed; n > 0 {
		fmt.Fprintf(&b, "\n  and %s more: weft status says why", number(n))
	}
	for _, r := range st.Replicas {
		if r.Error != "" {
			fmt.Fprintf(&b, "\nreplica %s: %s", r.Address, r.Error)
		}
	}
	return errors.New(b.String())
}

// awaitTopics waits until the Topics of a plan are made in their stores, with the groups of
// their Subscriptions; also those that did not change, since they may not be made yet. It was
// applied at the revision since, 0 where nothing changed. revision is what proxies must have
// to use them, 0 for the newest.
func awaitTopics(ctx context.Context, c adminv1.AdminServiceClient, p *plan, since int64, timeout time.Duration, progress *progress) (revision int64, err error) {
	defer progress.end()
	revision = since
	missing, spaces := map[string]string{}, map[string]bool{} // why Topics are not made, and their namespaces
	for _, i := range p.items {
		if i.after.GetTopic() != nil {
			missing[i.name], spaces[i.after.Metadata.Namespace] = "not yet", true
		}
	}
	all := len(missing)
	over := time.NewTimer(timeout)
	defer over.Stop()
	look := func() error {
		uids := map[string]string{}
		for ns := range spaces {
			if err := eachResource(ctx, c, &adminv1.ListRequest{Kind: string(resource.Topic), Namespace: ns}, func(r *configv1.Resource) { uids[resource.NameOf(r)] = r.Metadata.Uid }); err != nil {
				return err
			}
			err := eachResource(ctx, c, &adminv1.ListRequest{Kind: string(resource.TopicAdmission), Namespace: ns}, func(r *configv1.Resource) {
				name, adm := resource.Name(resource.Topic, ns, r.Metadata.Name), r.GetTopicAdmission()
				if missing[name] == "" || adm.TopicUid != uids[name] {
					return
				}
				if !adm.Admitted {
					missing[name] = cmp.Or(strings.Join(adm.Reasons, ", "), "not yet")
					return
				}
				delete(missing, name)
				if at, err := strconv.ParseInt(r.Metadata.Version, 10, 64); err == nil {
					revision = max(revision, at)
				}
			})
			if err != nil {
				return err
			}
		}
		maps.DeleteFunc(missing, func(name, _ string) bool { return uids[name] == "" }) // it was deleted since
		return nil
	}
	for {
		err := look()
		switch {
		case err != nil && !passing(err):
			return 0, err
		case err == nil && len(missing) == 0 && since == 0:
			return 0, nil // of all that did not change, the newest revision has it
		case err == nil && len(missing) == 0:
			return revision, nil
		}
		progress.show("%d of %s made", all-len(missing), counted(all, "topic is", "topics are"))
		again := time.NewTimer(cmp.Or(map[bool]time.Duration{true: statusSeldom}[all > manyProxies], statusEvery))
		select {
		case <-again.C:
		case <-over.C:
			if err != nil {
				return 0, err
			}
			return 0, notMade(missing, timeout)
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// notMade is the error that names the Topics that are not made, and why.
func notMade(missing map[string]string, timeout time.Duration) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s not made in the store after %s:", counted(len(missing), "topic is", "topics are"), timeout)
	for i, name := range slices.Sorted(maps.Keys(missing)) {
		if i == named {
			fmt.Fprintf(&b, "\n  and %s more: weft status says why", number(len(missing)-named))
			break
		}
		fmt.Fprintf(&b, "\n  %s: %s", name, missing[name])
	}
	return errors.New(b.String())
}

// whyLacking says what keeps a proxy from having all.
func whyLacking(p *adminv1.ProxyStatus, lack census.Lack, st *adminv1.GetStatusResponse, now time.Time) []string {
	if lack.Disconnected {
		return []string{fmt.Sprintf("has not been connected for %s, and had revision %d", age(now.Sub(p.LastSeen.AsTime())), p.AckedRevision)}
	}
	var why []string
	if lack.Behind {
		why = append(why, fmt.Sprintf("%s; it has revision %d", behind(p, st), p.AckedRevision))
	}
	for _, r := range p.Rejections {
		why = append(why, "refuses "+refusal(r))
	}
	for _, h := range p.Withheld {
		why = append(why, fmt.Sprintf("is not sent %s (version %s): %s", h.Name, h.Version, h.Reason))
	}
	if len(why) == 0 {
		for _, name := range p.GetReport().GetConfig().GetWithheld() {
			why = append(why, "has no version that it can enforce of "+name)
		}
	}
	return why
}

// progress is one line on a terminal that is written again and again; nothing
// where there is no terminal.
type progress struct {
	w    io.Writer // nil is none
	last string
}

// progressOf shows progress on w where that is a terminal.
func progressOf(w io.Writer) *progress {
	if isTerminal(w) {
		return &progress{w: own(w)}
	}
	return &progress{}
}

func (p *progress) show(format string, args ...any) {
	line := escaped(fmt.Sprintf(format, args...))
	if p.w == nil || line == p.last {
		return
	}
	fmt.Fprintf(p.w, "\r%-*s", len(p.last), line)
	p.last = line
}

// end leaves the line.
func (p *progress) end() {
	if p.last != "" {
		fmt.Fprintln(p.w)
	}
}
