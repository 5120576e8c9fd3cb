package proxy

import (
	"strings"

	dto "github.com/prometheus/client_model/go"

	"google.golang.org/protobuf/types/known/timestamppb"

	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/push"
	"github.com/weft-mesh/weft/dataplane/stores"
	"github.com/weft-mesh/weft/pkg/resource"
)

// maxText bounds a store's problem as it is reported, maxBlocked the Subscriptions with
// keys that are blocked.
const (
	maxText    = 1024
	maxBlocked = 200
)

// reported is what this proxy reports of itself, but for its load.
func (p *Proxy) reported() *discoveryv1.ReportStatusRequest {
	out := &discoveryv1.ReportStatusRequest{Draining: p.draining.Load()}
	out.Config, _ = p.client.Applied()
	unusable := map[string]bool{}
	for _, s := range p.stores.Status() {
		if s.Problem != "" {
			out.Stores = append(out.Stores, storeState(s))
			unusable[s.UID] = true
		}
	}
	for _, d := range p.denied.All() {
		// What denies everything is the store's to tell.
		if name := p.topicOf(d.TopicUID); name != "" && !unusable[d.StoreUID] {
			out.Denied = append(out.Denied, &discoveryv1.DeniedState{Name: name, Reason: "AccessDenied", Message: text(string(d.Use) + ": " + d.Why), Since: timestamppb.New(d.Since)})
		}
	}
	for _, f := range p.pusher.Failing() {
		out.Targets = append(out.Targets, &discoveryv1.TargetState{Name: resource.Name(resource.Subscription, f.Subscription.Namespace, f.Subscription.Name),
			Reason: targetReasons[f.Outcome], Message: f.Why, Since: timestamppb.New(f.Since)})
	}
	blocked := p.deliveries.Blocked()
	for _, b := range blocked[:min(len(blocked), maxBlocked)] {
		out.Blocked = append(out.Blocked, &discoveryv1.BlockedState{Name: resource.Name(resource.Subscription, b.Subscription.Namespace, b.Subscription.Name),
			Keys: uint32(b.Keys), Topic: b.Topic, Position: b.Position.String(), Since: timestamppb.New(b.Since)})
	}
	return out
}

// targetReasons are the words for how requests to a target fail.
var targetReasons = map[string]string{push.Later: "Later", push.Gone: "Gone", push.Refused: "Refused", push.Forbidden: "Forbidden", push.Failed: "Unanswered", push.NoConsent: "NoConsent", push.Untrusted: "Untrusted"}

func storeState(s stores.Status) *discoveryv1.StoreState {
	return &discoveryv1.StoreState{Name: "eventstore/" + s.Store, Reason: s.Reason, Message: text(s.Problem)}
}

// text is a text as it is reported.
func text(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxText)], "") }

// topicOf is the canonical name of the Topic with a uid; "" where there is none.
func (p *Proxy) topicOf(uid string) string {
	for k, t := range p.snapshots.Get().Topics {
		if t.UID == uid {
			return resource.Name(resource.Topic, k.Namespace, k.Name)
		}
	}
	return ""
}

// load is what this proxy carries, as its metrics have it.
func (p *Proxy) load() *discoveryv1.Load {
	l := &discoveryv1.Load{}
	families, err := p.registry.Gather()
	if err != nil {
		p.cfg.Log.Warn("metrics cannot be read for the report", "error", err)
	}
	for _, f := range families {
		switch f.GetName() {
		case "weft_proxy_connections":
			for _, m := range f.Metric {
				if n := m.Label[0].GetValue(); n == listenHTTP || n == listenGRPC {
					l.Connections += uint32(m.Gauge.GetValue())
				}
			}
		case "weft_proxy_delivery_members", "weft_proxy_delivery_tails":
			l.Streams += uint32(total(f))
		case "weft_proxy_delivery_in_flight":
			l.InFlight += uint32(total(f))
		case "weft_proxy_publish_events_total":
			l.Published += uint64(total(f))
		case "weft_proxy_delivery_deliveries_total", "weft_proxy_delivery_tailed_total":
			l.Delivered += uint64(total(f))
		case "process_cpu_seconds_total":
			l.CpuMicros = uint64(total(f) * 1e6)
		case "process_resident_memory_bytes":
			l.MemoryBytes = uint64(total(f))
		}
	}
	return l
}

// total is the sum of a family's counters or gauges.
func total(f *dto.MetricFamily) float64 {
	sum := 0.0
	for _, m := range f.Metric {
		sum += m.Counter.GetValue() + m.Gauge.GetValue()
	}
	return max(0, sum)
}
