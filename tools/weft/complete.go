package weft

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/resource"
)

// completeTimeout bounds what a Tab may take.
const completeTimeout = 2 * time.Second

// listed asks the control plane for resources; nothing where it does not answer.
func listed(cmd *cobra.Command, admin *adminFlags, kind, namespace string) []*configv1.Resource {
	c, done, err := admin.dial()
	if err != nil {
		return nil
	}
	defer done()
	ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
	defer cancel()
	resp, err := c.List(ctx, &adminv1.ListRequest{Kind: kind, Namespace: namespace})
	if err != nil {
		return nil
	}
	return resp.Resources
}

func kindNames() []string {
	var all []string
	for _, k := range resource.Kinds() {
		all = append(all, string(k.Kind))
	}
	return all
}

// completeResources completes KIND and then names of that kind, of the namespace
// that --namespace says. most bounds the names; 0 is without.
func completeResources(admin *adminFlags, namespace *string, most int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return kindNames(), cobra.ShellCompDirectiveNoFileComp
		}
		info, ok := resource.Lookup(args[0])
		if !ok || most > 0 && len(args) > most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []string
		for _, r := range listed(cmd, admin, string(info.Kind), *namespace) {
			if name := r.Metadata.Name; !slices.Contains(args[1:], name) {
				out = append(out, name)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeNames completes the one argument of a command with the names of a
// kind. Such commands talk to proxies; the control plane is the one that
// WEFT_SERVER names.
func completeNames(kind resource.Kind, namespace *string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		admin := adminDefaults()
		var out []string
		for _, r := range listed(cmd, &admin, string(kind), *namespace) {
			out = append(out, r.Metadata.Name)
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeNamespace completes --namespace with those that have resources.
func completeNamespace(cmd *cobra.Command, admin *adminFlags) {
	_ = cmd.RegisterFlagCompletionFunc("namespace", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		var out []string
		for _, r := range listed(cmd, admin, "", "") {
			out = append(out, r.Metadata.Namespace)
		}
		slices.Sort(out)
		return slices.Compact(out), cobra.ShellCompDirectiveNoFileComp
	})
}

// completeProxies completes node ids of proxies. most bounds them; 0 is without.
func completeProxies(admin *adminFlags, most int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c, done, err := admin.dial()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer done()
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
		defer cancel()
		st, err := c.GetStatus(ctx, &adminv1.GetStatusRequest{WithoutResources: true})
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []string
		for _, p := range st.Proxies {
			if !slices.Contains(args, p.NodeId) {
				out = append(out, p.NodeId)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}
