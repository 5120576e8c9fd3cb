package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc/credentials"

	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/tlsconf"
)

// maxJoinToken bounds the file with a join token, in bytes.
const maxJoinToken = 4 << 10

// joining sets what this proxy shows to a control plane: a certificate while there
// is one that is good, else a join token.
func (p *Proxy) joining(creds *credentials.TransportCredentials, calls *credentials.PerRPCCredentials) (err error) {
	var files *tlsconf.Source
	if !p.cfg.ControlPlaneTLS.Empty() {
		if files, err = p.files("control-plane", p.cfg.ControlPlaneTLS); err != nil {
			return fmt.Errorf("control plane: %w", err)
		}
	}
	var withhold func(*tls.Config)
	if p.cfg.JoinTokenFile != "" {
		j := &joining{file: p.cfg.JoinTokenFile, files: files, clock: p.cfg.Clock}
		if _, err := j.token(); err != nil {
			return err
		}
		*calls, withhold = j, j.withhold
	}
	if files != nil {
		*creds = files.Credentials(withhold)
	}
	return nil
}

// joining shows a join token over connections that were made while there was no
// certificate that is good.
type joining struct {
	file  string
	files *tlsconf.Source // nil without TLS
	clock clock.Clock
	// shown: the newest connection was made with a certificate. There is one at a time, and
	// calls begin over it long after: a certificate that has ended or come by then is the
	// next one's.
	shown atomic.Bool
}

// withhold keeps an expired certificate back, with which no control plane would
// talk, and sessions that were made with it.
func (j *joining) withhold(c *tls.Config) {
	good := j.certified()
	if !good {
		c.GetClientCertificate, c.ClientSessionCache = nil, nil
	}
	j.shown.Store(good)
}

// certified reports whether there is a certificate that has not expired.
func (j *joining) certified() bool {
	if j.files == nil {
		return false
	}
	c := j.files.Certificate()
	return c != nil && j.clock.Now().Before(c.Leaf.NotAfter)
}

// token reads the file. Its errors say nothing of what is in it.
func (j *joining) token() (string, error) {
	f, err := os.Open(j.file)
	if err != nil {
		return "", fmt.Errorf("join token: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxJoinToken+1))
	if err != nil {
		return "", fmt.Errorf("join token: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" || len(b) > maxJoinToken || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", errors.New("join token: " + j.file + " has no token as weft admin join-token create gives it")
	}
	return token, nil
}

// GetRequestMetadata is what a call shows.
func (j *joining) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	if j.shown.Load() {
		return nil, nil
	}
	token, err := j.token()
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + token}, nil
}

// RequireTransportSecurity keeps a token off the network in the clear; without TLS
// there is only loopback.
func (j *joining) RequireTransportSecurity() bool { return j.files != nil }
