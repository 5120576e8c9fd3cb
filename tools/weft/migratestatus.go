package weft

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/resource"
)

// moving is a Migration and how far it is.
type moving struct {
	migration  *configv1.Resource
	binding    *configv1.TopicBinding
	admitted   []uint32 // epochs that are there, with all groups
	conditions []*adminv1.Condition
	// lacking are proxies that have not the binding of now.
	lacking []*adminv1.ResourceLack
	readers []moveReader
	// progress is how far everyone is; nil where that is not known.
	progress *adminv1.MoveProgress
}

// moveReader is a Subscription of the topic, and the epochs where its groups are made.
type moveReader struct {
	Name   string   `json:"name"`
	Epochs []uint32 `json:"epochs"`
}

// readMove asks for a Migration and what it does; NotFound where there is none.
func readMove(ctx context.Context, c adminv1.AdminServiceClient, namespace, topic string) (*moving, error) {
	got, err := get(ctx, c, resource.Migration, namespace, topic)
	if err != nil {
		return nil, err
	}
	m := &moving{migration: got.Resource, conditions: got.Conditions, progress: got.Move}
	binding, err := get(ctx, c, resource.TopicBinding, namespace, topic)
	if err != nil && status.Code(err) != codes.NotFound {
		return nil, err
	}
	m.binding = binding.GetResource().GetTopicBinding()
	admission, err := get(ctx, c, resource.TopicAdmission, namespace, topic)
	if err != nil && status.Code(err) != codes.NotFound {
		return nil, err
	}
	m.admitted = usable(m.binding, admission.GetResource().GetTopicAdmission())
	if m.over() {
		return m, nil
	}
	st, err := getStatus(ctx, c, &adminv1.GetStatusRequest{Name: resource.Name(resource.TopicBinding, namespace, topic), MaxProxies: 1})
	if err != nil {
		return nil, err
	}
	for _, r := range st.Resources {
		m.lacking = r.Lacking
	}
	return m, eachResource(ctx, c, &adminv1.ListRequest{Kind: string(resource.SubscriptionAdmission), Namespace: namespace}, func(r *configv1.Resource) {
		var epochs []uint32
		for _, s := range r.GetSubscriptionAdmission().GetSources() {
			if s.Topic == topic {
				epochs = append(epochs, s.Epoch)
			}
		}
		if len(epochs) > 0 {
			slices.Sort(epochs)
			m.readers = append(m.readers, moveReader{r.Metadata.Name, epochs})
		}
	})
}

// usable are the epochs of a topic that are there, with all groups. The admission of a topic
// that is in one place does not name it.
func usable(b *configv1.TopicBinding, a *configv1.TopicAdmission) []uint32 {
	if len(b.GetEpochs()) == 1 && a.GetAdmitted() {
		return []uint32{b.Epochs[0].Number}
	}
	return a.GetEpochs()
}

func (m *moving) name() string { return m.migration.Metadata.Name }

func (m *moving) wish() configv1.Migration_Wish {
	if w := m.migration.GetMigration().Wish; w != configv1.Migration_WISH_UNSPECIFIED {
		return w
	}
	return configv1.Migration_WISH_GO
}

// move is the move of this Migration; nil while there is none.
func (m *moving) move() *configv1.Move {
	if mv := m.binding.GetMove(); mv != nil && mv.MigrationUid == m.migration.Metadata.Uid {
		return mv
	}
	return nil
}

// last is the newest epoch, before the one before it; nil where there are none.
func (m *moving) last() *configv1.Epoch {
	if n := len(m.binding.GetEpochs()); n > 0 {
		return m.binding.Epochs[n-1]
	}
	return nil
}

func (m *moving) before() *configv1.Epoch {
	if n := len(m.binding.GetEpochs()); n > 1 {
		return m.binding.Epochs[n-2]
	}
	return m.last()
}

// over reports whether the move has ended: finished, or taken back.
func (m *moving) over() bool {
	return m.move() == nil && m.binding.GetEnded() != "" && m.binding.GetEnded() == m.migration.Metadata.Uid
}

