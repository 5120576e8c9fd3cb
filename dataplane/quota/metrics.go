package quota

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/pkg/labels"
)

// metrics are labelled with Quotas of the configuration ("namespace/name") and
// what of them was used up.
type metrics struct{ refused, shadowed *labels.Counters }

func newMetrics(reg prometheus.Registerer, l *Limiter, now func() *Rules) metrics {
	there := func(of [2]string) bool { return now().has(of[0]) }
	if reg != nil {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_proxy_quota_counted", Help: "Principals and topics whose use is counted now, for each Quota apart."}, func() float64 { return float64(l.held()) }))
	}
	return metrics{
		refused:  labels.NewCounters(reg, prometheus.CounterOpts{Name: "weft_proxy_quota_exceeded_total", Help: "Publishes and connections that were refused since a Quota was used up; by what of it."}, []string{"quota"}, []string{"limit"}, there),
		shadowed: labels.NewCounters(reg, prometheus.CounterOpts{Name: "weft_proxy_quota_shadowed_total", Help: "What a shadowed Quota would have refused; by what of it was used up."}, []string{"quota"}, []string{"limit"}, there),
	}
}

// over counts what was above a quota.
func (m metrics) over(r *Rule, limit string) {
	c := m.refused
	if r.shadow {
		c = m.shadowed
	}
	c.Add(1, [2]string{r.label()}, limit)
}
