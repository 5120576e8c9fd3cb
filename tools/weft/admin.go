package weft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
)

// adminCommand has what is done to the control plane itself.
func adminCommand() *cobra.Command {
	return group(&cobra.Command{Use: "admin", Short: "Look after the control plane and its proxies",
		Long:    "Has what is done to the control plane itself, and commands for proxies.",
		Example: "  weft admin drain gateway-1\n  weft admin restore --reason \"disk of all members lost\""},
		adminRestoreCommand(), joinTokenCommand(), adminResyncCommand(), adminDrainCommand())
}

func adminResyncCommand() *cobra.Command {
	var all bool
	cmd := tellCommand(adminv1.CommandProxiesRequest_COMMAND_RESYNC, func(nodes []string) error {
		if all != (len(nodes) == 0) {
			return errors.New("name proxies, or --all; not both")
		}
		return nil
	})
	cmd.Use, cmd.Short = "resync PROXY … | --all", "Make proxies sync their whole configuration from nothing"
	cmd.Long = `Makes proxies sync their whole configuration from nothing, on a new stream. They
serve with the one that they have meanwhile.`
	cmd.Example = "  weft admin resync gateway-1\n  weft admin resync --all"
	cmd.Flags().BoolVar(&all, "all", false, "every proxy that is connected")
	return cmd
}

func adminDrainCommand() *cobra.Command {
	cmd := tellCommand(adminv1.CommandProxiesRequest_COMMAND_DRAIN, func(nodes []string) error {
		if len(nodes) == 0 {
			return errors.New("name the proxies to drain")
		}
		return nil
	})
	cmd.Use, cmd.Short = "drain PROXY …", "Make proxies stop gracefully"
	cmd.Long = `Makes proxies stop gracefully, as on SIGTERM: they fail readiness, take no more
connections, let calls end, give back what is not settled, and exit with status 0.
What supervises them decides whether they start again.`
	cmd.Example = "  weft admin drain gateway-1"
	return cmd
}

// tellCommand gives a command to proxies; check judges their names.
func tellCommand(what adminv1.CommandProxiesRequest_Command, check func(nodes []string) error) *cobra.Command {
	var admin adminFlags
	cmd := &cobra.Command{ValidArgsFunction: completeProxies(&admin, 0),
		RunE: func(cmd *cobra.Command, nodes []string) error {
			if err := check(nodes); err != nil {
				return err
			}
			c, done, err := admin.dial()
			if err != nil {
				return err
			}
			defer done()
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			resp, err := c.CommandProxies(ctx, &adminv1.CommandProxiesRequest{Command: what, NodeIds: nodes})
			if err != nil {
				return err
			}
			for _, node := range resp.NodeIds {
				fmt.Fprintf(cmd.OutOrStdout(), "%s was told\n", node)
			}
			left := slices.DeleteFunc(slices.Clone(nodes), func(n string) bool { return slices.Contains(resp.NodeIds, n) })
			switch {
			case len(left) > 0:
				return fmt.Errorf("not told, since no replica that answered has a status stream of them: %s\nweft status PROXY shows where one is, or was", strings.Join(left, ", "))
			case len(resp.NodeIds) == 0:
				return errors.New("no proxy is connected that could be told")
			}
			return nil
		}}
	admin.add(cmd)
	return cmd
}

func adminRestoreCommand() *cobra.Command {
	var (
		admin  adminFlags
		reason string
	)
	cmd := &cobra.Command{Use: "restore", Short: "Declare that etcd was restored from a backup", Args: cobra.NoArgs,
		Long: `Declares that etcd was restored from a backup, and that what it has now is in
force. A new lineage begins: every replica of the control plane reads everything
again, and every proxy syncs from nothing and takes what it gets, be it older than
what it has. docs/restore.md has the whole way.

Without it replicas and proxies that have seen newer keep that: they cannot tell a
restore from an etcd that has lost something.`,
		Example: `  weft admin restore --reason "disk of all members lost, backup of 02:00"`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if reason == "" {
				return errors.New("--reason: say why; it is kept in the audit record")
			}
			c, done, err := admin.dial()
			if err != nil {
				return err
			}
			defer done()
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			resp, err := c.DeclareRestore(ctx, &adminv1.DeclareRestoreRequest{Reason: reason})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "lineage %s begins at revision %d: every proxy syncs from nothing; weft status shows how far they are\n", resp.Lineage, resp.Revision)
			return err
		}}
	admin.add(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit record")
	return cmd
}
