package configstore

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/fault"
)

// TestNoAnswer: a change that etcd does not answer, since it hangs, is answered here
// while its caller still waits, as one that may have been made.
func TestNoAnswer(t *testing.T) {
	w := newWorld(t)
	snap := w.current(w.run(Config{Client: w.etcd}))
	hung, err := net.Listen("tcp", "127.0.0.1:0") // connections are made, and nobody takes them
	w.must(err)
	t.Cleanup(func() { _ = hung.Close() })
	s := New(Config{Client: clientOf(t, hung.Addr().String())})
	ctx, cancel := context.WithTimeout(w.ctx, 3*commitTime)
	defer cancel()
	_, err = s.Commit(ctx, snap, Change{Put: []*configv1.Resource{res("a", "1")}})
	if f, ok := errors.AsType[*fault.Error](err); !ok || f.Class != fault.Unavailable || !strings.Contains(f.Msg, "may have been made") {
		t.Errorf("the answer is %v", err)
	}
	if ctx.Err() != nil {
		t.Error("the caller has stopped waiting")
	}
}
