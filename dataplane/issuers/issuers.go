// Package issuers keeps the keys of the issuers whose tokens a configuration
// accepts: one verifier for each, which outlives changes that do not concern it.
package issuers

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/egress"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/jwtauth"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/outage"
)

// maxWait is how long a client with a key that is not known yet waits for a look
// at the issuer's keys.
const maxWait = time.Second

// Config of a Manager.
type Config struct {
	// Dir keeps keys over a restart; it is made when there is one to keep.
	Dir string
	// Allow are networks that may be called beside the public ones.
	Allow []netip.Prefix
	Clock clock.Clock
	// Changed is called when the keys of an issuer have changed. It must not
	// block.
	Changed func()
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// Manager has the verifiers of one proxy.
type Manager struct {
	cfg       Config
	transport *http.Transport
	fetches   *prometheus.CounterVec
	fetched   *prometheus.GaugeVec
	refused   *prometheus.CounterVec
	wanted    *latest.Value[map[string]*kept] // by canonical name; not changed
	applying  sync.Mutex
}

// kept is a verifier and what it was made of.
type kept struct {
	spec     *configv1.JwtIssuer
	verifier *jwtauth.Verifier
	cache    string
}

// New makes a manager; Run fetches keys.
func New(cfg Config) *Manager {
	m := &Manager{cfg: cfg, wanted: latest.New(map[string]*kept{}),
		transport: &http.Transport{
			DialContext:            (&net.Dialer{Timeout: 5 * time.Second, Control: egress.Guard(cfg.Allow)}).DialContext,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    5 * time.Second,
			ForceAttemptHTTP2:      true,
			MaxIdleConnsPerHost:    1,
			IdleConnTimeout:        time.Minute,
			MaxResponseHeaderBytes: 64 << 10,
		},
		fetches: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_issuer_key_fetches_total",
			Help: "Looks at the keys of an Identity's issuer, by outcome: ok or failed; while they fail, the keys that were there stay good."}, []string{"identity", "outcome"}),
		fetched: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "weft_proxy_issuer_keys_fetched_timestamp_seconds",
			Help: "When the keys of an Identity's issuer were last fetched, Unix time; they are good for 7 days from then."}, []string{"identity"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_issuer_tokens_refused_total",
			Help: "Tokens that an Identity's issuer is named in and that were refused, by reason."}, []string{"identity", "reason"})}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(m.fetches, m.fetched, m.refused)
	}
	return m
}

// Apply gives a verifier for each of the issuers, by the canonical names of their
// identities. Those that are as before stay; those that are not among them end. An
// issuer that CheckIdentity refuses gets none.
func (m *Manager) Apply(issuers map[string]*configv1.JwtIssuer) map[string]*jwtauth.Verifier {
	m.applying.Lock()
	defer m.applying.Unlock()
	before := m.wanted.Get()
	wanted, out := map[string]*kept{}, map[string]*jwtauth.Verifier{}
	for name, spec := range issuers {
		k := before[name]
		if k == nil || !proto.Equal(k.spec, spec) {
			var err error
			if k, err = m.make(name, spec); err != nil {
				m.cfg.Log.Error("tokens of an identity cannot be checked", "identity", name, "error", err)
				continue
			}
		}
		wanted[name], out[name] = k, k.verifier
	}
	if !maps.Equal(before, wanted) {
		m.wanted.Store(wanted)
	}
	return out
}

// Refused counts a token that an identity has refused.
func (m *Manager) Refused(identity string, why jwtauth.Reason) {
	if m.wanted.Get()[identity] != nil {
		m.refused.WithLabelValues(identity, string(why)).Inc()
	}
}

func (m *Manager) make(name string, spec *configv1.JwtIssuer) (*kept, error) {
	cfg := policy.TokenRules(spec)
	cfg.Clock, cfg.Transport, cfg.Wait = m.cfg.Clock, m.transport, maxWait
	if m.cfg.Dir != "" && cfg.JWKSURL != "" {
		if err := os.MkdirAll(m.cfg.Dir, 0o700); err != nil {
			return nil, err
		}
		sum := sha256.Sum256([]byte(name))
		cfg.CachePath = filepath.Join(m.cfg.Dir, hex.EncodeToString(sum[:16])+".json")
	}
	log := outage.New(m.cfg.Log.With("identity", name), "the keys of an identity's issuer cannot be fetched or kept; those that were there stay good for 7 days", "the keys of an identity's issuer are fetched again")
	k := &kept{spec: spec, cache: cfg.CachePath}
	cfg.Fetched = func(changed bool, err error) {
		outcome := "ok"
		if err != nil {
			outcome = "failed"
		}
		log.Is(err)
		m.fetches.WithLabelValues(name, outcome).Inc()
		m.age(name, k.verifier)
		if changed {
			m.cfg.Changed()
		}
	}
	var err error
	k.verifier, err = jwtauth.New(cfg)
	if err != nil {
		return nil, err
	}
	m.age(name, k.verifier)
	return k, nil
}

// age shows when keys were fetched, also by the process before.
func (m *Manager) age(name string, v *jwtauth.Verifier) {
	if at := v.Fetched(); !at.IsZero() {
		m.fetched.WithLabelValues(name).Set(float64(at.Unix()))
	}
}

// Run fetches the keys of the issuers that are wanted until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	defer m.transport.CloseIdleConnections()
	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stops := map[*kept]func(){}
	running := map[string]*kept{}
	for {
		wanted, replaced := m.wanted.Load()
		for name, k := range running {
			if wanted[name] == k {
				continue
			}
			stops[k]()
			delete(stops, k)
			delete(running, name)
			if wanted[name] == nil {
				m.forget(name, k)
			}
		}
		for name, k := range wanted {
			if running[name] == k {
				continue
			}
			each, stop := context.WithCancel(ctx)
			ended := make(chan struct{})
			all.Go(func() { defer close(ended); _ = k.verifier.Run(each) })
			running[name], stops[k] = k, func() { stop(); <-ended }
		}
		select {
		case <-replaced:
		case <-ctx.Done():
			return nil
		}
	}
}

// forget removes what there is of an identity that is gone.
func (m *Manager) forget(name string, k *kept) {
	m.fetches.DeletePartialMatch(prometheus.Labels{"identity": name})
	m.fetched.DeleteLabelValues(name)
	m.refused.DeletePartialMatch(prometheus.Labels{"identity": name})
	if k.cache != "" {
		_ = os.Remove(k.cache)
	}
}
