package pipeline

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
)

// metrics are labelled with topics of the configuration and reasons of a fixed
// set.
type metrics struct {
	events, errors *prometheus.CounterVec
	bytes          *prometheus.CounterVec
	refused        *prometheus.CounterVec
	seconds        *prometheus.HistogramVec
	batchEvents    prometheus.Histogram
	batchBytes     prometheus.Histogram
	stores         storeMetrics
}

// storeMetrics are those of writes, labelled with EventStores ("namespace/name")
// and the classes of errors.
type storeMetrics struct {
	seconds *prometheus.HistogramVec
	errors  *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, inFlight func() float64) metrics {
	topic := []string{"namespace", "topic"}
	m := metrics{
		events:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_publish_events_total", Help: "Events that stores acknowledged, by the topic that they entered."}, topic),
		errors:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_publish_errors_total", Help: "Events that were not acknowledged, by reason."}, append(topic, "reason")),
		bytes:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_publish_bytes_total", Help: "Bytes of events that stores acknowledged, data and attributes."}, topic),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_publish_refused_total", Help: "Events that were refused for their topic: the rules deny it, or it is not there or not ready; by reason."}, []string{"namespace", "reason"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "weft_proxy_publish_duration_seconds", Help: "Time from a batch's arrival to its outcome.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2.5, 13)}, topic),
		batchEvents: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "weft_proxy_publish_batch_events", Help: "Events of a batch that came; one by itself is a batch of one.",
			Buckets: prometheus.ExponentialBuckets(1, 4, 6)}),
		batchBytes: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "weft_proxy_publish_batch_bytes", Help: "Bytes of a batch that came, data and attributes.",
			Buckets: prometheus.ExponentialBuckets(64, 4, 10)}),
		stores: storeMetrics{
			seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "weft_proxy_store_write_duration_seconds", Help: "Time that a store takes for one write, dead letters among them.",
				Buckets: prometheus.ExponentialBuckets(0.0001, 2.5, 13)}, []string{"store"}),
			errors: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_store_write_errors_total", Help: "Writes of which a store did not keep all, by the class of the error."}, []string{"store", "class"}),
		},
	}
	if reg != nil {
		reg.MustRegister(m.events, m.errors, m.bytes, m.refused, m.seconds, m.batchEvents, m.batchBytes, m.stores.seconds, m.stores.errors,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_proxy_publish_in_flight_bytes", Help: "Bytes of events that wait for stores."}, inFlight))
	}
	return m
}

// topicMetrics are those of one topic.
type topicMetrics struct {
	m metrics
	t *snapshot.Topic
}

func (m metrics) of(t *snapshot.Topic) topicMetrics { return topicMetrics{m: m, t: t} }

func (m topicMetrics) failed(reason string, n int) {
	m.m.errors.WithLabelValues(m.t.Namespace, m.t.Name, reason).Add(float64(n))
}

func (m topicMetrics) done(events []event.Event, res []frontend.Result, took time.Duration) {
	kept, size := 0, 0
	for i := range res {
		if res[i].Err == nil {
			kept++
			size += events[i].Size()
		} else {
			m.failed(reason(res[i].Err), 1)
		}
	}
	m.m.events.WithLabelValues(m.t.Namespace, m.t.Name).Add(float64(kept))
	m.m.bytes.WithLabelValues(m.t.Namespace, m.t.Name).Add(float64(size))
	m.m.seconds.WithLabelValues(m.t.Namespace, m.t.Name).Observe(took.Seconds())
}

// arrived counts a batch that came.
func (m metrics) arrived(events int, bytes int64) {
	m.batchEvents.Observe(float64(events))
	m.batchBytes.Observe(float64(bytes))
}

// wrote counts one write of a store.
func (m storeMetrics) wrote(name string, err error, took time.Duration) {
	m.seconds.WithLabelValues(name).Observe(took.Seconds())
	if err != nil {
		m.errors.WithLabelValues(name, fault.ClassOf(err).String()).Inc()
	}
}

// storeLabel is the label of an epoch's store.
func storeLabel(snap *snapshot.Snapshot, uid string) string {
	if s := snap.Stores[uid]; s != nil {
		return s.Key.String()
	}
	return ""
}
