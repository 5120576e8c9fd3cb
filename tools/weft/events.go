package weft

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
		proxy           proxyFlags
		namespace, data string
		e               event.Event
		attrs           []string
		output          string
	)
	cmd := &cobra.Command{Use: "publish TOPIC", Short: "Publish an event", Args: cobra.ExactArgs(1), ValidArgsFunction: completeNames(resource.Topic, &namespace),
		Example: "  weft publish orders --type order.created --data '{\"order\": 7}'\n  weft publish orders --data @order.json --key customer-3",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			body, err := readData(cmd, data)
			if err != nil {
				return err
			}
			e.Data = body
			if e.ID == "" {
				e.ID = uuid.NewString()
			}
			for _, a := range attrs {
				k, v, ok := strings.Cut(a, "=")
				if !ok {
					return fmt.Errorf("--attr: %q is not name=value", a)
				}
				e.Ext = event.With(e.Ext, k, v)
			}
			c, err := proxy.dial()
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
	cmd.Flags().StringVarP(&data, "data", "d", "", "the data: text, @FILE, or - for standard input")
	cmd.Flags().StringVar(&e.ID, "id", "", "the event's id; drawn when empty")
	cmd.Flags().StringVar(&e.Source, "source", "/weft/cli", "the event's source")
	cmd.Flags().StringVar(&e.Type, "type", "weft.cli", "the event's type")
	cmd.Flags().StringVar(&e.Subject, "subject", "", "the event's subject")
	cmd.Flags().StringVar(&e.DataContentType, "content-type", "application/json", "the data's media type")
	cmd.Flags().StringSliceVar(&attrs, "attr", nil, "an extension attribute, name=value; may be repeated")
	cmd.Flags().Func("key", "the ordering key (partitionkey)", func(s string) error {
		e.Ext = event.With(e.Ext, event.AttrPartitionKey, s)
		return nil
	})
	outputFlag(cmd, &output)
	return cmd
}

// maxData bounds what publish reads.
const maxData = 8 << 20

func readData(cmd *cobra.Command, data string) ([]byte, error) {
	var r io.Reader
	switch {
	case data == "-":
		r = cmd.InOrStdin()
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
	return io.ReadAll(io.LimitReader(r, maxData))
}

// patience is how long nothing is said of proxies that do not answer.
const patience = 3 * time.Second

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
			seen := 0
			show := func(d client.Delivery) error {
				mu.Lock()
				defer mu.Unlock()
				if most > 0 && seen == most {
					return &client.Retry{Reason: "not wanted"}
				}
				if seen++; seen == most {
					defer cancel()
				}
				return printDelivery(cmd.OutOrStdout(), d, output)
			}
			unanswered := time.AfterFunc(patience, func() {
				fmt.Fprintf(cmd.ErrOrStderr(), "no proxy answers at %s so far; it is tried on. Proxies are named with --proxy (WEFT_PROXY); Ctrl-C ends\n", strings.Join(proxy.proxies, ", "))
			})
			defer unanswered.Stop()
			connected := func() {
				unanswered.Stop()
				fmt.Fprintln(cmd.ErrOrStderr(), "connected; Ctrl-C ends")
			}
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
					if o.Since, err = time.Parse(time.RFC3339, from); err != nil {
						return errors.New("--from is beginning, end, or a time such as 2026-01-31T12:00:00Z")
					}
				}
				err = c.Tail(ctx, namespace, tails, o, show)
			}
			mu.Lock()
			defer mu.Unlock()
			if errors.Is(err, context.Canceled) || most > 0 && seen == most {
				return nil // what came beyond --max was given back
			}
			return err
		}}
	proxy.add(cmd)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", proxycmd.Env("WEFT_NAMESPACE", "demo"), "namespace (WEFT_NAMESPACE)")
	cmd.Flags().StringSliceVar(&tails, "tail", nil, "tail these topics or patterns")
	cmd.Flags().StringVar(&from, "from", "end", "with --tail: beginning, end, or a time")
	cmd.Flags().IntVar(&most, "max", 0, "end after so many events; 0 is without end")
	outputFlag(cmd, &output)
	return cmd
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
