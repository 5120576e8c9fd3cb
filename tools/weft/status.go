package weft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"

	"github.com/weft-mesh/weft/pkg/duration"
	"github.com/weft-mesh/weft/pkg/resource"
)

func statusCommand() *cobra.Command {
	var (
		admin     adminFlags
		namespace string
		output    string
		all       bool
		wait      time.Duration
	)
	cmd := &cobra.Command{Use: "status [PROXY | KIND/NAMESPACE/NAME]", Short: "Show who has the newest configuration, and what is not ready and why", Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: completeStatus(&admin),
		Long: `Shows, on one screen, which proxies have not the newest configuration and why, the
replicas of the control plane, what an operator must look at, and which resources
are not ready and why. Proxies are those of all replicas, and those that were
connected in the last 10 minutes.

With the name of a proxy it shows all that is known of that one; with that of a
resource, of any kind, where it is in force and where not, why, and what refers to it.

With --wait it waits until a proxy is there, every connected one has all of it,
nothing is refused, and everything is ready; where that does not come in time, the
exit status is 1. weft wait waits for one revision.`,
		Example: `  weft status
  weft status gateway-1
  weft status route/shop/orders
  weft status --wait 1m -n shop
  weft status -o json | jq -r '.proxies[].node_id'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			c, done, err := admin.dial()
			if err != nil {
				return err
			}
			defer done()
			req := &adminv1.GetStatusRequest{Namespace: namespace, MaxProxies: 1000}
			if all {
				req.MaxProxies, req.MaxResources = 20000, 10000
			}
			if len(args) == 1 && strings.Contains(args[0], "/") {
				if wait > 0 || namespace != "" || all {
					return errors.New("--wait, --namespace and --all are not for one resource")
				}
				kind, rest, _ := strings.Cut(args[0], "/")
				info, ok := resource.Lookup(kind)
				if !ok {
					return noKind(kind)
				}
				st, err := getStatus(cmd.Context(), c, &adminv1.GetStatusRequest{Name: string(info.Kind) + "/" + rest})
				switch {
				case err != nil:
					return err
				case output != "text":
					return writeMessage(cmd.OutOrStdout(), st, output)
				}
				return printResource(cmd.OutOrStdout(), st)
			}
			if len(args) == 1 {
				if wait > 0 || namespace != "" || all {
					return errors.New("--wait, --namespace and --all are not for one proxy")
				}
				req.NodeId, req.WithoutResources = args[0], true
			}
			st, complete, err := awaitStatus(cmd.Context(), c, req, wait)
			if err != nil {
				return err
			}
			if len(args) == 1 && len(st.Proxies) == 0 {
				return fmt.Errorf("no proxy %s is connected to a replica that answered, or was in the last minutes; weft status lists them", args[0])
			}
			switch {
			case output != "text":
				err = writeMessage(cmd.OutOrStdout(), st, output)
			case len(args) == 1:
				err = printProxy(cmd.OutOrStdout(), st, st.Proxies[0], time.Now())
			default:
				err = printStatus(cmd.OutOrStdout(), st, req, all, time.Now())
			}
			if err != nil {
				return err
			}
			if wait > 0 && !complete {
				return fmt.Errorf("not everything was ready within %s", duration.Text(wait))
			}
			return nil
		}}
	admin.add(cmd)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only this namespace's resources")
	cmd.Flags().BoolVar(&all, "all", false, "list all proxies and resources, not only some")
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait until everything is ready, at most so long")
	outputFlag(cmd, &output)
	completeNamespace(cmd, &admin)
	return cmd
}

// statusEvery is how often those who wait ask; where there are many proxies, which
// cost the control plane more, statusSeldom.
const (
	statusEvery  = 200 * time.Millisecond
	statusSeldom = time.Second
	manyProxies  = 500
)

// getStatus asks once.
func getStatus(ctx context.Context, c adminv1.AdminServiceClient, req *adminv1.GetStatusRequest) (*adminv1.GetStatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return c.GetStatus(ctx, req)
}

// passing reports whether a call may go through when it is tried again, as where a replica is
// restarted.
func passing(err error) bool {
	c := status.Code(err)
	return c == codes.Unavailable || c == codes.DeadlineExceeded
}

// poll asks for the status, again and again, until enough says so or the wait is
// over. Once there was an answer it asks on where one does not come; the error is that of
// the last.
func poll(ctx context.Context, c adminv1.AdminServiceClient, req *adminv1.GetStatusRequest, wait time.Duration, enough func(*adminv1.GetStatusResponse) bool) (st *adminv1.GetStatusResponse, complete bool, err error) {
	over := time.NewTimer(wait)
	defer over.Stop()
	for {
		now, err := getStatus(ctx, c, req)
		switch {
		case err == nil:
			st = now
			if complete = enough(st); complete || wait == 0 {
				return st, complete, nil
			}
		case st == nil || !passing(err):
			return nil, false, err
		}
		every := statusEvery
		if st.Fleet.GetKnown() > manyProxies {
			every = statusSeldom
		}
		again := time.NewTimer(every)
		select {
		case <-again.C:
		case <-over.C:
			return st, false, err
		case <-ctx.Done():
			return st, false, ctx.Err()
		}
	}
}

// awaitStatus asks for the status, again and again until everything is ready or
// the wait is over.
func awaitStatus(ctx context.Context, c adminv1.AdminServiceClient, req *adminv1.GetStatusRequest, wait time.Duration) (st *adminv1.GetStatusResponse, complete bool, err error) {
	return poll(ctx, c, req, wait, func(st *adminv1.GetStatusResponse) bool { return everythingReady(st, req.Namespace) })
}

func everythingReady(st *adminv1.GetStatusResponse, namespace string) bool {
	f := st.Fleet
	return f.Connected > 0 && f.Current == f.Connected && st.ResourcesNotReady == 0 && (namespace == "" || st.ResourcesTotal > 0)
}

// isReady reports whether nothing is known against a resource.
func isReady(r *adminv1.ResourceStatus) bool {
	return !slices.ContainsFunc(r.Conditions, func(c *adminv1.Condition) bool { return c.State != adminv1.Condition_STATE_TRUE })
}

// some is how many entries of each list are on the one screen.
const some = 20

// number writes a number with commas: 10,000 is read faster.
func number[T ~int | ~uint32](n T) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// counted is a number of things: "1 proxy", "1,200 proxies".
func counted[T ~int | ~uint32](n T, one, many string) string {
	if n == 1 {
		many = one
	}
	return number(n) + " " + many
}

// proxiesHave says how many proxies of how many have something: "1 of 1 proxy has",
// "1 of 2 proxies has", "0 of 2 proxies have".
func proxiesHave(n, of uint32) string {
	verb := " have"
	if n == 1 || of == 1 {
		verb = " has"
	}
	return number(n) + " of " + counted(of, "proxy", "proxies") + verb
}

// change says how many resources change.
func change(n int) string { return counted(n, "resource changes", "resources change") }

// more says how many entries were left out.
func more(w io.Writer, n int, what string) {
	if n > 0 {
		fmt.Fprintf(w, "and %s more %s (--all lists them, -o json has all there is)\n", number(n), what)
	}
}
