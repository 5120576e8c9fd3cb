package weft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/manifest"
	"github.com/weft-mesh/weft/pkg/resource"

	"github.com/weft-mesh/weft/tools/proxycmd"
)

// readManifests reads files, folders and "-" (standard input).
func readManifests(cmd *cobra.Command, paths []string, namespace string) ([]manifest.Document, error) {
	var docs []manifest.Document
	var problems []error
	read := func(name string, r io.Reader) {
		b, err := io.ReadAll(io.LimitReader(r, manifest.MaxBytes+1))
		if err == nil {
			var more []manifest.Document
			more, err = manifest.Decode(name, b, namespace)
			docs = append(docs, more...)
		}
		if err != nil {
			problems = append(problems, err)
		}
	}
	for _, path := range paths {
		if path == "-" {
			read("standard input", cmd.InOrStdin())
			continue
		}
		err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			if ext := filepath.Ext(p); p != path && ext != ".yaml" && ext != ".yml" && ext != ".json" {
				return nil
			}
			f, err := os.Open(p)
			if err != nil {
				return err
			}
			defer f.Close()
			read(p, f)
			return nil
		})
		if err != nil {
			problems = append(problems, err)
		}
	}
	if len(docs) == 0 && len(problems) == 0 {
		problems = append(problems, errors.New("there are no resources in "+strings.Join(paths, ", ")))
	}
	return docs, errors.Join(problems...)
}

func applyCommand() *cobra.Command {
	var (
		admin     adminFlags
		files     []string
		namespace string
		dryRun    bool
		wait      time.Duration
		output    string
	)
	cmd := &cobra.Command{Use: "apply -f FILE|FOLDER|- …", Short: "Create or update resources in one transaction: all or none", Args: cobra.NoArgs,
		Long: `Reads resources from files, folders or standard input, and creates or updates them
in one transaction: all or none. What is wrong is said at once, with the file and
line, or the resource and field. A resource that carries the version at which it
was read (weft get -o yaml) is refused where another one changed it meanwhile.`,
		Example: "  weft apply -f examples/orders/\n  weft apply --dry-run -f topic.yaml\n  weft get topic orders -o yaml | sed 's/168h/24h/' | weft apply -f -",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			docs, err := readManifests(cmd, files, namespace)
			if err != nil {
				return err
			}
			if len(docs) > 100 {
				return fmt.Errorf("there are %d resources; one transaction has at most 100: apply them in parts", len(docs))
			}
			c, done, err := admin.dial()
			if err != nil {
				return err
			}
			defer done()
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			req := &adminv1.ApplyRequest{DryRun: dryRun}
			for _, d := range docs {
				req.Resources = append(req.Resources, d.Resource)
			}
			if err := onCurrent(ctx, c, req.Resources); err != nil {
				return err
			}
			resp, err := c.Apply(ctx, req)
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
				printApplied(report, resp, dryRun)
			}
			if wait == 0 || dryRun {
				return nil
			}
			return waiting{revision: resp.Revision}.run(cmd.Context(), c, wait, report, progressOf(cmd.ErrOrStderr()))
		}}
	admin.add(cmd)
	cmd.Flags().StringSliceVarP(&files, "filename", "f", nil, "file, folder (.yaml, .yml, .json) or - for standard input; may be repeated")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "namespace of resources that name none")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check and show what would happen, change nothing")
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait until every proxy has it, as weft wait does, at most so long")
	_ = cmd.MarkFlagRequired("filename")
	outputFlag(cmd, &output)
	return cmd
}

// printApplied says what became of each resource.
func printApplied(w io.Writer, resp *adminv1.ApplyResponse, dryRun bool) {
	for _, r := range resp.Results {
		what := map[adminv1.ApplyResult_Outcome]string{adminv1.ApplyResult_OUTCOME_CREATED: "created", adminv1.ApplyResult_OUTCOME_UPDATED: "updated", adminv1.ApplyResult_OUTCOME_UNCHANGED: "unchanged"}[r.Outcome]
		if dryRun && what != "unchanged" {
			what = "would be " + what
		}
		fmt.Fprintf(w, "%s %s\n", r.Name, what)
	}
}

// onCurrent makes a change one of the versions that are there now, so that it
// does not overwrite what another one changes meanwhile.
func onCurrent(ctx context.Context, c adminv1.AdminServiceClient, rs []*configv1.Resource) error {
	for _, r := range rs {
		if r.Metadata.Version != "" {
			continue
		}
		got, err := c.Get(ctx, &adminv1.GetRequest{Name: resource.NameOf(r)})
		switch status.Code(err) {
		case codes.OK:
			r.Metadata.Version = got.Resource.Metadata.Version
		case codes.NotFound, codes.InvalidArgument: // Apply says what is wrong with it
		default:
			return err
		}
	}
	return nil
}

