package weft

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/resource"

	"github.com/weft-mesh/weft/tools/proxycmd"
)

// revision reads a revision of the command line.
func revision(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%q is no revision; weft history lists them", s)
	}
	return n, nil
}

// selected reads [KIND [NAME]] and a namespace.
func selected(args []string, namespace string) (kind, name string, err error) {
	if len(args) == 0 {
		return "", "", nil
	}
	info, ok := resource.Lookup(args[0])
	if !ok {
		_, err := canonical(args[0], "", "")
		return "", "", err
	}
	if len(args) == 1 {
		return string(info.Kind), "", nil
	}
	name, err = canonical(args[0], cmp.Or(namespace, proxycmd.Env("WEFT_NAMESPACE", "demo")), args[1])
	return "", name, err
}

func historyCommand() *cobra.Command {
	var (
		admin     adminFlags
		namespace string
		since     time.Duration
		limit     int
		changes   bool
		output    string
	)
	cmd := &cobra.Command{Use: "history [KIND [NAME]]", Short: "Show who changed, or was refused, what", Args: cobra.MaximumNArgs(2), ValidArgsFunction: completeResources(&admin, &namespace, 1),
		Long: `Shows changes and refusals, newest first, from the audit records, which are kept
for 90 days, or as many as have room (control-plane --audit-max-mib). A revision that
is shown can be given to weft diff and weft rollback.
Refusals of one caller without end are not written down one by one, but counted.`,
		Example: "  weft history\n  weft history topic orders -n shop\n  weft history -n shop --since 24h --changes",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			if limit < 1 {
				return errors.New("--limit: must be above 0")
			}
			req := &adminv1.ListHistoryRequest{Namespace: namespace, ChangesOnly: changes}
			var err error
			if req.Kind, req.Name, err = selected(args, namespace); err != nil {
				return err
			}
			if since > 0 {
				req.Since = timestamppb.New(time.Now().Add(-since))
			}
			c, done, err := admin.dial()
			if err != nil {
				return err
			}
			defer done()
			all := &adminv1.ListHistoryResponse{}
			for len(all.Records) < limit {
				req.PageSize = uint32(min(limit-len(all.Records), 1000)) //nolint:gosec // 1 to 1000
				ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
				resp, err := c.ListHistory(ctx, req)
				cancel()
				if err != nil {
					return err
				}
				all.Records = append(all.Records, resp.Records...)
				if req.PageToken = resp.NextPageToken; req.PageToken == "" {
					break
				}
			}
			if output != "text" {
				return writeMessage(cmd.OutOrStdout(), all, output)
			}
			return printHistory(cmd.OutOrStdout(), all.Records)
		}}
	admin.add(cmd)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only of this namespace")
	cmd.Flags().DurationVar(&since, "since", 0, "only of the last so long, such as 24h")
	cmd.Flags().IntVar(&limit, "limit", 50, "most records to show")
	cmd.Flags().BoolVar(&changes, "changes", false, "no refusals")
	outputFlag(cmd, &output)
	completeNamespace(cmd, &admin)
	return cmd
}

// namesShown is how many resources of a record are named.
const namesShown = 3

func printHistory(w io.Writer, records []*adminv1.AuditRecord) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "REVISION\tTIME\tWHO\tFROM\tCALL\tWHAT")
	for _, r := range records {
		var what []string
		for i, c := range r.Changes {
			if i == namesShown {
				what = append(what, fmt.Sprintf("and %d more", len(r.Changes)-i))
				break
			}
			if r.Refused != "" {
				what = append(what, c.Name)
			} else {
				what = append(what, c.Name+" "+outcome(c.Outcome, false))
			}
		}
		if r.Detail != "" {
			what = append(what, r.Detail)
		}
		text := strings.Join(what, ", ")
		if r.Refused != "" {
			text = strings.TrimSpace(text + " REFUSED: " + strings.ReplaceAll(r.Refused, "\n", " "))
		}
		if r.AllowMassRemoval {
			text += " (mass removal allowed)"
		}
		if r.Repeats > 0 {
			text += fmt.Sprintf(" (after %d more that have no record)", r.Repeats)
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\n", r.Revision, r.Time.AsTime().Format("2006-01-02 15:04:05"), r.Actor, r.Peer, r.Method, text)
	}
	return t.Flush()
}

