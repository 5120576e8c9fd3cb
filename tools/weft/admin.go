package weft

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
)

// adminCommand has what is done to the control plane itself.
func adminCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "admin", Short: "Look after the control plane itself", Args: cobra.NoArgs,
		Example: "  weft admin restore --reason \"disk lost, backup of 02:00\"", RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(adminRestoreCommand())
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
