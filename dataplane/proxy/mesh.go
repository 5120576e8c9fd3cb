package proxy

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/dataplane/config"
	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/quota"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/jwtauth"
	"github.com/weft-mesh/weft/pkg/labels"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/resource"
)

// publisher is the way in, deliverer the way out.
type publisher interface {
	Publish(ctx context.Context, who *policy.Principal, namespace, topic string, events []event.Event, res []frontend.Result) error
	Begin(ctx context.Context, who *policy.Principal, namespace, topic string, events []event.Event, res []frontend.Result) (wait func(context.Context) error, err error)
	Binds(host string) bool
	Bound(who *policy.Principal, call frontend.Call) (frontend.Bound, error)
}

type deliverer interface {
	Join(ctx context.Context, who *policy.Principal, namespace, subscription string) (delivery.Member, error)
	Pull(ctx context.Context, who *policy.Principal, namespace, subscription string, r delivery.PullRequest) (delivery.Pulled, error)
	Settle(ctx context.Context, who *policy.Principal, namespace, subscription string, x delivery.Settlement) ([]delivery.Unsettled, error)
	Tail(ctx context.Context, who *policy.Principal, r delivery.TailRequest) (delivery.Tail, error)
}

// mesh is the proxy as the frontends see it (frontend.Mesh): it stands in front
// of the ways in and out, and lets nobody pass whose credentials are not good
// any more.
type mesh struct {
	snapshots *latest.Value[*snapshot.Snapshot]
	in        publisher
	requests  frontend.Requests
	out       deliverer
	dead      frontend.DeadLetters
	inspector frontend.Inspector
	ready     func() error
	demand    *demand
	quotas    *quota.Limiter
	clock     clock.Clock
	metrics   meshMetrics
	refused   func(identity string, why jwtauth.Reason) // counts tokens
}

type meshMetrics struct {
	authentications *prometheus.CounterVec
	shadows         *labels.Counters
	refusals        *labels.Counters
	unjudged        *labels.Counters
}

// newMeshMetrics makes them; now gives the rules of the configuration.
func newMeshMetrics(reg prometheus.Registerer, now func() *policy.Rules) meshMetrics {
	there := func(of [2]string) bool { return of == [2]string{} || now().Has(of[0], of[1]) }
	rule := []string{"policy", "rule"}
	m := meshMetrics{authentications: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_authentications_total",
		Help: "Clients that showed who they are, by outcome: ok, or the reason of the refusal."}, []string{"outcome"}),
		shadows: labels.NewCounters(reg, prometheus.CounterOpts{Name: "weft_proxy_access_shadowed_total",
			Help: "Decisions that a shadowed rule of an AccessPolicy would have changed."}, rule, nil, there),
		refusals: labels.NewCounters(reg, prometheus.CounterOpts{Name: "weft_proxy_access_refused_total",
			Help: "Refusals by the rule of an AccessPolicy that denies, both empty where none allows: calls, and events of a batch or a tail by themselves."}, rule, []string{"action"}, there),
		unjudged: labels.NewCounters(reg, prometheus.CounterOpts{Name: "weft_proxy_access_condition_errors_total",
			Help: "Conditions of rules that could not be evaluated for an event: it was not allowed, or was denied."}, rule, nil, there)}
	reg.MustRegister(m.authentications)
	return m
}

// observer counts what rules do, by the rules of the configuration.
func (m meshMetrics) observer() policy.Observer {
	return policy.Observer{
		Shadowed: func(policy, rule string) { m.shadows.Add(1, [2]string{policy, rule}) },
		Refused: func(a policy.Action, policy, rule string) {
			m.refusals.Add(1, [2]string{policy, rule}, a.String())
		},
		Unjudged: func(policy, rule string) { m.unjudged.Add(1, [2]string{policy, rule}) },
	}
}

var errNoConfiguration = &fault.Error{Class: fault.Unavailable, Op: "proxy", Reason: "no-configuration",
	Msg: "this proxy has no configuration yet", RetryAfter: time.Second}

// Current is the principal as the newest configuration sees it.
func (m *mesh) Current(who *policy.Principal) (*policy.Principal, <-chan struct{}, error) {
	s, changed := m.snapshots.Load()
	if s.Lineage == "" {
		return nil, changed, errNoConfiguration
	}
	p, err := s.Identities.Current(who, m.clock.Now())
	return p, changed, err
}

// Authenticate tells who the client is.
func (m *mesh) Authenticate(ctx context.Context, c policy.Credentials) (*policy.Principal, error) {
	s := m.snapshots.Get()
	if s.Lineage == "" {
		return nil, errNoConfiguration
	}
	p, err := s.Identities.Authenticate(ctx, c, m.clock.Now())
	outcome := "ok"
	if err != nil {
		outcome = fault.From(err).Reason
		if t, ok := errors.AsType[*policy.RefusedToken](err); ok {
			m.refused(t.Identity, t.Reason)
		}
	}
	m.metrics.authentications.WithLabelValues(outcome).Inc()
	return p, err
}

