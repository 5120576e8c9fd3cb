package weft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
)

// proxiesCommand has what is done about proxies that are not there.
func proxiesCommand() *cobra.Command {
	return group(&cobra.Command{Use: "proxies", Short: "Proxies that may have configuration, and those that never come back",
		Long: `Every proxy that was ever sent configuration is kept on a roster: whoever moves a topic
waits for each of them, connected or not, since it may write where it always has.
weft status shows what connected proxies do.`,
		Example: "  weft proxies list\n  weft proxies declare-dead gateway-7 --reason \"its machine was scrapped\""},
		proxiesList(), proxiesDeclareDead(), proxiesRevive(), proxiesForget())
}

func proxiesList() *cobra.Command {
	var (
		admin     adminFlags
		namespace string
		absent    bool
		bare      bool
	)
	cmd := &cobra.Command{Use: "list", Short: "List every proxy that may have configuration, connected or not", Args: cobra.NoArgs,
		Example: "  weft proxies list\n  weft proxies list -n shop\n  weft proxies list --absent --names",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, done, err := admin.dial()
			if err != nil {
				return err
			}
			defer done()
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			if !bare {
				fmt.Fprintln(w, "PROXY\tNAMESPACES\tJOINED\tSTATE")
			}
			err = eachNode(cmd.Context(), c, namespace, func(n *adminv1.Node) {
				if absent && (n.Connected || n.DeadAt != nil) {
					return
				}
				if bare {
					fmt.Fprintln(w, n.NodeId)
					return
				}
				spaces := "all"
				if len(n.Namespaces) > 0 {
					spaces = strings.Join(n.Namespaces, ",")
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", n.NodeId, spaces, n.Since.AsTime().Format(time.RFC3339), nodeState(n))
			})
			if err != nil {
				return err
			}
			return w.Flush()
		}}
	admin.add(cmd)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "those that may have configuration of this namespace")
	cmd.Flags().BoolVar(&absent, "absent", false, "only those that are neither connected nor declared dead")
	cmd.Flags().BoolVar(&bare, "names", false, "only their names, one a line")
	return cmd
}

// eachNode gives take the proxies that may have configuration of a namespace, of any
// where it is empty.
func eachNode(ctx context.Context, c adminv1.AdminServiceClient, namespace string, take func(*adminv1.Node)) error {
	for after, more := "", true; more; {
		cctx, cancel := context.WithTimeout(ctx, callTimeout)
		resp, err := c.ListNodes(cctx, &adminv1.ListNodesRequest{After: after, Namespace: namespace})
		cancel()
		if err != nil {
			return err
		}
		for _, n := range resp.Nodes {
			after = n.NodeId
			take(n)
		}
		more = resp.More
	}
	return nil
}

func nodeState(n *adminv1.Node) string {
	if n.DeadAt != nil {
		return "declared dead by " + n.DeadBy + " at " + n.DeadAt.AsTime().Format(time.RFC3339)
	}
	state := "not connected"
	switch {
	case n.Connected:
		state = "connected"
	case n.LastSeen != nil:
		state += " since " + n.LastSeen.AsTime().Format(time.RFC3339)
	}
	if !n.KnowsMoves {
		state += "; does not know moves of topics"
	}
	return state
}

// deathRisk is what whoever declares a proxy dead must know.
const deathRisk = `A proxy that runs on, or starts again with its data folder, goes on with what it has: what
it acknowledges then, into a store that its topic has left, is never delivered. Nobody
waits for it any more. Make sure that its process has ended for good, and its data folder
is gone or never used again.`

