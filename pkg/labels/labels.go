// Package labels bounds how many names of users become labels of metrics: what keeps
// the series of a process is paid for by whoever collects them.
package labels

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Other is the label that all names share for which there is no room. No namespace and
// no resource can have it.
const Other = "_other"

// Max is how many names of one kind have series of their own.
const Max = 10000

// Names are the resources of one kind that have series of their own: the first Max,
// until they are forgotten. The others are counted together. Safe for concurrent use.
type Names struct {
	// Max is the constant; fewer in tests. Set before use.
	Max int

	mu   sync.Mutex
	own  map[name]struct{}
	over map[name]struct{} // that are known and have none; bounded by the configuration
}

type name struct{ namespace, name string }

// New makes Names of a kind, such as "topic", and registers the metric that says when
// there are too many; reg may be nil. before is called before each look at it; it may
// be nil.
func New(reg prometheus.Registerer, kind string, before func()) *Names {
	n := &Names{Max: Max, own: map[name]struct{}{}, over: map[name]struct{}{}}
	if reg != nil {
		reg.MustRegister(&overLimit{n: n, before: before, desc: prometheus.NewDesc("weft_proxy_metrics_names_over_limit",
			"Resources that have no series of their own, since 10,000 others of their kind have: they are counted together, as "+Other+"; by kind.", nil, prometheus.Labels{"kind": kind})})
	}
	return n
}

// overLimit is the metric. It is no GaugeFunc: that is asked by whoever takes series from
// all collectors, and would wait for good for a collector that waits for it.
type overLimit struct {
	n      *Names
	before func()
	desc   *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (o *overLimit) Describe(ch chan<- *prometheus.Desc) { ch <- o.desc }

// Collect implements prometheus.Collector.
func (o *overLimit) Collect(ch chan<- prometheus.Metric) {
	if o.before != nil {
		o.before()
	}
	o.n.mu.Lock()
	over := float64(len(o.n.over))
	o.n.mu.Unlock()
	ch <- prometheus.MustNewConstMetric(o.desc, prometheus.GaugeValue, over)
}

// Of are the labels of a resource: its own, or Other twice.
func (n *Names) Of(namespace, resource string) (string, string) {
	k := name{namespace, resource}
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.own[k]; ok {
		return namespace, resource
	}
	if len(n.own) < n.Max {
		n.own[k] = struct{}{}
		delete(n.over, k)
		return namespace, resource
	}
	n.over[k] = struct{}{}
	return Other, Other
}

// Forget gives the room of a resource that was deleted to another, and reports whether
// it had series of its own, which the caller deletes.
func (n *Names) Forget(namespace, resource string) bool {
	k := name{namespace, resource}
	n.mu.Lock()
	defer n.mu.Unlock()
	_, own := n.own[k]
	delete(n.own, k)
	delete(n.over, k)
	return own
}