func rollbackCommand() *cobra.Command {
	var (
		admin     adminFlags
		namespace string
		req       adminv1.RollbackRequest
		yes       bool
		staged    bool
		output    string
	)
	cmd := &cobra.Command{Use: "rollback REVISION [KIND [NAME]]", Short: "Make resources what they were at a revision", Args: cobra.RangeArgs(1, 3),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return completeRevisions(cmd, &admin)
			}
			return completeResources(&admin, &namespace, 1)(cmd, args[1:], typed)
		},
		Long: `Makes all resources, those of a namespace, of a kind or one of them what they were
at a revision, in one transaction: a new revision with the old content, judged like
any change. What was deleted since comes back as a new resource (a Topic with
another uid, so positions in the old one do not lead into it); what was created
since is deleted. Migrations stay as they are: weft migrate begins and ends moves. It
shows the changes and, on a terminal, asks.

What is more than one transaction takes (100 resources) is refused, and rolled back
with --stages: as weft apply does it, each of them all or nothing, what others refer
to first and deletions last. Where one fails, the same command goes on from there.`,
		Example: "  weft rollback 1042 --dry-run\n  weft rollback 1042 topic orders -n shop\n  weft rollback 1042 -n shop --yes",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			var err error
			if req.ToRevision, err = revision(args[0]); err != nil {
				return err
			}
			req.Namespace = namespace
			if req.Kind, req.Name, err = selected(args[1:], namespace); err != nil {
				return err
			}
			c, done, err := admin.dial()
			if err != nil {
				return err
			}
			defer done()
			if staged {
				return rollbackStages(cmd, c, &req, yes, output)
			}
			call := func(dryRun bool) (*adminv1.RollbackResponse, error) {
				ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
				defer cancel()
				return c.Rollback(ctx, &adminv1.RollbackRequest{ToRevision: req.ToRevision, Kind: req.Kind, Namespace: req.Namespace, Name: req.Name, AllowMassRemoval: req.AllowMassRemoval, DryRun: dryRun})
			}
			resp, err := call(true)
			if err != nil {
				return err
			}
			if output == "text" {
				if _, err := writeDiff(cmd.OutOrStdout(), itemsOf(resp.Changes)); err != nil {
					return err
				}
			}
			if !req.DryRun && len(resp.Changes) > 0 {
				if !yes && output == "text" && isTerminal(cmd.OutOrStdout()) && isTerminal(cmd.InOrStdin()) {
					if err := confirm(cmd, change(len(resp.Changes))+". Roll back?"); err != nil {
						return err
					}
				}
				if resp, err = call(false); err != nil {
					return err
				}
			}
			if output != "text" {
				return writeMessage(cmd.OutOrStdout(), resp, output)
			}
			switch {
			case len(resp.Changes) == 0:
				fmt.Fprintln(cmd.OutOrStdout(), "nothing differs")
			case req.DryRun:
				fmt.Fprintf(cmd.OutOrStdout(), "%s at revision %d\n", counted(len(resp.Changes), "resource would be as it was", "resources would be as they were"), req.ToRevision)
			default:
				fmt.Fprintf(cmd.OutOrStdout(), "%s at revision %d; that is revision %d\n", counted(len(resp.Changes), "resource is as it was", "resources are as they were"), req.ToRevision, resp.Revision)
			}
			return nil
		}}
	admin.add(cmd)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only of this namespace")
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, "check and show what would happen, change nothing")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&req.AllowMassRemoval, "allow-mass-removal", false, "the change may remove more than the control plane lets go unasked")
	cmd.Flags().BoolVar(&staged, "stages", false, "in as many transactions as it takes, one after the other")
	outputFlag(cmd, &output)
	completeNamespace(cmd, &admin)
	return cmd
}

// rollbackStages rolls back in stages, as an apply of what was there would.
func rollbackStages(cmd *cobra.Command, c adminv1.AdminServiceClient, req *adminv1.RollbackRequest, yes bool, output string) error {
	p, err := backTo(cmd.Context(), c, req)
	if err != nil {
		return err
	}
	stages := p.stages()
	text := output == "text"
	if len(stages) > 0 && !req.DryRun {
		// What would be refused is said before anybody is asked.
		if _, err := applyStage(cmd.Context(), c, requestOf(stages, true, req.AllowMassRemoval)); err != nil {
			return err
		}
	}
	if text {
		n, err := writeDiff(cmd.OutOrStdout(), p.items)
		if err != nil {
			return err
		}
		if !req.DryRun && n > 0 && !yes && isTerminal(cmd.OutOrStdout()) && isTerminal(cmd.InOrStdin()) {
			if err := confirm(cmd, change(n)+". Roll back?"); err != nil {
				return err
			}
		}
	}
	resp, err := applyStages(cmd, c, stages, applyOptions{dryRun: req.DryRun, mass: req.AllowMassRemoval, text: text})
	if err != nil {
		return err
	}
	if !text {
		return writeMessage(cmd.OutOrStdout(), resp, output)
	}
	printApplied(cmd.OutOrStdout(), p, len(stages), resp, req.DryRun)
	return nil
}

// backTo is the plan that makes what req selects what it was.
func backTo(ctx context.Context, c adminv1.AdminServiceClient, req *adminv1.RollbackRequest) (*plan, error) {
	cctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.Diff(cctx, &adminv1.DiffRequest{FromRevision: req.ToRevision, Kind: req.Kind, Namespace: req.Namespace, Name: req.Name})
	if err != nil {
		return nil, err
	}
	p := &plan{}
	// As it is now, with the version that is changed.
	now := map[string]*configv1.Resource{}
	listed := map[string]bool{}
	for _, d := range resp.Changes {
		kind, ns, _, err := resource.Split(d.Name)
		if err != nil {
			return nil, err
		}
		if !resource.RolledBack(kind) {
			continue
		}
		if !listed[ns] {
			listed[ns] = true
			if err := userResources(ctx, c, ns, now); err != nil {
				return nil, err
			}
		}
		i := item{d.Name, now[d.Name], plain(d.Before)}
		if i.after != nil && i.before != nil {
			i.after.Metadata.Version = i.before.Metadata.Version
		}
		if i.after != nil || i.before != nil {
			p.items = append(p.items, i)
		}
	}
	return p, nil
}