func proxiesDeclareDead() *cobra.Command {
	var (
		admin  adminFlags
		reason string
		yes    bool
	)
	cmd := &cobra.Command{Use: "declare-dead PROXY... --reason TEXT", Short: "Declare that proxies never write again", Args: cobra.MinimumNArgs(1), ValidArgsFunction: completeProxies(&admin, 0),
		Long: `Declares that a proxy never writes again, so that moves of topics wait for it no more. It
is refused from then on: its streams end, and it joins with an empty data folder, which
gives it another id, or after weft proxies revive. A proxy that is connected cannot be
declared dead. It stays on the roster until weft proxies forget.

` + deathRisk,
		Example: "  weft proxies declare-dead gateway-7 --reason \"its machine was scrapped\"",
		RunE: func(cmd *cobra.Command, args []string) error {
			if reason == "" {
				return errors.New("--reason: say how it is known to be dead; it is kept in the audit record")
			}
			if !yes {
				if !isTerminal(cmd.OutOrStdout()) || !isTerminal(cmd.InOrStdin()) {
					return errors.New("nobody can be asked here: say --yes, knowing that a proxy which runs on loses what it acknowledges (weft proxies declare-dead --help)")
				}
				fmt.Fprintln(cmd.OutOrStdout(), deathRisk)
				if err := confirm(cmd, "Declare "+strings.Join(args, ", ")+" dead?"); err != nil {
					return err
				}
			}
			c, done, err := admin.dial()
			if err != nil {
				return err
			}
			defer done()
			for _, proxy := range args {
				ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
				_, err := c.DeclareNodeDead(ctx, &adminv1.DeclareNodeDeadRequest{NodeId: proxy, Reason: reason})
				cancel()
				if err != nil {
					return err
				}
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s is dead; it is refused until weft proxies revive %s\n", proxy, proxy); err != nil {
					return err
				}
			}
			return nil
		}}
	admin.add(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "how it is known, for the audit record")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func proxiesRevive() *cobra.Command {
	var admin adminFlags
	cmd := &cobra.Command{Use: "revive PROXY", Short: "Take back that a proxy was declared dead", Args: cobra.ExactArgs(1), ValidArgsFunction: completeProxies(&admin, 1),
		Long: `Takes back that a proxy was declared dead: it may join again with its data folder, and
moves of topics wait for it. If it has run with what it had since a topic moved without
it, what it acknowledged in the old store is lost: rather give it an empty data folder.`,
		Example: "  weft proxies revive gateway-7",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, done, err := admin.dial()
			if err != nil {
				return err
			}
			defer done()
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			if _, err := c.ReviveNode(ctx, &adminv1.ReviveNodeRequest{NodeId: args[0]}); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s may join again\n", args[0])
			return err
		}}
	admin.add(cmd)
	return cmd
}

// maxForget is how many proxies one call takes off the roster.
const maxForget = 50

func proxiesForget() *cobra.Command {
	var (
		admin   adminFlags
		deadFor time.Duration
		yes     bool
	)
	cmd := &cobra.Command{Use: "forget PROXY... | --dead-for DURATION", Short: "Take proxies that were declared dead off the roster", ValidArgsFunction: completeProxies(&admin, 0),
		Long: `Takes proxies that were declared dead off the roster, which has room for 100,000, dead ones
too. They are not refused any more: one that comes all the same joins as any other, and is
written down again. So forget none whose data folder may still be used: the longer ago it
was declared dead, the better.`,
		Example: `  weft proxies forget gateway-7
  weft proxies forget --dead-for 720h
  weft proxies list --absent --names | xargs weft proxies declare-dead --yes --reason "scaled down"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			bulk := cmd.Flags().Changed("dead-for")
			switch {
			case bulk && len(args) > 0:
				return errors.New("name proxies, or say --dead-for, not both")
			case !bulk && len(args) == 0:
				return errors.New("name proxies that were declared dead, or say --dead-for DURATION for all that have been for as long")
			case deadFor < 0:
				return errors.New("--dead-for: at least 0s")
			}
			c, done, err := admin.dial()
			if err != nil {
				return err
			}
			defer done()
			if bulk {
				before := time.Now().Add(-deadFor)
				if err := eachNode(cmd.Context(), c, "", func(n *adminv1.Node) {
					if n.DeadAt != nil && !n.DeadAt.AsTime().After(before) {
						args = append(args, n.NodeId)
					}
				}); err != nil {
					return err
				}
			}
			args = slices.Compact(slices.Sorted(slices.Values(args)))
			if len(args) > 0 && !yes {
				if !isTerminal(cmd.OutOrStdout()) || !isTerminal(cmd.InOrStdin()) {
					return errors.New("nobody can be asked here: say --yes, knowing that what is forgotten is refused no more (weft proxies forget --help)")
				}
				if err := confirm(cmd, fmt.Sprintf("Forget %s?", counted(len(args), "proxy", "proxies"))); err != nil {
					return err
				}
			}
			forgotten, progress := 0, progressOf(cmd.ErrOrStderr())
			for some := range slices.Chunk(args, maxForget) {
				ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
				_, err := c.ForgetNodes(ctx, &adminv1.ForgetNodesRequest{NodeIds: some})
				cancel()
				if err != nil {
					if forgotten > 0 {
						return fmt.Errorf("%s forgotten, and then: %w", counted(forgotten, "proxy", "proxies"), err)
					}
					return err
				}
				forgotten += len(some)
				progress.show("%d of %d", forgotten, len(args))
			}
			progress.end()
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s forgotten\n", counted(forgotten, "proxy", "proxies"))
			return err
		}}
	admin.add(cmd)
	cmd.Flags().DurationVar(&deadFor, "dead-for", 0, "all that were declared dead at least this long ago; 0s is all that were")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}
