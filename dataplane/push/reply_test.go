package push

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/pipeline"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
)

// TestReply: a CloudEvent with which a target answers a request is the reply to it; any
// other answer settles the request, and is none.
func TestReply(t *testing.T) {
	binary := func(w http.ResponseWriter, data string) {
		e := event.Event{ID: "a", Source: "/target", Type: "answer", DataContentType: "text/plain", Data: []byte(data), Ext: []event.Attr{{Name: "mood", Value: "good"}, {Name: event.AttrReplyTo, Value: "forged"}}}
		cloudevents.EncodeBinary(w.Header(), &e)
		_, _ = w.Write(e.Data)
	}
	answers := map[string]func(n int, w http.ResponseWriter){
		"binary": func(_ int, w http.ResponseWriter) { binary(w, "binary") },
		"structured": func(_ int, w http.ResponseWriter) {
			w.Header().Set("Content-Type", "application/cloudevents+json; charset=utf-8")
			_, _ = w.Write([]byte(`{"specversion":"1.0","id":"a","source":"/target","type":"answer","datacontenttype":"text/plain","mood":"good","data":"structured"}`))
		},
		"again": func(n int, w http.ResponseWriter) {
			if n == 1 {
				w.Header().Set("Ce-Specversion", "1.0")
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			binary(w, "again")
		},
		"plain":   func(_ int, w http.ResponseWriter) { _, _ = w.Write([]byte(`{"id":"a"}`)) },
		"nothing": func(_ int, w http.ResponseWriter) { w.WriteHeader(http.StatusNoContent) },
		"zipped": func(_ int, w http.ResponseWriter) {
			w.Header().Set("Content-Encoding", "gzip")
			binary(w, "zipped")
		},
		"old": func(_ int, w http.ResponseWriter) { w.Header().Set("Ce-Specversion", "0.3") },
		"no-json": func(_ int, w http.ResponseWriter) {
			w.Header().Set("Content-Type", cloudevents.TypeJSON)
			_, _ = w.Write([]byte("{"))
		},
		"too-much": func(_ int, w http.ResponseWriter) { binary(w, strings.Repeat("x", maxReply+1)) },
		"broken": func(_ int, w http.ResponseWriter) {
			w.Header().Set("Content-Length", "100")
			binary(w, "broken")
		},
	}
	var mu sync.Mutex
	times := map[string]int{}
	h := newHook(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get("Ce-Subject")
		mu.Lock()
		times[id]++
		n := times[id]
		mu.Unlock()
		answers[id](n, w)
	})
	type passed struct {
		token string
		wrong error
	}
	replies := make(chan passed, 100)
	var in atomic.Pointer[pipeline.Pipeline]
	w := newWorldWith(t, Config{Allow: loopback, Reply: func(ctx context.Context, key snapshot.Key, e event.Event, wrong error) error {
		token, _ := event.Lookup(e.Ext, event.AttrReplyTo)
		replies <- passed{token, wrong}
		return in.Load().ReplyFrom(ctx, key, e, wrong)
	}}, sub("orders", h.URL, func(s *snapshot.Subscription) { s.Push.Concurrency = 1 }))
	in.Store(w.in)
	snap := *w.snaps.Get()
	snap.Topics[topicOf("orders").Key].MaxEventBytes = 1 << 20
	snap.Stores = map[string]*snapshot.Store{uidStore: {UID: uidStore, Spec: &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}}}
	snap.Rules = policy.CompileRules([]policy.NamedPolicy{{Namespace: "demo", Name: "accesspolicy/demo/p", Spec: &configv1.AccessPolicy{Rules: []*configv1.AccessRule{
		{Name: "ask", Effect: configv1.Effect_EFFECT_ALLOW, Principals: []string{"local"}, Actions: []configv1.Action{configv1.Action_ACTION_PUBLISH}, Topics: []string{"orders"}}}}}}, nil)
	snap.Identities = policy.CompileIdentities(nil, nil, true)
	w.snaps.Store(&snap)
	asks := &policy.Principal{Name: "local"}
	next := func() (p passed) {
		select {
		case p = <-replies:
		case <-w.ctx.Done():
			t.Fatal("no reply was passed on")
		}
		return p
	}
	for answer, want := range map[string]string{"binary": "", "structured": "", "again": "", "plain": "none", "nothing": "none", "zipped": "Content-Encoding", "old": "0.3", "no-json": "at byte 1", "too-much": fmt.Sprint(maxReply), "broken": "broke off"} {
		timeout := 20 * time.Second
		if want != "" {
			timeout = 100 * time.Millisecond
		}
		e := *ev(answer)
		e.Subject = answer
		got, err := w.in.Request(w.ctx, asks, "demo", "orders", e, timeout)
		w.settled("orders")
		switch {
		case want == "":
			if mood, _ := event.Lookup(got.Ext, "mood"); err != nil || got.ID != "a" || got.Source != "/target" || string(got.Data) != answer || mood != "good" || len(got.Ext) != 1 {
				t.Errorf("%s: %+v, %v", answer, got, err)
			}
			next()
		case fault.From(err).Reason != "no-reply":
			t.Errorf("%s: %v", answer, err)
		case want != "none":
			if p := next(); p.wrong == nil || !strings.Contains(p.wrong.Error(), want) || len(p.token) < 60 {
				t.Errorf("%s: %v of %q", answer, p.wrong, p.token)
			}
		}
	}
	// What is no request has no reply.
	told := *ev("told")
	told.Subject = "binary"
	w.publish("orders", &told)
	w.settled("orders")
	select {
	case p := <-replies:
		t.Errorf("a reply that nobody asked for: %+v", p)
	default:
	}
}