// canonical reads "KIND NAME" arguments.
func canonical(kind, namespace, name string) (string, error) {
	info, ok := resource.Lookup(kind)
	if !ok {
		return "", fmt.Errorf("%q is not a kind; there are %s", kind, strings.Join(kindNames(), ", "))
	}
	return resource.Name(info.Kind, namespace, name), nil
}

func getCommand() *cobra.Command {
	var (
		admin     adminFlags
		namespace string
		all       bool
		output    string
	)
	cmd := &cobra.Command{Use: "get KIND [NAME]", Short: "Show resources", Args: cobra.RangeArgs(1, 2), ValidArgsFunction: completeResources(&admin, &namespace, 1),
		Example: "  weft get topics\n  weft get topics -A\n  weft get subscription billing -n demo -o yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			c, done, err := admin.dial()
			if err != nil {
				return err
			}
			defer done()
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			var rs []*configv1.Resource
			if len(args) == 2 {
				name, err := canonical(args[0], namespace, args[1])
				if err != nil {
					return err
				}
				got, err := c.Get(ctx, &adminv1.GetRequest{Name: name})
				if err != nil {
					return err
				}
				rs = append(rs, got.Resource)
			} else {
				info, ok := resource.Lookup(args[0])
				if !ok {
					_, err := canonical(args[0], "", "")
					return err
				}
				req := &adminv1.ListRequest{Kind: string(info.Kind), Namespace: namespace}
				if all {
					req.Namespace = ""
				}
				for {
					resp, err := c.List(ctx, req)
					if err != nil {
						return err
					}
					rs = append(rs, resp.Resources...)
					if req.PageToken = resp.NextPageToken; req.PageToken == "" {
						break
					}
				}
			}
			return printResources(cmd.OutOrStdout(), rs, output)
		}}
	admin.add(cmd)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", proxycmd.Env("WEFT_NAMESPACE", "demo"), "namespace (WEFT_NAMESPACE)")
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "of every namespace")
	completeNamespace(cmd, &admin)
	outputFlag(cmd, &output)
	return cmd
}

func printResources(w io.Writer, rs []*configv1.Resource, output string) error {
	switch output {
	case "yaml":
		b, err := manifest.YAML(rs...)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	case "json":
		for _, r := range rs {
			b, err := manifest.JSON(r)
			if err != nil {
				return err
			}
			fmt.Fprintf(w, "%s\n", b)
		}
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "NAMESPACE\tNAME\tVERSION\tCREATED")
	for _, r := range rs {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", r.Metadata.Namespace, r.Metadata.Name, r.Metadata.Version, r.Metadata.CreatedAt.AsTime().Format("2006-01-02 15:04:05"))
	}
	return t.Flush()
}

func deleteCommand() *cobra.Command {
	var (
		admin     adminFlags
		files     []string
		namespace string
		dryRun    bool
	)
	cmd := &cobra.Command{Use: "delete KIND NAME … | -f FILE", Short: "Delete resources in one transaction: all or none", ValidArgsFunction: completeResources(&admin, &namespace, 0),
		Example: "  weft delete topic orders -n demo\n  weft delete -f examples/orders/",
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &adminv1.DeleteRequest{DryRun: dryRun}
			switch {
			case len(files) > 0 && len(args) == 0:
				docs, err := readManifests(cmd, files, namespace)
				if err != nil {
					return err
				}
				for _, d := range docs {
					req.Targets = append(req.Targets, &adminv1.DeleteTarget{Name: resource.NameOf(d.Resource)})
				}
			case len(files) == 0 && len(args) > 1:
				for _, n := range args[1:] {
					name, err := canonical(args[0], namespace, n)
					if err != nil {
						return err
					}
					req.Targets = append(req.Targets, &adminv1.DeleteTarget{Name: name})
				}
			default:
				return errors.New("name a kind and what to delete, or give files with -f")
			}
			c, done, err := admin.dial()
			if err != nil {
				return err
			}
			defer done()
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			if _, err := c.Delete(ctx, req); err != nil {
				return err
			}
			for _, t := range req.Targets {
				what := "deleted"
				if dryRun {
					what = "would be deleted"
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", t.Name, what)
			}
			return nil
		}}
	admin.add(cmd)
	cmd.Flags().StringSliceVarP(&files, "filename", "f", nil, "delete what these files have")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", proxycmd.Env("WEFT_NAMESPACE", "demo"), "namespace (WEFT_NAMESPACE)")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check, change nothing")
	completeNamespace(cmd, &admin)
	return cmd
}
