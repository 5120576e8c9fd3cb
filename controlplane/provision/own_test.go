package provision

import (
	"context"
	"testing"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
)

// asked is a store that remembers which topics it was asked for.
type asked struct {
	store.Store
	store.Admin
	topics map[string]store.TopicSpec
}

func (a *asked) EnsureTopic(_ context.Context, t store.TopicSpec) error {
	a.topics[t.Name] = t
	return nil
}

// TestRepliesAreNotKept: replies, which are read at once, are not kept for ever by a store that
// keeps for ever what it is not told to remove; one that cannot be told is not.
func TestRepliesAreNotKept(t *testing.T) {
	e := &configstore.Entry{Resource: &configv1.Resource{Metadata: &configv1.Metadata{Uid: "u"}, Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{}}}}
	for _, can := range []bool{true, false} {
		a := &asked{topics: map[string]store.TopicSpec{}}
		if missing, _ := (&Provisioner{}).ownTopics(t.Context(), e, a, store.Capabilities{TopicRetention: can}); missing != "" {
			t.Error(missing)
		}
		if got, ok := a.topics[names.ReplyTopic("u")]; !ok || (got.MaxAge > 0) != can {
			t.Errorf("where retention is told to the store: %v: %+v", can, a.topics)
		}
	}
}
