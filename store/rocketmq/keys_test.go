package rocketmq

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/rocketmq/remoting"
)

// TestRenew: keys that were refused are read again, at most once a second; those
// that nobody has refused stay.
func TestRenew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		there, reads := Keys{"a", "1"}, 0
		var missing error
		s, err := newSigner(func() (Keys, error) { reads++; return there, missing })
		if err != nil || s.current() != there {
			t.Fatal(s.current(), err)
		}
		first := there
		there = Keys{"a", "2"}
		if s.current() != first {
			t.Error("keys that work were read again")
		}
		if _, ok := s.renew(first); ok || reads != 1 {
			t.Errorf("within a second they were read %d times", reads)
		}
		<-time.After(rereadEvery) // of the bubble
		if k, ok := s.renew(first); !ok || k != there || s.current() != there {
			t.Errorf("%v %v", k, ok)
		}
		if _, ok := s.renew(first); !ok || reads != 2 {
			t.Error("whoever was refused with the old keys does not get the new ones")
		}
		<-time.After(rereadEvery) // of the bubble
		missing = errors.New("the file is away")
		if _, ok := s.renew(there); ok || s.current() != there {
			t.Error("what cannot be read replaced the keys")
		}
		if missing = nil; reads != 3 {
			t.Errorf("they were read %d times", reads)
		}
	})
	if _, err := newSigner(func() (Keys, error) { return Keys{}, errors.New("none") }); err == nil {
		t.Error("a store opens without its keys")
	}
}

// TestDenied: what brokers say of users and their rights is not what they say of
// topics that are closed.
func TestDenied(t *testing.T) {
	for _, tc := range []struct {
		code   int
		remark string
		denied bool
	}{
		{16, "check signature failed.", true},
		{16, "username cannot be null.", true},
		{16, "User:nobody is not found.", true},
		{16, "User:proxy has no permission to access Topic:t1 from 127.0.0.1, no matched policies.", true},
		{16, "the broker[127.0.0.1:10911] sending message is forbidden", false},
		{16, "subscription group no permission, g", false},
		{1, "org.apache.rocketmq.acl.common.AclException: Check signature failed for accessKey=x", true},
		{1, "the broker is in trouble", false},
		{0, "", false},
	} {
		cmd := &remoting.Command{Code: tc.code, Remark: tc.remark}
		err := answered(cmd)
		if denied(cmd) != tc.denied || (store.Why(err) == "AccessDenied") != tc.denied {
			t.Errorf("%d %s: %v", tc.code, tc.remark, err)
		}
		if tc.denied && err.Class != fault.Unavailable {
			t.Errorf("%s: the client is blamed: %v", tc.remark, err.Class)
		}
		if _, err := sent(cmd, nil); tc.denied && (fault.ClassOf(err) != fault.Unavailable || store.Why(err) != "AccessDenied") {
			t.Errorf("an event that was refused is said to be %v", err)
		}
	}
}

// TestKeysAreNotShown: neither by what prints them nor by what a broker says.
func TestKeysAreNotShown(t *testing.T) {
	k := Keys{Access: "acc3ss", Secret: "s3cret"}
	for _, s := range []string{fmt.Sprint(k), fmt.Sprintf("%+v %#v %s", k, k, &k), fmt.Sprintf("%+v", struct{ K Keys }{k}),
		k.hide("User:acc3ss is not found; s3cret")} {
		if strings.Contains(s, "acc3ss") || strings.Contains(s, "s3cret") {
			t.Error(s)
		}
	}
}
