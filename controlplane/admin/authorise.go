package admin

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/jwtauth"
	"github.com/weft-mesh/weft/pkg/latest"
)

// Access decides who may call what: a file says it, which is read again when it
// changes. Without one, whoever comes over loopback, or with a certificate of the
// listener's authority, is admin of all; but never a proxy.
type Access struct {
	file  string
	every time.Duration
	clock clock.Clock
	log   *slog.Logger
	now   *latest.Value[*policy]

	good    prometheus.Gauge
	refused *prometheus.CounterVec
}

// policy is what a file says.
type policy struct {
	text    []byte
	issuers map[string]*issuer
	tokens  map[[sha256.Size]byte]tokenEntry
	named   map[string]bool // subjects of tokens
	// Roles by subject or group, and namespace.
	subjects, groups map[string]map[string]Role
}

// issuer is one issuer of JSON Web Tokens.
type issuer struct {
	prefix   string
	key      string
	verifier *jwtauth.Verifier
}

// everyone is the policy without a file.
func everyone() *policy { return nil }

// Why a call was refused, as the metric has it.
const (
	refusedUnknown = "unauthenticated"
	refusedDenied  = "denied"
)

// AccessConfig says where the rules are.
type AccessConfig struct {
	// File has the rules; empty for none.
	File string
	// Every is the time between two looks at the file; 2 s when 0.
	Every time.Duration
	// Clock tells when tokens end.
	Clock   clock.Clock
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// NewAccess reads the file. Run keeps to what it says later.
func NewAccess(cfg AccessConfig) (*Access, error) {
	a := &Access{file: cfg.File, every: cmp.Or(cfg.Every, accessEvery), clock: cfg.Clock, log: cfg.Log, now: latest.New(everyone()),
		good:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_controlplane_admin_access_good", Help: "1 where the access file in force is what the file says now; 0 where that is wrong and the last good one stays."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_controlplane_admin_denied_total", Help: "Calls of the admin API that were denied, by why: nobody known called (unauthenticated), or one who may not (denied)."}, []string{"why"}),
	}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(a.good, a.refused)
	}
	a.good.Set(1)
	for _, why := range []string{refusedUnknown, refusedDenied} {
		a.refused.WithLabelValues(why) // shown before the first
	}
	if a.file == "" {
		return a, nil
	}
	p, err := a.read()
	if err != nil {
		return nil, err
	}
	a.now.Store(p)
	return a, nil
}

// HasFile reports whether a file says who may what, so that callers need no
// certificate.
func (a *Access) HasFile() bool { return a.file != "" }

