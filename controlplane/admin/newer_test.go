package admin

import (
	"bytes"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/resource"
)

// newerField is a field that no version of ours has.
var newerField = protowire.AppendVarint(protowire.AppendTag(nil, 15000, protowire.VarintType), 7)

// TestNewerField: a field that this version does not know is refused where somebody
// applies it, and is not lost where a newer control plane has stored it: what has
// it is shown, can be deleted, and cannot be replaced, neither by an Apply nor by a
// Rollback. Others are changed as ever.
func TestNewerField(t *testing.T) {
	w := newWorld(t, 1)
	rev := w.apply(eventStore("demo", "main", "1"), topic("demo", "orders"), topic("demo", "others")).Revision
	newer := topic("demo", "orders")
	newer.Spec.(*configv1.Resource_Topic).Topic.ProtoReflect().SetUnknown(newerField)
	refused := func(what string, err error, code codes.Code, says string) {
		t.Helper()
		if status.Code(err) != code || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := w.api[0].Apply(w.ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{newer}})
	refused("a field that is not known", err, codes.InvalidArgument, "topic/demo/orders: spec: has a field that this version does not know")

	// What a newer control plane does.
	snap, err := w.stores[0].Current()
	w.must(err)
	newer.Metadata, newer.Name = snap.Resource("topic/demo/orders").Metadata, resource.NameOf(newer)
	at, err := w.stores[0].Commit(w.ctx, snap, configstore.Change{Put: []*configv1.Resource{newer}})
	w.must(err)
	_, err = w.stores[0].WaitFor(w.ctx, at)
	w.must(err)

	shown := w.get("topic/demo/orders")
	for what, r := range map[string]*configv1.Resource{"without its version": topic("demo", "orders"), "as it was got": shown} {
		r.Spec.(*configv1.Resource_Topic).Topic.ProtoReflect().SetUnknown(nil)
		_, err := w.api[0].Apply(w.ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{r}})
		refused(what, err, codes.FailedPrecondition, "topic/demo/orders: spec: what is there has a field that this version does not know, and would lose it")
	}
	_, err = w.api[0].Rollback(w.ctx, &adminv1.RollbackRequest{ToRevision: rev})
	refused("a rollback", err, codes.FailedPrecondition, "would lose it")
	w.apply(topic("demo", "more"), labelled(topic("demo", "others"), 2))
	if now, err := w.stores[0].Current(); err != nil || !bytes.Contains(now.Get("topic/demo/orders").Bytes, newerField) {
		t.Errorf("the field is lost (%v)", err)
	}
	_, err = w.api[0].Delete(w.ctx, targets("topic/demo/orders"))
	w.must(err)
}
