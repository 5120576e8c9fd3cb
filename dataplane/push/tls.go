package push

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/tlsconf"
)

// tlsFiles is how a target is called that has TLS files of its own.
type tlsFiles struct {
	log      *slog.Logger
	unusable prometheus.Gauge // nil in tests

	mu     sync.Mutex
	files  tlsconf.Files
	opened time.Time
	source *tlsconf.Source // nil until the files could be used
	err    error           // why they could not
	// transport has connections that were made with conf, and only such.
	conf      *tls.Config
	transport *http.Transport
}

// over gives what a target is called over, as push says and the files now are. Its
// error names the field and what is wrong with the file.
func (c *client) over(push *snapshot.Push) (*http.Transport, error) {
	t := &c.tls
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.unusable != nil {
		defer func() { t.unusable.Set(t.failedLocked()) }()
	}
	files, err := c.secrets.tls(push)
	if files != t.files {
		t.closeLocked()
		t.files, t.opened, t.source, t.err = files, time.Time{}, nil, nil
	}
	switch {
	case err != nil:
		t.err = err
		return nil, err
	case files.Empty():
		t.err = nil
		return c.transport, nil
	case t.source == nil:
		if time.Since(t.opened) < reread {
			return nil, t.err
		}
		t.opened = time.Now()
		source, err := tlsconf.Open("push target", files, t.log)
		if err != nil {
			t.err = fmt.Errorf("push.tls: %w", err)
			return nil, t.err
		}
		t.source, t.err = source, nil
	}
	if t.transport == nil || !t.source.Same(t.conf) {
		t.closeLocked()
		t.conf = t.source.Client()
		t.transport = c.transport.Clone()
		t.transport.TLSClientConfig = t.conf.Clone()
	}
	return t.transport, nil
}

// closeLocked gives up the connections: requests on them end as they would.
func (t *tlsFiles) closeLocked() {
	if t.transport != nil {
		t.transport.CloseIdleConnections()
		t.transport = nil
	}
}

func (t *tlsFiles) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closeLocked()
}

// failedLocked is 1 where the files cannot be used as they are.
func (t *tlsFiles) failedLocked() float64 {
	if t.err != nil || t.source != nil && t.source.Unusable() != nil {
		return 1
	}
	return 0
}
