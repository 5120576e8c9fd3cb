package weft

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/validate"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/duration"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
)

// movePlan is what a Migration will do.
type movePlan struct {
	Namespace string    `json:"namespace"`
	Topic     string    `json:"topic"`
	From      movePlace `json:"from"`
	To        movePlace `json:"to"`
	// Target is what was observed of the store.
	Target string `json:"target"`
	// Needs of the topic, and how the target meets them.
	Needs []moveNeed `json:"needs"`
	// Proxies that must hear of it, as the roster has them. Away of them are not
	// connected; Old do not know moves.
	Proxies []string `json:"proxies"`
	Away    []string `json:"not_connected"`
	Old     []string `json:"not_knowing_moves"`
	// Subscriptions that read the old store first.
	Subscriptions []string `json:"subscriptions"`
	// Notes are what the target does otherwise than the topic says.
	Notes []string `json:"notes"`

	old *configv1.Resource // a Migration of the topic that has ended
}

// moveNeed is how the target meets what the topic needs.
type moveNeed struct {
	Need   string `json:"need"`
	Means  string `json:"means"`
	Detail string `json:"detail"`
}

func (n moveNeed) String() string {
	text := n.Need + ": " + n.Means
	if n.Detail != "" {
		text += ", " + n.Detail
	}
	if n.Means == "refused" || n.Means == "unobserved" {
		text += "; the move waits as long"
	}
	return text
}

// movePlace is a physical topic of a store.
type movePlace struct {
	Store        string `json:"store"`
	Kind         string `json:"kind"`
	Epoch        uint32 `json:"epoch"`
	PhysicalName string `json:"physical_name"`
}

func (p movePlace) String() string {
	return fmt.Sprintf("%s (%s), as %s, epoch %d", p.Store, p.Kind, p.PhysicalName, p.Epoch)
}

// get reads one resource.
func get(ctx context.Context, c adminv1.AdminServiceClient, kind resource.Kind, namespace, name string) (*adminv1.GetResponse, error) {
	return getWith(ctx, c, &adminv1.GetRequest{Name: resource.Name(kind, namespace, name)})
}

func getWith(ctx context.Context, c adminv1.AdminServiceClient, req *adminv1.GetRequest) (*adminv1.GetResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return c.Get(ctx, req)
}

// storeKind is the kind of an EventStore, as its spec names it.
func storeKind(s *configv1.EventStore) string {
	m := s.ProtoReflect()
	if of := m.Descriptor().Oneofs(); of.Len() > 0 {
		if f := m.WhichOneof(of.Get(0)); f != nil {
			return string(f.Name())
		}
	}
	return "unknown"
}

// readPlan asks for all that a Migration will have to do with.
func readPlan(ctx context.Context, c adminv1.AdminServiceClient, m *configv1.Resource) (*movePlan, error) {
	ns, name, to := m.Metadata.Namespace, m.Metadata.Name, m.GetMigration().To
	topic, err := getWith(ctx, c, &adminv1.GetRequest{Name: resource.Name(resource.Topic, ns, name), Store: to})
	if err != nil {
		return nil, err
	}
	p := &movePlan{Namespace: ns, Topic: name, Needs: []moveNeed{}, Proxies: []string{}, Away: []string{}, Old: []string{}, Subscriptions: []string{}, Notes: []string{}}
	for _, n := range topic.Needs {
		p.Needs = append(p.Needs, moveNeed{n.Need, strings.ToLower(strings.TrimPrefix(n.Means.String(), "MEANS_")), n.Detail})
	}
	switch old, err := readMove(ctx, c, ns, name); {
	case err == nil && !old.over():
		return nil, fmt.Errorf("%s %s: %s; weft migrate status %s -n %s", name, old.course(), old.sentence(), name, ns)
	case err == nil:
		p.old = old.migration
	case status.Code(err) != codes.NotFound:
		return nil, err
	}
	binding, err := get(ctx, c, resource.TopicBinding, ns, name)
	if err != nil {
		return nil, err
	}
	if err := p.places(ctx, c, topic.Resource, binding.Resource.GetTopicBinding(), m.GetMigration()); err != nil {
		return nil, err
	}
	if p.From.Store == to {
		return nil, fmt.Errorf("%s is in %s already", name, to)
	}
	if err := p.readers(ctx, c); err != nil {
		return nil, err
	}
	return p, p.proxies(ctx, c)
}

// places fills in where the topic is and where it goes.
func (p *movePlan) places(ctx context.Context, c adminv1.AdminServiceClient, topic *configv1.Resource, b *configv1.TopicBinding, m *configv1.Migration) error {
	if len(b.GetEpochs()) == 0 {
		return fmt.Errorf("topic %s is in no store yet", p.Topic)
	}
	last := b.Epochs[len(b.Epochs)-1]
	from, err := get(ctx, c, resource.EventStore, p.Namespace, last.Store)
	if err != nil {
		return err
	}
	to, err := get(ctx, c, resource.EventStore, p.Namespace, m.To)
	if err != nil {
		return err
	}
	next := max(b.Highest, last.Number) + 1
	p.From = movePlace{last.Store, storeKind(from.Resource.GetEventStore()), last.Number, last.PhysicalName}
	p.To = movePlace{m.To, storeKind(to.Resource.GetEventStore()), next, cmp.Or(m.PhysicalName, names.Epoch(validate.PhysicalName(topic), next, b.TopicUid))}
	p.Target = "nothing is known of it yet"
	for _, k := range to.Conditions {
		if k.Type == "Reachable" {
			p.Target = fmt.Sprintf("%s: %s", is(k), k.Message)
		}
	}
	p.notes(topic.GetTopic())
	return nil
}

