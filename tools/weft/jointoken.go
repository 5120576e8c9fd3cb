package weft

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
)

// joinTokenCommand has what is done with join tokens.
func joinTokenCommand() *cobra.Command {
	return group(&cobra.Command{Use: "join-token", Short: "Tokens with which proxies join",
		Example: "  weft admin join-token create edge-7 --token-file edge-7.token\n  weft admin join-token list"}, joinTokenCreate(), joinTokenList(), joinTokenRevoke())
}

func joinTokenCreate() *cobra.Command {
	var (
		admin      adminFlags
		namespaces []string
		file       string
		lasts      time.Duration
	)
	cmd := &cobra.Command{Use: "create NODE-ID --token-file FILE", Short: "Make a token with which one proxy may join", Args: cobra.ExactArgs(1),
		Long: `Makes a token with which the proxy with this node id may join the mesh, and writes it
into a new file that only its owner may read. The control plane keeps its hash alone.`,
		Example: "  weft admin join-token create edge-7 --namespaces shop --token-file edge-7.token",
		RunE: func(cmd *cobra.Command, args []string) error {
			if file == "" || lasts < 0 {
				return errors.New("--token-file is needed: the token is written there; --expires-in must not be negative")
			}
			f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			defer f.Close()
			c, done, err := admin.dial()
			if err != nil {
				return errors.Join(err, os.Remove(file))
			}
			defer done()
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			req := &adminv1.CreateJoinTokenRequest{NodeId: args[0], Namespaces: namespaces}
			if lasts > 0 {
				req.ExpiresAt = timestamppb.New(time.Now().Add(lasts))
			}
			resp, err := c.CreateJoinToken(ctx, req)
			if err != nil {
				_ = os.Remove(file) // empty
				return err
			}
			if _, err := fmt.Fprintln(f, resp.Token); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "join token %s of node %s is in %s\n", resp.Id, args[0], file)
			return errors.Join(err, f.Sync())
		}}
	admin.add(cmd)
	cmd.Flags().StringSliceVar(&namespaces, "namespaces", nil, "namespaces that it opens; all when empty")
	cmd.Flags().StringVar(&file, "token-file", "", "new file for the token")
	cmd.Flags().DurationVar(&lasts, "expires-in", 0, "how long it is good for; for ever when 0")
	return cmd
}

func joinTokenList() *cobra.Command {
	var admin adminFlags
	cmd := &cobra.Command{Use: "list", Short: "List join tokens, without their secrets", Args: cobra.NoArgs, Example: "  weft admin join-token list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, done, err := admin.dial()
			if err != nil {
				return err
			}
			defer done()
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			resp, err := c.ListJoinTokens(ctx, &adminv1.ListJoinTokensRequest{})
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tNODE\tNAMESPACES\tEXPIRES")
			for _, t := range resp.Tokens {
				spaces, ends := "all", "never"
				if len(t.Namespaces) > 0 {
					spaces = strings.Join(t.Namespaces, ",")
				}
				if t.ExpiresAt != nil {
					ends = t.ExpiresAt.AsTime().Format(time.RFC3339)
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", t.Id, t.NodeId, spaces, ends)
			}
			return w.Flush()
		}}
	admin.add(cmd)
	return cmd
}

func joinTokenRevoke() *cobra.Command {
	var admin adminFlags
	cmd := &cobra.Command{Use: "revoke ID …", Short: "End join tokens, and the streams of proxies that use them", Args: cobra.MinimumNArgs(1), Example: "  weft admin join-token revoke 3f9c2a1b",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, done, err := admin.dial()
			if err != nil {
				return err
			}
			defer done()
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			// A mistyped id must not look like one that was revoked.
			there, err := c.ListJoinTokens(ctx, &adminv1.ListJoinTokensRequest{})
			if err != nil {
				return err
			}
			for _, id := range args {
				if !slices.ContainsFunc(there.Tokens, func(t *adminv1.JoinToken) bool { return t.Id == id }) {
					return fmt.Errorf("there is no join token %s, nothing was revoked; weft admin join-token list has their ids", id)
				}
			}
			if _, err := c.RevokeJoinTokens(ctx, &adminv1.RevokeJoinTokensRequest{Ids: args}); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s revoked\n", strings.Join(args, ", "))
			return err
		}}
	admin.add(cmd)
	return cmd
}