// rests reports whether nothing comes by itself any more.
func (m *moving) rests() bool {
	switch phase := m.move().GetPhase(); {
	case m.over():
		return true
	case phase == configv1.Move_PHASE_PREPARING || phase == configv1.Move_PHASE_LEASING:
		return m.wish() == configv1.Migration_WISH_PAUSE
	case phase == configv1.Move_PHASE_DRAINED:
		return m.wish() != configv1.Migration_WISH_FINISH && (m.wish() != configv1.Migration_WISH_ROLL_BACK || m.move().GetBack())
	}
	return false
}

// course says where the topic goes, of a move that is not over.
func (m *moving) course() string {
	switch {
	case m.move().GetBack():
		return "is being rolled back to " + m.last().GetStore()
	case m.wish() == configv1.Migration_WISH_ROLL_BACK:
		return "is being rolled back to " + m.before().GetStore()
	}
	return "moves to " + m.migration.GetMigration().To + " already"
}

// phase is how far the move is, one word.
func (m *moving) phase() string {
	switch {
	case m.move() != nil:
		return strings.TrimPrefix(m.move().Phase.String(), "PHASE_")
	case !m.over():
		return "WAITING"
	case m.last().GetStore() == m.migration.GetMigration().To:
		return "FINISHED"
	}
	return "ROLLED_BACK"
}

// sentence says what that means.
func (m *moving) sentence() string {
	from, to := m.before().GetStore(), m.last().GetStore()
	switch m.phase() {
	case "WAITING":
		return "the control plane has not begun it yet"
	case "PREPARING":
		return "the topic and the groups of its subscriptions are made in " + to
	case "LEASING":
		return "it is written to " + from + " under leases, until every proxy has heard of the move"
	case "STOPPING":
		return "no write begins any more, publishers wait"
	case "MARKING":
		return "the end is marked in " + from + ", publishers wait"
	case "DRAINING":
		return "it is written to " + to + ", and subscriptions read what is left in " + from
	case "DRAINED":
		if m.move().GetBack() {
			return "everything in " + from + " was read; weft migrate finish gives it up"
		}
		return "everything in " + from + " was read; weft migrate finish gives it up, weft migrate rollback leads back"
	case "FINISHED":
		return "it is in " + to + " alone"
	}
	return "it is in " + to + ", where it was"
}

// moveStatus is a move as JSON has it.
type moveStatus struct {
	Namespace     string            `json:"namespace"`
	Topic         string            `json:"topic"`
	To            string            `json:"to"`
	Wish          string            `json:"wish"`
	Phase         string            `json:"phase"`
	Meaning       string            `json:"meaning"`
	Back          bool              `json:"back"`
	Marker        string            `json:"marker,omitempty"`
	Attempt       uint32            `json:"attempt"`
	Epochs        []moveEpoch       `json:"epochs"`
	Subscriptions []moveReader      `json:"subscriptions"`
	Missing       []moveLack        `json:"missing"`
	Reading       []moveGroup       `json:"reading"`
	Proxies       []moveProxy       `json:"proxies"`
	LeftOut       moveLeftOut       `json:"left_out"`
	Conditions    []json.RawMessage `json:"conditions"`
}

type moveEpoch struct {
	Number       uint32    `json:"number"`
	Store        string    `json:"store"`
	PhysicalName string    `json:"physical_name"`
	Ready        bool      `json:"ready"`
	Cut          []moveCut `json:"cut"`
	// Fence is what keeps native producers out of what the topic has left.
	Fence *moveFence `json:"fence,omitempty"`
}

type moveFence struct {
	State  string `json:"state"`
	Reason string `json:"reason,omitempty"`
}

type moveCut struct {
	Partition string `json:"partition"`
	Offset    uint64 `json:"offset"`
}

// moveGroup is how far a group has read an epoch that the topic leaves.
type moveGroup struct {
	Subscription string          `json:"subscription"`
	Epoch        uint32          `json:"epoch"`
	Store        string          `json:"store"`
	Group        string          `json:"group"`
	Read         bool            `json:"read"`
	Reason       string          `json:"reason,omitempty"`
	Partitions   []movePartition `json:"partitions"`
	LeftOut      uint32          `json:"partitions_left_out,omitempty"`
}

type movePartition struct {
	Partition string `json:"partition"`
	End       uint64 `json:"end"`
	Settled   uint64 `json:"settled"`
}

