package remoting

import (
	"maps"
	"testing"
)

// TestSign: the signature of a request as another implementation of HMAC-SHA1 and
// base64 makes it.
func TestSign(t *testing.T) {
	fields := map[string]string{"b": "orders", "a": "weft", "i": "é<&>"}
	before := maps.Clone(fields)
	got := Sign(fields, []byte("\x00body"), "user", "s3cret")
	if !maps.Equal(fields, before) {
		t.Errorf("the caller's fields are %v", fields)
	}
	want := maps.Clone(before)
	want["AccessKey"], want["Signature"] = "user", "E9JWq8Mu6PBD+pB7BWm9kgqHLBw="
	if !maps.Equal(got, want) {
		t.Errorf("%v\nwant %v", got, want)
	}
	if len(Sign(nil, nil, "user", "s3cret")) != 2 {
		t.Error("a request without fields is not signed")
	}
}
