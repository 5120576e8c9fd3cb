package weft

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/resource"

	"github.com/weft-mesh/weft/tools/proxycmd"
)

// migrateFlags say which topic's move is meant.
type migrateFlags struct {
	admin     adminFlags
	namespace string
	output    string
}

func (f *migrateFlags) add(cmd *cobra.Command) {
	f.admin.add(cmd)
	cmd.Flags().StringVarP(&f.namespace, "namespace", "n", proxycmd.Env("WEFT_NAMESPACE", "demo"), "namespace (WEFT_NAMESPACE)")
	completeNamespace(cmd, &f.admin)
	outputFlag(cmd, &f.output)
}

// names completes the one argument with names of a kind.
func (f *migrateFlags) names(kind resource.Kind) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		var out []string
		if len(args) == 0 {
			for _, r := range listed(cmd, &f.admin, string(kind), f.namespace) {
				out = append(out, r.Metadata.Name)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// run is what a command does with a connection to the control plane.
func (f *migrateFlags) run(do func(cmd *cobra.Command, c adminv1.AdminServiceClient, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := checkOutput(f.output); err != nil {
			return err
		}
		c, done, err := f.admin.dial()
		if err != nil {
			return err
		}
		defer done()
		return do(cmd, c, args)
	}
}

// sure asks whoever sits at the terminal; nobody where there is nothing to ask.
func (f *migrateFlags) sure(cmd *cobra.Command, yes bool, what string) error {
	if yes || what == "" || f.output != "text" || !isTerminal(cmd.OutOrStdout()) || !isTerminal(cmd.InOrStdin()) {
		return nil
	}
	return confirm(cmd, what)
}

// migrateCommand moves topics.
func migrateCommand() *cobra.Command {
	var (
		f           migrateFlags
		to, name    string
		yes, dryRun bool
	)
	cmd := group(&cobra.Command{Use: "migrate TOPIC --to STORE", Short: "Move a topic to another store while it is used",
		Long: `Moves a topic to another EventStore of its namespace while publishers and subscribers
use it. They keep their connections: nothing that was acknowledged is lost, and events
of a key stay in order. What it will do is shown first; on a terminal it asks.

The move is a resource, a Migration with the topic's name, which the control plane
carries out; weft migrate status says how far it is. It stops once everything in the old
store was read: until weft migrate finish, the old store is kept, and weft migrate
rollback leads back to it.`,
		Example: `  weft migrate orders --to kafka
  weft migrate orders --to kafka --dry-run
  weft migrate status orders --watch
  weft migrate finish orders`},
		migrateStatusCommand(), migrateListCommand(), migratePauseCommand(), migrateResumeCommand(), migrateRollbackCommand(), migrateFinishCommand())
	unknown := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		// A word alone may be a command that is spelled wrong, or a topic.
		if len(args) > 0 && to == "" {
			if len(cmd.SuggestionsFor(args[0])) > 0 {
				return unknown(cmd, args)
			}
			return fmt.Errorf("name the EventStore that %s moves to with --to; weft get eventstores lists them", args[0])
		}
		if len(args) > 1 {
			return fmt.Errorf("one topic at a time, not %s\nusage: %s", strings.Join(args, " "), cmd.UseLine())
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			if to != "" {
				return errors.New("name the topic that moves\nusage: " + cmd.UseLine())
			}
			return cmd.Help()
		}
		m := &configv1.Resource{Metadata: &configv1.Metadata{Namespace: f.namespace, Name: args[0]},
			Spec: &configv1.Resource_Migration{Migration: &configv1.Migration{To: to, PhysicalName: name, Wish: configv1.Migration_WISH_GO}}}
		return f.run(func(cmd *cobra.Command, c adminv1.AdminServiceClient, _ []string) error {
			return f.begin(cmd, c, m, yes, dryRun)
		})(cmd, args)
	}
	cmd.ValidArgsFunction = f.names(resource.Topic)
	f.add(cmd)
	cmd.Flags().StringVar(&to, "to", "", "name of the EventStore that it moves to")
	_ = cmd.RegisterFlagCompletionFunc("to", func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		return f.names(resource.EventStore)(cmd, nil, typed)
	})
	cmd.Flags().StringVar(&name, "physical-name", "", "the topic's name in that store; derived when empty")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check and show what would happen, change nothing")
	return cmd
}

