package configstore

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/fault"
)

// TestNoAnswer: a change that etcd does not answer, since it hangs, is answered here
// while its caller still waits, as one that may have been made; so is who asks for the history.
func TestNoAnswer(t *testing.T) {
	w := newWorld(t)
	snap := w.current(w.run(Config{Client: w.etcd}))
	hung, err := net.Listen("tcp", "127.0.0.1:0") // connections are made, and nobody takes them
	w.must(err)
	t.Cleanup(func() { _ = hung.Close() })
	s := New(Config{Client: clientOf(t, hung.Addr().String())})
	ctx, cancel := context.WithTimeout(w.ctx, 6*commitTime) // for two calls
	defer cancel()
	_, err = s.Commit(ctx, snap, Change{Put: []*configv1.Resource{res("a", "1")}})
	if f, ok := errors.AsType[*fault.Error](err); !ok || f.Class != fault.Ambiguous || !strings.Contains(f.Msg, "may have been made") {
		t.Errorf("the answer is %v", err)
	}
	for _, err = range s.Audit(ctx, "") {
		if f, ok := errors.AsType[*fault.Error](err); !ok || f.Class != fault.Unavailable || !strings.Contains(f.Msg, "etcd does not answer") {
			t.Errorf("the history: %v", err)
		}
	}
	if ctx.Err() != nil {
		t.Error("the caller has stopped waiting")
	}
}

// TestRefused: a change that etcd refuses was not made, and the answer says so and why.
func TestRefused(t *testing.T) {
	w := newWorld(t)
	s := w.run(Config{Client: w.etcd})
	snap := w.current(s)
	many := slices.Repeat([]clientv3.Cmp{clientv3.Compare(clientv3.Version("none"), "=", 0)}, 200) // 128 at most
	_, err := s.Commit(w.ctx, snap, Change{Put: []*configv1.Resource{res("a", "1")}, Only: many})
	if f, ok := errors.AsType[*fault.Error](err); !ok || f.Class != fault.Unavailable || f.Msg != "etcd refuses the change, and nothing was changed: etcdserver: too many operations in txn request" {
		t.Errorf("the answer is %v", err)
	}
}
