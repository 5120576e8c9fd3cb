package proxy

import (
	"strings"
	"testing"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
)

// TestShadowedRules: a rule that is shadowed changes no answer, and every answer
// that it would have changed is counted.
func TestShadowedRules(t *testing.T) {
	cfg := testConfig(t)
	cfg.TrustLoopback = true
	p, _ := run(t, cfg)
	state := someState()
	state.Withheld = nil
	rule := func(name string, effect configv1.Effect, mode configv1.Mode) *configv1.AccessRule {
		return &configv1.AccessRule{Name: name, Effect: effect, Mode: mode, Principals: []string{policy.Local}, Actions: []configv1.Action{configv1.Action_ACTION_PUBLISH}, Topics: []string{"orders"}}
	}
	state.Set["accesspolicy/demo/p"] = snapshot.Versioned{Version: "1", Resource: &configv1.Resource{Name: "accesspolicy/demo/p", Metadata: &configv1.Metadata{Namespace: "demo", Name: "p"},
		Spec: &configv1.Resource_AccessPolicy{AccessPolicy: &configv1.AccessPolicy{Rules: []*configv1.AccessRule{
			rule("now", configv1.Effect_EFFECT_ALLOW, configv1.Mode_MODE_ENFORCED), rule("soon", configv1.Effect_EFFECT_DENY, configv1.Mode_MODE_SHADOWED)}}}}}
	p.apply(t.Context(), state)
	for range 3 {
		res := make([]frontend.Result, 1)
		if err := p.mesh.Publish(t.Context(), &policy.Principal{Name: policy.Local, Credential: "loopback"}, "demo", "orders", []event.Event{{ID: "1", Source: "/s", Type: "t"}}, res); err != nil {
			t.Fatalf("a shadowed rule refuses: %v", err)
		}
	}
	_, metrics := fetch(t, "http://"+p.Addrs().Ops+"/metrics", "")
	if want := `weft_proxy_access_shadowed_total{policy="accesspolicy/demo/p",rule="soon"} 3`; !strings.Contains(metrics, want) {
		t.Errorf("the metrics lack %s", want)
	}

	// What is counted of a rule goes with it; what no rule allows is of none.
	refused := func() error {
		return p.mesh.Publish(t.Context(), &policy.Principal{Name: policy.Local, Credential: "loopback"}, "demo", "orders", []event.Event{{ID: "1", Source: "/s", Type: "t"}}, make([]frontend.Result, 1))
	}
	with := func(rules ...*configv1.AccessRule) {
		state.Set["accesspolicy/demo/p"] = snapshot.Versioned{Version: "2", Resource: &configv1.Resource{Name: "accesspolicy/demo/p", Metadata: &configv1.Metadata{Namespace: "demo", Name: "p"},
			Spec: &configv1.Resource_AccessPolicy{AccessPolicy: &configv1.AccessPolicy{Rules: rules}}}}
		p.apply(t.Context(), state)
	}
	with(rule("never", configv1.Effect_EFFECT_DENY, configv1.Mode_MODE_ENFORCED))
	if refused() == nil {
		t.Error("what is denied was published")
	}
	with(rule("other", configv1.Effect_EFFECT_DENY, configv1.Mode_MODE_SHADOWED))
	if refused() == nil {
		t.Error("what nobody allows was published")
	}
	_, metrics = fetch(t, "http://"+p.Addrs().Ops+"/metrics", "")
	for _, gone := range []string{`rule="soon"`, `rule="never"`} {
		if strings.Contains(metrics, gone) {
			t.Errorf("the metrics have %s, which is deleted", gone)
		}
	}
	if want := `weft_proxy_access_refused_total{action="publish",policy="",rule=""} 1`; !strings.Contains(metrics, want) {
		t.Errorf("the metrics lack %s", want)
	}
}