func (a *Access) read() (*policy, error) {
	f, err := os.Open(a.file)
	if err != nil {
		return nil, fmt.Errorf("access file: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxAccessBytes+1))
	if err != nil {
		return nil, fmt.Errorf("access file: %w", err)
	}
	var had map[string]*issuer
	if p := a.now.Get(); p != nil {
		had = p.issuers
	}
	p, err := parseAccess(a.file, b, func(e issuerEntry) (*jwtauth.Verifier, error) {
		// One that stays the same keeps its keys.
		if i := had[e.Issuer]; i != nil && i.key == e.key() {
			return i.verifier, nil
		}
		return jwtauth.New(e.config(a.clock))
	})
	if err != nil {
		return nil, fmt.Errorf("access file: %w", err)
	}
	p.text = b
	return p, nil
}

// accessEvery is AccessConfig.Every when that is 0.
const accessEvery = 2 * time.Second

// Run follows the file until ctx ends. What it says when it is wrong is not in
// force: the last good one stays.
func (a *Access) Run(ctx context.Context) error {
	if a.file == "" {
		return nil
	}
	tick := time.NewTicker(a.every)
	defer tick.Stop()
	keys := keyKeeper{ctx: ctx, running: map[*jwtauth.Verifier]context.CancelFunc{}}
	defer keys.group.Wait()
	for said := ""; ; {
		keys.keep(a.now.Get().issuers)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		p, err := a.read()
		switch {
		case err != nil:
			a.good.Set(0)
			if text := err.Error(); text != said {
				said = text
				a.log.Error("the access file is wrong; what it said last stays in force", "error", err)
			}
		case !bytes.Equal(p.text, a.now.Get().text):
			a.now.Store(p)
			a.log.Info("the access file has changed and is in force", "file", a.file)
			fallthrough
		default:
			a.good.Set(1)
			said = ""
		}
	}
}

// keyKeeper keeps the keys of the issuers in force fresh, until ctx ends.
type keyKeeper struct {
	ctx     context.Context
	group   sync.WaitGroup
	running map[*jwtauth.Verifier]context.CancelFunc
}

func (k *keyKeeper) keep(issuers map[string]*issuer) {
	wanted := map[*jwtauth.Verifier]bool{}
	for _, i := range issuers {
		wanted[i.verifier] = true
		if k.running[i.verifier] == nil {
			ctx, stop := context.WithCancel(k.ctx)
			k.running[i.verifier] = stop
			k.group.Go(func() { _ = i.verifier.Run(ctx) })
		}
	}
	for v, stop := range k.running {
		if !wanted[v] {
			stop()
			delete(k.running, v)
		}
	}
}

// identity is who a caller has shown to be.
type identity struct {
	subject string
	groups  []string
	// until is when a token ends; zero for never.
	until time.Time
	// A proxy, or another control plane, by its certificate.
	proxy, replica bool
}

// errNobody is for whoever did not show who he is.
var errNobody = errors.New("show who you are: a token (--server-token-file, WEFT_TOKEN) or a certificate")

// identify looks at what a call brings along.
func (a *Access) identify(ctx context.Context, p *policy) (identity, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if auth := md.Get("authorization"); len(auth) > 0 {
		if p == nil {
			return identity{}, errors.New("this control plane takes no tokens: it has no access file")
		}
		if len(auth) > 1 {
			return identity{}, errors.New("there is more than one authorization")
		}
		scheme, token, _ := strings.Cut(auth[0], " ")
		if !strings.EqualFold(scheme, "Bearer") || token == "" {
			return identity{}, errors.New(`authorization must be "Bearer TOKEN"`)
		}
		return p.byToken(ctx, token, a.clock.Now())
	}
	from, ok := peer.FromContext(ctx)
	if !ok {
		return identity{}, errNobody
	}
	tls, encrypted := from.AuthInfo.(credentials.TLSInfo)
	switch {
	case !encrypted: // which is listened for on loopback alone
		return identity{subject: localSubject}, nil
	case len(tls.State.VerifiedChains) > 0:
		return byCertificate(tls.State.VerifiedChains[0][0]), nil
	}
	return identity{}, errNobody
}

// byToken finds a static token by its hash, or has the issuer of a JSON Web Token
// judge it.
func (p *policy) byToken(ctx context.Context, token string, now time.Time) (identity, error) {
	if t, ok := p.tokens[sha256.Sum256([]byte(token))]; ok {
		id := identity{subject: t.Subject, groups: t.Groups}
		if t.ExpiresAt != nil {
			if id.until = *t.ExpiresAt; !now.Before(id.until) {
				return identity{}, fmt.Errorf("the token of %s has expired", t.Subject)
			}
		}
		return id, nil
	}
	by := p.issuers[jwtauth.Issuer(token)]
	if by == nil {
		return identity{}, errors.New("the token is not known, nor is its issuer")
	}
	claims, err := by.verifier.Verify(ctx, token)
	if err != nil {
		return identity{}, err
	}
	id := identity{subject: by.prefix + claims.Principal, until: claims.Expires}
	if reservedSubject(id.subject) || p.named[id.subject] {
		return identity{}, errors.New("the token's principal has a name that no token of its issuer may have: a certificate's, or that of a token in the access file")
	}
	for _, g := range claims.Groups {
		id.groups = append(id.groups, by.prefix+g)
	}
	return id, nil
}

// byCertificate names a certificate by its SPIFFE ID or, without one, its common
// name.
func byCertificate(c *x509.Certificate) identity {
	for _, u := range c.URIs {
		if u.Scheme == "spiffe" {
			return identity{subject: u.String(), proxy: strings.HasPrefix(u.Path, "/weft/proxy/"), replica: u.Path == "/weft/controlplane"}
		}
	}
	return identity{subject: cnPrefix + c.Subject.CommonName}
}

// caller is who an identity is by the rules.
func (p *policy) caller(id identity, from string) *Caller {
	c := &Caller{Subject: id.subject, Peer: from, replica: id.replica, roles: map[string]Role{}}
	give := func(roles map[string]Role) {
		for ns, r := range roles {
			c.roles[ns] = max(c.roles[ns], r)
		}
	}
	switch {
	case id.replica:
		give(map[string]Role{mesh: Viewer})
	case p == nil && !id.proxy:
		give(map[string]Role{mesh: Admin})
	}
	if p != nil {
		give(p.subjects[id.subject])
		for _, g := range id.groups {
			give(p.groups[g])
		}
	}
	return c
}

// session is one call's right to go on.
type session struct {
	access *Access
	policy *policy
	caller *Caller
	until  time.Time
}

// begin finds out who calls.
func (a *Access) begin(ctx context.Context) (*session, error) {
	p := a.now.Get()
	from := ""
	if pr, ok := peer.FromContext(ctx); ok {
		from = pr.Addr.String()
	}
	id, err := a.identify(ctx, p)
	if err != nil {
		a.refused.WithLabelValues(refusedUnknown).Inc()
		return &session{caller: &Caller{Subject: "nobody", Peer: from}}, status.Error(codes.Unauthenticated, err.Error())
	}
	return &session{a, p, p.caller(id, from), id.until}, nil
}

// allow reports whether the caller may make a call.
func (s *session) allow(method string, req any) error {
	all, ok := needs(req)
	if ok && !slices.ContainsFunc(all, func(n need) bool { return !n.metBy(s.caller) }) {
		return nil
	}
	s.access.refused.WithLabelValues(refusedDenied).Inc()
	return denied(s.caller, path.Base(method), all)
}

func denied(c *Caller, method string, all []need) error {
	return status.Errorf(codes.PermissionDenied, "%s may not %s: that needs %s", c.Subject, method, missing(c, all))
}

// still reports whether the call may go on: a stream outlives what let it in.
func (s *session) still() error {
	if s.access.now.Get() != s.policy {
		return status.Error(codes.Aborted, "who may what has changed meanwhile; call again")
	}
	if !s.until.IsZero() && !s.access.clock.Now().Before(s.until) {
		return status.Error(codes.Unauthenticated, "the token has expired")
	}
	return nil
}

// ServerOptions let into the service only who may, and write down who was refused
// and who did what.
func (s *Service) ServerOptions(a *Access) []grpc.ServerOption {
	return []grpc.ServerOption{
		// Of a stranger nothing is decoded.
		grpc.InTapHandle(func(ctx context.Context, call *tap.Info) (context.Context, error) {
			session, err := a.begin(ctx)
			if err != nil {
				s.audit(context.WithValue(ctx, callerKey{}, session.caller), call.FullMethodName, nil, err)
			}
			return ctx, err
		}),
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			session, err := a.begin(ctx)
			ctx = context.WithValue(ctx, callerKey{}, session.caller)
			if err == nil {
				err = session.allow(info.FullMethod, req)
			}
			var resp any
			if err == nil {
				resp, err = next(ctx, req)
			}
			s.audit(ctx, info.FullMethod, req, err)
			return resp, err
		}),
		grpc.ChainStreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			session, err := a.begin(ss.Context())
			ctx := context.WithValue(ss.Context(), callerKey{}, session.caller)
			if err != nil {
				s.audit(ctx, info.FullMethod, nil, err)
				return err
			}
			return next(srv, &authorised{ss, ctx, s, session, info.FullMethod})
		}),
	}
}

// authorised is a stream of one who may: its request is looked at when it comes,
// and his right again before each answer.
type authorised struct {
	grpc.ServerStream
	ctx     context.Context
	service *Service
	session *session
	method  string
}

func (s *authorised) Context() context.Context { return s.ctx }

func (s *authorised) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	err := s.session.allow(s.method, m)
	if err != nil {
		s.service.audit(s.ctx, s.method, m, err)
	}
	return err
}

func (s *authorised) SendMsg(m any) error {
	if err := s.session.still(); err != nil {
		return err
	}
	return s.ServerStream.SendMsg(m)
}
