package weft

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/route"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/eventcel"
	"github.com/weft-mesh/weft/pkg/manifest"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/tools/proxycmd"
)

func evalCommand() *cobra.Command {
	var (
		files           []string
		namespace, from string
		flags           eventFlags
	)
	cmd := &cobra.Command{Use: "eval TOPIC -f FILE", Short: "Try routes, filters and transforms on an event, from files", Args: cobra.ExactArgs(1),
		Long: `Says which topic keeps an event that enters TOPIC by the Route in the files, which
Subscriptions in the files deliver it or what keeps them from it, and what their
transforms make of it. Nothing is published and no mesh is asked; access rules, quotas
and schemas are not looked at.`,
		Example: "  weft eval orders -f mesh.yaml --type order.created --attr region=eu\n  weft eval orders -f mesh.yaml --event event.json",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(files) == 0 {
				return errors.New("name what to read: -f FILE, -f FOLDER, or -f - for standard input")
			}
			docs, err := readManifests(cmd, files, namespace)
			if err != nil {
				return err
			}
			e, err := flags.event(cmd)
			if err != nil {
				return err
			}
			if from != "" {
				if slices.ContainsFunc(eventFlagNames, cmd.Flags().Changed) {
					return errors.New("--event is the whole event; give no other part of it")
				}
				b, err := readData(cmd, "@"+from)
				if err != nil {
					return err
				}
				if e, err = cloudevents.DecodeJSON(b); err != nil {
					return fmt.Errorf("--event: %w", err)
				}
			}
			if err := e.Validate(); err != nil {
				return fmt.Errorf("no proxy takes this event: %w", err)
			}
			if err := names.CheckName("topic", args[0]); err != nil {
				return err
			}
			return evaluate(cmd.OutOrStdout(), docs, namespace, args[0], &e)
		}}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, folder, or - for standard input; may be repeated")
	cmd.Flags().StringVar(&from, "event", "", "file with the event, a CloudEvent in JSON")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", proxycmd.Env("WEFT_NAMESPACE", "demo"), "namespace (WEFT_NAMESPACE)")
	flags.add(cmd)
	return cmd
}

// evaluate says what a namespace's Routes and Subscriptions make of an event that
// enters topic.
func evaluate(w io.Writer, docs []manifest.Document, namespace, topic string, e *event.Event) error {
	in := slices.DeleteFunc(slices.Clone(docs), func(d manifest.Document) bool { return d.Resource.Metadata.GetNamespace() != namespace })
	keyFrom, known := "", false
	for _, d := range in {
		if t := d.Resource.GetTopic(); t != nil && d.Resource.Metadata.Name == topic {
			keyFrom, known = t.KeyFrom, true
		}
		if r := d.Resource.GetRoute(); r != nil && r.Topic == topic {
			known = true
		}
	}
	if !known {
		return fmt.Errorf("the files have neither the topic %s/%s nor a Route of it", namespace, topic)
	}
	kept := topic
	for _, d := range in {
		r := d.Resource.GetRoute()
		if r == nil || r.Topic != topic {
			continue
		}
		var err error
		if kept, err = evaluateRoute(w, d, r, e, e.Key(keyFrom)); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintf(w, "topic %s keeps it\n", kept); err != nil {
		return err
	}
	read := false
	for _, d := range in {
		s := d.Resource.GetSubscription()
		if s == nil || !slices.ContainsFunc(s.Topics, func(p string) bool { return names.Match(p, kept) }) {
			continue
		}
		read = true
		says, err := evaluateSubscription(d, s, e)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "subscription %s %s\n", d.Resource.Metadata.Name, says); err != nil {
			return err
		}
	}
	if !read {
		_, err := fmt.Fprintf(w, "no subscription of the files reads topic %s\n", kept)
		return err
	}
	return nil
}

// shownRules is how many rules of a Route say why they do not match.
const shownRules = 20

// evaluateRoute says which rule decides, or what keeps each from it, and gives the
// topic.
func evaluateRoute(w io.Writer, d manifest.Document, r *configv1.Route, e *event.Event, key string) (string, error) {
	table, err := route.CompileTable(r)
	if err != nil {
		return "", fmt.Errorf("%s:%d: %w", d.File, d.Line, err)
	}
	name := d.Resource.Metadata.Name
	if to, ok := table.Resolve(e, key, nil); ok {
		_, err := fmt.Fprintf(w, "route %s: spec.rules[%d] sends it to %s\n", name, table.First(e, nil), to)
		return to, err
	}
	for i, rule := range r.Rules {
		if i == shownRules {
			fmt.Fprintf(w, "route %s: and %d more do not match\n", name, len(r.Rules)-i)
			break
		}
		path := fmt.Sprintf("spec.rules[%d].filter", i)
		f, err := route.CompileFilter(rule.Filter, path)
		if err != nil {
			return "", fmt.Errorf("%s:%d: %w", d.File, d.Line, err)
		}
		if _, err := fmt.Fprintf(w, "route %s: %s\n", name, f.Refuses(e, path)); err != nil {
			return "", err
		}
	}
	return r.Topic, nil
}

// evaluateSubscription says whether the Subscription delivers e, and what.
func evaluateSubscription(d manifest.Document, s *configv1.Subscription, e *event.Event) (string, error) {
	f, err := route.CompileFilter(s.Filter, "spec.filter")
	if err != nil {
		return "", fmt.Errorf("%s:%d: %w", d.File, d.Line, err)
	}
	t, err := eventcel.CompileTransform(s.Transform)
	if err != nil {
		return "", fmt.Errorf("%s:%d: spec.transform.%w", d.File, d.Line, err)
	}
	if !f.Match(e, nil) {
		return "leaves it out: " + f.Refuses(e, "spec.filter"), nil
	}
	out, err := t.Apply(e)
	if err != nil {
		return fmt.Sprintf("dead-letters it in %s: transform: %v", s.DeadLetterTopic, err), nil
	}
	return "delivers " + string(cloudevents.AppendJSON(nil, out)), nil
}