// notes says what the target does otherwise than the topic's store.
func (p *movePlan) notes(t *configv1.Topic) {
	note := func(format string, args ...any) { p.Notes = append(p.Notes, fmt.Sprintf(format, args...)) }
	if p.To.Kind == "rocketmq" && t.Retention != nil {
		note("RocketMQ keeps events as long as its brokers say: the topic's retention does not count there")
	}
	if p.To.Kind == "embedded" {
		p.Target = "in the proxy's own folder"
		note("%s is inside a proxy: the topic is only where that proxy is, and only as durable as its disk", p.To.Store)
	}
	switch p.From.Kind {
	case "kafka":
		note("native producers of %s are kept out by an ACL once the topic has left it, where Kafka has an authorizer, ACLs cover the topic, and the mesh may change them; else they are not stopped, which weft migrate status says, and what they write is brought into the topic until the move is finished", p.From.PhysicalName)
	case "rocketmq":
		note("native producers of %s learn that they may not write to it any more when they next ask where it is, by default within 30 s; what they write until then is brought into the topic until the move is finished", p.From.PhysicalName)
	}
	if p.From.Kind == "embedded" && p.To.Kind != "embedded" {
		note("what is in %s is read by the proxy that has it, until that is drained: keep it running", p.From.Store)
	}
}

// readers fills in the Subscriptions that read the topic.
func (p *movePlan) readers(ctx context.Context, c adminv1.AdminServiceClient) error {
	return eachResource(ctx, c, &adminv1.ListRequest{Kind: string(resource.SubscriptionAdmission), Namespace: p.Namespace}, func(r *configv1.Resource) {
		if slices.ContainsFunc(r.GetSubscriptionAdmission().GetSources(), func(s *configv1.SubscriptionSource) bool { return s.Topic == p.Topic }) {
			p.Subscriptions = append(p.Subscriptions, r.Metadata.Name)
		}
	})
}

// proxies fills in the proxies that may have the namespace's configuration.
func (p *movePlan) proxies(ctx context.Context, c adminv1.AdminServiceClient) error {
	err := eachNode(ctx, c, p.Namespace, func(n *adminv1.Node) {
		if n.DeadAt != nil {
			return
		}
		p.Proxies = append(p.Proxies, n.NodeId)
		if !n.Connected {
			p.Away = append(p.Away, n.NodeId)
		}
		if !n.KnowsMoves {
			p.Old = append(p.Old, n.NodeId)
		}
	})
	for _, at := range []movePlace{p.From, p.To} {
		if at.Kind == "embedded" && len(p.Proxies) > 1 {
			p.Notes = append(p.Notes, fmt.Sprintf("%s is embedded, so each of %d proxies has one of its own: the move waits until one proxy alone is left. Let the others leave, or declare those dead that never come back (weft proxies declare-dead)", at.Store, len(p.Proxies)))
		}
	}
	return err
}

// refusal is why the move does not begin; nil where it does.
func (p *movePlan) refusal() error {
	if len(p.Old) == 0 {
		return nil
	}
	return fmt.Errorf("%s cannot move: of its proxies %s do not know moves, as their version is older, or have not said that they do; upgrade them, or declare them dead (weft proxies declare-dead)", p.Topic, listOf(p.Old))
}

// print shows the plan.
func (p *movePlan) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	line("topic", "%s/%s", p.Namespace, p.Topic)
	line("from", "%s", p.From)
	line("to", "%s", p.To)
	line("target", "%s", p.Target)
	for i, n := range p.Needs {
		line(map[bool]string{true: "needs"}[i == 0], "%s", n)
	}
	line("proxies", "%s must hear of it: %s", counted(len(p.Proxies), "proxy", "proxies"), listOf(p.Proxies))
	if len(p.Away) > 0 {
		line("", "not connected now: %s; the move waits for them", listOf(p.Away))
	}
	line("subscriptions", "%s what is left in %s first: %s", counted(len(p.Subscriptions), "reads", "read"), p.From.Store, listOf(p.Subscriptions))
	if err := t.Flush(); err != nil {
		return err
	}
	most := cutover.Default.TTL + cutover.Default.Margin
	for _, n := range append([]string{
		"Publishers and subscribers keep their connections. Publishers wait once, while the topic changes its store: a moment where all proxies answer, " + duration.Text(most) + " where one does not; who waits longer is told to try again.",
		fmt.Sprintf("A Subscription goes on in %s when it has settled everything in %s, so that events of a key stay in order. One without consumers does not come to that, and holds the end of the move up.", p.To.Store, p.From.Store),
		fmt.Sprintf("The events stay in %s. weft migrate rollback leads back until weft migrate finish gives it up.", p.From.Store),
	}, p.Notes...) {
		fmt.Fprintf(w, "- %s\n", n)
	}
	return nil
}

// listOf names things, at most some.
func listOf(all []string) string {
	if len(all) > some {
		return strings.Join(all[:some], ", ") + fmt.Sprintf(" and %s more", number(len(all)-some))
	}
	return cmp.Or(strings.Join(all, ", "), "none")
}

func writePlan(w io.Writer, p *movePlan, output string) error {
	b, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	return writeJSON(w, b, output)
}