// begin shows what a Migration will do, asks, and applies it.
func (f *migrateFlags) begin(cmd *cobra.Command, c adminv1.AdminServiceClient, m *configv1.Resource, yes, dryRun bool) error {
	p, err := readPlan(cmd.Context(), c, m)
	if err != nil {
		return err
	}
	if p.old == nil {
		// What would be refused is said before anybody is asked.
		if _, err := applyStage(cmd.Context(), c, &adminv1.ApplyRequest{Resources: []*configv1.Resource{m}, DryRun: true}); err != nil {
			return err
		}
	}
	if f.output == "text" {
		if err := p.print(cmd.OutOrStdout()); err != nil {
			return err
		}
	} else if dryRun {
		if err := writePlan(cmd.OutOrStdout(), p, f.output); err != nil {
			return err
		}
	}
	if err := p.refusal(); err != nil || dryRun {
		return err
	}
	if err := f.sure(cmd, yes, "Move "+m.Metadata.Name+" to "+m.GetMigration().To+"?"); err != nil {
		return err
	}
	if p.old != nil {
		ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
		defer cancel()
		if _, err := c.Delete(ctx, &adminv1.DeleteRequest{Targets: []*adminv1.DeleteTarget{{Name: resource.NameOf(p.old), Version: p.old.Metadata.Version}}}); err != nil {
			return fmt.Errorf("the topic's last Migration, which has ended, cannot be deleted: %w", err)
		}
	}
	return f.apply(cmd, c, m, "the move begins; weft migrate status "+m.Metadata.Name+" --watch follows it")
}