// moveProxy is what a proxy says.
type moveProxy struct {
	NodeID  string `json:"node_id"`
	Says    bool   `json:"says"`
	Heard   bool   `json:"heard"`
	Idle    bool   `json:"idle"`
	Marked  uint32 `json:"marked"`
	Settled uint32 `json:"settled"`
	Trouble string `json:"trouble,omitempty"`
}

// moveLeftOut is how many there are beside those that are named.
type moveLeftOut struct {
	Reading uint32 `json:"reading"`
	Proxies uint32 `json:"proxies"`
}

// moveLack is a proxy that has not heard of the newest phase.
type moveLack struct {
	NodeID string `json:"node_id"`
	Reason string `json:"reason"`
}

func (m *moving) status() (*moveStatus, error) {
	s := &moveStatus{Namespace: m.migration.Metadata.Namespace, Topic: m.name(), To: m.migration.GetMigration().To, Wish: strings.TrimPrefix(m.wish().String(), "WISH_"),
		Phase: m.phase(), Meaning: m.sentence(), Back: m.move().GetBack(), Marker: m.move().GetMarker(), Attempt: m.move().GetAttempt(), Subscriptions: append([]moveReader{}, m.readers...),
		Epochs: []moveEpoch{}, Missing: []moveLack{}, Reading: []moveGroup{}, Proxies: []moveProxy{}, Conditions: []json.RawMessage{}}
	for _, e := range m.binding.GetEpochs() {
		o := moveEpoch{Number: e.Number, Store: e.Store, PhysicalName: e.PhysicalName, Ready: slices.Contains(m.admitted, e.Number), Cut: []moveCut{}}
		for _, c := range e.Cut {
			o.Cut = append(o.Cut, moveCut{c.Partition, c.Offset})
		}
		if e.Fence != nil {
			o.Fence = &moveFence{strings.TrimPrefix(e.Fence.State.String(), "STATE_"), e.Fence.Reason}
		}
		s.Epochs = append(s.Epochs, o)
	}
	for _, l := range m.lacking {
		s.Missing = append(s.Missing, moveLack{l.NodeId, l.Reason})
	}
	for _, g := range m.progress.GetGroups() {
		o := moveGroup{g.Subscription, g.Epoch, g.Store, g.Group, g.Read, g.Reason, []movePartition{}, g.PartitionsLeftOut}
		for _, p := range g.Partitions {
			o.Partitions = append(o.Partitions, movePartition{p.Partition, p.End, p.Settled})
		}
		s.Reading = append(s.Reading, o)
	}
	for _, p := range m.progress.GetProxies() {
		s.Proxies = append(s.Proxies, moveProxy{p.NodeId, p.Says, p.Heard, p.Idle, p.Marked, p.Settled, p.Trouble})
	}
	s.LeftOut = moveLeftOut{m.progress.GetGroupsLeftOut(), m.progress.GetProxiesLeftOut()}
	for _, c := range m.conditions {
		b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(c)
		if err != nil {
			return nil, err
		}
		s.Conditions = append(s.Conditions, b)
	}
	return s, nil
}

