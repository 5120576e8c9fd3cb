package client

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// proxies is what clients connect to that begin together: it serves, loses all, is away,
// and serves again.
type proxies struct {
	mu       sync.Mutex
	away     bool
	conns    []net.Conn
	attempts map[int][]time.Time // by client
	serving  sync.WaitGroup
}

func (p *proxies) dial(client int) (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.attempts[client] = append(p.attempts[client], time.Now())
	if p.away {
		return nil, errors.New("connection refused")
	}
	a, b := net.Pipe()
	p.conns = append(p.conns, b)
	p.serving.Go(func() {
		_, _ = b.Write([]byte{3: 4, 8: 0}) // SETTINGS
		_, _ = io.Copy(io.Discard, b)
	})
	return a, nil
}

// lose loses all connections in one instant.
func (p *proxies) lose() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		_ = c.Close()
	}
	p.conns = nil
}

func (p *proxies) set(away bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.away = away
}

// TestReconnectsAreSpread: clients that lose their connections in one instant do not come
// back in one, neither where the proxy is there nor where it is away for a while; all do.
func TestReconnectsAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const clients = 400
		p := &proxies{attempts: map[int][]time.Time{}}
		var open []*grpc.ClientConn
		for i := range clients {
			d := &dialer{allowed: func(string) error { return nil }, known: map[string]struct{}{},
				dial: func(context.Context, string, string) (net.Conn, error) { return p.dial(i) }}
			conn, err := grpc.NewClient("passthrough:///proxy", append(d.options(), grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`))...)
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, conn)
			conn.Connect()
		}
		began := time.Now()
		are := func(when string) {
			t.Helper()
			synctest.Wait()
			p.mu.Lock()
			defer p.mu.Unlock()
			if n := len(p.conns); n != clients {
				t.Fatalf("%s: %d are connected", when, n)
			}
		}
		are("at first")
		if !time.Now().Equal(began) {
			t.Errorf("the first connection took %v", time.Since(began))
		}
		<-time.After(time.Minute) // of the bubble
		p.lose()
		<-time.After(spread)
		are("when the proxy is there")
		<-time.After(time.Minute)
		p.set(true)
		p.lose()
		<-time.After(10 * time.Second)
		p.set(false)
		<-time.After(2 * maxRetry)
		are("when the proxy was away")
		for _, c := range open {
			_ = c.Close()
		}
		p.lose()
		p.serving.Wait()

		// Of the attempts of one number no instant has many.
		const instant, most = 10 * time.Millisecond, clients / 5
		for k := 1; ; k++ {
			at := map[int64]int{}
			for _, times := range p.attempts {
				if k < len(times) {
					at[int64(times[k].Sub(began)/instant)]++
				}
			}
			if len(at) == 0 {
				if k < 7 {
					t.Errorf("there were %d attempts each", k)
				}
				return
			}
			if n := slices.Max(slices.Collect(maps.Values(at))); n > most {
				t.Errorf("%d of %d made attempt %d in one instant", n, clients, k)
			}
		}
	})
}
