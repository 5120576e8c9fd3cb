package proxycmd

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestSupervise: systemd hears why a process is not ready, when it is, that it lives
// for as long as it answers, and that it stops.
func TestSupervise(t *testing.T) {
	var ready, hangs atomic.Bool
	released := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if hangs.Load() {
			select {
			case <-released:
			case <-r.Context().Done():
			}
		}
		if !ready.Load() {
			http.Error(w, "it has no configuration", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	}))
	defer s.Close()
	defer close(released)
	socket := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	// hear waits for a message with a text; before is what came until then.
	hear := func(text string) (before []string, message string) {
		t.Helper()
		for b := make([]byte, 4096); ; {
			n, err := l.Read(b)
			if err != nil {
				t.Fatalf("%v before %q; heard %q", err, text, before)
			}
			if message = string(b[:n]); strings.Contains(message, text) {
				return before, message
			}
			before = append(before, message)
		}
	}
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", "30000") // 30 ms
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	Supervise(ctx, strings.TrimPrefix(s.URL, "http://"))
	if _, message := hear("STATUS=it has no configuration"); strings.Contains(message, "READY=1") {
		t.Errorf("it is not ready: %q", message)
	}
	hear("WATCHDOG=1")
	ready.Store(true)
	hear("READY=1\nSTATUS=ready")
	hear("WATCHDOG=1")
	hangs.Store(true)
	if _, message := hear("STATUS=does not answer"); strings.Contains(message, "WATCHDOG=1") {
		t.Errorf("what does not answer is said to live: %q", message)
	}
	hangs.Store(false)
	if before, message := hear("STATUS=ready"); len(before) > 0 || strings.Contains(message, "READY=1") {
		t.Errorf("%q, %q", before, message)
	}
	cancel()
	hear("STOPPING=1")
}
