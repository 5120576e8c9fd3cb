package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
)

// requestTimeout is how long the requests of a cell wait.
const requestTimeout = time.Minute

// requested: each request is answered with the reply to it, which is given over the
// protocol of the way in at the proxy beside, or by the target of the way out.
func requested(c *cell) (string, func()) {
	yaml := topicYAML("questions") + c.subscription("answerers", "questions", "retry: {max_attempts: 10, "+fast+"}")
	if c.in == "rest-call" {
		yaml += `
apiVersion: weft/v1alpha1
kind: HttpBinding
metadata: {namespace: NS, name: api}
spec: {rules: [{method: PUT, path: "/questions/{id}", topic: questions, reply: {timeout: 1m}, attributes: {type: "{header.X-Type}", source: /shop, id: "{id}", checksum: "{header.X-Checksum}"}}]}
---`
	}
	b := c.box("answerers")
	if c.out == "webhook" {
		b.reply = replyTo
	} else {
		b.refuse = func(e event.Event, _ int) bool { return c.reply(e) != nil } // it comes again
	}
	return yaml, func() {
		c.receive("answerers", c.index+1)
		sent := c.events("q", some)
		var asking errgroup.Group
		for _, e := range sent {
			asking.Go(func() error {
				var reply event.Event
				err := c.again(c.ctx, func() (err error) {
					reply, err = c.ask(e)
					return err
				})
				if err != nil {
					return fmt.Errorf("asking %s: %w", e.ID, err)
				}
				if want := replyTo(e); reply.ID != want.ID || reply.Source != want.Source || reply.Type != want.Type || !bytes.Equal(reply.Data, want.Data) || reply.DataContentType != want.DataContentType {
					return fmt.Errorf("the reply to %s is %+v", e.ID, reply)
				}
				return nil
			})
		}
		c.must(asking.Wait())
		c.expect("answerers", sent)
	}
}

// replyTo is the reply to a request.
func replyTo(e event.Event) event.Event {
	return event.Event{ID: "to-" + e.ID, Source: "/prices", Type: "answer", DataContentType: "text/plain", Data: append([]byte("to "), e.Data...)}
}

// ask asks by the way in.
func (c *cell) ask(e event.Event) (event.Event, error) {
	p := c.w.proxies[c.index%len(c.w.proxies)]
	h := http.Header{}
	switch c.in {
	case "grpc":
		cl, err := client.New(client.Config{Addresses: []string{p.grpc}, APIKey: client.APIKeyFile(c.keyFile)})
		if err != nil {
			return event.Event{}, err
		}
		defer cl.Close()
		return cl.Request(c.ctx, c.ns, "questions", e, requestTimeout)
	case "rest-call":
		sum, _ := event.Lookup(e.Ext, "checksum")
		h = http.Header{"Content-Type": {e.DataContentType}, "X-Type": {e.Type}, "X-Checksum": {sum}}
		return c.asked(http.MethodPut, "http://"+p.http+"/rest/"+c.ns+"/questions/"+e.ID, h, e.Data)
	}
	cloudevents.EncodeBinary(h, &e)
	return c.asked(http.MethodPost, "http://"+p.http+"/v1/"+c.ns+"/topics/questions:request?timeout="+requestTimeout.String(), h, e.Data)
}

// asked asks over HTTP.
func (c *cell) asked(method, url string, h http.Header, data []byte) (event.Event, error) {
	resp, body, err := c.do(method, url, h, data)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s", resp.Status, body)
	}
	if err != nil {
		return event.Event{}, err
	}
	return cloudevents.DecodeBinary(resp.Header, body)
}

func (c *cell) do(method, url string, h http.Header, data []byte) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(c.ctx, method, url, bytes.NewReader(data))
	if err != nil {
		return nil, nil, err
	}
	req.Header = h
	req.Header.Set("Authorization", "Bearer "+c.secret)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, body, err
}

// reply replies to a request, at the proxy beside that of who asks.
func (c *cell) reply(asked event.Event) error {
	p, e := c.w.proxies[(c.index+1)%len(c.w.proxies)], replyTo(asked)
	if c.in == "grpc" {
		cl, err := client.New(client.Config{Addresses: []string{p.grpc}, APIKey: client.APIKeyFile(c.keyFile)})
		if err != nil {
			return err
		}
		defer cl.Close()
		ctx, cancel := context.WithTimeout(c.ctx, requestTimeout)
		defer cancel()
		return cl.Reply(ctx, c.ns, asked, e)
	}
	token, _ := event.Lookup(asked.Ext, event.AttrReplyTo)
	e.Ext = event.With(nil, event.AttrReplyTo, token)
	h := http.Header{}
	cloudevents.EncodeBinary(h, &e)
	resp, body, err := c.do(http.MethodPost, "http://"+p.http+"/v1/"+c.ns+"/replies", h, e.Data)
	if err == nil && resp.StatusCode != http.StatusNoContent {
		err = fmt.Errorf("%s %s", resp.Status, body)
	}
	return err
}
