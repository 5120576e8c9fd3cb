package delivery

import "github.com/prometheus/client_golang/prometheus"

// metrics are labelled with namespace and subscription, whose number the
// configuration bounds.
type metrics struct {
	delivered, settled, nacked, timedOut, retried, deadLettered, filtered, stale *prometheus.CounterVec
	bytes, storeErrors                                                           *prometheus.CounterVec
	settleSeconds                                                                *prometheus.HistogramVec
	inFlight                                                                     *prometheus.GaugeVec
	members                                                                      *prometheus.GaugeVec
	tails                                                                        prometheus.Gauge
	tailed                                                                       prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_delivery_" + name, Help: help}, []string{"namespace", "subscription"})
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "weft_proxy_delivery_" + name, Help: help}, []string{"namespace", "subscription"})
	}
	m := &metrics{
		delivered:    counter("deliveries_total", "Events given to members, repeats included."),
		settled:      counter("acks_total", "Deliveries that members settled."),
		nacked:       counter("nacks_total", "Deliveries that members gave back."),
		timedOut:     counter("timeouts_total", "Deliveries that were not settled in time."),
		retried:      counter("retries_total", "Events kept for another attempt."),
		deadLettered: counter("dead_letters_total", "Events written to the dead-letter topic."),
		filtered:     counter("filtered_total", "Events that the filter left out."),
		bytes:        counter("bytes_total", "Bytes of events given to members, data and attributes, repeats included."),
		storeErrors:  counter("store_errors_total", "Failures to read a Subscription's topics, or to write its retries and dead letters away."),
		settleSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "weft_proxy_delivery_settle_duration_seconds", Help: "Time from a delivery to its settlement by the member.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10)}, []string{"namespace", "subscription"}),
		stale:    counter("stale_settlements_total", "Settlements of deliveries that were no longer the member's."),
		inFlight: gauge("in_flight", "Deliveries that are not settled."),
		members:  gauge("members", "Members on this proxy."),
		tails:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_proxy_delivery_tails", Help: "Open tails."}),
		tailed:   prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_proxy_delivery_tailed_total", Help: "Events given to tails."}),
	}
	if reg != nil {
		reg.MustRegister(m.delivered, m.settled, m.nacked, m.timedOut, m.retried, m.deadLettered, m.filtered, m.stale,
			m.bytes, m.storeErrors, m.settleSeconds, m.inFlight, m.members, m.tails, m.tailed)
	}
	return m
}

// forget removes the series of a subscription that was deleted.
func (m *metrics) forget(namespace, subscription string) {
	l := prometheus.Labels{"namespace": namespace, "subscription": subscription}
	for _, v := range []interface {
		DeletePartialMatch(labels prometheus.Labels) int
	}{m.delivered, m.settled, m.nacked, m.timedOut, m.retried, m.deadLettered, m.filtered, m.stale, m.bytes, m.storeErrors, m.settleSeconds, m.inFlight, m.members} {
		v.DeletePartialMatch(l)
	}
}

// subMetrics are the metrics of one subscription.
type subMetrics struct {
	delivered, settled, nacked, timedOut, retried, deadLettered, filtered, stale prometheus.Counter
	bytes, storeErrors                                                           prometheus.Counter
	settleSeconds                                                                prometheus.Observer
	inFlight, members                                                            prometheus.Gauge
}

func (m *metrics) of(namespace, subscription string) subMetrics {
	l := []string{namespace, subscription}
	return subMetrics{m.delivered.WithLabelValues(l...), m.settled.WithLabelValues(l...), m.nacked.WithLabelValues(l...), m.timedOut.WithLabelValues(l...),
		m.retried.WithLabelValues(l...), m.deadLettered.WithLabelValues(l...), m.filtered.WithLabelValues(l...), m.stale.WithLabelValues(l...),
		m.bytes.WithLabelValues(l...), m.storeErrors.WithLabelValues(l...), m.settleSeconds.WithLabelValues(l...), m.inFlight.WithLabelValues(l...), m.members.WithLabelValues(l...)}
}
