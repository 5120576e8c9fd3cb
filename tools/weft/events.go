package weft

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/resource"

	"github.com/weft-mesh/weft/tools/proxycmd"
)

func publishCommand() *cobra.Command {
	var (
		proxy             proxyFlags
		namespace, output string
		flags             eventFlags
	)
	cmd := &cobra.Command{Use: "publish TOPIC", Short: "Publish an event", Args: cobra.ExactArgs(1), ValidArgsFunction: completeNames(resource.Topic, &namespace),
		Example: "  weft publish orders --type order.created --data '{\"order\": 7}'\n  weft publish orders --data @order.json --key customer-3",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			e, err := flags.event(cmd)
			if err == nil {
				err = checkJSON(&e)
			}
			if err != nil {
				return err
			}
			c, err := proxy.reach(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			pos, err := c.Publish(ctx, namespace, args[0], e)
			if err != nil {
				return err
			}
			if output != "text" {
				b, err := json.MarshalIndent(map[string]string{"id": e.ID, "position": pos}, "", "  ")
				if err != nil {
					return err
				}
				return writeJSON(cmd.OutOrStdout(), b, output)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is kept at %s\n", e.ID, pos)
			return err
		}}
	proxy.add(cmd)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", proxycmd.Env("WEFT_NAMESPACE", "demo"), "namespace (WEFT_NAMESPACE)")
	flags.add(cmd)
	outputFlag(cmd, &output)
	return cmd
}

// eventFlags are the parts of an event.
type eventFlags struct {
	e     event.Event
	data  string
	attrs []string
}

// eventFlagNames are their names.
var eventFlagNames = []string{"data", "id", "source", "type", "subject", "content-type", "attr", "key"}

func (f *eventFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.data, "data", "d", "", "the data: text, @FILE, or - for standard input")
	cmd.Flags().StringVar(&f.e.ID, "id", "", "the event's id; drawn when empty")
	cmd.Flags().StringVar(&f.e.Source, "source", "/weft/cli", "the event's source")
	cmd.Flags().StringVar(&f.e.Type, "type", "weft.cli", "the event's type")
	cmd.Flags().StringVar(&f.e.Subject, "subject", "", "the event's subject")
	cmd.Flags().StringVar(&f.e.DataContentType, "content-type", "application/json", "the data's media type")
	cmd.Flags().StringArrayVar(&f.attrs, "attr", nil, "an extension attribute, name=value; may be repeated")
	cmd.Flags().Func("key", "the ordering key (partitionkey)", func(s string) error {
		f.e.Ext = event.With(f.e.Ext, event.AttrPartitionKey, s)
		return nil
	})
}

// event is the event that the flags make; its id is drawn where none is given.
func (f *eventFlags) event(cmd *cobra.Command) (e event.Event, err error) {
	e = f.e
	if e.Data, err = readData(cmd, f.data); err != nil {
		return e, err
	}
	if e.ID == "" {
		e.ID = uuid.NewString()
	}
	return e, setAttrs(&e, f.attrs)
}

// setAttrs gives e what --attr says.
func setAttrs(e *event.Event, attrs []string) error {
	for _, a := range attrs {
		k, v, ok := strings.Cut(a, "=")
		if !ok {
			return fmt.Errorf("--attr: %q is not name=value", a)
		}
		e.Ext = event.With(e.Ext, k, v)
	}
	return nil
}

// checkJSON refuses data that are said to be JSON and are not.
func checkJSON(e *event.Event) error {
	media, _, err := mime.ParseMediaType(e.DataContentType)
	if err != nil || media != "application/json" && !strings.HasSuffix(media, "+json") || len(e.Data) == 0 {
		return nil
	}
	var v json.RawMessage
	if err := json.Unmarshal(e.Data, &v); err != nil {
		return fmt.Errorf("--data: it is not JSON, as --content-type %s says: %w; for text, --content-type text/plain", e.DataContentType, err)
	}
	return nil
}

// maxData bounds what publish reads.
const maxData = 8 << 20

func readData(cmd *cobra.Command, data string) ([]byte, error) {
	var r io.Reader
	switch {
	case data == "-":
		r = inputOf(cmd)
	case strings.HasPrefix(data, "@"):
		f, err := os.Open(data[1:])
		if err != nil {
			return nil, fmt.Errorf("--data: %w", err)
		}
		defer f.Close()
		r = f
	default:
		return []byte(data), nil
	}
	b, err := io.ReadAll(io.LimitReader(r, maxData+1))
	if err != nil {
		return nil, fmt.Errorf("--data: %w", err)
	}
	if len(b) > maxData {
		return nil, fmt.Errorf("--data: it is larger than %d MiB, and no topic takes that", maxData>>20)
	}
	return b, nil
}

// patience is how long nothing is said of proxies that do not answer.
const patience = 3 * time.Second

