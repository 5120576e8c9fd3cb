package proxy

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/latest"
)

// TestClockJumps: a key is good as long as the clock on the wall says so, on
// connections that are open too, in whichever direction that jumps.
func TestClockJumps(t *testing.T) {
	var jump time.Duration
	cfg := testConfig(t)
	cfg.Clock = func() time.Time { return time.Now().Add(jump) }
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	w := &passing{}
	p.mesh.in, p.mesh.out = w, w
	const key = "weft_k1_secret"
	sum := sha256.Sum256([]byte(key))
	p.mesh.snapshots = latest.New(snapshot.Compile(snapshot.Input{Lineage: "1-x", Revision: 1, Set: map[string]snapshot.Versioned{"identity/demo/i": {Version: "1",
		Resource: &configv1.Resource{Name: "identity/demo/i", Metadata: &configv1.Metadata{Namespace: "demo", Name: "i"},
			Spec: &configv1.Resource_Identity{Identity: &configv1.Identity{Method: &configv1.Identity_ApiKeys{ApiKeys: &configv1.ApiKeys{Keys: []*configv1.ApiKey{
				{Id: "k1", Hash: "sha256:" + hex.EncodeToString(sum[:]), Principal: "app", ExpiresAt: timestamppb.New(time.Now().Add(12 * time.Hour))}}}}}}}}}}))
	who, err := p.mesh.Authenticate(t.Context(), policy.Credentials{Bearer: key})
	if err != nil {
		t.Fatal(err)
	}
	for _, jump = range []time.Duration{time.Hour, 24 * time.Hour, -time.Hour, 13 * time.Hour, -24 * time.Hour} {
		_, fresh := p.mesh.Authenticate(t.Context(), policy.Credentials{Bearer: key})
		open := p.mesh.Publish(t.Context(), who, "demo", "orders", make([]event.Event, 1), make([]frontend.Result, 1))
		_, begun := p.mesh.Begin(t.Context(), who, "demo", "orders", make([]event.Event, 1), make([]frontend.Result, 1))
		_, bound := p.mesh.Bound(who, frontend.Call{Namespace: "demo"})
		for _, err := range []error{fresh, open, begun, bound} {
			if jump > 12*time.Hour && fault.ClassOf(err) != fault.Unauthenticated || jump < 12*time.Hour && err != nil {
				t.Errorf("the clock jumped by %v: %v", jump, err)
			}
		}
	}
}
