package policy

import (
	"runtime"
	"testing"
	"time"
	"weak"

	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
)

// TestCurrent: within one configuration the answer is kept, a newer one is
// asked again, and time counts in both.
func TestCurrent(t *testing.T) {
	now := time.Now()
	const key = "weft_abcdefgh_s3cret"
	authority := newCA(t)
	mtls := mtlsIdentity("demo", authority.pem, configv1.PrincipalSource_PRINCIPAL_SOURCE_COMMON_NAME, "")
	until := timestamppb.New(now.Add(time.Minute))
	first := CompileIdentities([]NamedIdentity{keyIdentity("demo", "abcdefgh", "alice", key, until), mtls}, nil, false)
	for name, c := range map[string]Credentials{"key": {Bearer: key}, "certificate": {Certificates: authority.leaf(t, nil)}} {
		p, err := first.Authenticate(t.Context(), c, now)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if q, err := first.Current(p, now); err != nil || q.String() != p.String() {
				t.Errorf("%s: %v %v", name, q, err)
			}
		}
		if n := testing.AllocsPerRun(100, func() { _, _ = first.Current(p, now) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
		if _, err := first.Current(p, now.Add(2*time.Hour)); err == nil {
			t.Errorf("%s: good for ever", name)
		}
		none := CompileIdentities(nil, nil, false)
		for range 2 {
			if q, err := none.Current(p, now); err == nil || q != nil {
				t.Errorf("%s: good where nobody vouches for it: %v", name, q)
			}
		}
		if _, err := first.Current(p, now); err != nil {
			t.Errorf("%s: not good again", name)
		}
	}
	// Groups of a newer configuration.
	p, err := first.Authenticate(t.Context(), Credentials{Bearer: key}, now)
	if err != nil {
		t.Fatal(err)
	}
	more := keyIdentity("demo", "abcdefgh", "alice", key, nil)
	more.Spec.GetApiKeys().Keys[0].Groups = []string{"admins"}
	second := CompileIdentities([]NamedIdentity{more}, nil, false)
	if q, err := second.Current(p, now); err != nil || q.Groups[0] != "demo/admins" {
		t.Errorf("%+v %v", q, err)
	}
	// A kept answer does not keep old identities in memory.
	gone := CompileIdentities([]NamedIdentity{more}, nil, false)
	_, _ = gone.Current(p, now)
	w := weak.Make(gone)
	runtime.KeepAlive(gone)
	gone = nil //nolint:wastedassign // what is tested: nothing else holds it
	runtime.GC()
	if w.Value() != nil {
		t.Error("a session holds identities that nobody uses")
	}
	runtime.KeepAlive(p)
}
