package weft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
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

func requestCommand() *cobra.Command {
	var (
		proxy             proxyFlags
		namespace, output string
		timeout           time.Duration
		flags             eventFlags
	)
	cmd := &cobra.Command{Use: "request TOPIC", Short: "Publish an event and wait for the reply to it",
		Long: `The event is published as any other, and whoever receives it may reply to it: the
data of the first reply are printed, or with -o json the reply as a CloudEvent. Where
nobody replies in time the event was published all the same.`,
		Example: "  weft request questions --data '{\"article\": 7}' --timeout 30s",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: completeNames(resource.Topic, &namespace),
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
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout+callTimeout)
			defer cancel()
			reply, err := c.Request(ctx, namespace, args[0], e, timeout)
			if err != nil {
				return err
			}
			if output != "text" {
				return writeJSON(cmd.OutOrStdout(), cloudevents.AppendJSON(nil, &reply), output)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", reply.Data)
			return err
		}}
	proxy.add(cmd)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", proxycmd.Env("WEFT_NAMESPACE", "demo"), "namespace (WEFT_NAMESPACE)")
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Second, "longest wait for the reply, up to 5m")
	flags.add(cmd)
	outputFlag(cmd, &output)
	return cmd
}

// replying is how many requests "weft reply" works on at once, and maxReply for how long
// on one.
const (
	replying = 8
	maxReply = 5 * time.Minute
)

func replyCommand() *cobra.Command {
	var (
		proxy     proxyFlags
		namespace string
		most      int
		attrs     []string
		a         answerer
	)
	cmd := &cobra.Command{Use: "reply SUBSCRIPTION [-- COMMAND [ARG]...]", Short: "Reply to requests, as a member of a Subscription",
		Long: `Each request is replied to with --data; or with what COMMAND writes, which is run for
each one, up to 8 at a time: it reads the request's data, and has CE_ID, CE_SOURCE,
CE_TYPE and CE_SUBJECT in its environment. Without either the data come back as they
are. Where COMMAND fails the request is given back for another attempt. What asks for
no reply, or is not waited for any more, is settled and passed over. Without --max it
goes on until Ctrl-C.`,
		Example: "  weft reply answerers --data '{\"price\": 42}'\n  weft reply answerers -- jq '{price: (.article * 6)}'",
		Args:    cobra.MinimumNArgs(1), ValidArgsFunction: completeNames(resource.Subscription, &namespace),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkMax(most); err != nil {
				return err
			}
			a.command, a.constant = args[1:], cmd.Flags().Changed("data")
			if len(a.command) > 0 && a.constant {
				return errors.New("--data and a COMMAND exclude each other")
			}
			if len(a.command) > 0 {
				if _, err := exec.LookPath(a.command[0]); err != nil {
					return fmt.Errorf("COMMAND: %w", err)
				}
			}
			err := setAttrs(&a.with, attrs)
			if err != nil {
				return err
			}
			if a.with.Data, err = readData(cmd, a.data); err != nil {
				return err
			}
			c, err := proxy.dial()
			if err != nil {
				return err
			}
			defer c.Close()
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			a.c, a.namespace, a.errOut = c, namespace, cmd.ErrOrStderr()
			var mu sync.Mutex
			begun, replied := 0, 0
			connected, stop := proxy.patiently(cmd)
			defer stop()
			err = c.Subscribe(ctx, namespace, args[0], func(ctx context.Context, d client.Delivery) error {
				mu.Lock()
				enough := most > 0 && begun == most
				if !enough {
					begun++
				}
				mu.Unlock()
				if enough {
					return client.ErrUnsettled
				}
				outcome, err := a.answer(context.WithoutCancel(ctx), d)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					fmt.Fprintf(cmd.ErrOrStderr(), "%s  %s  %v\n", d.Topic, d.Event.ID, err)
				} else {
					fmt.Fprintf(cmd.OutOrStdout(), "%s  %s  %s\n", d.Topic, d.Event.ID, outcome)
				}
				if outcome != isReplied {
					begun--
				} else if replied++; replied == most {
					cancel()
				}
				return err
			}, client.SubscribeOptions{Credit: replying, Connected: connected})
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		}}
	proxy.add(cmd)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", proxycmd.Env("WEFT_NAMESPACE", "demo"), "namespace (WEFT_NAMESPACE)")
	cmd.Flags().StringVarP(&a.data, "data", "d", "", "the data of each reply: text, @FILE, or - for standard input")
	cmd.Flags().StringVar(&a.with.Source, "source", "/weft/cli", "the replies' source")
	cmd.Flags().StringVar(&a.with.Type, "type", "weft.cli.reply", "the replies' type")
	cmd.Flags().StringVar(&a.with.DataContentType, "content-type", "", "the data's media type; that of the request when empty")
	cmd.Flags().StringArrayVar(&attrs, "attr", nil, "an extension attribute of each reply, name=value; may be repeated")
	cmd.Flags().IntVar(&most, "max", 0, "end after so many replies; 0 is without end")
	return cmd
}

// answerer replies to requests.
type answerer struct {
	c         *client.Client
	namespace string
	with      event.Event // what replies have
	data      string      // as it was given
	constant  bool
	command   []string
	errOut    io.Writer
}

// isReplied is the outcome of a request that was replied to.
const isReplied = "is replied to"

// answer replies to one event, and tells what became of it. An error gives the event
// back.
func (a *answerer) answer(ctx context.Context, d client.Delivery) (outcome string, err error) {
	if _, ok := event.Lookup(d.Event.Ext, event.AttrReplyTo); !ok {
		return "asks for no reply", nil
	}
	ctx, cancel := context.WithTimeout(ctx, maxReply)
	defer cancel()
	by, _ := event.Lookup(d.Event.Ext, event.AttrReplyBy)
	if until, err := time.Parse(time.RFC3339, by); err == nil {
		ctx, cancel = context.WithDeadline(ctx, until)
		defer cancel()
	}
	e := a.with
	e.ID = uuid.NewString()
	if e.DataContentType == "" {
		e.DataContentType = d.Event.DataContentType
	}
	switch {
	case len(a.command) > 0:
		e.Data, err = a.run(ctx, d)
	case !a.constant:
		e.Data = d.Event.Data
	}
	if err == nil {
		err = a.c.Reply(ctx, a.namespace, d.Event, e)
	}
	if f, ok := errors.AsType[*client.Error](err); ctx.Err() != nil || ok && f.Reason == "reply-late" {
		return "is not waited for any more", nil
	}
	if err != nil {
		return "", err
	}
	return isReplied, nil
}

// run runs the command for a request. It gives what that wrote.
func (a *answerer) run(ctx context.Context, d client.Delivery) ([]byte, error) {
	e := &d.Event
	cmd := exec.CommandContext(ctx, a.command[0], a.command[1:]...) //nolint:gosec // it is what the user asks for
	cmd.Env = append(os.Environ(), "CE_ID="+e.ID, "CE_SOURCE="+e.Source, "CE_TYPE="+e.Type, "CE_SUBJECT="+e.Subject)
	cmd.Stdin, cmd.Stderr, cmd.WaitDelay = bytes.NewReader(e.Data), a.errOut, time.Second
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(a.command, " "), err)
	}
	return out, nil
}
