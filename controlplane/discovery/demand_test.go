package discovery

import (
	"bytes"
	"context"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/resource"
)

// governing is what applies unasked in a namespace, and a topic that does not.
func governing(ns, label string) []*configv1.Resource {
	of := func(name string, kind resource.Kind, r *configv1.Resource) *configv1.Resource {
		r.Name, r.Metadata = resource.Name(kind, ns, name), &configv1.Metadata{Namespace: ns, Name: name, Uid: "u", Labels: map[string]string{"v": label}}
		return r
	}
	return []*configv1.Resource{
		of("p", resource.AccessPolicy, &configv1.Resource{Spec: &configv1.Resource_AccessPolicy{AccessPolicy: &configv1.AccessPolicy{}}}),
		of("i", resource.Identity, &configv1.Resource{Spec: &configv1.Resource_Identity{Identity: &configv1.Identity{}}}),
		of("r", resource.Route, &configv1.Resource{Spec: &configv1.Resource_Route{Route: &configv1.Route{Topic: "t"}}}),
		of("h", resource.HTTPBinding, &configv1.Resource{Spec: &configv1.Resource_HttpBinding{HttpBinding: &configv1.HttpBinding{}}}),
		of("t", resource.Topic, &configv1.Resource{Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{Store: "a"}}}),
	}
}

// TestGoverning: who subscribes to what governs a namespace gets its policies,
// identities, routes and bindings, what changes of them, and nothing else, beside names of its
// own; a name that it may not see is said not to exist.
func TestGoverning(t *testing.T) {
	w := newWorld(t)
	w.put("1", "demo/a", "demo/b")
	w.commit(configstore.Change{Put: append(governing("demo", "1"), governing("other", "1")...)})
	p := w.connect(w.addr, nil)
	p.ask("governing/demo/*", "eventstore/demo/a", "eventstore/demo/later")
	p.wants("+accesspolicy/demo/p +demo/a +httpbinding/demo/h +identity/demo/i +route/demo/r -demo/later")
	if !p.last.Complete || len(p.last.Kinds) != 5 {
		t.Errorf("the manifest says %v", p.last)
	}
	w.put("2", "demo/b")
	w.commit(configstore.Change{Put: governing("other", "2")})
	w.commit(configstore.Change{Put: governing("demo", "2")[:1]})
	p.wants("+accesspolicy/demo/p")
	w.put("1", "demo/later")
	p.wants("+demo/later")
	p.send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: []string{"governing/demo/*"}, ResourceNamesSubscribe: []string{"eventstore/demo/not"}})
	p.wants("-demo/not") // it has heard of both
	w.commit(configstore.Change{Put: governing("demo", "3")[:1]})
	w.put("2", "demo/a")
	p.wants("+demo/a")

	_, addr := serve(t, Config{Source: w.store, Log: w.server.cfg.Log, Allowed: func(context.Context) (map[string]bool, error) { return map[string]bool{"demo": true}, nil }})
	p = w.connect(addr, nil)
	p.ask("governing/other/*", "governing/demo/*", "topic/other/t", "topic/demo/t")
	p.wants("+accesspolicy/demo/p +httpbinding/demo/h +identity/demo/i +route/demo/r +topic/demo/t -topic/other/t")
}

// TestResumeNames: a token for names on demand resumes where it is of the names that
// the stream asks for first; names asked for later come beside it. With other names,
// or another content, everything is sent. The manifest says which names it is of.
func TestResumeNames(t *testing.T) {
	w := newWorld(t)
	w.put("1", "demo/a", "demo/b", "demo/c")
	w.commit(configstore.Change{Put: governing("demo", "1")})
	names := []string{"eventstore/demo/a", "eventstore/demo/b", "eventstore/demo/none"}
	var sum resource.Digest
	for _, n := range names {
		sum = sum.Add(resource.DigestOf(n, "", nil))
	}
	p := w.connect(w.addr, nil)
	p.ask(append([]string{"governing/demo/*"}, names...)...)
	p.next()
	if !bytes.Equal(p.last.Names, sum.Bytes()) {
		t.Errorf("the manifest is of other names: %v", p.last)
	}
	had := p.last
	w.put("2", "demo/b")
	w.put("2", "demo/c")
	w.put("1", "demo/none")
	resume := func(want string, complete bool, change func(*discoveryv1.ResumeToken), ask ...string) *proxy {
		t.Helper()
		tok := &discoveryv1.ResumeToken{Lineage: had.Lineage, Revision: had.Revision, Scope: []string{"governing/demo/*"}, Names: sum.Bytes(), Digests: had.Kinds}
		if change != nil {
			change(tok)
		}
		p := w.connect(w.addr, tok)
		p.ask(append([]string{"governing/demo/*"}, ask...)...)
		if got := p.next(); got != want || p.last.Complete != complete {
			t.Errorf("%q came, want %q; complete %v", got, want, p.last.Complete)
		}
		return p
	}
	p = resume("+demo/b +demo/none", false, nil, names...)
	p.send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"eventstore/demo/c", "eventstore/demo/not"}, ResourceNamesUnsubscribe: []string{"eventstore/demo/a"}})
	p.wants("+demo/c -demo/not")
	if n := p.last.Kinds; n[1].Kind != "eventstore" || n[1].Count != 3 { // b, c and none
		t.Errorf("the manifest says %v", p.last)
	}
	const rest = "+accesspolicy/demo/p +demo/a +httpbinding/demo/h +identity/demo/i +route/demo/r"
	resume(rest, true, nil, "eventstore/demo/a")
	if a := w.server.Alarms(); len(a) != 0 {
		t.Errorf("without a reason: %v", a)
	}
	resume("+accesspolicy/demo/p +demo/a +demo/b +demo/none +httpbinding/demo/h +identity/demo/i +route/demo/r", true,
		func(tok *discoveryv1.ResumeToken) { tok.Digests[0].Count++ }, names...)
	if a := w.server.Alarms(); len(a) != 1 {
		t.Errorf("the alarms are %v", a)
	}
}
