package moves

import (
	"context"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/election"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/resource"
)

// conditions is where the status keys of what is told of Migrations begin.
const conditions = "moved/"

// told is a condition that was written, and when.
type told struct {
	reason, message string
	since           time.Time
	at              time.Duration // since boot
}

// tellEvery is the time between two conditions of a Migration whose reason is the same.
const tellEvery = time.Second

// oneByOne is what a move waits for, as a condition tells it: "; " parts one from the next.
func oneByOne(waits []string) string {
	all := make([]string, 0, len(waits))
	for _, w := range waits[:min(len(waits), 10)] {
		all = append(all, strings.ReplaceAll(w, "; ", ", "))
	}
	if n := len(waits) - 10; n > 0 {
		all = append(all, fmt.Sprintf("and %d more", n))
	}
	return strings.Join(all, "; ")
}

// tell writes down how far a move is, and what it waits for.
func (o *Office) tell(ctx context.Context, term election.Term, m *move, f cutover.Facts, waits []string) {
	if m.migration == nil {
		return
	}
	name := phaseNames[m.phase]
	reason := strings.ToUpper(name[:1]) + name[1:]
	old, last := m.old(), m.last()
	text := fmt.Sprintf("from EventStore %s to %s", old.Store, last.Store)
	if m.b.Move.Back {
		text += ", back"
	}
	switch {
	case f.Wish == cutover.Pause && m.phase < cutover.Draining && !m.held:
		reason = "Paused"
		text += ": paused; publishers write to " + old.Store
	case len(waits) > 0:
		text += "; waits: " + oneByOne(waits)
	case m.phase == cutover.Drained:
		text += ": all is read of " + old.Store + ", which stays until the Migration's wish is FINISH"
		if !m.b.Move.Back {
			text += " or ROLL_BACK"
		}
	}
	if s := fenceText(old); s != "" {
		text += "; " + s
	}
	if natives := m.natives(); m.phase >= cutover.Draining && natives != "" {
		text += "; " + natives
	}
	c := notMoved(reason, text)
	if m.phase == cutover.Drained && len(waits) == 0 {
		c.State = adminv1.Condition_STATE_TRUE
	}
	o.condition(ctx, term, resource.NameOf(m.migration), c)
	o.tellProgress(ctx, term, m)
}

// fenceText says who is kept from writing to what a topic has left; "" where it has not,
// or nobody need be.
func fenceText(e *configv1.Epoch) string {
	switch f := e.Fence; f.GetState() {
	case configv1.Fence_STATE_ENFORCED:
		return "a fence around " + e.PhysicalName + " keeps native producers out"
	case configv1.Fence_STATE_ADVISORY:
		return "native producers are told not to write to " + e.PhysicalName + ": " + f.Reason
	case configv1.Fence_STATE_NONE:
		return "native producers are not stopped: " + f.Reason
	}
	return ""
}

// notMoved is the condition of a Migration that is not carried out.
func notMoved(reason, message string) *adminv1.Condition {
	return &adminv1.Condition{Type: "Moved", State: adminv1.Condition_STATE_FALSE, Reason: reason, Message: message}
}

// ended is the condition of a Migration whose move has come to its end.
func ended(b *configv1.TopicBinding, spec *configv1.Migration) *adminv1.Condition {
	c := &adminv1.Condition{Type: "Moved", State: adminv1.Condition_STATE_TRUE, Reason: "Finished", Message: "the topic is in EventStore " + b.Epochs[len(b.Epochs)-1].Store + " alone; the Migration can be deleted"}
	if spec.Wish == configv1.Migration_WISH_ROLL_BACK {
		c.Reason = "Withdrawn"
	}
	return c
}

// condition writes a condition, when it changed, and not too often. Failing is no harm:
// the next pass writes it.
func (o *Office) condition(ctx context.Context, term election.Term, name string, c *adminv1.Condition) {
	now := o.cfg.SinceBoot()
	old, was := o.known[name]
	if was && old.reason == c.Reason && (old.message == c.Message || now-old.at < tellEvery) {
		return
	}
	next := told{c.Reason, c.Message, o.cfg.Clock.Now(), now}
	if was && old.reason == c.Reason {
		next.since = old.since
	}
	c.Since = timestamppb.New(next.since)
	b, err := protojson.Marshal(c)
	if err != nil {
		return
	}
	cctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if term.Write(cctx, o.cfg.Store.Client(), clientv3.OpPut(o.cfg.Store.StatusKey(conditions+name), string(b))) == nil {
		o.known[name] = next
	}
}

// remember reads what was told of Migrations by whoever was in office before, and removes
// what is of none that is there.
func (r *round) remember() error {
	ctx, cancel := context.WithTimeout(r.ctx, callTimeout)
	defer cancel()
	client, prefix := r.o.cfg.Store.Client(), r.o.cfg.Store.StatusKey(conditions)
	resp, err := client.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	known := map[string]told{}
	for _, kv := range resp.Kvs {
		c := &adminv1.Condition{}
		if (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(kv.Value, c) == nil {
			known[string(kv.Key[len(prefix):])] = told{reason: c.Reason, message: c.Message, since: c.Since.AsTime()}
		}
	}
	r.o.known = known
	return nil
}

// untell removes what is told of Migrations that are not there any more.
func (r *round) untell() error {
	for name := range r.o.known {
		if r.snap.Get(name) != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(r.ctx, callTimeout)
		err := r.term.Write(ctx, r.o.cfg.Store.Client(), clientv3.OpDelete(r.o.cfg.Store.StatusKey(conditions+name)), clientv3.OpDelete(r.o.cfg.Store.StatusKey(progresses+name)))
		cancel()
		if err != nil {
			return err
		}
		delete(r.o.known, name)
		delete(r.o.wrote, name)
	}
	return nil
}

// Conditions adds what is told of Migrations, by canonical name, to what others tell.
// Without etcd it adds nothing.
func Conditions(s *configstore.Store, others func(context.Context) (map[string][]*adminv1.Condition, error)) func(context.Context) (map[string][]*adminv1.Condition, error) {
	return func(ctx context.Context) (map[string][]*adminv1.Condition, error) {
		out, err := others(ctx)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		prefix := s.StatusKey(conditions)
		resp, err := s.Client().Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithSerializable())
		if err != nil {
			return out, nil //nolint:nilerr // status describes; without etcd it is unknown
		}
		for _, kv := range resp.Kvs {
			c := &adminv1.Condition{}
			if (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(kv.Value, c) == nil {
				name := string(kv.Key[len(prefix):])
				out[name] = append(out[name], c)
			}
		}
		return out, nil
	}
}
