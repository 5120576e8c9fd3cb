package weft

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/spf13/cobra"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/manifest"
	"github.com/weft-mesh/weft/pkg/resource"

	"github.com/weft-mesh/weft/tools/proxycmd"
)

func exportCommand() *cobra.Command {
	var (
		admin adminFlags
		of    selection
		all   bool
	)
	cmd := &cobra.Command{Use: "export [-n NAMESPACE | -A] [-l LABELS] [--kind KIND…]", Short: "Write the configuration as files that weft apply takes", Args: cobra.NoArgs,
		Long: `Writes what users have applied as YAML, without what the control plane adds: uids,
versions, times. What others refer to comes first. weft apply makes the same of it in
a mesh that has nothing, and changes nothing in the one that it is of.

A Topic names the store that it is in, also after a move. Migrations say what is to
happen once, and are left out unless --kind names them. Events are not in it, nor are
passwords; what Identities have of API keys are hashes.`,
		Example: "  weft export -n shop > shop.yaml\n  weft export -A > mesh.yaml\n  weft export -n shop --kind topic,subscription -l team=billing",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if all && cmd.Flags().Changed("namespace") {
				return errors.New("name a namespace (-n) or all of them (-A), not both")
			}
			if all {
				of.namespace = ""
			}
			if err := of.check(); err != nil {
				return err
			}
			c, done, err := admin.dial()
			if err != nil {
				return err
			}
			defer done()
			rs, err := of.list(cmd.Context(), c)
			if err != nil {
				return err
			}
			if len(rs) == 0 {
				return errors.New("there is nothing to export: " + cmp.Or(of.namespace, "no namespace") + " has no such resources, or you may not read them; -A exports every namespace")
			}
			b, err := manifest.YAML(rs...)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(b)
			return err
		}}
	admin.add(cmd)
	cmd.Flags().StringVarP(&of.namespace, "namespace", "n", proxycmd.Env("WEFT_NAMESPACE", "demo"), "namespace (WEFT_NAMESPACE)")
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "of every namespace")
	of.add(cmd, "labels that what is exported has: key=value,…", "kinds that are exported; all but migrations when empty")
	completeNamespace(cmd, &admin)
	return cmd
}

// list is what is there of s, as a file would have it.
func (s *selection) list(ctx context.Context, c adminv1.AdminServiceClient) ([]*configv1.Resource, error) {
	homes := map[string]string{}
	var rs []*configv1.Resource
	err := eachResource(ctx, c, &adminv1.ListRequest{Namespace: s.namespace, PageSize: 1000}, func(r *configv1.Resource) {
		if b := r.GetTopicBinding(); b != nil && b.Move == nil {
			homes[b.TopicUid] = b.Epochs[len(b.Epochs)-1].Store
		}
		if s.has(r) {
			rs = append(rs, r)
		}
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(rs, func(a, b *configv1.Resource) int {
		return cmp.Or(cmp.Compare(a.Metadata.Namespace, b.Metadata.Namespace), rankOf(resource.KindOf(a))-rankOf(resource.KindOf(b)), cmp.Compare(a.Metadata.Name, b.Metadata.Name))
	})
	for _, r := range rs {
		if t := r.GetTopic(); t != nil {
			t.Store = cmp.Or(homes[r.Metadata.Uid], t.Store)
		}
		r.Metadata = &configv1.Metadata{Namespace: r.Metadata.Namespace, Name: r.Metadata.Name, Labels: r.Metadata.Labels}
	}
	return rs, nil
}
