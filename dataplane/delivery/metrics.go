package delivery

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/pkg/labels"
)

// metrics are labelled with namespace and subscription, whose number the
// configuration bounds.
type metrics struct {
	delivered, settled, nacked, timedOut, retried, deadLettered, filtered, filterErrors, untransformed, stale *prometheus.CounterVec
	exhausted                                                                                                 *prometheus.CounterVec
	blockedKeys, unwritable                                                                                   *prometheus.GaugeVec
	redriven                                                                                                  *prometheus.CounterVec
	bytes, storeErrors                                                                                        *prometheus.CounterVec
	settleSeconds, latency, endToEnd                                                                          *prometheus.HistogramVec
	stalled                                                                                                   *prometheus.CounterVec // and by cause
	inFlight, oldest, lag                                                                                     *prometheus.GaugeVec   // lag by topic too
	members                                                                                                   *prometheus.GaugeVec
	tails, feeds, pullSessions, pullsWaiting                                                                  prometheus.Gauge
	tailed, catchUps                                                                                          prometheus.Counter
	names                                                                                                     *labels.Names
}

// ages are buckets of how old events are, in seconds: from a millisecond to three days.
var ages = prometheus.ExponentialBuckets(0.001, 4, 15)

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_delivery_" + name, Help: help}, []string{"namespace", "subscription"})
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "weft_proxy_delivery_" + name, Help: help}, []string{"namespace", "subscription"})
	}
	m := &metrics{
		delivered:   counter("deliveries_total", "Events given to members, repeats included."),
		settled:     counter("acks_total", "Deliveries that members settled."),
		nacked:      counter("nacks_total", "Deliveries that members gave back."),
		timedOut:    counter("timeouts_total", "Deliveries that were not settled in time."),
		retried:     counter("retries_total", "Events kept for another attempt."),
		exhausted:   counter("exhausted_total", "Attempts that failed after the last that was asked for, of events that are repeated all the same."),
		blockedKeys: gauge("blocked_keys", "Ordering keys that an event which failed holds up."),
		unwritable:  gauge("unwritable_events", "Events that failed and that neither the retry topic nor the dead-letter topic takes for what they are, as ones that are too large: they are kept, and given out again until somebody settles them."),
		deadLettered: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_delivery_dead_letters_total", Help: "Events written to the dead-letter topic, by the cause of the last attempt: it was given back (failed), not settled in time (timeout), or with a member whose connection ended (lost), as often as may be; or it was rejected, or the transform could not be applied, or the retry topic does not take the event for another attempt (refused), and no other attempt would change that."},
			[]string{"namespace", "subscription", "cause"}),
		redriven:      counter("redriven_total", "Dead letters that were given back."),
		filtered:      counter("filtered_total", "Events that the filter left out."),
		untransformed: counter("transform_errors_total", "Events that the transform could not be applied to, written to the dead-letter topic; they count among deliveries."),
		filterErrors:  counter("filter_errors_total", "SQL expressions of the filter that could not be evaluated for an event, and so did not match."),
		bytes:         counter("bytes_total", "Bytes of events given to members, data and attributes, repeats included."),
		storeErrors:   counter("store_errors_total", "Failures to read a Subscription's topics, or to write its retries and dead letters away."),
		settleSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "weft_proxy_delivery_settle_duration_seconds", Help: "Time from a delivery to its settlement by the member.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10)}, []string{"namespace", "subscription"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "weft_proxy_delivery_latency_seconds", Help: "Age of events, since their store got them, when a member gets them first.",
			Buckets: ages}, []string{"namespace", "subscription"}),
		endToEnd: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "weft_proxy_delivery_end_to_end_seconds", Help: "Age of events, since their store got them, when a member has settled them; of one that waited in the retry topic, since its first attempt.",
			Buckets: ages}, []string{"namespace", "subscription"}),
		stalled: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_delivery_stalled_seconds_total", Help: "Time in which topics of the Subscription were not read, by cause: no member waits with credit left (credit), as many events are unsettled as may be (window), its rate holds back what was read (rate), the topic has moved and what its store before has is not settled yet (epoch). Each topic counts."},
			[]string{"namespace", "subscription", "cause"}),
		oldest: gauge("oldest_unsettled_seconds", "Age of the oldest event that this proxy has read and nobody has settled, every 15 seconds; 0 without one."),
		lag: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "weft_proxy_delivery_lag_events", Help: "Events of the topic that the Subscription has not settled, as the store counts them, every 15 seconds or more; each proxy tells it of all Subscriptions that it has, so take the maximum."},
			[]string{"namespace", "subscription", "topic"}),
		stale:        counter("stale_settlements_total", "Settlements of deliveries that were no longer the member's."),
		inFlight:     gauge("in_flight", "Deliveries that are not settled."),
		members:      gauge("members", "Members on this proxy."),
		tails:        prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_proxy_delivery_tails", Help: "Open tails."}),
		pullSessions: prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_proxy_delivery_pull_sessions", Help: "Principals that pull a Subscription, one for each of both; each is one of its members."}),
		pullsWaiting: prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_proxy_delivery_pulls_waiting", Help: "Pulls in progress."}),
		tailed:       prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_proxy_delivery_tailed_total", Help: "Events given to tails."}),
		feeds:        prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_proxy_delivery_tail_feeds", Help: "Topics that are read once for all tails at their end."}),
		catchUps:     prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_proxy_delivery_tail_catch_ups_total", Help: "Tails that began elsewhere than at the end of a topic, or fell behind it, and read it by themselves until they are there."}),
	}
	m.names = labels.New(reg, "subscription", nil)
	if reg != nil {
		reg.MustRegister(m.delivered, m.settled, m.nacked, m.timedOut, m.retried, m.deadLettered, m.redriven, m.filtered, m.filterErrors, m.untransformed, m.stale, m.exhausted, m.blockedKeys, m.unwritable,
			m.bytes, m.storeErrors, m.settleSeconds, m.latency, m.endToEnd, m.stalled, m.oldest, m.lag, m.inFlight, m.members, m.tails, m.feeds, m.pullSessions, m.pullsWaiting, m.tailed, m.catchUps)
	}
	return m
}

