package weft

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/census"
)

// printStatus is the status on one screen.
func printStatus(w io.Writer, st *adminv1.GetStatusResponse, req *adminv1.GetStatusRequest, all bool, now time.Time) error {
	f := st.Fleet
	fmt.Fprintf(w, "revision %d of lineage %s; %s all of it\n", st.Revision, st.Lineage, proxiesHave(f.Current, f.Connected))
	var not []string
	for _, c := range []struct {
		n    uint32
		what string
	}{{f.Behind, "behind"}, {f.Refusing, "refusing some of it"}, {f.Withheld, "not sent some of it"}, {f.Disconnected, "not connected"}} {
		if c.n > 0 {
			not = append(not, number(c.n)+" "+c.what)
		}
	}
	if len(not) > 0 {
		fmt.Fprintf(w, "proxies: %s\n", strings.Join(not, ", "))
	}
	fmt.Fprintln(w)
	for _, a := range st.Alarms {
		fmt.Fprintf(w, "ALARM %s, since %s: %s\n", a.Reason, age(now.Sub(a.Since.AsTime())), a.Message)
	}
	if len(st.Alarms) > 0 {
		fmt.Fprintln(w)
	}
	if err := printReplicas(w, st); err != nil {
		return err
	}
	if f.Known == 0 {
		fmt.Fprint(w, "No proxy is connected to any replica. Start one with weft proxy --control-plane.\n\n")
	} else if err := printProxies(w, st, all, now); err != nil {
		return err
	}
	return printResourceStatus(w, st, req.Namespace, all)
}

