package rocketmq

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store/rocketmq/remoting"
)

// TestOnlyOneAnswerAcknowledges: every answer to a send but one is an error, and
// whoever may find the event kept all the same is told that nobody knows.
func TestOnlyOneAnswerAcknowledges(t *testing.T) {
	for _, c := range []struct {
		code int
		err  error
		want fault.Class
	}{
		{code: resFlushDisk, want: fault.Ambiguous},
		{code: resFlushSlave, want: fault.Ambiguous},
		{code: resNoSlave, want: fault.Ambiguous},
		{code: resBusy, want: fault.Throttled},
		{code: resIllegal, want: fault.Invalid},
		{code: resNoTopic, want: fault.NotFound},
		{code: resFlowControl, want: fault.Throttled},
		{code: resNotAvailable, want: fault.Unavailable},
		{code: resNoPermission, want: fault.Unavailable},
		{code: 1, want: fault.Ambiguous}, // it failed, before or while it wrote
		{code: 4711, want: fault.Ambiguous},
		{err: fmt.Errorf("dial: %w", remoting.ErrNotSent), want: fault.Unavailable},
		{err: remoting.ErrClosed, want: fault.Ambiguous},
		{err: context.DeadlineExceeded, want: fault.Ambiguous},
		{err: errors.New("anything else"), want: fault.Ambiguous},
		{code: resOK, want: fault.Ambiguous}, // kept, but without its place
	} {
		cmd := &remoting.Command{Code: c.code, ExtFields: map[string]string{}}
		if c.code != resOK {
			cmd.ExtFields["queueOffset"] = "7" // brokers send it with these answers too
		}
		if _, err := sent(cmd, c.err); err == nil || fault.ClassOf(err) != c.want {
			t.Errorf("code %d, error %v: got %v, want %v", c.code, c.err, err, c.want)
		}
	}
	n, err := sent(&remoting.Command{Code: resOK, ExtFields: map[string]string{"queueOffset": "7"}}, nil)
	if n != 7 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
}
