package weft

import (
	"context"
	"fmt"
	"slices"
	"strings"
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
	var out []*configv1.Resource
	// What has come by then is better than nothing.
	_ = eachResource(ctx, c, &adminv1.ListRequest{Kind: kind, Namespace: namespace, PageSize: 1000}, func(r *configv1.Resource) { out = append(out, r) })
	return out
}

func kindNames() []string {
	var all []string
	for _, k := range resource.Kinds() {
		all = append(all, string(k.Kind))
	}
	return all
}

// kindsOf are the kinds that users write, or that the control plane does, as text.
func kindsOf(system bool) string {
	var of []string
	for _, k := range resource.Kinds() {
		if k.System == system {
			of = append(of, string(k.Kind))
		}
	}
	return strings.Join(of, ", ")
}

// completeKinds are the kinds, and that in the plural which is typed so.
func completeKinds(typed string) []string {
	out := kindNames()
	for _, k := range resource.Kinds() {
		for _, plural := range []string{string(k.Kind) + "s", strings.TrimSuffix(string(k.Kind), "y") + "ies"} {
			if info, ok := resource.Lookup(plural); ok && info.Kind == k.Kind && typed != "" && !strings.HasPrefix(string(k.Kind), typed) && strings.HasPrefix(plural, typed) {
				out = append(out, plural)
			}
		}
	}
	return out
}

// completeKindFlag completes a flag with kinds.
func completeKindFlag(cmd *cobra.Command, flag string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, func(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		return completeKinds(typed), cobra.ShellCompDirectiveNoFileComp
	})
}

// completedRevisions is how many revisions are offered.
const completedRevisions = 20

// completeRevisions are the newest changes that may be seen, with what they were.
func completeRevisions(cmd *cobra.Command, admin *adminFlags) ([]string, cobra.ShellCompDirective) {
	const how = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	c, done, err := admin.dial()
	if err != nil {
		return nil, how
	}
	defer done()
	ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
	defer cancel()
	resp, err := c.ListHistory(ctx, &adminv1.ListHistoryRequest{ChangesOnly: true, PageSize: completedRevisions})
	if err != nil {
		return nil, how
	}
	var out []string
	for _, r := range resp.Records {
		what := fmt.Sprintf("%s by %s", r.Method, r.Actor)
		if len(r.Changes) > 0 {
			what += ": " + r.Changes[0].Name
		}
		if n := len(r.Changes) - 1; n > 0 {
			what += fmt.Sprintf(" and %d more", n)
		}
		out = append(out, cobra.CompletionWithDesc(fmt.Sprint(r.Revision), what))
	}
	return out, how
}

// completeRevisionFlag completes a flag with revisions.
func completeRevisionFlag(cmd *cobra.Command, admin *adminFlags, flag string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return completeRevisions(cmd, admin)
	})
}

// completeResources completes KIND and then names of that kind, of the namespace
// that --namespace says. most bounds the names; 0 is without.
func completeResources(admin *adminFlags, namespace *string, most int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return completeKinds(typed), cobra.ShellCompDirectiveNoFileComp
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

// completeStatus completes what weft status shows: proxies and, once a kind is
// typed, resources.
func completeStatus(admin *adminFlags) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		out, how := completeCanonical(cmd, admin, typed)
		if !strings.Contains(typed, "/") {
			proxies, _ := completeProxies(admin, 1)(cmd, args, typed)
			out = append(proxies, out...)
		}
		return out, how
	}
}

// completeCanonical completes KIND/NAMESPACE/NAME.
func completeCanonical(cmd *cobra.Command, admin *adminFlags, typed string) ([]string, cobra.ShellCompDirective) {
	var out []string
	kind, rest, within := strings.Cut(typed, "/")
	if !within {
		for _, k := range kindNames() {
			out = append(out, k+"/")
		}
		return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
	info, ok := resource.Lookup(kind)
	if !ok {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	namespace, _, named := strings.Cut(rest, "/")
	if !named {
		namespace = ""
	}
	for _, r := range listed(cmd, admin, string(info.Kind), namespace) {
		out = append(out, kind+"/"+r.Metadata.Namespace+"/"+r.Metadata.Name)
	}
	return out, cobra.ShellCompDirectiveNoFileComp
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