// printReplicas lists the replicas of the control plane where there are several, or
// one does not answer.
func printReplicas(w io.Writer, st *adminv1.GetStatusResponse) error {
	if len(st.Replicas) < 2 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "REPLICA\tREVISION\tPROXIES\tOFFICES\tVERSION\tSTATE")
	for _, r := range st.Replicas {
		if r.Error != "" {
			fmt.Fprintf(t, "%s\t-\t-\t-\t%s\t%s\n", r.Address, r.Version, r.Error)
			continue
		}
		state := "serves"
		if r.Revision < st.Revision {
			state = "reads up"
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\n", r.Address, r.Revision, number(r.Streams), cmp.Or(strings.Join(r.Offices, ","), "-"), r.Version, state)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w)
	return err
}

// printProxies lists the proxies where they are few or all are asked for; else
// those that lack something, or, where those are many, why.
func printProxies(w io.Writer, st *adminv1.GetStatusResponse, all bool, now time.Time) error {
	f := st.Fleet
	known, lacking := int(f.Known), int(f.Known-f.Current)
	list := st.Proxies
	switch {
	case all || known <= some:
	case lacking <= some:
		list = list[:min(lacking, len(list))]
	default:
		list = nil
	}
	if len(list) > 0 {
		t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		fmt.Fprintln(t, "PROXY\tREVISION\tCONFIGURATION\tCONNECTED\tVERSION\tADDRESS")
		for _, p := range list {
			since := "-"
			if p.Connected {
				since = age(now.Sub(p.ConnectedAt.AsTime()))
			}
			fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\n", p.NodeId, p.AckedRevision, inShort(p, st, now), since, p.Info.GetVersion(), p.Peer)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	reasons(w, st, list == nil)
	if all {
		more(w, known-len(st.Proxies), "proxies")
	} else if fine := known - max(len(list), lacking); fine > 0 {
		verb := "have"
		if fine == 1 {
			verb = "has"
		}
		fmt.Fprintf(w, "%s more %s all of it (--all lists them, weft status PROXY shows one)\n", number(fine), verb)
	}
	_, err := fmt.Fprintln(w)
	return err
}

// inShort is a proxy's state in a few words.
func inShort(p *adminv1.ProxyStatus, st *adminv1.GetStatusResponse, now time.Time) string {
	lack := census.LackOf(p, st.Lineage, st.Revision)
	var what []string
	if lack.Disconnected {
		return "not connected for " + age(now.Sub(p.LastSeen.AsTime()))
	}
	if n := len(p.Rejections); n > 0 {
		what = append(what, fmt.Sprintf("refuses %d", n))
	}
	if lack.Behind {
		what = append(what, behind(p, st))
	}
	if lack.Withheld && len(p.Rejections) == 0 {
		what = append(what, fmt.Sprintf("is not sent %d", max(len(p.Withheld), len(p.GetReport().GetConfig().GetWithheld()))))
	}
	if len(what) == 0 {
		what = append(what, "has all of it")
	}
	if p.GetReport().GetDraining() {
		what = append(what, "drains")
	}
	if n := len(p.GetReport().GetStores()); n > 0 {
		what = append(what, "cannot use "+counted(n, "store", "stores"))
	}
	if n := len(p.GetReport().GetTargets()); n > 0 {
		what = append(what, "pushes to "+counted(n, "target", "targets")+" in vain")
	}
	if n := len(p.GetReport().GetDenied()); n > 0 {
		what = append(what, "is denied "+counted(n, "topic", "topics"))
	}
	if n := len(p.GetReport().GetBlocked()); n > 0 {
		what = append(what, "holds blocked keys of "+counted(n, "Subscription", "Subscriptions"))
	}
	return strings.Join(what, ", ")
}

// behind says why a connected proxy has not the revision.
func behind(p *adminv1.ProxyStatus, st *adminv1.GetStatusResponse) string {
	lineage := p.GetReport().GetConfig().GetLineage()
	switch {
	case p.AckedRevision == 0:
		return "was sent, has not answered"
	case p.AckedRevision < p.SentRevision:
		return fmt.Sprintf("was sent %d, has not answered", p.SentRevision)
	case lineage != "" && lineage != st.Lineage:
		return "has lineage " + lineage
	}
	return "is about to be sent the newest"
}

// reasons says why proxies lack what they lack, once for all that lack it for the
// same reason. Those that are listed anyway need no line for being behind or gone;
// with everything they have one.
func reasons(w io.Writer, st *adminv1.GetStatusResponse, everything bool) {
	who := map[string][]string{}
	for _, p := range st.Proxies {
		add := func(format string, args ...any) {
			why := fmt.Sprintf(format, args...)
			who[why] = append(who[why], p.NodeId)
		}
		if everything {
			switch l := census.LackOf(p, st.Lineage, st.Revision); {
			case l.Disconnected:
				add("not connected")
			case l.Behind:
				add("%s", behind(p, st))
			}
		}
		for _, r := range p.Rejections {
			add("refuses %s", refusal(r))
		}
		for _, h := range p.Withheld {
			add("is not sent %s (version %s): %s", h.Name, h.Version, h.Reason)
		}
		if len(p.Rejections)+len(p.Withheld) == 0 {
			for _, name := range p.GetReport().GetConfig().GetWithheld() {
				add("has no version that it can enforce of %s", name)
			}
		}
		for _, s := range p.GetReport().GetStores() {
			add("cannot use %s: %s: %s", s.Name, s.Reason, s.Message)
		}
		for _, t := range p.GetReport().GetTargets() {
			add("pushes in vain for %s: %s: %s", t.Name, t.Reason, t.Message)
		}
		for _, d := range p.GetReport().GetDenied() {
			add("its store denies it %s: %s: %s", d.Name, d.Reason, d.Message)
		}
		for _, b := range p.GetReport().GetBlocked() {
			add("%s", blocked(b))
		}
	}
	whys := slices.SortedFunc(maps.Keys(who), func(a, b string) int {
		return cmp.Or(cmp.Compare(len(who[b]), len(who[a])), cmp.Compare(a, b))
	})
	for _, why := range whys[:min(len(whys), some)] {
		nodes := who[why]
		fmt.Fprintf(w, "  %s: %s\n", several(nodes), why)
	}
	if n := len(whys) - some; n > 0 {
		fmt.Fprintf(w, "  and %s (-o json has them)\n", counted(n, "more reason", "more reasons"))
	}
	if everything {
		more(w, int(st.Fleet.Known-st.Fleet.Current)-len(st.Proxies), "proxies that lack something")
	}
}

func refusal(r *discoveryv1.Rejection) string {
	where := ""
	if r.Field != "" {
		where = r.Field + ": "
	}
	return fmt.Sprintf("%s (version %s): %s%s", r.Name, r.Version, where, r.Reason)
}

func blocked(b *discoveryv1.BlockedState) string {
	return fmt.Sprintf("holds %s of %s blocked, first by the event of %s at %s", counted(int(b.Keys), "key", "keys"), b.Name, b.Topic, b.Position)
}

// several names some proxies.
func several(nodes []string) string {
	const few = 3
	if len(nodes) <= few {
		return strings.Join(nodes, ", ")
	}
	return fmt.Sprintf("%s proxies (%s, …)", number(len(nodes)), strings.Join(nodes[:few], ", "))
}

// printProxy is all that is known of one proxy.
func printProxy(w io.Writer, st *adminv1.GetStatusResponse, p *adminv1.ProxyStatus, now time.Time) error {
	ago := func(t time.Time) string { return age(now.Sub(t)) + " ago" }
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	line("proxy", "%s", p.NodeId)
	if p.DeadAt != nil {
		line("declared dead", "%s, by %s: it is refused until weft proxies revive %s", ago(p.DeadAt.AsTime()), p.DeadBy, p.NodeId)
		if p.LastSeen == nil {
			line("last connected", "longer ago than is remembered")
			return t.Flush()
		}
	}
	line("configuration", "%s", inShort(p, st, now))
	line("revision", "%d; the newest is %d", p.AckedRevision, st.Revision)
	replica := p.Replica
	for _, r := range st.Replicas {
		if r.Id == replica {
			replica = r.Address
		}
	}
	if p.Connected {
		line("connected", "%s, from %s to replica %s", ago(p.ConnectedAt.AsTime()), p.Peer, replica)
	} else {
		line("last connected", "%s, from %s to replica %s", ago(p.LastSeen.AsTime()), p.Peer, replica)
	}
	i := p.Info
	line("version", "%s", i.GetVersion())
	line("namespaces", "%s", cmp.Or(strings.Join(i.GetNamespaces(), ", "), "all that its credential allows"))
	if i.GetAdvertiseHost() != "" {
		line("reached at", "%s", i.AdvertiseHost)
	}
	if i.GetZone() != "" {
		line("zone", "%s", i.Zone)
	}
	if c := p.GetReport().GetConfig(); c != nil {
		source := map[discoveryv1.AppliedConfig_Source]string{discoveryv1.AppliedConfig_SOURCE_LIVE: "a control plane", discoveryv1.AppliedConfig_SOURCE_DISK: "its disk",
			discoveryv1.AppliedConfig_SOURCE_SNAPSHOT: "a snapshot file"}[c.Source]
		confirmed := "not confirmed by a control plane"
		if c.ConfirmedAt != nil {
			confirmed = "confirmed " + ago(c.ConfirmedAt.AsTime())
		}
		revision := c.Revision
		if c.Lineage == st.Lineage { // it may have been read later, and be of no later change
			revision = min(revision, st.Revision)
		}
		line("in force", "revision %d of lineage %s, from %s, %s", revision, c.Lineage, cmp.Or(source, "nowhere"), confirmed)
		var kinds []string
		for _, k := range c.Digests {
			kinds = append(kinds, fmt.Sprintf("%s %s", number(k.Count), k.Kind))
		}
		line("resources", "%s", cmp.Or(strings.Join(kinds, ", "), "none"))
	}
	if l := p.GetReport().GetLoad(); l != nil {
		line("load", "%s connections, %s streams, %s in flight", number(l.Connections), number(l.Streams), number(l.InFlight))
		line("since its start", "%d events published, %d delivered, %s of CPU; %d MiB of memory now", l.Published, l.Delivered,
			(time.Duration(l.CpuMicros) * time.Microsecond).Round(time.Millisecond), l.MemoryBytes>>20)
	}
	if p.Report == nil && p.Connected {
		line("report", "none: it has not reported yet, or is of a version that does not")
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range p.Rejections {
		fmt.Fprintf(w, "refuses %s\n", refusal(r))
	}
	for _, h := range p.Withheld {
		fmt.Fprintf(w, "is not sent %s (version %s): %s\n", h.Name, h.Version, h.Reason)
	}
	for _, name := range p.GetReport().GetConfig().GetWithheld() {
		fmt.Fprintf(w, "has no version of %s that it can enforce: what it governs is denied there\n", name)
	}
	for _, s := range p.GetReport().GetStores() {
		fmt.Fprintf(w, "cannot use %s: %s: %s\n", s.Name, s.Reason, s.Message)
	}
	for _, s := range p.GetReport().GetTargets() {
		fmt.Fprintf(w, "pushes in vain for %s: %s: %s\n", s.Name, s.Reason, s.Message)
	}
	for _, d := range p.GetReport().GetDenied() {
		fmt.Fprintf(w, "its store denies it %s: %s: %s\n", d.Name, d.Reason, d.Message)
	}
	for _, b := range p.GetReport().GetBlocked() {
		fmt.Fprintln(w, blocked(b))
	}
	return nil
}

// printResourceStatus lists the resources that are not ready, and some that are.
func printResourceStatus(w io.Writer, st *adminv1.GetStatusResponse, namespace string, all bool) error {
	switch {
	case st.ResourcesTotal == 0 && namespace != "":
		fmt.Fprintf(w, "Namespace %s has no resources. weft get topics -A lists the topics of all.\n", namespace)
		return nil
	case st.ResourcesTotal == 0:
		fmt.Fprintln(w, "There are no resources yet: weft apply -f FILE creates some.")
		return nil
	}
	bad := min(int(st.ResourcesNotReady), len(st.Resources))
	list := st.Resources
	if !all {
		list = slices.Concat(list[:min(bad, some)], list[bad:min(len(list), bad+some)])
	}
	shown := 0
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "RESOURCE\tCONDITION\tREASON\tMESSAGE")
	for _, r := range list {
		if !isReady(r) {
			shown++
		}
		for _, c := range r.Conditions {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", r.Name, is(c), c.Reason, c.Message)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	more(w, int(st.ResourcesNotReady)-shown, "that are not ready")
	more(w, int(st.ResourcesTotal-st.ResourcesNotReady)-(len(list)-shown), "that are ready")
	return nil
}

// is says whether a condition holds: "Ready", "not Ready", "Ready unknown".
func is(c *adminv1.Condition) string {
	switch c.State {
	case adminv1.Condition_STATE_TRUE:
		return c.Type
	case adminv1.Condition_STATE_FALSE:
		return "not " + c.Type
	}
	return c.Type + " unknown"
}

// state is what is known of a resource in a few words; "-" for nothing.
func state(r *adminv1.ResourceStatus) string {
	var all []string
	for _, c := range r.GetConditions() {
		what := is(c)
		if c.State != adminv1.Condition_STATE_TRUE {
			what += " (" + c.Reason + ")"
		}
		all = append(all, what)
	}
	return cmp.Or(strings.Join(all, ", "), "-")
}

// printResource is all that is known of one resource, the only one of st.
func printResource(w io.Writer, st *adminv1.GetStatusResponse) error {
	r := st.Resources[0]
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	line("resource", "%s", r.Name)
	line("version", "%s; the newest revision is %d", r.Version, st.Revision)
	line("in force", "%s it", proxiesHave(r.InForce, r.Proxies))
	for _, c := range r.Conditions {
		line("condition", "%s", strings.TrimSuffix(fmt.Sprintf("%s: %s: %s", is(c), c.Reason, c.Message), ": "))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, l := range r.Lacking {
		fmt.Fprintf(w, "%s %s\n", l.NodeId, l.Reason)
	}
	if n := int(r.Proxies-r.InForce) - len(r.Lacking); n > 0 {
		fmt.Fprintf(w, "and %s\n", counted(n, "more proxy that has not got it", "more proxies that have not got it"))
	}
	for _, name := range r.UsedBy {
		fmt.Fprintf(w, "is used by %s\n", name)
	}
	return nil
}

// age is a time span in one unit.
func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