// patiently tells people how a command that goes on without end gets on: after a while
// that no proxy answers, and once it is connected.
func (p *proxyFlags) patiently(cmd *cobra.Command) (connected func(), stop func() bool) {
	unanswered := time.AfterFunc(patience, func() {
		fmt.Fprintf(cmd.ErrOrStderr(), "no proxy answers at %s so far; it is tried on. Proxies are named with --proxy (WEFT_PROXY); Ctrl-C ends\n", strings.Join(p.proxies, ", "))
	})
	return func() {
		unanswered.Stop()
		fmt.Fprintln(cmd.ErrOrStderr(), "connected; Ctrl-C ends")
	}, unanswered.Stop
}

func subscribeCommand() *cobra.Command {
	var (
		proxy           proxyFlags
		namespace, from string
		tails           []string
		most            int
		output          string
	)
	cmd := &cobra.Command{Use: "subscribe SUBSCRIPTION | --tail TOPIC", Short: "See events: as a member of a Subscription, or by tailing topics",
		Long: `As a member of a Subscription, each event that is printed is settled: other
members do not get it. With --tail every event of the topics is shown and
nothing is settled. With -o json each line is a CloudEvent. Without --max it goes on
until Ctrl-C.`,
		Example: "  weft subscribe billing\n  weft subscribe --tail 'orders.>' --from beginning",
		Args:    cobra.MaximumNArgs(1), ValidArgsFunction: completeNames(resource.Subscription, &namespace),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			if err := checkMax(most); err != nil {
				return err
			}
			if (len(args) == 1) == (len(tails) > 0) {
				return errors.New("name a Subscription, or topics with --tail")
			}
			if len(args) == 1 && cmd.Flags().Changed("from") {
				return errors.New("--from goes with --tail: where a Subscription begins is its own start")
			}
			c, err := proxy.dial()
			if err != nil {
				return err
			}
			defer c.Close()
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			var mu sync.Mutex
			var failed error // to show one
			seen := 0
			show := func(d client.Delivery) error {
				mu.Lock()
				defer mu.Unlock()
				if failed != nil || most > 0 && seen == most {
					return client.ErrUnsettled // what comes beyond --max goes to others
				}
				if failed = printDelivery(cmd.OutOrStdout(), d, output); failed != nil {
					cancel()
					return client.ErrUnsettled // the event is not at fault: it costs no attempt
				}
				if seen++; seen == most {
					cancel()
				}
				return nil
			}
			connected, stop := proxy.patiently(cmd)
			defer stop()
			if len(args) == 1 {
				err = c.Subscribe(ctx, namespace, args[0], func(_ context.Context, d client.Delivery) error { return show(d) },
					client.SubscribeOptions{Credit: 16, Connected: connected})
			} else {
				o := client.TailOptions{Connected: connected}
				switch from {
				case "end", "":
				case "beginning":
					o.Beginning = true
				default:
					if o.Since, err = parseWhen(from, time.Now()); err != nil {
						return fmt.Errorf("--from is beginning, end, a time or how long ago: %w", err)
					}
				}
				err = c.Tail(ctx, namespace, tails, o, show)
			}
			mu.Lock()
			defer mu.Unlock()
			if failed != nil || errors.Is(err, context.Canceled) || most > 0 && seen == most {
				return failed
			}
			return err
		}}
	proxy.add(cmd)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", proxycmd.Env("WEFT_NAMESPACE", "demo"), "namespace (WEFT_NAMESPACE)")
	cmd.Flags().StringSliceVar(&tails, "tail", nil, "tail these topics or patterns")
	cmd.Flags().StringVar(&from, "from", "end", "with --tail: beginning, end, a time such as 2026-01-31T12:00:00Z, or how long ago (24h)")
	_ = cmd.RegisterFlagCompletionFunc("tail", completeNames(resource.Topic, &namespace))
	_ = cmd.RegisterFlagCompletionFunc("from", cobra.FixedCompletions([]string{"beginning", "end"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.Flags().IntVar(&most, "max", 0, "end after so many events; 0 is without end")
	outputFlag(cmd, &output)
	return cmd
}

// checkMax refuses a --max that bounds nothing and is not 0.
func checkMax(most int) error {
	if most < 0 {
		return fmt.Errorf("--max: %d is less than 0, which is without end", most)
	}
	return nil
}

func printDelivery(w io.Writer, d client.Delivery, output string) error {
	if output != "text" {
		return writeJSON(w, cloudevents.AppendJSON(nil, &d.Event), output)
	}
	again := ""
	if d.Attempt > 1 {
		again = fmt.Sprintf(" (attempt %d)", d.Attempt)
	}
	subject := ""
	if d.Event.Subject != "" {
		subject = " " + d.Event.Subject
	}
	_, err := fmt.Fprintf(w, "%s  %s  %s%s  %s%s\n", d.Topic, d.Event.ID, d.Event.Type, subject, d.Event.Data, again)
	return err
}