// write shows how far a move is.
func (m *moving) write(w io.Writer, output string) error {
	s, err := m.status()
	if err != nil {
		return err
	}
	if output != "text" {
		b, err := json.MarshalIndent(s, "", "  ")
		if err != nil {
			return err
		}
		return writeJSON(w, b, output)
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	line("topic", "%s/%s", s.Namespace, s.Topic)
	line("phase", "%s: %s", m.shown(), s.Meaning)
	line("wish", "%s", strings.ToLower(strings.ReplaceAll(s.Wish, "_", " ")))
	for _, e := range s.Epochs {
		ready := ""
		if !e.Ready {
			ready = ", not ready yet"
		}
		line(fmt.Sprint("epoch ", e.Number), "%s, as %s%s%s", e.Store, e.PhysicalName, cutText(e.Cut), ready)
		if e.Fence != nil {
			line("fence", "%s", strings.TrimSuffix(strings.ToLower(e.Fence.State)+": "+e.Fence.Reason, ": "))
		}
	}
	for _, r := range s.Subscriptions {
		epochs := "epoch "
		if len(r.Epochs) > 1 {
			epochs = "epochs "
		}
		line("subscription", "%s has groups in %s%s", r.Name, epochs, strings.Trim(strings.ReplaceAll(fmt.Sprint(r.Epochs), " ", ", "), "[]"))
	}
	for _, g := range s.Reading[:min(len(s.Reading), some)] {
		line("reads", "%s", g)
	}
	if n := max(len(s.Reading)-some, 0) + int(s.LeftOut.Reading); n > 0 {
		line("", "and %s", counted(n, "more group", "more groups"))
	}
	for _, p := range s.Proxies[:min(len(s.Proxies), some)] {
		line("proxy", "%s", p)
	}
	if n := max(len(s.Proxies)-some, 0) + int(s.LeftOut.Proxies); n > 0 {
		line("", "and %s", counted(n, "more proxy", "more proxies"))
	}
	for _, l := range s.Missing {
		line("missing", "%s: %s", l.NodeID, l.Reason)
	}
	for _, c := range m.conditions {
		text := strings.TrimSuffix(fmt.Sprintf("%s: %s: %s", is(c), c.Reason, c.Message), ": ")
		for i, l := range strings.Split(text, "; ") { // what it waits for, one by one
			line(map[bool]string{true: "condition"}[i == 0], "%s", l)
		}
	}
	return t.Flush()
}

// String says how far a group is: the partitions that are not read, those furthest behind
// first.
func (g moveGroup) String() string {
	what := fmt.Sprintf("%s, epoch %d in %s", g.Subscription, g.Epoch, g.Store)
	if g.Epoch == 0 {
		what = fmt.Sprintf("%s, what waits for another attempt in %s", g.Subscription, g.Store)
	}
	if g.Read {
		return what + ": all is read"
	}
	var behind []string
	for _, p := range g.Partitions {
		if p.Settled < p.End {
			behind = append(behind, strings.TrimPrefix(fmt.Sprintf("%s at %d of %d", p.Partition, p.Settled, p.End), " "))
		}
	}
	switch {
	case len(behind) > 0:
		return fmt.Sprintf("%s: %s not read: %s", what, counted(uint32(len(behind))+g.LeftOut, "partition is", "partitions are"), listOf(behind))
	case g.Reason != "":
		return what + ": " + g.Reason
	}
	return what + ": is not read, or not known to be"
}

// String is what a proxy says of the newest phase.
func (p moveProxy) String() string {
	says := []string{"has not heard of the newest phase"}
	if p.Heard {
		says[0] = "has the newest phase"
	} else if !p.Says {
		says[0] = "has said nothing of the move"
	}
	if p.Idle {
		says = append(says, "nothing is on its way")
	}
	if p.Marked > 0 {
		says = append(says, "has marked "+counted(p.Marked, "partition", "partitions"))
	}
	if p.Settled > 0 {
		says = append(says, counted(p.Settled, "group has", "groups have")+" read what is inside it")
	}
	if p.Trouble != "" {
		says = append(says, p.Trouble)
	}
	return p.NodeID + ": " + strings.Join(says, "; ")
}

// shown is the phase for people.
func (m *moving) shown() string {
	s := strings.ToLower(strings.ReplaceAll(m.phase(), "_", " "))
	if m.move().GetBack() {
		s = "back, " + s
	}
	return s
}

// cutText says where an epoch ends.
func cutText(cuts []moveCut) string {
	if len(cuts) == 0 {
		return ""
	}
	var all []string
	for _, c := range cuts {
		if c.Partition == "" { // of a store that has one
			return fmt.Sprintf(", ends at %d", c.Offset)
		}
		all = append(all, fmt.Sprintf("%s at %d", c.Partition, c.Offset))
	}
	return ", ends in partition " + listOf(all)
}

// printMoves lists moves.
func printMoves(cmd *cobra.Command, moves []*moving, output string) error {
	w := cmd.OutOrStdout()
	if output != "text" {
		for _, m := range moves {
			if err := m.write(w, output); err != nil {
				return err
			}
		}
		return nil
	}
	if len(moves) == 0 {
		_, err := fmt.Fprintln(w, "no topic moves")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "NAMESPACE\tTOPIC\tTO\tWISH\tPHASE\tIT")
	for _, m := range moves {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", m.migration.Metadata.Namespace, m.name(), m.migration.GetMigration().To,
			strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(m.wish().String(), "WISH_"), "_", " ")), m.shown(), m.sentence())
	}
	return t.Flush()
}
