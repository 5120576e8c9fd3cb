package admin

import (
	"github.com/prometheus/client_golang/prometheus"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/validate"
	"github.com/weft-mesh/weft/pkg/resource"
)

// metrics are labelled with kinds, outcomes and the rules of validation.
type metrics struct {
	changes   *prometheus.CounterVec
	problems  *prometheus.CounterVec
	conflicts prometheus.Counter
	unwritten prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) metrics {
	m := metrics{
		changes:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_controlplane_admin_changes_total", Help: "Resources that were created, updated or deleted, by kind; what the control plane writes along is left out."}, []string{"kind", "change"}),
		problems:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_controlplane_admin_problems_total", Help: "Problems for which changes were refused, by rule."}, []string{"rule"}),
		conflicts: prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_controlplane_admin_conflicts_total", Help: "Changes that were decided again because another one came first."}),
		unwritten: prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_controlplane_admin_refusals_unwritten_total", Help: "Refusals that have no audit record of their own, since their caller, or all, had too many; a later record counts them."}),
	}
	if reg != nil {
		reg.MustRegister(m.changes, m.problems, m.conflicts, m.unwritten)
	}
	return m
}

func (m metrics) applied(r *adminv1.ApplyResult) {
	switch r.Outcome {
	case adminv1.ApplyResult_OUTCOME_CREATED:
		m.changed(r.Name, "created")
	case adminv1.ApplyResult_OUTCOME_UPDATED:
		m.changed(r.Name, "updated")
	case adminv1.ApplyResult_OUTCOME_DELETED:
		m.changed(r.Name, "deleted")
	}
}

func (m metrics) changed(name, change string) {
	if kind, _, _, err := resource.Split(name); err == nil {
		m.changes.WithLabelValues(string(kind), change).Inc()
	}
}

// refused is the answer to a change with problems.
func (m metrics) refused(problems []validate.Problem) error {
	for _, p := range problems {
		m.problems.WithLabelValues(p.Rule).Inc()
	}
	return refused(problems)
}
