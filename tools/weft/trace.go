package weft

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/resource"

	"github.com/weft-mesh/weft/tools/proxycmd"
)

// whereLong is how trace and why find proxies.
const whereLong = `All proxies are asked: those of --proxy (WEFT_PROXY) where it is given, else those that
the control plane knows an address of (--server), else the one at 127.0.0.1:7411. One
that does not answer in 5 s is named and left out.`

// askFlags say where events are asked about.
type askFlags struct {
	proxy     proxyFlags
	admin     adminFlags
	namespace string
}

func (f *askFlags) add(cmd *cobra.Command) {
	f.proxy.add(cmd)
	f.admin.add(cmd)
	cmd.Flags().StringVarP(&f.namespace, "namespace", "n", proxycmd.Env("WEFT_NAMESPACE", "demo"), "namespace (WEFT_NAMESPACE)")
}

// askTimeout bounds what one proxy may take, asked beside others.
const askTimeout = 5 * time.Second

// addresses are those of all proxies.
func (f *askFlags) addresses(cmd *cobra.Command) []string {
	if cmd.Flags().Changed("proxy") || os.Getenv("WEFT_PROXY") != "" {
		return f.proxy.proxies
	}
	c, done, err := f.admin.dial()
	if err != nil {
		return f.proxy.proxies
	}
	defer done()
	ctx, cancel := context.WithTimeout(cmd.Context(), askTimeout)
	defer cancel()
	st, err := c.GetStatus(ctx, &adminv1.GetStatusRequest{WithoutResources: true, MaxProxies: 20000})
	if err != nil {
		return f.proxy.proxies
	}
	var out []string
	for _, p := range st.Proxies {
		if port := p.Info.GetPorts()["grpc"]; p.Connected && port != 0 && p.Info.AdvertiseHost != "" && serves(p.Info.Namespaces, f.namespace) {
			out = append(out, net.JoinHostPort(p.Info.AdvertiseHost, strconv.Itoa(int(port))))
		}
	}
	if len(out) == 0 {
		return f.proxy.proxies
	}
	return out
}

// serves reports whether a proxy of some namespaces, all where there are none, has one.
func serves(namespaces []string, namespace string) bool {
	return len(namespaces) == 0 || slices.Contains(namespaces, namespace)
}

// client talks to one proxy.
func (f *askFlags) client(addr string) (*client.Client, error) {
	one := f.proxy
	one.proxies = []string{addr}
	return one.dial()
}

// traced is what all proxies that answered remember.
type traced struct {
	facts  []*eventsv1.Fact // oldest first
	since  time.Time        // nothing was forgotten since then, at any of them
	nodes  int
	asked  []string // the addresses of those that answered, first those that remember something
	silent []string // why others did not
}

// maxAsked bounds the proxies that are asked at the same time. One that is silent counts no
// more after askPatience: those that do not answer take little, and others wait for them.
const (
	maxAsked    = 32
	askPatience = 50 * time.Millisecond
)

// askEach calls ask with every address, and returns once all calls have.
func askEach(addresses []string, ask func(addr string)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxAsked)
	for _, addr := range addresses {
		slots <- struct{}{}
		wg.Go(func() {
			done := sync.OnceFunc(func() { <-slots })
			defer done()
			defer time.AfterFunc(askPatience, done).Stop()
			ask(addr)
		})
	}
	wg.Wait()
}

// ask asks every proxy.
func (f *askFlags) ask(cmd *cobra.Command, source, id string) (traced, error) {
	var (
		mu  sync.Mutex
		out traced
		bad error
	)
	askEach(f.addresses(cmd), func(addr string) {
		resp, err := func() (*eventsv1.TraceResponse, error) {
			c, err := f.client(addr)
			if err != nil {
				return nil, err
			}
			defer c.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), askTimeout)
			defer cancel()
			return c.Trace(ctx, f.namespace, source, id)
		}()
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			bad = err
			out.silent = append(out.silent, addr+": "+err.Error())
			return
		}
		out.facts = append(out.facts, resp.Facts...)
		if at := resp.RemembersSince.AsTime(); at.After(out.since) {
			out.since = at
		}
		out.nodes++
		if len(resp.Facts) > 0 {
			out.asked = slices.Insert(out.asked, 0, addr)
		} else {
			out.asked = append(out.asked, addr)
		}
	})
	if out.nodes == 0 {
		return out, bad
	}
	slices.Sort(out.silent)
	for _, s := range out.silent {
		fmt.Fprintln(cmd.ErrOrStderr(), "not asked: "+s)
	}
	slices.SortStableFunc(out.facts, func(a, b *eventsv1.Fact) int {
		return cmp.Or(a.Time.AsTime().Compare(b.Time.AsTime()), cmp.Compare(a.Kind, b.Kind))
	})
	return out, nil
}

