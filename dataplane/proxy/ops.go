package proxy

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/dataplane/stores"
	"github.com/weft-mesh/weft/pkg/listener"
	"github.com/weft-mesh/weft/pkg/version"
)

// Most connections of the listeners that are not for clients.
const (
	maxHealthConnections = 256
	maxOpsConnections    = 64 // and of metrics'
	// maxScrapes is how many may ask for metrics at a time.
	maxScrapes = 4
)

// slowPages are for operations: a profile takes as long as it is asked for.
var slowPages = listener.HTTPLimits{Write: 5 * time.Minute}

// health serves readiness and nothing else: it may be open to the network.
func (p *Proxy) health() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", p.readyz)
	return mux
}

// metrics serves metrics and nothing else: it may be open to the network.
func (p *Proxy) metrics() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.registry, promhttp.HandlerOpts{Registry: p.registry, MaxRequestsInFlight: maxScrapes}))
	return mux
}

// operations is for those who are on this machine.
func (p *Proxy) operations() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", p.metrics())
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", p.readyz)
	mux.HandleFunc("GET /debug/config", p.debugConfig)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return listener.OnlyLocal(mux)
}

func (p *Proxy) readyz(w http.ResponseWriter, _ *http.Request) {
	if err := p.ready(); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	_, _ = w.Write([]byte("ok\n"))
}

// view is the configuration in force for people: names and states, no content
// that could be secret.
type view struct {
	Node          string          `json:"node"`
	Incarnation   string          `json:"incarnation"`
	Version       string          `json:"version"`
	Lineage       string          `json:"lineage"`
	Revision      int64           `json:"revision"`
	Origin        snapshot.Origin `json:"origin"`
	Stale         bool            `json:"stale,omitempty"`
	Withheld      []string        `json:"withheld,omitempty"`
	Stores        []stores.Status `json:"stores"`
	Topics        []thing         `json:"topics"`
	Subscriptions []thing         `json:"subscriptions"`
}

type thing struct {
	Name     string `json:"name"`
	UID      string `json:"uid"`
	NotReady string `json:"not_ready,omitempty"`
}

func (p *Proxy) debugConfig(w http.ResponseWriter, _ *http.Request) {
	s := p.snapshots.Get()
	v := view{Node: p.nodeID, Incarnation: p.incarnation, Version: version.String(), Lineage: s.Lineage, Revision: s.Revision, Origin: s.Origin, Stale: p.stale.Load(),
		Withheld: p.withheld(), Stores: p.stores.Status(), Topics: things(s.Topics, func(t *snapshot.Topic) thing { return thing{t.Key.String(), t.UID, t.NotReady} }),
		Subscriptions: things(s.Subscriptions, func(t *snapshot.Subscription) thing { return thing{t.Key.String(), t.UID, t.NotReady} })}
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		p.cfg.Log.Debug("writing the configuration", "error", err)
	}
}

func things[T any](m map[snapshot.Key]T, of func(T) thing) []thing {
	out := make([]thing, 0, len(m))
	for _, v := range m {
		out = append(out, of(v))
	}
	slices.SortFunc(out, func(a, b thing) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// connections counts the connections of the listeners.
func connections(ls map[string]*listener.Listener) []prometheus.Collector {
	var out []prometheus.Collector
	for name, l := range ls {
		labels := prometheus.Labels{"listener": name}
		out = append(out,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_proxy_connections", Help: "Open connections of a listener.", ConstLabels: labels},
				func() float64 { return float64(l.Count()) }),
			prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "weft_proxy_connections_accepted_total", Help: "Connections that a listener took.", ConstLabels: labels},
				func() float64 { return float64(l.Accepted()) }))
		for _, why := range listener.Reasons() {
			out = append(out, prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "weft_proxy_connections_refused_total", Help: "Connections that a listener had no room for: at its limit, or since the process has too few descriptors.",
				ConstLabels: prometheus.Labels{"listener": name, "reason": why.String()}}, func() float64 { return float64(l.Refused(why)) }))
		}
		if name == listenGRPC {
			out = append(out, prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "weft_proxy_connections_stalled_total", Help: "Connections that were closed since their client took nothing of what a stream had for it.", ConstLabels: labels},
				func() float64 { return float64(l.Stalled()) }),
				prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "weft_proxy_connections_unfinished_total", Help: "Connections that were closed where messages that had begun and were not whole took too much, since one of theirs had begun first.", ConstLabels: labels},
					func() float64 { return float64(l.Unfinished()) }))
		}
	}
	return out
}

// ready is nil while the proxy serves: it has a configuration, with what is to be
// preloaded, and is not stopping.
func (p *Proxy) ready() error {
	switch s := p.snapshots.Get(); {
	case p.draining.Load():
		return fmt.Errorf("the proxy is shutting down")
	case s.Lineage == "":
		return fmt.Errorf("%s", errNoConfiguration.Msg)
	}
	select {
	case <-p.client.Preloaded():
	default:
		return fmt.Errorf("the names to preload have not been heard of")
	}
	return nil
}
