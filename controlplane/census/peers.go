package census

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
)

// peer is a connection to another replica.
type peer struct{ conn *grpc.ClientConn }

// MaxAnswer is the size of a status that a client must be ready to take, in bytes.
const MaxAnswer = 16 << 20

// peer gives the connection to an address; it is opened when it is used.
func (m *Mesh) peer(addr string) (adminv1.AdminServiceClient, error) {
	creds := m.cfg.TLS
	if creds == nil {
		if !loopback(addr) {
			return nil, errors.New("it is not asked: it is on another machine, and this replica's admin API has no TLS files (--admin-cert, --admin-key, --admin-ca)")
		}
		creds = insecure.NewCredentials()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.peers[addr]
	if p == nil {
		conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(creds), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxAnswer)),
			grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: askTimeout, Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 2, Jitter: 0.2, MaxDelay: askTimeout}}))
		if err != nil {
			return nil, err
		}
		p = &peer{conn}
		m.peers[addr] = p
	}
	return adminv1.NewAdminServiceClient(p.conn), nil
}

func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// keepPeers closes the connections to addresses that no replica has.
func (m *Mesh) keepPeers(known []replica) {
	addrs := map[string]bool{}
	for _, r := range known {
		addrs[r.Address] = true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for addr, p := range m.peers {
		if !addrs[addr] {
			_ = p.conn.Close()
			delete(m.peers, addr)
		}
	}
}

func (m *Mesh) closePeers() { m.keepPeers(nil) }

// silent reports whether a replica has given no sign of life for too long.
func (r replica) silent() bool { return time.Since(r.heard) > missed }

// replaced reports whether another process lives where a silent replica was, as one that was
// killed and started again.
func replaced(r replica, all []replica) bool {
	return r.silent() && slices.ContainsFunc(all, func(other replica) bool { return other.Address == r.Address && !other.silent() })
}

// answer is what one replica said, or why it did not.
type answer[T any] struct {
	replica replica
	answer  T
	err     error
}

// ask calls every other replica that is known, all at once.
func ask[T any](ctx context.Context, m *Mesh, known records, call func(context.Context, adminv1.AdminServiceClient) (T, error)) []answer[T] {
	m.keepPeers(known.replicas)
	var others []answer[T]
	for _, r := range known.replicas {
		if r.ID != m.id && !replaced(r, known.replicas) {
			others = append(others, answer[T]{replica: r})
		}
	}
	var all sync.WaitGroup
	for i := range others {
		a := &others[i]
		if a.replica.silent() {
			a.err = fmt.Errorf("it gave its last sign of life at %s", a.replica.Seen.UTC().Format(time.RFC3339))
			continue
		}
		c, err := m.peer(a.replica.Address)
		if err != nil {
			a.err = err
			continue
		}
		all.Go(func() {
			if a.answer, a.err = call(ctx, c); a.err != nil {
				a.err = fmt.Errorf("it does not answer: %s", status.Convert(a.err).Message())
			}
		})
	}
	all.Wait()
	return others
}
