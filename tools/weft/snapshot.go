package weft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"

	"github.com/weft-mesh/weft/pkg/configfile"
)

// snapshotTime bounds an export, which may have a gigabyte.
const snapshotTime = 5 * time.Minute

func snapshotCommand() *cobra.Command {
	var (
		admin      adminFlags
		namespaces []string
		file       string
	)
	cmd := &cobra.Command{Use: "snapshot [-n NAMESPACE…] -o FILE", Short: "Export the configuration, to start proxies without a control plane", Args: cobra.NoArgs,
		Long: `Writes what a proxy of these namespaces, or of all, is sent into a file from which a
new proxy starts while no control plane answers: weft proxy --snapshot-from FILE. It
is of one revision. A control plane with --snapshot-key signs it.

What is in FILE is what proxies keep on their disks: policies, hashes of API keys,
addresses of stores, but no password. Only its owner may read it.`,
		Example: "  weft snapshot -o mesh.snapshot\n  weft snapshot -n shop -n billing -o shop.snapshot",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return errors.New("--file (-o): say where the snapshot is written")
			}
			c, done, err := admin.dial()
			if err != nil {
				return err
			}
			defer done()
			ctx, cancel := context.WithTimeout(cmd.Context(), snapshotTime)
			defer cancel()
			b, err := export(ctx, c, namespaces)
			if err != nil {
				return err
			}
			lg, err := configfile.DecodeSnapshot(b, nil)
			if err != nil {
				return fmt.Errorf("what the control plane sent %w", err)
			}
			if err := replaceFile(file, b); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s of %s at revision %d, lineage %s\n", file, counted(len(lg.Resources), "resource", "resources"), strings.Join(lg.Scope, " "), lg.Revision, lg.Lineage)
			return err
		}}
	admin.add(cmd)
	cmd.Flags().StringSliceVarP(&namespaces, "namespace", "n", nil, "namespaces; all without")
	cmd.Flags().StringVarP(&file, "file", "o", "", "file to write, or to replace once the snapshot is there as a whole")
	return cmd
}

func export(ctx context.Context, c adminv1.AdminServiceClient, namespaces []string) ([]byte, error) {
	stream, err := c.ExportSnapshot(ctx, &adminv1.ExportSnapshotRequest{Namespaces: namespaces})
	if err != nil {
		return nil, err
	}
	var b []byte
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return b, nil
		}
		if err != nil {
			return nil, err
		}
		if b = append(b, part.Data...); len(b) > configfile.MaxBytes {
			return nil, fmt.Errorf("the control plane sent more than %d bytes", configfile.MaxBytes)
		}
	}
}

// replaceFile writes a file that only its owner may read, whole or not at all.
func replaceFile(name string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
