package pipeline

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/labels"
)

// metrics are labelled with topics of the configuration and reasons of a fixed
// set.
type metrics struct {
	events, errors *prometheus.CounterVec
	bytes          *prometheus.CounterVec
	sizes          *prometheus.HistogramVec
	refused        *labels.Counters
	mismatches     *prometheus.CounterVec
	unjudged       *prometheus.CounterVec
	requests       *prometheus.CounterVec
	seconds        *prometheus.HistogramVec
	batchEvents    prometheus.Histogram
	batchBytes     prometheus.Histogram
	stores         storeMetrics
	topics         kept[*topicMetrics]
	names          *labels.Names
}

// storeMetrics are those of writes, labelled with EventStores ("namespace/name")
// and the classes of errors.
type storeMetrics struct {
	seconds *prometheus.HistogramVec
	errors  *prometheus.CounterVec
	found   kept[prometheus.Observer]
}

// newMetrics makes them. The series of topics and stores that the configuration has no more
// go with the next look at the metrics.
func newMetrics(reg prometheus.Registerer, inFlight func() float64, now func() *snapshot.Snapshot) *metrics {
	topic := []string{"namespace", "topic"}
	m := &metrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_publish_events_total", Help: "Events that stores acknowledged, by the topic that they entered."}, topic),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_publish_errors_total", Help: "Events that were not acknowledged, by reason."}, append(topic, "reason")),
		bytes:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_publish_bytes_total", Help: "Bytes of events that stores acknowledged, data and attributes."}, topic),
		sizes: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "weft_proxy_publish_event_bytes", Help: "Bytes of an event that a store acknowledged, data and attributes.",
			Buckets: prometheus.ExponentialBuckets(64, 8, 7)}, topic),
		refused: labels.NewCounters(reg, prometheus.CounterOpts{Name: "weft_proxy_publish_refused_total", Help: "Events that were refused for their topic: the rules deny it, or it is not there or not ready; by reason."}, []string{"namespace"}, []string{"reason"},
			func(of [2]string) bool { return namespaceLabel(now(), of[0]) == of[0] }),
		unjudged:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_route_filter_errors_total", Help: "SQL expressions of a Route that could not be evaluated for an event, and so did not match, by the topic that it entered."}, topic),
		mismatches: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_schema_mismatches_total", Help: "Events whose data do not conform to their topic's Schema, by whether that refused them: enforced or shadowed."}, append(topic, "mode")),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_requests_total",
			Help: "Requests that wait for a reply, by outcome: replied, no-reply (at the deadline, or since the credentials ended or the proxy stopped), failed (it was not published), gone (its client has)."}, append(topic, "outcome")),
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
	m.names = labels.New(reg, "topic", func() { m.forget(now()) })
	if reg != nil {
		reg.MustRegister(m.events, m.errors, m.bytes, m.sizes, m.mismatches, m.unjudged, m.requests, m.seconds, m.batchEvents, m.batchBytes, m.stores.seconds, m.stores.errors,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_proxy_publish_in_flight_bytes", Help: "Bytes of events that wait for stores."}, inFlight))
	}
	return m
}

// topicMetrics are those of one topic.
type topicMetrics struct {
	m             *metrics
	labels        snapshot.Key // its own, or those of all for which there is no room
	events, bytes prometheus.Counter
	sizes         prometheus.Observer
	seconds       prometheus.Observer
}

// of is what counts for a topic.
func (m *metrics) of(t *snapshot.Topic) *topicMetrics {
	return m.topics.of(t.Key, func() *topicMetrics {
		ns, name := m.names.Of(t.Namespace, t.Name)
		return &topicMetrics{m, snapshot.Key{Namespace: ns, Name: name}, m.events.WithLabelValues(ns, name), m.bytes.WithLabelValues(ns, name), m.sizes.WithLabelValues(ns, name), m.seconds.WithLabelValues(ns, name)}
	})
}