// forget removes the series of a subscription that was deleted.
func (m *metrics) forget(namespace, subscription string) {
	if !m.names.Forget(namespace, subscription) {
		return
	}
	l := prometheus.Labels{"namespace": namespace, "subscription": subscription}
	for _, v := range []interface {
		DeletePartialMatch(labels prometheus.Labels) int
	}{m.delivered, m.settled, m.nacked, m.timedOut, m.retried, m.deadLettered, m.redriven, m.filtered, m.filterErrors, m.untransformed, m.stale, m.bytes, m.storeErrors, m.settleSeconds, m.latency, m.endToEnd, m.stalled, m.oldest, m.inFlight, m.members, m.exhausted, m.blockedKeys, m.unwritable} {
		v.DeletePartialMatch(l)
	}
}

// subMetrics are the metrics of one subscription.
type subMetrics struct {
	delivered, settled, nacked, timedOut, retried, filtered, filterErrors, untransformed, stale prometheus.Counter
	bytes, storeErrors                                                                          prometheus.Counter
	settleSeconds, latency, endToEnd                                                            prometheus.Observer
	inFlight, members, oldest                                                                   prometheus.Gauge
	stalled                                                                                     [stalls]prometheus.Counter
	exhausted                                                                                   prometheus.Counter
	blockedKeys, unwritable                                                                     prometheus.Gauge
	deadLettered                                                                                [causes]prometheus.Counter
}

func (m *metrics) of(namespace, subscription string) subMetrics {
	namespace, subscription = m.names.Of(namespace, subscription)
	l := []string{namespace, subscription}
	m.redriven.WithLabelValues(l...)
	var stalled [stalls]prometheus.Counter
	for why := stallCredit; why < stalls; why++ {
		stalled[why] = m.stalled.WithLabelValues(namespace, subscription, stallNames[why])
	}
	var deadLettered [causes]prometheus.Counter
	for why := range causes {
		deadLettered[why] = m.deadLettered.WithLabelValues(namespace, subscription, causeNames[why])
	}
	return subMetrics{m.delivered.WithLabelValues(l...), m.settled.WithLabelValues(l...), m.nacked.WithLabelValues(l...), m.timedOut.WithLabelValues(l...),
		m.retried.WithLabelValues(l...), m.filtered.WithLabelValues(l...), m.filterErrors.WithLabelValues(l...), m.untransformed.WithLabelValues(l...), m.stale.WithLabelValues(l...),
		m.bytes.WithLabelValues(l...), m.storeErrors.WithLabelValues(l...), m.settleSeconds.WithLabelValues(l...), m.latency.WithLabelValues(l...), m.endToEnd.WithLabelValues(l...), m.inFlight.WithLabelValues(l...), m.members.WithLabelValues(l...), m.oldest.WithLabelValues(l...), stalled, m.exhausted.WithLabelValues(l...), m.blockedKeys.WithLabelValues(l...), m.unwritable.WithLabelValues(l...), deadLettered}
}
