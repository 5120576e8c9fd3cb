package validate

import (
	"strings"
	"testing"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/resource"
)

// TestPatternsInWords: what a text must be is said in words, of every pattern that there is.
func TestPatternsInWords(t *testing.T) {
	v, err := New()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		kind   resource.Kind
		change func(*configv1.Resource)
		want   string
	}{
		"origin": {resource.Subscription, func(r *configv1.Resource) {
			r.GetSubscription().GetPush().Handshake = &configv1.PushHandshake{Origin: "https://mesh.acme"}
		}, `spec.push.handshake.origin: must be a DNS name in lower case`},
		"host": {resource.HTTPBinding, func(r *configv1.Resource) { r.GetHttpBinding().Hosts = []string{"http://a:80"} }, `spec.hosts[0]: must be a DNS name`},
		"secret": {resource.Subscription, func(r *configv1.Resource) {
			r.GetSubscription().GetPush().Signature = &configv1.PushSignature{Secrets: []string{"/run/x"}}
		}, `spec.push.signature.secrets[0]: must be the name of a file`},
		"key":     {resource.Topic, func(r *configv1.Resource) { r.GetTopic().KeyFrom = "Subject" }, `spec.key_from: must be the name of an attribute`},
		"no name": {resource.AccessPolicy, func(r *configv1.Resource) { r.GetAccessPolicy().Rules[0].Name = "" }, `spec.rules[0].name: is required`},
	} {
		r := proto.Clone(good()[tc.kind]).(*configv1.Resource)
		tc.change(r)
		said := ""
		for _, p := range v.Alone(r) {
			said += p.Field + ": " + p.Message + "\n"
		}
		if !strings.HasPrefix(said, tc.want) || strings.Contains(said, "regex") {
			t.Errorf("%s: %s", name, said)
		}
	}
	seen := map[protoreflect.FullName]bool{}
	var look func(protoreflect.MessageDescriptor)
	look = func(m protoreflect.MessageDescriptor) {
		if seen[m.FullName()] {
			return
		}
		seen[m.FullName()] = true
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			rules, _ := proto.GetExtension(f.Options(), validate.E_Field).(*validate.FieldRules)
			for _, of := range []*validate.FieldRules{rules, rules.GetRepeated().GetItems(), rules.GetMap().GetKeys(), rules.GetMap().GetValues()} {
				if p := of.GetString().GetPattern(); p != "" && patternWords[p] == "" {
					t.Errorf("%s: %s is not in words", f.FullName(), p)
				}
			}
			if f.Message() != nil {
				look(f.Message())
			}
		}
	}
	look((&configv1.Resource{}).ProtoReflect().Descriptor())
}
