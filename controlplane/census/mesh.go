package census

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/election"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/outage"
)

// Config of a Mesh.
type Config struct {
	// Etcd holds what replicas tell each other, under the keys that StatusKey
	// makes.
	Etcd      *clientv3.Client
	StatusKey func(name string) string
	// Address of this replica's admin API, "host:port", as other replicas reach
	// it; see Advertised.
	Address string
	// Version of this replica.
	Version string
	// TLS to other replicas; without it only those on loopback are asked.
	TLS credentials.TransportCredentials
	// Connected are the proxies with a discovery stream here.
	Connected func() []*adminv1.ProxyStatus
	// Report is what one of them said last; nil where it says nothing.
	Report func(node string) *discoveryv1.ReportStatusRequest
	// Offices that this replica holds.
	Offices *election.Offices
	// Every is the time between two looks at who is connected; 2 s when 0.
	Every time.Duration
	// Forget is for how long a proxy, or a replica, that is gone is shown, in
	// whole seconds; 10 min when 0.
	Forget time.Duration
	// Clock dates what is written down and shown; nothing is decided by it.
	Clock   clock.Clock
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// Times of a mesh's talk.
const (
	// heartbeat is the time between two signs of life of a replica; after
	// missed it is not asked any more.
	heartbeat = 10 * time.Second
	missed    = 3 * heartbeat
	// rewrite is how often the record of a connected proxy may change.
	rewrite = 30 * time.Second
	// askTimeout bounds asking other replicas.
	askTimeout = 2 * time.Second
)

// Mesh is this replica's part of the fleet view: it writes down in etcd, seldom,
// who is connected to it, and asks other replicas. Its methods are safe for
// concurrent use.
type Mesh struct {
	cfg Config
	id  string

	mu    sync.Mutex
	peers map[string]*peer // by address
	// lost is since when etcd cannot be reached; zero while it can.
	lost    time.Time
	say     *outage.Log
	records records // as they were read last

	unanswered prometheus.Counter
}

// New makes a Mesh with an id of its own.
func New(cfg Config) *Mesh {
	if cfg.Every == 0 {
		cfg.Every = 2 * time.Second
	}
	if cfg.Forget == 0 {
		cfg.Forget = 10 * time.Minute
	}
	m := &Mesh{cfg: cfg, id: uuid.NewString(), peers: map[string]*peer{},
		say:        outage.New(cfg.Log, "this replica's status cannot be written down; trying again", "this replica's status is written down again"),
		unanswered: prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_controlplane_peer_failures_total", Help: "Times that another replica did not tell its status."})}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(m.unanswered)
	}
	return m
}

// Advertised is the address of a listener as others reach it: advertise where
// that is set, else the listener's own, with this machine's name where it listens
// on every address.
func Advertised(advertise string, listening net.Addr) string {
	if advertise != "" {
		return advertise
	}
	a, ok := listening.(*net.TCPAddr)
	if !ok || !a.IP.IsUnspecified() {
		return listening.String()
	}
	name, err := os.Hostname()
	if err != nil {
		return listening.String()
	}
	_, port, _ := net.SplitHostPort(listening.String())
	return net.JoinHostPort(name, port)
}

// now is the time, for people.
func (m *Mesh) now() *timestamppb.Timestamp { return timestamppb.New(m.cfg.Clock.Now()) }

// ID is the replica's id: drawn at its start.
func (m *Mesh) ID() string { return m.id }

// Replica is what this replica says of itself.
func (m *Mesh) Replica(revision int64, streams int) *adminv1.ReplicaStatus {
	return &adminv1.ReplicaStatus{Id: m.id, Address: m.cfg.Address, Version: m.cfg.Version, Revision: revision, Streams: uint32(streams), Offices: m.cfg.Offices.Held()}
}

// Local are the proxies that are connected here, with what they report.
func (m *Mesh) Local() []*adminv1.ProxyStatus {
	out := m.cfg.Connected()
	at := m.now()
	for _, p := range out {
		p.Connected, p.Replica, p.LastSeen, p.Report = true, m.id, at, m.cfg.Report(p.NodeId)
		slices.SortFunc(p.Rejections, func(a, b *discoveryv1.Rejection) int { return cmp.Compare(a.Name, b.Name) })
	}
	return out
}

// View is what is known beyond this replica.
type View struct {
	// Proxies are those of other replicas, and those that were there before.
	Proxies []*adminv1.ProxyStatus
	// Replicas are the others, by id; those that did not answer say why.
	Replicas []*adminv1.ReplicaStatus
	// Alarms of others, and of what could not be asked.
	Alarms []*adminv1.Alarm
	// Unsure are proxies that are written down as connected to a replica that did not
	// answer, by node id, with its address: they may be.
	Unsure map[string]string
}

// Others asks the other replicas, and etcd for who was there before, for at most
// 3 s. What does not answer is said; it is no error. req says what is asked of
// each; it is not changed.
func (m *Mesh) Others(ctx context.Context, req *adminv1.GetStatusRequest) View {
	known := m.read(ctx)
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	v := View{Unsure: map[string]string{}}
	answered, silent := map[string]bool{m.id: true}, map[string]string{}
	for _, a := range ask(ctx, m, known, func(ctx context.Context, c adminv1.AdminServiceClient) (*adminv1.GetStatusResponse, error) {
		return c.GetStatus(ctx, req)
	}) {
		if a.err != nil {
			m.unanswered.Inc()
			silent[a.replica.ID] = a.replica.Address
			v.Replicas = append(v.Replicas, &adminv1.ReplicaStatus{Id: a.replica.ID, Address: a.replica.Address, Version: a.replica.Version, Error: a.err.Error()})
			continue
		}
		for _, r := range a.answer.Replicas {
			if r.Id == a.replica.ID {
				answered[r.Id] = true
				v.Replicas = append(v.Replicas, r)
			}
		}
		v.Proxies = append(v.Proxies, a.answer.Proxies...)
		v.Alarms = append(v.Alarms, a.answer.Alarms...)
	}
	for _, p := range known.proxies {
		if req.NodeId != "" && p.NodeId != req.NodeId {
			continue
		}
		if at, ok := silent[p.Replica]; ok && p.Connected {
			v.Unsure[p.NodeId] = at
		}
		v.Proxies = append(v.Proxies, past(p, known.replicas, answered, m.now()))
	}
	slices.SortFunc(v.Replicas, func(a, b *adminv1.ReplicaStatus) int { return cmp.Compare(a.Id, b.Id) })
	v.Alarms = append(v.Alarms, m.Alarms()...)
	return v
}

// past is the record of a proxy as the view shows it: as one that is not
// connected, for who is connected is told by its replica.
func past(p *adminv1.ProxyStatus, replicas []replica, answered map[string]bool, now *timestamppb.Timestamp) *adminv1.ProxyStatus {
	p = shallow(p)
	switch {
	case !p.Connected:
	case answered[p.Replica]: // it went a moment ago
		p.LastSeen = now
	default:
		// Its replica is gone, or does not answer: it was there as long as the
		// replica was.
		for _, r := range replicas {
			if r.ID == p.Replica && r.Seen.After(p.LastSeen.AsTime()) {
				p.LastSeen = timestamppb.New(r.Seen)
			}
		}
	}
	p.Connected = false
	return p
}

// shallow copies what is not shared.
func shallow(p *adminv1.ProxyStatus) *adminv1.ProxyStatus {
	return &adminv1.ProxyStatus{NodeId: p.NodeId, Info: p.Info, Peer: p.Peer, ConnectedAt: p.ConnectedAt, SentRevision: p.SentRevision, AckedRevision: p.AckedRevision,
		Rejections: p.Rejections, Connected: p.Connected, LastSeen: p.LastSeen, Replica: p.Replica, Report: p.Report, Withheld: p.Withheld}
}

// Command gives a command to the proxies of the other replicas and names those
// that were told, and the replicas that did not answer.
func (m *Mesh) Command(ctx context.Context, req *adminv1.CommandProxiesRequest) (told, silent []string) {
	known := m.read(ctx)
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	for _, a := range ask(ctx, m, known, func(ctx context.Context, c adminv1.AdminServiceClient) (*adminv1.CommandProxiesResponse, error) {
		return c.CommandProxies(ctx, req)
	}) {
		if a.err != nil {
			silent = append(silent, a.replica.Address+": "+a.err.Error())
			continue
		}
		told = append(told, a.answer.NodeIds...)
	}
	return told, silent
}

// Alarms has one while etcd cannot be reached.
func (m *Mesh) Alarms() []*adminv1.Alarm {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lost.IsZero() {
		return nil
	}
	return []*adminv1.Alarm{{Reason: "EtcdUnreachable", Since: timestamppb.New(m.lost),
		Message: "etcd does not answer this replica: what it has read stays in force, nothing can be changed, and proxies that are gone may be missing here"}}
}

// reached notes whether etcd answered.
func (m *Mesh) reached(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err == nil:
		m.lost = time.Time{}
	case m.lost.IsZero():
		m.lost = m.cfg.Clock.Now()
	}
}
