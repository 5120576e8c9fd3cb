package chaos

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// link carries connections to an address, until it is cut.
type link struct {
	addr string // where it listens
	to   string
	l    net.Listener

	mu    sync.Mutex
	gone  bool
	open  bool
	conns map[net.Conn]struct{}
	work  sync.WaitGroup
}

func newLink(to string) (*link, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	k := &link{addr: l.Addr().String(), to: to, l: l, open: true, conns: map[net.Conn]struct{}{}}
	k.work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			k.work.Go(func() { k.carry(c) })
		}
	})
	return k, nil
}

// add keeps a connection, if there is a way.
func (k *link) add(c net.Conn) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.open || k.gone {
		_ = c.Close()
		return false
	}
	k.conns[c] = struct{}{}
	return true
}

func (k *link) carry(c net.Conn) {
	if !k.add(c) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	to, err := (&net.Dialer{}).DialContext(ctx, "tcp", k.to)
	if err == nil && k.add(to) {
		k.work.Go(func() {
			_, _ = io.Copy(to, c)
			_ = to.Close()
			_ = c.Close()
		})
		_, _ = io.Copy(c, to)
		_ = to.Close()
	}
	_ = c.Close()
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.conns, c)
	if to != nil {
		delete(k.conns, to)
	}
}

// cut ends what is carried and lets nothing through.
func (k *link) cut() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.open = false
	for c := range k.conns {
		_ = c.Close()
	}
}

func (k *link) mend() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.open = true
}

func (k *link) close() {
	k.mu.Lock()
	k.gone = true
	for c := range k.conns {
		_ = c.Close()
	}
	k.mu.Unlock()
	_ = k.l.Close()
	k.work.Wait()
}

// metric reads a metric of a process.
func metric(ctx context.Context, ops, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+ops+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if v, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(v, 64)
		}
	}
	return 0, fmt.Errorf("there is no metric %s", name)
}