// apply applies a Migration and says so.
func (f *migrateFlags) apply(cmd *cobra.Command, c adminv1.AdminServiceClient, m *configv1.Resource, says string) error {
	resp, err := applyStage(cmd.Context(), c, &adminv1.ApplyRequest{Resources: []*configv1.Resource{m}})
	if err != nil {
		return err
	}
	if f.output != "text" {
		return writeMessage(cmd.OutOrStdout(), resp, f.output)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s: %s\n", resource.NameOf(m), outcome(resp.Results[0].Outcome, false), says)
	return err
}

// wishCommand makes a command that changes what is wished of a move. what is shown
// before it is asked for where it cannot be taken back; "" asks for nothing.
func wishCommand(use, short, long string, wish configv1.Migration_Wish, says string, sure func(*moving) (what string, err error)) *cobra.Command {
	var (
		f   migrateFlags
		yes bool
	)
	cmd := &cobra.Command{Use: use + " TOPIC", Short: short, Long: long, Args: cobra.ExactArgs(1), Example: "  weft migrate " + use + " orders",
		RunE: f.run(func(cmd *cobra.Command, c adminv1.AdminServiceClient, args []string) error {
			m, err := readMove(cmd.Context(), c, f.namespace, args[0])
			if err != nil {
				return err
			}
			if m.over() {
				return fmt.Errorf("the move of %s is over: %s", args[0], m.sentence())
			}
			what, err := sure(m)
			if err != nil {
				return err
			}
			if err := f.sure(cmd, yes, what); err != nil {
				return err
			}
			m.migration.GetMigration().Wish = m.wished(wish)
			return f.apply(cmd, c, m.migration, says)
		})}
	cmd.ValidArgsFunction = f.names(resource.Migration)
	f.add(cmd)
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

// wished is what a wish comes to: what was paused on its way back goes on back.
func (m *moving) wished(wish configv1.Migration_Wish) configv1.Migration_Wish {
	if wish == configv1.Migration_WISH_GO && m.wish() == configv1.Migration_WISH_PAUSE && m.move().GetBack() {
		return configv1.Migration_WISH_ROLL_BACK
	}
	return wish
}

func migratePauseCommand() *cobra.Command {
	return wishCommand("pause", "Let a move go no further", `Lets a move go no further while publishers still write to the old store, and lets them
write there again where they wait. Once they write to the new one there is nothing to
pause. weft migrate resume goes on.`, configv1.Migration_WISH_PAUSE, "it goes no further", func(m *moving) (string, error) {
		return "", m.unpausable()
	})
}

func migrateResumeCommand() *cobra.Command {
	return wishCommand("resume", "Let a move go on", `Lets a move go on that was paused, back where it was on its way back; or lets one go
forward again that is taken back, and has not come so far that publishers write to the old
store again.`, configv1.Migration_WISH_GO, "it goes on", func(m *moving) (string, error) {
		if m.move().GetBack() && m.move().GetPhase() >= configv1.Move_PHASE_DRAINING {
			return "", fmt.Errorf("%s is written to %s again: finish that, and move it anew", m.name(), m.last().GetStore())
		}
		return "", nil
	})
}

func migrateRollbackCommand() *cobra.Command {
	return wishCommand("rollback", "Take a move back", `Takes a move back. While publishers write to the old store, the new one is given up and
nothing has happened. Once they write to the new one the topic moves back to the old
store, in the same way and with the same promises.`, configv1.Migration_WISH_ROLL_BACK, "it is taken back", func(m *moving) (string, error) {
		return m.backQuestion(), nil
	})
}

func migrateFinishCommand() *cobra.Command {
	return wishCommand("finish", "Give up the old store", `Gives up the old store once every Subscription has read everything in it. There is no
way back then, and nothing from before the move can be read again: position tokens of
that time begin at the beginning of the new store. Events in the old store are left
there. A move that has not come so far goes on, and then ends so.`, configv1.Migration_WISH_FINISH, "the old store is given up once everything in it was read", func(m *moving) (string, error) {
		if err := m.unfinishable(); err != nil {
			return "", err
		}
		return fmt.Sprintf("Then there is no way back to %s, and nothing in it can be read again. Finish?", m.before().GetStore()), nil
	})
}

// unpausable is why a move cannot be paused now; nil where it can.
func (m *moving) unpausable() error {
	if m.move().GetPhase() < configv1.Move_PHASE_DRAINING {
		return nil
	}
	next := "weft migrate rollback leads back"
	if m.move().Back {
		next = "weft migrate finish ends it"
	}
	return fmt.Errorf("%s is written to %s already: there is nothing to pause; %s", m.name(), m.last().GetStore(), next)
}

// backQuestion is what is asked before a move is taken back; "" of one that is back.
func (m *moving) backQuestion() string {
	switch written := m.move().GetPhase() >= configv1.Move_PHASE_DRAINING; {
	case m.move().GetBack() && written:
		return ""
	case m.move().GetBack():
		return fmt.Sprintf("%s goes on back to %s. Roll back?", m.name(), m.last().GetStore())
	case written:
		return fmt.Sprintf("%s is written to %s already, and moves back to %s. Roll back?", m.name(), m.last().GetStore(), m.before().GetStore())
	}
	return fmt.Sprintf("%s stays in %s. Roll back?", m.name(), m.before().GetStore())
}

// unfinishable is why a move cannot be finished now; nil where it can.
func (m *moving) unfinishable() error {
	back, paused := m.move().GetBack(), ""
	if !back && m.wish() != configv1.Migration_WISH_ROLL_BACK || back && m.move().Phase == configv1.Move_PHASE_DRAINED {
		return nil
	}
	if m.wish() == configv1.Migration_WISH_PAUSE {
		paused = ", and paused: weft migrate resume " + m.name() + " goes on"
	}
	return fmt.Errorf("%s is on its way back%s; finish that once it is drained", m.name(), paused)
}

func migrateStatusCommand() *cobra.Command {
	var (
		f     migrateFlags
		watch bool
	)
	cmd := &cobra.Command{Use: "status TOPIC", Short: "Show how far a move is", Args: cobra.ExactArgs(1),
		Long: `Shows how far the move of a topic is: its phase, what it waits for, which proxies have
not heard of it, which Subscriptions still read the old store and how far, by partition.
With --watch it shows that whenever it changes, until there is nothing left that comes
by itself.`,
		Example: "  weft migrate status orders\n  weft migrate status orders --watch\n  weft migrate status orders -o json | jq -r .phase",
		RunE: f.run(func(cmd *cobra.Command, c adminv1.AdminServiceClient, args []string) error {
			last := ""
			for {
				m, err := readMove(cmd.Context(), c, f.namespace, args[0])
				if err != nil {
					return err
				}
				var b strings.Builder
				if err := m.write(&b, f.output); err != nil {
					return err
				}
				if b.String() != last {
					if last != "" && f.output == "text" {
						fmt.Fprintln(cmd.OutOrStdout())
					}
					last = b.String()
					if _, err := fmt.Fprint(cmd.OutOrStdout(), last); err != nil {
						return err
					}
				}
				if !watch || m.rests() {
					return nil
				}
				again := time.NewTimer(statusSeldom)
				select {
				case <-again.C:
				case <-cmd.Context().Done():
					return cmd.Context().Err()
				}
			}
		})}
	cmd.ValidArgsFunction = f.names(resource.Migration)
	f.add(cmd)
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it whenever it changes, until it rests")
	return cmd
}

func migrateListCommand() *cobra.Command {
	var (
		f   migrateFlags
		all bool
	)
	cmd := &cobra.Command{Use: "list", Short: "List the moves of topics", Args: cobra.NoArgs,
		Long:    "Lists the moves of a namespace's topics, and how far each is.",
		Example: "  weft migrate list\n  weft migrate list -A -o json",
		RunE: f.run(func(cmd *cobra.Command, c adminv1.AdminServiceClient, _ []string) error {
			req := &adminv1.ListRequest{Kind: string(resource.Migration), Namespace: f.namespace}
			if all {
				req.Namespace = ""
			}
			var moves []*moving
			var rs []*configv1.Resource
			if err := eachResource(cmd.Context(), c, req, func(r *configv1.Resource) { rs = append(rs, r) }); err != nil {
				return err
			}
			for _, r := range rs {
				m, err := readMove(cmd.Context(), c, r.Metadata.Namespace, r.Metadata.Name)
				if status.Code(err) == codes.NotFound {
					continue // it is gone since
				}
				if err != nil {
					return err
				}
				moves = append(moves, m)
			}
			return printMoves(cmd, moves, f.output)
		})}
	f.add(cmd)
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "of every namespace")
	return cmd
}
