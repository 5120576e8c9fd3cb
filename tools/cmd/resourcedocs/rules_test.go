package main

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
)

// TestRules: what is said of a field's rules, and what of them its comment says already.
func TestRules(t *testing.T) {
	for _, tc := range []struct {
		of      proto.Message
		field   protoreflect.Name
		comment string
		want    string
	}{
		{&configv1.Topic{}, "store", "", " *Required, at most 80 characters.*"},
		{&configv1.Topic{}, "store", "At most 80.", " *Required.*"},
		{&configv1.Topic{}, "max_event_bytes", "", " *At most 3,145,728.*"},
		{&configv1.Topic{}, "max_event_bytes", "At most 3 MiB; 1 MiB when 0.", ""},
		{&configv1.Topic{}, "max_event_bytes", "At most 13 MiB.", " *At most 3,145,728.*"},
		{&configv1.Topic{}, "deletion_policy", "", ""},
		{&configv1.Metadata{}, "labels", "", " *At most 32 entries, keys at most 63 characters, values at most 63 characters.*"},
		{&configv1.Metadata{}, "namespace", "", " *Required, at most 32 characters.*"},
		{&configv1.Quota{}, "per", "", " *Required.*"},
		{&configv1.Quota{}, "groups", "", " *At most 256 items, each 1 to 290 characters.*"},
		{&configv1.PublishQuota{}, "burst", "", " *1ms to 1m.*"},
		{&configv1.PublishQuota{}, "burst", "1 ms to 1 minute.", ""},
		{&configv1.SecretRef{}, "file", "", " *1 to 1,024 characters.*"}, // of two, one is required
		{&configv1.AccessRule{}, "actions", "", " *Required.*"},
		{&configv1.JsonSchema{}, "document", "", " *Required, at most 65,536 bytes.*"},
	} {
		f := tc.of.ProtoReflect().Descriptor().Fields().ByName(tc.field)
		if f == nil {
			t.Fatalf("there is no %s", tc.field)
		}
		if got := rules(f, tc.comment); got != tc.want {
			t.Errorf("%s with %q: %q, want %q", f.FullName(), tc.comment, got, tc.want)
		}
	}
}