func traceCommand() *cobra.Command {
	var (
		f      askFlags
		output string
	)
	cmd := &cobra.Command{Use: "trace SOURCE ID", Short: "Show what happened to an event lately", Args: cobra.ExactArgs(2), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Shows what the proxies remember of an event: that it was refused, stored and where,
routed, filtered, delivered, settled, given back, retried, dead-lettered and redriven.
Each proxy remembers its last 65,536 such facts.

` + whereLong + `

Topics need SUBSCRIBE, Subscriptions CONSUME besides; what may not be seen is left out.`,
		Example: "  weft trace /shop order-7\n  weft trace /shop order-7 -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			t, err := f.ask(cmd, args[0], args[1])
			if err != nil {
				return err
			}
			if output != "text" {
				return writeMessage(cmd.OutOrStdout(), &eventsv1.TraceResponse{Facts: t.facts, RemembersSince: timestamppb.New(t.since)}, output)
			}
			return printTrace(cmd.OutOrStdout(), t)
		}}
	f.add(cmd)
	outputFlag(cmd, &output)
	return cmd
}

func printTrace(w io.Writer, t traced) error {
	if len(t.facts) == 0 {
		_, err := fmt.Fprintf(w, "nothing is remembered of it by %s, which forgot nothing since %s\n", counted(t.nodes, "proxy", "proxies"), t.since.UTC().Format(time.RFC3339))
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "TIME\tPROXY\tWHAT\tTOPIC\tSUBSCRIPTION\tATTEMPT\tDETAIL")
	for _, f := range t.facts {
		what := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(f.Kind.String(), "KIND_")), "_", "-")
		topic, attempt, detail := f.Topic, "", printable(f.Detail)
		if f.KeptIn != "" {
			topic += " → " + f.KeptIn
		}
		if f.Attempt > 0 {
			attempt = fmt.Sprint(f.Attempt)
		}
		if f.Kind == eventsv1.Fact_KIND_STORED {
			detail = "at " + f.Position
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", f.Time.AsTime().Format("2006-01-02T15:04:05.000Z"), f.NodeId, what, topic, f.Subscription, attempt, detail)
	}
	return tw.Flush()
}

func whyCommand() *cobra.Command {
	var (
		f             askFlags
		since, output string
	)
	cmd := &cobra.Command{Use: "why SOURCE ID SUBSCRIPTION", Short: "Say why a Subscription has not got an event, or that it has", Args: cobra.ExactArgs(3),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			if len(args) != 2 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return completeNames(resource.Subscription, &f.namespace)(cmd, nil, typed)
		},
		Long: `Goes along the way of an event and says what kept it from a Subscription: its publisher
was refused and by which rule, a Route took it elsewhere, the Subscription does not read
its topic, its filter says no and which expression, it is retried or a dead letter, or it
waits and behind how many. What proxies remember is used; where nobody remembers the
event, the topics of the Subscription are searched for it.

` + whereLong + `

It needs CONSUME on the Subscription and SUBSCRIBE on the topics that are to be looked
into.`,
		Example: "  weft why /shop order-7 billing\n  weft why /shop order-7 billing --since 24h",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			from, err := parseWhen(since, time.Now())
			if err != nil {
				return fmt.Errorf("--since %w", err)
			}
			t, err := f.ask(cmd, args[0], args[1])
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 2*callTimeout)
			defer cancel()
			req := &eventsv1.WhyRequest{Namespace: f.namespace, Source: args[0], Id: args[1], Subscription: args[2], Facts: t.facts[max(0, len(t.facts)-maxKnown):]}
			if !from.IsZero() {
				req.Since = timestamppb.New(from)
			}
			a, err := f.why(ctx, t.asked, req)
			if err != nil {
				return err
			}
			if output != "text" {
				return writeMessage(cmd.OutOrStdout(), a, output)
			}
			return printWhy(cmd.OutOrStdout(), a)
		}}
	f.add(cmd)
	cmd.Flags().StringVar(&since, "since", "1h", "where nobody remembers the event, search topics from then on: a time, or how long ago")
	outputFlag(cmd, &output)
	return cmd
}

// why asks one proxy after the other for as long as they do not know the Subscription, or
// the caller there: not each has every namespace.
func (f *askFlags) why(ctx context.Context, proxies []string, req *eventsv1.WhyRequest) (a *eventsv1.WhyResponse, err error) {
	for _, addr := range proxies {
		a, err = func() (*eventsv1.WhyResponse, error) {
			c, err := f.client(addr)
			if err != nil {
				return nil, err
			}
			defer c.Close()
			return c.Why(ctx, req)
		}()
		if e, ok := errors.AsType[*client.Error](err); !ok || e.Code != codes.PermissionDenied && e.Code != codes.NotFound {
			return a, err
		}
	}
	return a, err
}

// maxKnown is how many facts a question brings along, the newest.
const maxKnown = 1000

func printWhy(w io.Writer, a *eventsv1.WhyResponse) error {
	if a.Verdict == "" {
		return errors.New("the proxy gave no answer")
	}
	fmt.Fprintf(w, "%s: %s\n", a.Verdict, printable(a.Message))
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range a.Findings {
		mark := "ok"
		if !f.Ok {
			mark = "no"
		}
		fmt.Fprintf(tw, "  %s\t%s\t%s\n", f.Check, mark, printable(f.Detail))
	}
	return tw.Flush()
}
