package weft

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/cutover"
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
			read("standard input", inputOf(cmd))
			continue
		}
		root := path
		if isFolder(path) {
			root += string(filepath.Separator) // also where it is a link to one
		}
		err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.IsDir() && p != root && strings.HasPrefix(d.Name(), "."):
				return fs.SkipDir // .git, or what a mounted ConfigMap has its files in
			case d.IsDir():
				return nil
			case d.Type()&fs.ModeSymlink != 0 && isFolder(p):
				if strings.HasPrefix(d.Name(), ".") {
					return nil
				}
				return fmt.Errorf("%s is a link to a folder, and within a folder these are not followed; name it with another -f", p)
			}
			if ext := filepath.Ext(p); p != root && ext != ".yaml" && ext != ".yml" && ext != ".json" {
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

// isFolder reports whether there is a folder at path, also behind a link.
func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func noKind(kind string) error {
	return fmt.Errorf("%q is not a kind; there are %s", kind, strings.Join(kindNames(), ", "))
}

// canonical reads "KIND NAME" arguments.
func canonical(kind, namespace, name string) (string, error) {
	info, ok := resource.Lookup(kind)
	if !ok {
		return "", noKind(kind)
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
		Long:    "Shows the resources of a kind, or one of them, with how it is. The kinds, in singular or\nplural, are " + kindsOf(false) + ";\nwhat the control plane writes itself is " + kindsOf(true) + ".",
		Example: "  weft get topics\n  weft get topics -A\n  weft get subscription billing -n demo -o yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			if all && len(args) == 2 {
				return fmt.Errorf("-A shows all of a kind; say in which namespace %s is, with -n", args[1])
			}
			c, done, err := admin.dial()
			if err != nil {
				return err
			}
			defer done()
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			info, ok := resource.Lookup(args[0])
			if !ok {
				return noKind(args[0])
			}
			var rs []*configv1.Resource
			about := &adminv1.GetStatusRequest{Kind: string(info.Kind), Namespace: namespace, MaxProxies: 1, MaxResources: 10000}
			if len(args) == 2 {
				name := resource.Name(info.Kind, namespace, args[1])
				about.Name = name
				got, err := c.Get(ctx, &adminv1.GetRequest{Name: name})
				if err != nil {
					return err
				}
				rs = append(rs, got.Resource)
			} else {
				req := &adminv1.ListRequest{Kind: string(info.Kind), Namespace: namespace}
				if all {
					req.Namespace, about.Namespace = "", ""
				}
				if err := eachResource(cmd.Context(), c, req, func(r *configv1.Resource) { rs = append(rs, r) }); err != nil {
					return err
				}
			}
			states := map[string]string{}
			var stores map[string]string
			if output == "text" && info.Kind == resource.Topic && len(rs) > 0 {
				stores = topicStores(cmd.Context(), c, rs, about)
			}
			if output == "text" && !info.System && len(rs) > 0 {
				// Those are listed also where nobody knows how they are.
				if st, err := getStatus(cmd.Context(), c, about); err == nil {
					for _, r := range st.Resources {
						states[r.Name] = state(r)
					}
				}
			}
			if output == "text" && len(rs) == 0 {
				where := "any namespace"
				if !all {
					where = "namespace " + namespace + "; -A shows those of every namespace"
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "there is no %s in %s\n", info.Kind, where)
			}
			return printResources(cmd.OutOrStdout(), rs, states, stores, output)
		}}
	admin.add(cmd)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", proxycmd.Env("WEFT_NAMESPACE", "demo"), "namespace (WEFT_NAMESPACE)")
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "of every namespace")
	completeNamespace(cmd, &admin)
	outputFlag(cmd, &output)
	return cmd
}

// topicStores are where topics are written to, by the topics' uids; their files may say
// where they were made. Those of which nobody tells are left out.
func topicStores(ctx context.Context, c adminv1.AdminServiceClient, topics []*configv1.Resource, about *adminv1.GetStatusRequest) map[string]string {
	stores := map[string]string{}
	take := func(r *configv1.Resource) {
		if b := r.GetTopicBinding(); cutover.Written(b) >= 0 {
			stores[b.TopicUid] = b.Epochs[cutover.Written(b)].Store
		}
	}
	if about.Name == "" {
		_ = eachResource(ctx, c, &adminv1.ListRequest{Kind: string(resource.TopicBinding), Namespace: about.Namespace}, take)
		return stores
	}
	if got, err := get(ctx, c, resource.TopicBinding, topics[0].Metadata.Namespace, topics[0].Metadata.Name); err == nil {
		take(got.Resource)
	}
	return stores
}

// printResources prints resources, and with stores, by uid, the one that each is in.
func printResources(w io.Writer, rs []*configv1.Resource, states, stores map[string]string, output string) error {
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
	column := ""
	if stores != nil {
		column = "STORE\t"
	}
	fmt.Fprintf(t, "NAMESPACE\tNAME\tVERSION\tCREATED\t%sSTATE\n", column)
	for _, r := range rs {
		md := r.Metadata
		if stores != nil {
			column = cmp.Or(stores[md.Uid], "-") + "\t"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s%s\n", md.Namespace, md.Name, md.Version, md.CreatedAt.AsTime().Format("2006-01-02 15:04:05"), column, cmp.Or(states[r.Name], "-"))
	}
	return t.Flush()
}

func deleteCommand() *cobra.Command {
	var (
		admin     adminFlags
		files     []string
		namespace string
		dryRun    bool
		mass      bool
	)
	cmd := &cobra.Command{Use: "delete KIND NAME … | -f FILE", Short: "Delete resources in one transaction: all or none", ValidArgsFunction: completeResources(&admin, &namespace, 0),
		Example: "  weft delete topic orders -n demo\n  weft delete -f examples/orders/",
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &adminv1.DeleteRequest{DryRun: dryRun, AllowMassRemoval: mass}
			switch {
			case len(files) > 0 && len(args) == 0:
				docs, err := readManifests(cmd, files, namespace)
				if err != nil {
					return err
				}
				for _, d := range docs {
					req.Targets = append(req.Targets, &adminv1.DeleteTarget{Name: resource.NameOf(d.Resource), Version: d.Resource.Metadata.Version})
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
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "delete what this file, or folder, has, where it has a version that one alone; may be repeated")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", proxycmd.Env("WEFT_NAMESPACE", "demo"), "namespace (WEFT_NAMESPACE)")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check, change nothing")
	cmd.Flags().BoolVar(&mass, "allow-mass-removal", false, "the change may remove more than the control plane lets go unasked")
	completeNamespace(cmd, &admin)
	return cmd
}