// forget removes the series of topics and stores that are no more.
func (m *metrics) forget(now *snapshot.Snapshot) {
	stores := map[snapshot.Key]bool{{}: true} // of what is written where there is none
	for _, s := range now.Stores {
		stores[s.Key] = true
	}
	for _, key := range m.stores.found.drop(func(key snapshot.Key) bool { return stores[key] }) {
		l := prometheus.Labels{"store": label(key)}
		m.stores.seconds.Delete(l)
		m.stores.errors.DeletePartialMatch(l)
	}
	for _, key := range m.topics.drop(func(key snapshot.Key) bool { return now.Topics[key] != nil }) {
		if !m.names.Forget(key.Namespace, key.Name) {
			continue
		}
		l := prometheus.Labels{"namespace": key.Namespace, "topic": key.Name}
		for _, v := range []interface {
			DeletePartialMatch(labels prometheus.Labels) int
		}{m.events, m.errors, m.bytes, m.sizes, m.mismatches, m.unjudged, m.requests, m.seconds} {
			v.DeletePartialMatch(l)
		}
	}
}

// failed counts n events that were not acknowledged.
func (m *topicMetrics) failed(reason string, n int) {
	m.m.errors.WithLabelValues(m.labels.Namespace, m.labels.Name, reason).Add(float64(n))
}

// done counts a batch of so many bytes.
func (m *topicMetrics) done(events []event.Event, size int64, res []frontend.Result, took time.Duration) {
	kept := len(res)
	for i := range res {
		n := events[i].Size()
		if res[i].Err != nil {
			kept--
			size -= int64(n)
			m.failed(reason(res[i].Err), 1)
			continue
		}
		m.sizes.Observe(float64(n))
	}
	m.events.Add(float64(kept))
	m.bytes.Add(float64(size))
	m.seconds.Observe(took.Seconds())
}

// kept keeps what was found for a key: to find a metric by its labels costs more
// than to count. There are as many as there are metrics.
type kept[V any] struct {
	mu sync.RWMutex
	m  map[snapshot.Key]V
}

func (k *kept[V]) of(key snapshot.Key, find func() V) V {
	k.mu.RLock()
	v, ok := k.m[key]
	k.mu.RUnlock()
	if ok {
		return v
	}
	v = find()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.m == nil {
		k.m = map[snapshot.Key]V{}
	}
	k.m[key] = v
	return v
}

// drop forgets the keys that has does not know, and gives them.
func (k *kept[V]) drop(has func(snapshot.Key) bool) (gone []snapshot.Key) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for key := range k.m {
		if !has(key) {
			delete(k.m, key)
			gone = append(gone, key)
		}
	}
	return gone
}

// mismatched counts an event that does not conform to its topic's schema.
func (m *metrics) mismatched(t *snapshot.Topic) {
	mode := "enforced"
	if t.Schema.Shadowed {
		mode = "shadowed"
	}
	l := m.of(t).labels
	m.mismatches.WithLabelValues(l.Namespace, l.Name, mode).Inc()
}

// unjudgedBy counts an expression of a topic's Route that could not be evaluated.
func (m *metrics) unjudgedBy(t *snapshot.Topic) {
	l := m.of(t).labels
	m.unjudged.WithLabelValues(l.Namespace, l.Name).Inc()
}

// asked counts a request for which somebody waited.
func (m *metrics) asked(t *snapshot.Topic, outcome string) {
	l := m.of(t).labels
	m.requests.WithLabelValues(l.Namespace, l.Name, outcome).Inc()
}

// arrived counts a batch that came.
func (m *metrics) arrived(events int, bytes int64) {
	m.batchEvents.Observe(float64(events))
	m.batchBytes.Observe(float64(bytes))
}

// wrote counts one write of a store.
func (m *storeMetrics) wrote(key snapshot.Key, err error, took time.Duration) {
	m.found.of(key, func() prometheus.Observer { return m.seconds.WithLabelValues(label(key)) }).Observe(took.Seconds())
	if err != nil {
		m.errors.WithLabelValues(label(key), fault.ClassOf(err).String()).Inc()
	}
}

// label is the label of a store; "" for one that is not there any more.
func label(store snapshot.Key) string {
	if store == (snapshot.Key{}) {
		return ""
	}
	return store.String()
}
