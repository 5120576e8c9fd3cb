package weft

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/resource"

	"github.com/weft-mesh/weft/tools/proxycmd"
)

// dlqCommand has what is done with dead letters.
func dlqCommand() *cobra.Command {
	return group(&cobra.Command{Use: "dlq", Short: "See what could not be delivered, and deliver it again",
		Long: `Dead letters are the events that a Subscription gave up after its last attempt; they
are in its dead_letter_topic, with the reason.`,
		Example: "  weft dlq list --subscription billing\n  weft dlq redrive --subscription billing --reason time-out --rate 20/s"},
		dlqListCommand(), dlqShowCommand(), dlqRedriveCommand())
}

// letterFlags say which dead letters are meant.
type letterFlags struct {
	proxy        proxyFlags
	namespace    string
	filter       client.DeadLetterFilter
	since, until string
}

func (f *letterFlags) add(cmd *cobra.Command) {
	f.proxy.add(cmd)
	cmd.Flags().StringVarP(&f.namespace, "namespace", "n", proxycmd.Env("WEFT_NAMESPACE", "demo"), "namespace (WEFT_NAMESPACE)")
	cmd.Flags().StringVarP(&f.filter.Subscription, "subscription", "s", "", "the Subscription that gave them up")
	cmd.Flags().StringVar(&f.filter.DeadLetterTopic, "dead-letter-topic", "", "where they are; the Subscription's dead_letter_topic when empty")
	cmd.Flags().StringVar(&f.filter.Topic, "topic", "", "the topic that they were in")
	cmd.Flags().StringVar(&f.filter.Reason, "reason", "", "a part of the reason")
	cmd.Flags().StringVar(&f.filter.Source, "source", "", "the event's source")
	cmd.Flags().StringVar(&f.since, "since", "", "given up since then: a time such as 2026-01-31T12:00:00Z, or how long ago (24h)")
	cmd.Flags().StringVar(&f.until, "until", "", "given up before then, as --since")
	cmd.Flags().IntVar(&f.filter.MinAttempts, "min-attempts", 0, "given up after at least so many attempts")
	complete := func(flag string, kind resource.Kind) {
		_ = cmd.RegisterFlagCompletionFunc(flag, completeNames(kind, &f.namespace))
	}
	complete("subscription", resource.Subscription)
	complete("dead-letter-topic", resource.Topic)
	complete("topic", resource.Topic)
}

// idFlag adds --id.
func (f *letterFlags) idFlag(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&f.filter.IDs, "id", nil, "the event's id; may be repeated")
}

// reach reads the flags and connects.
func (f *letterFlags) reach(ctx context.Context) (*client.Client, error) {
	if f.filter.Subscription == "" && f.filter.DeadLetterTopic == "" {
		return nil, errors.New("name the Subscription with --subscription, or the topic with --dead-letter-topic")
	}
	for _, t := range []struct {
		flag, in string
		to       *time.Time
	}{{"--since", f.since, &f.filter.Since}, {"--until", f.until, &f.filter.Until}} {
		var err error
		if *t.to, err = parseWhen(t.in, time.Now()); err != nil {
			return nil, fmt.Errorf("%s %w", t.flag, err)
		}
	}
	return f.proxy.reach(ctx)
}

// parseWhen reads a time, or how long ago it is; "" is the zero time.
func parseWhen(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, fmt.Errorf("%q is neither a time such as 2026-01-31T12:00:00Z nor a duration such as 24h", s)
	}
	return t, nil
}

func dlqListCommand() *cobra.Command {
	var (
		f                letterFlags
		o                client.ListOptions
		causes, redriven bool
		output           string
	)
	cmd := &cobra.Command{Use: "list", Short: "List dead letters", Args: cobra.NoArgs,
		Long: `Lists the dead letters of a Subscription, oldest first in each partition, but for those
that were redriven. With --causes it counts them by Subscription, topic and reason.
It needs SUBSCRIBE on the dead-letter topic and, where only the Subscription is named,
CONSUME on that. With -o json each line is one of them.`,
		Example: "  weft dlq list --subscription billing --reason time-out --since 24h\n  weft dlq list --dead-letter-topic orders.dead --causes",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			if causes && output != "text" {
				return errors.New("--causes is a table for people: count with -o json and a program")
			}
			if o.Limit < 1 {
				return fmt.Errorf("--max: %d is less than 1", o.Limit)
			}
			c, err := f.reach(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			if o.Redriven, o.OmitData = redriven, output == "text"; causes {
				o.Limit = maxCounted
			}
			var letters []client.DeadLetter
			printed := 0
			sum, err := c.DeadLetters(cmd.Context(), f.namespace, f.filter, o, func(l client.DeadLetter) error {
				if output != "text" {
					printed++
					return printLetterJSON(cmd.OutOrStdout(), &l, output)
				}
				letters = append(letters, l)
				return nil
			})
			if err != nil {
				return err
			}
			if output != "text" {
				// Who counts lines is not to take some for all.
				if sum.Matched > uint64(printed) { //nolint:gosec // a count
					fmt.Fprintf(cmd.ErrOrStderr(), "%s%s\n", counted(int(sum.Matched), "dead letter", "dead letters"), ofWhichShown(printed)) //nolint:gosec // a count
				}
				return nil
			}
			return printLetters(cmd.OutOrStdout(), letters, sum, causes)
		}}
	f.add(cmd)
	f.idFlag(cmd)
	cmd.Flags().IntVar(&o.Limit, "max", 100, "list at most so many; the others are counted")
	cmd.Flags().BoolVar(&redriven, "redriven", false, "list those that were redriven too")
	cmd.Flags().BoolVar(&causes, "causes", false, "count by Subscription, topic and reason instead")
	outputFlag(cmd, &output)
	return cmd
}

