package weft

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
)

func statusCommand() *cobra.Command {
	var (
		admin     adminFlags
		namespace string
		output    string
		all       bool
		wait      time.Duration
	)
	cmd := &cobra.Command{Use: "status", Short: "Show who has the newest configuration, and what is not ready and why", Args: cobra.NoArgs,
		Long: `Shows, on one screen, which proxies have the newest configuration, what they
refuse and why, and which resources are not ready and why. Proxies are those that
are connected to this replica of the control plane.

With --wait it waits until a proxy is there, every proxy has all of it, nothing is
refused, and everything is ready; where that does not come in time, the exit
status is 1.`,
		Example: `  weft status
  weft status --wait 1m -n shop
  weft status -o json | jq -r '.proxies[].node_id'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			c, done, err := admin.dial()
			if err != nil {
				return err
			}
			defer done()
			st, complete, err := awaitStatus(cmd.Context(), c, namespace, wait)
			if err != nil {
				return err
			}
			if err := writeStatus(cmd.OutOrStdout(), st, output, all); err != nil {
				return err
			}
			if wait > 0 && !complete {
				return fmt.Errorf("not everything was ready within %s", wait)
			}
			return nil
		}}
	admin.add(cmd)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only this namespace's resources")
	cmd.Flags().BoolVar(&all, "all", false, "list all resources that are ready, not only some")
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait until everything is ready, at most so long")
	outputFlag(cmd, &output)
	completeNamespace(cmd, &admin)
	return cmd
}

// statusEvery is how often --wait asks.
const statusEvery = 200 * time.Millisecond

// awaitStatus asks for the status, again and again until everything is ready or
// the wait is over.
func awaitStatus(ctx context.Context, c adminv1.AdminServiceClient, namespace string, wait time.Duration) (st *adminv1.GetStatusResponse, complete bool, err error) {
	over := time.NewTimer(wait)
	defer over.Stop()
	again := time.NewTicker(statusEvery)
	defer again.Stop()
	for {
		cctx, cancel := context.WithTimeout(ctx, callTimeout)
		st, err = c.GetStatus(cctx, &adminv1.GetStatusRequest{Namespace: namespace})
		cancel()
		if err != nil {
			return nil, false, err
		}
		if complete = everythingReady(st); complete || wait == 0 {
			return st, complete, nil
		}
		select {
		case <-again.C:
		case <-over.C:
			return st, false, nil
		case <-ctx.Done():
			return st, false, ctx.Err()
		}
	}
}

func everythingReady(st *adminv1.GetStatusResponse) bool {
	if len(st.Proxies) == 0 || slices.ContainsFunc(st.Proxies, func(p *adminv1.ProxyStatus) bool { return p.AckedRevision < st.Revision || len(p.Rejections) > 0 }) {
		return false
	}
	return !slices.ContainsFunc(st.Resources, func(r *adminv1.ResourceStatus) bool { return !isReady(r) })
}

// isReady reports whether nothing is known against a resource.
func isReady(r *adminv1.ResourceStatus) bool {
	return !slices.ContainsFunc(r.Conditions, func(c *adminv1.Condition) bool { return c.State != adminv1.Condition_STATE_TRUE })
}

func writeStatus(w io.Writer, st *adminv1.GetStatusResponse, output string, all bool) error {
	if output == "text" {
		return printStatus(w, st, all, time.Now())
	}
	return writeMessage(w, st, output)
}

// someReady is how many resources are listed that are ready.
const someReady = 20

func printStatus(w io.Writer, st *adminv1.GetStatusResponse, all bool, now time.Time) error {
	have := 0
	slices.SortFunc(st.Proxies, func(a, b *adminv1.ProxyStatus) int { return cmp.Compare(a.NodeId, b.NodeId) })
	for _, p := range st.Proxies {
		if p.AckedRevision >= st.Revision && len(p.Rejections) == 0 {
			have++
		}
	}
	fmt.Fprintf(w, "revision %d of lineage %s; %d of %d proxies have all of it\n\n", st.Revision, st.Lineage, have, len(st.Proxies))
	if len(st.Proxies) == 0 {
		fmt.Fprint(w, "No proxy is connected to this replica. Start one with weft proxy --control-plane, or look\nat another replica with --server.\n\n")
	} else if err := printProxies(w, st, now); err != nil {
		return err
	}
	bad, good := []*adminv1.ResourceStatus{}, []*adminv1.ResourceStatus{}
	for _, r := range st.Resources {
		if isReady(r) {
			good = append(good, r)
		} else {
			bad = append(bad, r)
		}
	}
	if len(st.Resources) == 0 {
		fmt.Fprintln(w, "There are no resources yet: weft apply -f FILE creates some.")
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "RESOURCE\tCONDITION\tREASON\tMESSAGE")
	more := 0
	if len(good) > someReady && !all {
		more = len(good) - someReady
		good = good[:someReady]
	}
	for _, r := range append(bad, good...) {
		for _, c := range r.Conditions {
			is := map[adminv1.Condition_State]string{adminv1.Condition_STATE_TRUE: c.Type, adminv1.Condition_STATE_FALSE: "not " + c.Type}[c.State]
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", r.Name, cmp.Or(is, c.Type+" unknown"), c.Reason, c.Message)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if more > 0 {
		fmt.Fprintf(w, "and %d more that are ready (--all lists them)\n", more)
	}
	return nil
}

// printProxies says of each proxy whether it has the newest configuration, and
// if not, why.
func printProxies(w io.Writer, st *adminv1.GetStatusResponse, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "PROXY\tREVISION\tCONFIGURATION\tCONNECTED\tVERSION\tADDRESS")
	for _, p := range st.Proxies {
		what := "has all of it"
		switch n := len(p.Rejections); {
		case n > 0:
			what = fmt.Sprintf("refuses %d", n)
		case p.AckedRevision == 0:
			what = "was sent, has not answered"
		case p.AckedRevision < p.SentRevision:
			what = fmt.Sprintf("was sent %d, has not answered", p.SentRevision)
		case p.AckedRevision < st.Revision:
			what = "is about to be sent the newest"
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\n", p.NodeId, p.AckedRevision, what, age(now.Sub(p.ConnectedAt.AsTime())), p.Info.GetVersion(), p.Peer)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, p := range st.Proxies {
		for _, r := range p.Rejections {
			where := ""
			if r.Field != "" {
				where = r.Field + ": "
			}
			fmt.Fprintf(w, "  %s refuses %s (version %s): %s%s\n", p.NodeId, r.Name, r.Version, where, r.Reason)
		}
	}
	_, err := fmt.Fprintln(w)
	return err
}

// age is a time span in one unit.
func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
