package http

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
)

// TestTold: who spells something wrong is told what, and what there is.
func TestTold(t *testing.T) {
	w := serve(t)
	const orders, billing = "/v1/demo/topics/orders", "/v1/demo/subscriptions/billing"
	for _, tc := range []struct{ path, body, says string }{
		{orders + "?start=now", "x", `the query has "start", which is not a parameter of this call: there are none here`},
		{orders + ":request?wait=1s", "x", `the query has "wait", which is not a parameter of this call: there is timeout`},
		{orders + ":ask", "x", `the verb ":ask" is not known behind the topic's name: POST publishes, and waits for the reply with :request`},
		{billing + ":ack", "", `the verb ":ack" is not known behind the subscription's name: there are :pull and :settle`},
		{billing, "", `a verb is missing behind the subscription's name: there are :pull and :settle`},
		{billing + ":pull", `{"max_events": "3"}`, "the body is not what this call takes: max_events is to be a whole number, and is string"},
		{billing + ":pull", `{"max_events": 1.5}`, "max_events is to be a whole number, and is number 1.5"},
		{billing + ":pull", `[]`, "it is to be an object, and is array"},
		{billing + ":pull", `{"wait": 3}`, "wait is to be text, and is number"},
		{billing + ":pull", `{"wait": "61s"}`, "a pull is for 1 to 1000 events and waits 0s to 1m"},
		{billing + ":pull", `{"wat": "3s"}`, `what this call takes: unknown field "wat"`},
		{billing + ":pull", `{"wait": }`, "it is not JSON: invalid character '}' looking for beginning of value, at byte 10"},
		{billing + ":pull", `{"wait": `, "it is not JSON: it ends too soon"},
		{billing + ":settle", `{"nack": [{"delivery_ids": "x"}]}`, "nack[0].delivery_ids is to be a list, and is string"},
		{billing + ":settle", `{"nack": ["x"]}`, "what this call takes: nack[0] is to be an object, and is string"},
		{billing + ":settle", `{"nack": {"delivery_ids": ["x"]}}`, "what this call takes: nack is to be a list, and is object"},
		{billing + ":settle", `{"extend": [{}, "x"]}`, "what this call takes: extend[1] is to be an object, and is string"},
		{billing + ":settle", `{"ack": ["x", 1]}`, "what this call takes: ack[1] is to be text, and is number"},
		{billing + ":settle", `{"nack": [{"delivery_ids": [1]}]}`, "what this call takes: nack[0].delivery_ids[0] is to be text, and is number"},
		{billing + ":settle", `{"nack":[{"delivery_ids":["x"],"delay":"25h"}]}`, "a delay is 0s to 24h"},
		{billing + ":settle", `{"extend":[{"delivery_ids":["x"],"ack_timeout":"2h"}]}`, "an ack_timeout is more than 0s and at most 1h"},
	} {
		_, body := w.ask("POST", tc.path, tc.body, "ce-specversion: 1.0", "ce-id: 1", "ce-source: /s", "ce-type: t")
		var d details
		if err := json.Unmarshal([]byte(body), &d); err != nil || !strings.HasSuffix(d.Detail, tc.says) {
			t.Errorf("%s %s: %s", tc.path, tc.body, body)
		}
	}
}

// TestToldOfAnotherHost: who calls loopback by another host's name, and shows no
// credentials, hears that this is what is wrong.
func TestToldOfAnotherHost(t *testing.T) {
	w := serve(t)
	for header, says := range map[string]string{
		"Host: shop.example:80":     `the Host is "shop.example", and without credentials`,
		"Origin: https://a.example": "a page of another site",
	} {
		resp, body := w.ask("POST", orders, "x", append([]string{header}, inBinary...)...)
		var d details
		if err := json.Unmarshal([]byte(body), &d); err != nil || resp.StatusCode != http.StatusUnauthorized || d.Reason != "cross-site" || !strings.HasPrefix(d.Detail, says) {
			t.Errorf("%s: %d %s", header, resp.StatusCode, body)
		}
	}
}