// maxCounted is how many dead letters --causes counts.
const maxCounted = 100000

// maxShownReason is how much of a reason the table has.
const maxShownReason = 80

func printLetters(w io.Writer, letters []client.DeadLetter, sum client.DeadLetterSummary, causes bool) error {
	if len(letters) == 0 {
		_, err := fmt.Fprintf(w, "no dead letters%s\n", before(sum))
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if causes {
		type cause struct{ sub, topic, reason string }
		counts := map[cause]int{}
		for _, l := range letters {
			counts[cause{l.Subscription, l.Topic, l.Reason}]++
		}
		var all []cause
		for c := range counts {
			all = append(all, c)
		}
		slices.SortFunc(all, func(a, b cause) int {
			return cmp.Or(counts[b]-counts[a], strings.Compare(a.sub, b.sub), strings.Compare(a.topic, b.topic), strings.Compare(a.reason, b.reason))
		})
		fmt.Fprintln(tw, "COUNT\tSUBSCRIPTION\tTOPIC\tREASON")
		for _, c := range all {
			fmt.Fprintf(tw, "%d\t%s\t%s\t%s\n", counts[c], c.sub, printable(c.topic), printable(c.reason))
		}
	} else {
		fmt.Fprintln(tw, "TIME\tSUBSCRIPTION\tTOPIC\tID\tTYPE\tATTEMPTS\tREASON")
		for _, l := range letters {
			reason := printable(l.Reason)
			if r := []rune(reason); len(r) > maxShownReason {
				reason = string(r[:maxShownReason]) + "…"
			}
			if l.Redriven {
				reason += " (redriven)"
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", l.Time.UTC().Format(time.RFC3339), l.Subscription, printable(l.Topic), printable(l.Event.ID), printable(l.Event.Type), l.Attempts, reason)
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	shown := ""
	if n := uint64(len(letters)); sum.Matched > n {
		shown = ofWhichShown(len(letters))
	}
	_, err := fmt.Fprintf(w, "%s%s%s\n", counted(int(sum.Matched), "dead letter", "dead letters"), shown, before(sum)) //nolint:gosec // a count
	return err
}

// ofWhichShown says that not all are listed.
func ofWhichShown(n int) string { return fmt.Sprintf(", of which %s are shown (--max)", number(n)) }

// before says how many were redriven before.
func before(sum client.DeadLetterSummary) string {
	if sum.Redriven == 0 {
		return ""
	}
	return fmt.Sprintf("; %d more were redriven", sum.Redriven)
}

// printable is text of an event as a terminal may get it: no control characters.
func printable(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) < 0 {
		return s
	}
	return strings.Map(func(r rune) rune {
		if strconv.IsPrint(r) {
			return r
		}
		return '.'
	}, s)
}

func printLetterJSON(w io.Writer, l *client.DeadLetter, output string) error {
	b, err := json.Marshal(struct {
		Position      string          `json:"position"`
		Time          time.Time       `json:"time"`
		Subscription  string          `json:"subscription"`
		Topic         string          `json:"topic"`
		TopicPosition string          `json:"topic_position"`
		Reason        string          `json:"reason"`
		Attempts      int             `json:"attempts"`
		Redriven      bool            `json:"redriven"`
		NotRedrivable string          `json:"not_redrivable,omitempty"`
		Event         json.RawMessage `json:"event"`
	}{l.Position, l.Time, l.Subscription, l.Topic, l.TopicPosition, l.Reason, l.Attempts, l.Redriven, l.NotRedrivable, cloudevents.AppendJSON(nil, &l.Event)})
	if err != nil {
		return err
	}
	return writeJSON(w, b, output)
}

func dlqShowCommand() *cobra.Command {
	var (
		f      letterFlags
		output string
	)
	cmd := &cobra.Command{Use: "show ID", Short: "Show all of the dead letters of an event", Args: cobra.ExactArgs(1),
		Long: `Shows the dead letters with an event's id, those that were redriven among them: every
attribute, the data, and how it ended.`,
		Example: "  weft dlq show order-7 --subscription billing",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			c, err := f.reach(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			f.filter.IDs = args
			n := 0
			sum, err := c.DeadLetters(cmd.Context(), f.namespace, f.filter, client.ListOptions{Redriven: true}, func(l client.DeadLetter) error {
				n++
				if output != "text" {
					return printLetterJSON(cmd.OutOrStdout(), &l, output)
				}
				return printLetter(cmd.OutOrStdout(), &l)
			})
			if err == nil && n == 0 {
				err = fmt.Errorf("there is no dead letter with the id %s", args[0])
			}
			if err == nil && sum.Matched > uint64(n) { //nolint:gosec // a count
				fmt.Fprintf(cmd.ErrOrStderr(), "%s, of which %s are shown; --since and --until show others\n", counted(int(sum.Matched), "dead letter", "dead letters"), number(n)) //nolint:gosec // a count
			}
			return err
		}}
	f.add(cmd)
	outputFlag(cmd, &output)
	return cmd
}

func printLetter(w io.Writer, l *client.DeadLetter) error {
	e := &l.Event
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(tw, "%s\t%s\n", name, printable(value))
		}
	}
	line("given up", l.Time.UTC().Format(time.RFC3339)+" by Subscription "+l.Subscription+", after "+counted(l.Attempts, "attempt", "attempts"))
	line("reason", l.Reason)
	line("was in", l.Topic+" at "+l.TopicPosition)
	line("is at", l.Position)
	switch {
	case l.Redriven:
		line("redriven", "yes")
	case l.NotRedrivable != "":
		line("redriven", "it cannot be: "+l.NotRedrivable)
	default:
		line("redriven", "no")
	}
	for _, a := range [][2]string{{"id", e.ID}, {"source", e.Source}, {"type", e.Type}, {"subject", e.Subject}, {"time", e.Time}, {"datacontenttype", e.DataContentType}, {"dataschema", e.DataSchema}} {
		line(a[0], a[1])
	}
	for _, a := range e.Ext {
		line(a.Name, a.Value)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%s\n\n", e.Data)
	return err
}

func dlqRedriveCommand() *cobra.Command {
	var (
		f    letterFlags
		o    client.RedriveOptions
		pace string
	)
	cmd := &cobra.Command{Use: "redrive", Short: "Deliver dead letters again", Args: cobra.NoArgs,
		Long: `Gives dead letters back to the Subscription that gave them up, and to nobody else. They
are delivered as at a first attempt, through the Subscription's filter of now; what
fails again is another dead letter.

Each one is marked in the dead-letter topic once it is given back, and is not given
back again: a redrive that was cut off (Ctrl-C, a proxy that stops) goes on where it
was when the same command is run again, with at most one batch, a tenth of --rate and
100 at most, twice. Run one redrive of a Subscription at a time.

It needs SUBSCRIBE on the dead-letter topic, CONSUME on the Subscription and SUBSCRIBE
on its topics.`,
		Example: "  weft dlq redrive --subscription billing --dry-run\n  weft dlq redrive --subscription billing --reason time-out --since 2h --rate 20/s\n  weft dlq redrive --subscription billing --id order-7",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Rate, err = strconv.Atoi(strings.TrimSuffix(pace, "/s")); err != nil || o.Rate < 1 || o.Rate > 10000 {
				return fmt.Errorf("--rate: %q is not 1/s to 10000/s", pace)
			}
			if err := checkMax(o.Limit); err != nil {
				return err
			}
			if f.filter.Subscription == "" {
				return errors.New("name the Subscription that gets them back with --subscription")
			}
			c, err := f.reach(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			r, err := c.Redrive(cmd.Context(), f.namespace, f.filter, o, func(r client.Redriven) {
				fmt.Fprintf(cmd.ErrOrStderr(), "%d redriven so far\n", r.Redriven)
			})
			if err != nil {
				if r.Redriven > 0 {
					err = fmt.Errorf("%w\n%d were redriven before that; the same command goes on with the rest", err, r.Redriven)
				}
				return err
			}
			verb := "redriven"
			if o.DryRun {
				verb = "would be redriven"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d %s", r.Redriven, verb)
			if r.Already > 0 {
				fmt.Fprintf(cmd.OutOrStdout(), ", %d were before", r.Already)
			}
			if r.Refused > 0 {
				fmt.Fprintf(cmd.OutOrStdout(), ", %d cannot be: %s", r.Refused, r.RefusedReason)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout())
			return err
		}}
	f.add(cmd)
	f.idFlag(cmd)
	cmd.Flags().StringVar(&pace, "rate", "50/s", "give back at most so many a second, 1/s to 10000/s")
	cmd.Flags().IntVar(&o.Limit, "max", 0, "give back at most so many; 0 is without end")
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "only count")
	return cmd
}
