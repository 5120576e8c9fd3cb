package discovery

import (
	"github.com/prometheus/client_golang/prometheus"
)

type serverMetrics struct {
	streams                                               prometheus.Gauge
	put, removed, bytes, acks, nacks                      prometheus.Counter
	rejected, fullSyncs, resumes, mismatches, quarantines prometheus.Counter
	seconds                                               prometheus.Histogram
	waiting                                               prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer, behind func() float64) serverMetrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_controlplane_discovery_" + name, Help: help})
	}
	sent := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_controlplane_discovery_resources_sent_total", Help: "Resources sent to proxies, by what was said of them."}, []string{"change"})
	answers := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_controlplane_discovery_answers_total", Help: "Answers of proxies to deltas."}, []string{"answer"})
	m := serverMetrics{
		streams: prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_controlplane_discovery_streams", Help: "Open discovery streams."}),
		put:     sent.WithLabelValues("put"), removed: sent.WithLabelValues("removed"),
		acks: answers.WithLabelValues("ack"), nacks: answers.WithLabelValues("nack"),
		bytes:       counter("sent_bytes_total", "Bytes of resources sent to proxies."),
		rejected:    counter("rejected_resources_total", "Resources that proxies refused."),
		fullSyncs:   counter("full_syncs_total", "Streams that were sent their whole scope."),
		resumes:     counter("resumes_total", "Streams that went on from what their proxy had."),
		mismatches:  counter("resume_mismatches_total", "Proxies that had another content than etcd at the same revision; each was sent everything."),
		quarantines: counter("quarantines_total", "Versions of resources that this replica put in quarantine."),
		waiting:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_controlplane_discovery_full_syncs_waiting", Help: "Streams that wait for their turn to be sent their whole scope."}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "weft_controlplane_discovery_answer_duration_seconds", Help: "Time from sending a delta to the proxy's answer to all of it.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10)}),
	}
	if reg != nil {
		reg.MustRegister(m.streams, sent, m.bytes, answers, m.rejected, m.fullSyncs, m.resumes, m.mismatches, m.quarantines, m.waiting, m.seconds,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_controlplane_discovery_proxies_behind", Help: "Connected proxies that have not acknowledged the newest revision sent to them."}, behind))
	}
	return m
}
