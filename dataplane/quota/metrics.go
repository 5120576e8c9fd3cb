package quota

import "github.com/prometheus/client_golang/prometheus"

// metrics are labelled with Quotas of the configuration ("namespace/name") and
// what of them was used up.
type metrics struct{ refused, shadowed *prometheus.CounterVec }

func newMetrics(reg prometheus.Registerer, l *Limiter) metrics {
	labels := []string{"quota", "limit"}
	m := metrics{
		refused:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_quota_exceeded_total", Help: "Publishes and connections that were refused since a Quota was used up; by what of it."}, labels),
		shadowed: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_quota_shadowed_total", Help: "What a shadowed Quota would have refused; by what of it was used up."}, labels),
	}
	if reg != nil {
		reg.MustRegister(m.refused, m.shadowed,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_proxy_quota_counted", Help: "Principals and topics whose use is counted now, for each Quota apart."}, func() float64 { return float64(l.held()) }))
	}
	return m
}

// over counts what was above a quota.
func (m metrics) over(r *Rule, limit string) {
	c := m.refused
	if r.shadow {
		c = m.shadowed
	}
	c.WithLabelValues(r.label(), limit).Inc()
}
