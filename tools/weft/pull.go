package weft

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/duration"
	"github.com/weft-mesh/weft/pkg/resource"

	"github.com/weft-mesh/weft/tools/proxycmd"
)

func pullCommand() *cobra.Command {
	var (
		proxy     proxyFlags
		namespace string
		o         client.PullOptions
		ack       bool
		output    string
	)
	cmd := &cobra.Command{Use: "pull SUBSCRIPTION", Short: "Take events of a Subscription, once, and settle them later",
		Long: `What is pulled is yours until "weft settle" says what became of it, by the id that
stands first in its line, or until the Subscription's ack_timeout passes and it
comes again. With --ack it is settled as soon as it was printed.`,
		Example: "  weft pull billing --max 10\n  weft pull billing --ack -o json",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: completeNames(resource.Subscription, &namespace),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			c, err := proxy.reach(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), o.Wait+callTimeout)
			defer cancel()
			got, err := c.Pull(ctx, namespace, args[0], o)
			if err != nil {
				return err
			}
			if len(got) == 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "no event came within %s\n", duration.Text(o.Wait))
				return nil
			}
			var done client.Settlement
			for _, p := range got {
				if err := printPulled(cmd.OutOrStdout(), p, output); err != nil {
					return err
				}
				done.Ack = append(done.Ack, p.ID)
			}
			if !ack {
				return nil
			}
			return settle(ctx, c, namespace, args[0], done)
		}}
	proxy.add(cmd)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", proxycmd.Env("WEFT_NAMESPACE", "demo"), "namespace (WEFT_NAMESPACE)")
	cmd.Flags().IntVar(&o.MaxEvents, "max", 1, "most events, up to 1000")
	cmd.Flags().DurationVar(&o.Wait, "wait", 10*time.Second, "longest wait for the first one, up to 1m")
	cmd.Flags().BoolVar(&ack, "ack", false, "settle what was printed")
	outputFlag(cmd, &output)
	return cmd
}

// printPulled prints one event with its id; as JSON, as HTTP has it.
func printPulled(w io.Writer, p client.Pulled, output string) error {
	if output == "text" {
		if _, err := fmt.Fprintf(w, "%s  ", p.ID); err != nil {
			return err
		}
		return printDelivery(w, p.Delivery, output)
	}
	b, err := json.Marshal(struct {
		ID       string          `json:"delivery_id"`
		Topic    string          `json:"topic"`
		Position string          `json:"position"`
		Attempt  int             `json:"attempt"`
		Event    json.RawMessage `json:"event"`
	}{p.ID, p.Topic, p.Position, p.Attempt, cloudevents.AppendJSON(nil, &p.Event)})
	if err != nil {
		return err
	}
	return writeJSON(w, b, output)
}

func settleCommand() *cobra.Command {
	var (
		proxy             proxyFlags
		namespace, reason string
		nack              bool
		delay, extend     time.Duration
	)
	cmd := &cobra.Command{Use: "settle SUBSCRIPTION ID...", Short: "Say what became of events that were pulled",
		Long: `The events are done, unless --nack gives them back for another attempt or --extend
asks for more time. They are settled at the proxy that they were pulled from.`,
		Example: "  weft settle billing ID\n  weft settle billing --nack --delay 5m --reason 'the bank is closed' ID",
		Args:    cobra.MinimumNArgs(2), ValidArgsFunction: completeNames(resource.Subscription, &namespace),
		RunE: func(cmd *cobra.Command, args []string) error {
			again := cmd.Flags().Changed("delay") || reason != ""
			if again && !nack {
				return errors.New("--delay and --reason go with --nack")
			}
			extends := cmd.Flags().Changed("extend")
			if nack && extends {
				return errors.New("--nack and --extend exclude each other")
			}
			if extends && extend <= 0 {
				return errors.New("--extend is more than 0s, up to 1h")
			}
			c, err := proxy.reach(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			var s client.Settlement
			switch {
			case extends:
				s.Extend = []client.Extension{{IDs: args[1:], By: extend}}
			case nack:
				n := client.Nack{IDs: args[1:]}
				if again {
					n.Retry = &client.Retry{Delay: delay, Reason: reason}
				}
				if cmd.Flags().Changed("delay") && delay == 0 {
					n.Retry.Delay = client.AtOnce
				}
				s.Nack = []client.Nack{n}
			default:
				s.Ack = args[1:]
			}
			return settle(ctx, c, namespace, args[0], s)
		}}
	proxy.add(cmd)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", proxycmd.Env("WEFT_NAMESPACE", "demo"), "namespace (WEFT_NAMESPACE)")
	cmd.Flags().BoolVar(&nack, "nack", false, "they failed: deliver them again")
	cmd.Flags().DurationVar(&delay, "delay", 0, "with --nack: when, 0s is at once; the Subscription's retry schedule when it is absent")
	cmd.Flags().StringVar(&reason, "reason", "", "with --nack: why; kept with the event")
	cmd.Flags().DurationVar(&extend, "extend", 0, "they take this much longer from now, up to 1h")
	return cmd
}

// settle settles; what could not be is the error.
func settle(ctx context.Context, c *client.Client, namespace, subscription string, s client.Settlement) error {
	unsettled, err := c.Settle(ctx, namespace, subscription, s)
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range sortedIDs(unsettled) {
		errs = append(errs, fmt.Errorf("%s: %w", id, unsettled[id]))
	}
	return errors.Join(errs...)
}

func sortedIDs(m map[string]error) []string {
	out := make([]string, 0, len(m))
	for id := range m {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}