// with is the principal as it may call what needs a part of the configuration, once
// that is here.
func (m *mesh) with(who *policy.Principal, need func(*snapshot.Snapshot, *policy.Principal) error) (*policy.Principal, error) {
	who, _, err := m.Current(who)
	if err != nil || m.demand == nil {
		return who, err
	}
	if err := need(m.snapshots.Get(), who); err != nil {
		return nil, err
	}
	who, _, err = m.Current(who) // it may have waited
	return who, err
}

// Publish takes events to their store.
func (m *mesh) Publish(ctx context.Context, who *policy.Principal, namespace, topic string, events []event.Event, res []frontend.Result) error {
	who, err := m.toPublish(ctx, who, namespace, topic, res)
	if err != nil {
		return err
	}
	return m.in.Publish(ctx, who, namespace, topic, events, res)
}

// Begin hands events to their store.
func (m *mesh) Begin(ctx context.Context, who *policy.Principal, namespace, topic string, events []event.Event, res []frontend.Result) (func(context.Context) error, error) {
	who, err := m.toPublish(ctx, who, namespace, topic, res)
	if err != nil {
		return nil, err
	}
	return m.in.Begin(ctx, who, namespace, topic, events, res)
}

// toPublish is the principal as it may publish to a topic; else no result of res is any.
func (m *mesh) toPublish(ctx context.Context, who *policy.Principal, namespace, topic string, res []frontend.Result) (*policy.Principal, error) {
	who, err := m.with(who, func(s *snapshot.Snapshot, who *policy.Principal) error {
		return m.demand.need(ctx, s, who, policy.Publish, config.Name{Kind: resource.Topic, Namespace: namespace, Name: topic})
	})
	if err != nil {
		for i := range res {
			res[i] = frontend.Result{Err: err}
		}
	}
	return who, err
}

// Binds reports whether a host may be of HttpBindings.
func (m *mesh) Binds(host string) bool { return m.in.Binds(host) }

// Bound finds the rule for a call of a REST API.
func (m *mesh) Bound(who *policy.Principal, call frontend.Call) (frontend.Bound, error) {
	who, _, err := m.Current(who)
	if err != nil {
		return frontend.Bound{}, err
	}
	return m.in.Bound(who, call)
}

// Join makes the client a member of a Subscription.
func (m *mesh) Join(ctx context.Context, who *policy.Principal, namespace, subscription string) (delivery.Member, error) {
	who, name, err := m.consumes(ctx, who, namespace, subscription)
	if err != nil {
		return nil, err
	}
	session, err := m.joining(who, namespace, subscription)
	if err != nil {
		return nil, err
	}
	mem, err := m.out.Join(ctx, who, namespace, subscription)
	if err != nil {
		session.Close()
		return nil, err
	}
	return heldMember{mem, session, m.demand.pin(name)}, nil
}

// consumes is the principal as it may use a Subscription, once that is here.
func (m *mesh) consumes(ctx context.Context, who *policy.Principal, namespace, subscription string) (*policy.Principal, config.Name, error) {
	name := config.Name{Kind: resource.Subscription, Namespace: namespace, Name: subscription}
	who, err := m.with(who, func(s *snapshot.Snapshot, who *policy.Principal) error {
		return m.demand.need(ctx, s, who, policy.Consume, name)
	})
	return who, name, err
}

// Pull takes events of a Subscription.
func (m *mesh) Pull(ctx context.Context, who *policy.Principal, namespace, subscription string, r delivery.PullRequest) (delivery.Pulled, error) {
	who, name, err := m.consumes(ctx, who, namespace, subscription)
	if err != nil {
		return delivery.Pulled{}, err
	}
	session, err := m.joining(who, namespace, subscription)
	if err != nil {
		return delivery.Pulled{}, err
	}
	defer session.Close()
	defer m.demand.pin(name)() // while it waits
	return m.out.Pull(ctx, who, namespace, subscription, r)
}

// Settle settles what was pulled.
func (m *mesh) Settle(ctx context.Context, who *policy.Principal, namespace, subscription string, x delivery.Settlement) ([]delivery.Unsettled, error) {
	who, _, err := m.consumes(ctx, who, namespace, subscription)
	if err != nil {
		return nil, err
	}
	return m.out.Settle(ctx, who, namespace, subscription, x)
}

// Tail begins to follow topics.
func (m *mesh) Tail(ctx context.Context, who *policy.Principal, r delivery.TailRequest) (delivery.Tail, error) {
	who, err := m.with(who, func(s *snapshot.Snapshot, who *policy.Principal) error { return m.demand.topics(ctx, s, who, r) })
	if err != nil {
		return nil, err
	}
	session, err := m.tailing(who, r)
	if err != nil {
		return nil, err
	}
	t, err := m.out.Tail(ctx, who, r)
	if err != nil {
		session.Close()
		return nil, err
	}
	var topics []config.Name
	for _, name := range r.Topics {
		topics = append(topics, config.Name{Kind: resource.Topic, Namespace: r.Namespace, Name: name})
	}
	return heldTail{t, session, m.demand.pin(topics...)}, nil
}

// Ready is nil when the proxy serves.
func (m *mesh) Ready() error { return m.ready() }
