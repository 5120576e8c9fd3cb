package tlsconf

import "github.com/prometheus/client_golang/prometheus"

// metrics shows sources. It looks at their files when it is read, so that what is
// wrong with them is known before somebody connects.
type metrics struct {
	sources                          []*Source
	reloads, unusable, start, expiry *prometheus.Desc
}

// Metrics shows sources, by their names. prefix is that of the metrics' names.
func Metrics(prefix string, sources ...*Source) prometheus.Collector {
	files := []string{"files"}
	return metrics{sources,
		prometheus.NewDesc(prefix+"_tls_reloads_total", "Times that TLS files had changed and were read again, by outcome: ok or failed; files that failed are tried again.", append(files, "outcome"), nil),
		prometheus.NewDesc(prefix+"_tls_files_unusable", "1 while TLS files that have changed cannot be used and what they had before stays in force, else 0.", files, nil),
		prometheus.NewDesc(prefix+"_tls_certificate_start_timestamp_seconds", "When the certificate in force begins, Unix time.", files, nil),
		prometheus.NewDesc(prefix+"_tls_certificate_expiry_timestamp_seconds", "When the certificate in force ends, Unix time.", files, nil)}
}

// Describe implements prometheus.Collector.
func (m metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.reloads
	ch <- m.unusable
	ch <- m.start
	ch <- m.expiry
}

// Collect implements prometheus.Collector.
func (m metrics) Collect(ch chan<- prometheus.Metric) {
	for _, s := range m.sources {
		s.mu.Lock()
		s.look()
		cert, failed, loads, faults := s.cert, s.failed, s.loads, s.faults
		s.mu.Unlock()
		unusable := 0.
		if failed != nil {
			unusable = 1
		}
		ch <- prometheus.MustNewConstMetric(m.reloads, prometheus.CounterValue, float64(loads), s.name, "ok")
		ch <- prometheus.MustNewConstMetric(m.reloads, prometheus.CounterValue, float64(faults), s.name, "failed")
		ch <- prometheus.MustNewConstMetric(m.unusable, prometheus.GaugeValue, unusable, s.name)
		if cert != nil {
			ch <- prometheus.MustNewConstMetric(m.start, prometheus.GaugeValue, float64(cert.Leaf.NotBefore.Unix()), s.name)
			ch <- prometheus.MustNewConstMetric(m.expiry, prometheus.GaugeValue, float64(cert.Leaf.NotAfter.Unix()), s.name)
		}
	}
}
