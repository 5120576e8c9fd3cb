package push

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
)

// maxReply bounds an answer that is a reply, in bytes of its body.
const maxReply = 1 << 20

// reply is what a target has answered to a request: an event, or why there is none.
type reply struct {
	event event.Event
	wrong error
}

// readReply reads the reply that an answer to e is: to a request, 2xx and a CloudEvent
// in binary or structured mode. nil is that it is none.
func readReply(e *event.Event, resp *http.Response) *reply {
	token, asks := event.Lookup(e.Ext, event.AttrReplyTo)
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	structured := media == cloudevents.TypeJSON
	if !asks || resp.StatusCode/100 != 2 || !structured && resp.Header.Get("Ce-Specversion") == "" {
		return nil
	}
	out := &reply{}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	switch coding := resp.Header.Get("Content-Encoding"); {
	case err != nil:
		out.wrong = errors.New("its body broke off")
	case len(body) > maxReply:
		out.wrong = fmt.Errorf("it has more than %d bytes", maxReply)
	case coding != "" && coding != "identity":
		out.wrong = fmt.Errorf("its Content-Encoding is %q: none is understood", coding)
	case structured:
		out.event, out.wrong = cloudevents.DecodeJSON(body)
	default:
		out.event, out.wrong = cloudevents.DecodeBinary(resp.Header, body)
	}
	out.event.Ext = event.With(out.event.Ext, event.AttrReplyTo, token)
	return out
}

// pass passes a reply on to who waits for it. What becomes of it changes nothing for the
// request, which was answered.
func (t *target) pass(ctx context.Context, r *reply, d *delivery.Delivery) {
	ctx, cancel := context.WithTimeout(ctx, extra)
	defer cancel()
	if err := t.p.cfg.Reply(ctx, t.key, r.event, r.wrong); err != nil {
		t.log.Debug("a reply was not passed on", "id", d.Event.ID, "error", err)
	}
}
