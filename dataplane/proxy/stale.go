package proxy

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/pkg/duration"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
)

// staleness says which namespaces are denied once the configuration is stale.
type staleness struct {
	rest bool            // those that are not named
	deny map[string]bool // by namespace
}

// parseStale reads "deny" or "serve", for all namespaces, and "namespace=deny" or
// "namespace=serve".
func parseStale(list []string) (staleness, error) {
	s := staleness{deny: map[string]bool{}}
	for _, entry := range list {
		ns, what, named := strings.Cut(entry, "=")
		if !named {
			what = ns
		}
		if what != "deny" && what != "serve" {
			return s, fmt.Errorf("%q is neither deny, serve, nor one of these for a namespace: NAMESPACE=deny", entry)
		}
		if !named {
			s.rest = what == "deny"
			continue
		}
		if err := names.CheckNamespace(ns); err != nil {
			return s, err
		}
		s.deny[ns] = what == "deny"
	}
	return s, nil
}

// denies reports whether a namespace is denied.
func (s staleness) denies(namespace string) bool {
	deny, named := s.deny[namespace]
	return named && deny || !named && s.rest
}

// refusal is why a namespace is not served by a stale configuration.
func (s staleness) refusal(after time.Duration) func(namespace string) error {
	return func(namespace string) error {
		if !s.denies(namespace) {
			return nil
		}
		f := fault.New(fault.Unavailable, "configuration", "configuration-stale", "no control plane has confirmed this proxy's configuration for more than %s, and by a stale one namespace %s is not served", duration.Text(after), namespace)
		f.RetryAfter = time.Second
		return f
	}
}

// staleLook is the longest time between two looks at how old the configuration is.
const staleLook = time.Second

// isStale reports whether the configuration is too old by now.
func (p *Proxy) isStale() bool { return p.client.Age() > p.cfg.StaleAfter }

// runStale has the configuration applied again once it is stale, and once it is not
// any more.
func (p *Proxy) runStale(ctx context.Context) error {
	look := time.NewTicker(min(staleLook, p.cfg.StaleAfter/4+time.Millisecond))
	defer look.Stop()
	for {
		if p.isStale() != p.stale.Load() {
			p.applyAgain()
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *Proxy) staleMetric() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_proxy_config_stale", Help: "1 while the configuration is older than --stale-after, and namespaces with --on-stale deny are refused; else 0."}, func() float64 {
		if p.stale.Load() {
			return 1
		}
		return 0
	})
}
