package proxycmd

import (
	"context"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Times of Supervise: how often a process that is not ready is looked at, and one
// that is; how long it may take to answer.
const (
	lookAtStart = 200 * time.Millisecond
	lookLater   = 5 * time.Second
	lookTime    = 2 * time.Second
)

// Supervise tells systemd how this process is, as sd_notify(3) has it, where systemd
// started it so (Type=notify): ready once /readyz at addr says so, and why it is not;
// with WatchdogSec= that it lives, for as long as /readyz answers; that it stops, when
// ctx ends. It does not block. Elsewhere it does nothing.
func Supervise(ctx context.Context, addr string) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return
	}
	// Who is asked to restart what does not answer must not be told otherwise.
	watchdog, _ := daemon.SdWatchdogEnabled(false)
	go supervise(ctx, addr, watchdog, func(lines ...string) { _, _ = daemon.SdNotify(false, strings.Join(lines, "\n")) })
}

// supervise is Supervise with how to tell; watchdog is 0 for none.
func supervise(ctx context.Context, addr string, watchdog time.Duration, tell func(lines ...string)) {
	client := &http.Client{Timeout: lookTime, Transport: &http.Transport{Proxy: nil}}
	defer client.CloseIdleConnections()
	said, was := false, ""
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			tell(daemon.SdNotifyStopping)
			return
		case <-timer.C:
		}
		text, ready, lives := look(ctx, client, addr)
		var lines []string
		if ready && !said {
			lines, said = append(lines, daemon.SdNotifyReady), true
		}
		if text != was {
			lines, was = append(lines, "STATUS="+text), text
		}
		if lives && watchdog > 0 {
			lines = append(lines, daemon.SdNotifyWatchdog)
		}
		if len(lines) > 0 && ctx.Err() == nil {
			tell(lines...)
		}
		next := lookLater
		if !said {
			next = lookAtStart
		}
		if watchdog > 0 {
			next = min(next, watchdog/3)
		}
		timer.Reset(next)
	}
}

// look asks /readyz. text is its first line.
func look(ctx context.Context, client *http.Client, addr string) (text string, ready, lives bool) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/readyz", nil)
	if err != nil {
		return err.Error(), false, false
	}
	resp, err := client.Do(req)
	if err != nil {
		return "does not answer", false, false
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
	text, _, _ = strings.Cut(string(b), "\n")
	return text, resp.StatusCode == http.StatusOK, true
}
