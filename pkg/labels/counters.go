package labels

import (
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Counters are counters of something that the configuration has, such as a rule of an
// AccessPolicy, which go with it: those of what it has no more are not there when they are
// collected. Safe for concurrent use.
type Counters struct {
	vec   *prometheus.CounterVec
	names []string
	there func(of [2]string) bool

	mu      sync.RWMutex
	counted map[[2]string]struct{}
}

// NewCounters makes Counters and registers them; reg may be nil. names are the one or two
// labels of what is counted for, more are others. there reports whether the configuration
// has it, by the values of names, of which the second is "" where there is one.
func NewCounters(reg prometheus.Registerer, opts prometheus.CounterOpts, names, more []string, there func(of [2]string) bool) *Counters {
	c := &Counters{vec: prometheus.NewCounterVec(opts, slices.Concat(names, more)), names: names, there: there, counted: map[[2]string]struct{}{}}
	if reg != nil {
		reg.MustRegister(c)
	}
	return c
}

// Add counts n for what has the values of, with those of the other labels.
func (c *Counters) Add(n int, of [2]string, more ...string) {
	c.mu.RLock()
	_, ok := c.counted[of]
	if ok {
		c.add(n, of, more)
	}
	c.mu.RUnlock()
	if ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counted[of] = struct{}{}
	c.add(n, of, more)
}

func (c *Counters) add(n int, of [2]string, more []string) {
	values := make([]string, 0, 4)
	c.vec.WithLabelValues(append(append(values, of[:len(c.names)]...), more...)...).Add(float64(n))
}

// Describe implements prometheus.Collector.
func (c *Counters) Describe(ch chan<- *prometheus.Desc) { c.vec.Describe(ch) }

// Collect implements prometheus.Collector.
func (c *Counters) Collect(ch chan<- prometheus.Metric) {
	c.forget()
	c.vec.Collect(ch)
}

// forget removes the series of what is there no more.
func (c *Counters) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for of := range c.counted {
		if c.there(of) {
			continue
		}
		delete(c.counted, of)
		gone := prometheus.Labels{}
		for i, name := range c.names {
			gone[name] = of[i]
		}
		c.vec.DeletePartialMatch(gone)
	}
}
