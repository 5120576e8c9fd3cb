package nacos

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/registry"
)

// Bounds of an answer, in bytes: all of it, and what an error repeats of it.
const (
	maxAnswer = 32 << 20
	maxText   = 300
)

// Codes of Nacos's answers.
const (
	codeServiceExists  = 21007
	codeServiceMissing = 21008
)

// apiError is a refusal.
type apiError struct {
	status, code int
	text         string
}

func (e *apiError) Error() string {
	s := fmt.Sprintf("nacos answers %d", e.status)
	if e.code != 0 {
		s += fmt.Sprintf(" (code %d)", e.code)
	}
	if e.text != "" {
		s += ": " + e.text
	}
	return s
}

// denied reports whether it is about who asks, not about what was asked.
func (e *apiError) denied() bool {
	return e.status == http.StatusUnauthorized || e.status == http.StatusForbidden
}

// away reports whether something in between says that Nacos is not there.
func (e *apiError) away() bool {
	return e.status == http.StatusBadGateway || e.status == http.StatusServiceUnavailable || e.status == http.StatusGatewayTimeout
}

// Is makes who is denied find registry.ErrRefused.
func (e *apiError) Is(target error) bool { return target == registry.ErrRefused && e.denied() }

func hasCode(err error, code int) bool {
	e, ok := errors.AsType[*apiError](err)
	return ok && e.code == code
}

// client calls the HTTP API of Nacos 3, which nacos-sdk-go has no calls for.
type client struct {
	base        string
	namespace   string
	credentials func() (user, password string, err error)
	http        *http.Client

	mu      sync.Mutex
	token   string
	expires time.Time
}

// newClient makes a client. It follows no redirect: one would carry the token
// and the password to whoever is named.
func newClient(cfg *Config) *client {
	config := cfg.TLS
	if config == nil {
		config = func() *tls.Config { return &tls.Config{MinVersion: tls.VersionTLS12} }
	}
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		return (&tls.Dialer{Config: config()}).DialContext(ctx, network, addr)
	}
	return &client{base: strings.TrimSuffix(cfg.URL, "/"), namespace: cfg.Namespace, credentials: cfg.Credentials,
		http: &http.Client{Timeout: callTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{Proxy: nil, DialTLSContext: dial,
				MaxIdleConnsPerHost: maxCalls, MaxResponseHeaderBytes: 64 << 10, IdleConnTimeout: time.Minute}}}
}

// call makes one call, logs in first if need be, and decodes the answer's data
// into out, which may be nil.
func (c *client) call(ctx context.Context, method, path string, params url.Values, out any) error {
	params.Set("namespaceId", c.namespace)
	token, err := c.login(ctx, "")
	if err != nil {
		return err
	}
	err = c.once(ctx, method, path, params, token, out)
	// A token ends with the server's key, before its time.
	if e, ok := errors.AsType[*apiError](err); ok && e.denied() && token != "" {
		if token, err = c.login(ctx, token); err != nil {
			return err
		}
		err = c.once(ctx, method, path, params, token, out)
	}
	return err
}

func (c *client) once(ctx context.Context, method, path string, params url.Values, token string, out any) error {
	target := c.base + path
	var body io.Reader
	if method == http.MethodPost || method == http.MethodPut {
		body = strings.NewReader(params.Encode())
	} else if len(params) > 0 {
		target += "?" + params.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if token != "" {
		req.Header.Set("accessToken", token) // never in the query, which is logged
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("nacos cannot be reached: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols { // whose body is the connection, and may never end
		return fmt.Errorf("nacos: %s is answered %s", path, resp.Status)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("nacos: %s: %w", path, err)
	}
	if len(b) > maxAnswer {
		return fmt.Errorf("nacos: %s answers more than %d MiB", path, maxAnswer>>20)
	}
	return decodeAnswer(path, resp.StatusCode, b, out)
}

// decodeAnswer decodes the data of an answer into out, which may be nil.
func decodeAnswer(path string, status int, b []byte, out any) error {
	var answer struct {
		Code    int             `json:"code"`
		Message string          `json:"message"`
		Data    json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(b, &answer); err != nil || status != http.StatusOK || answer.Code != 0 {
		text := answer.Message
		var more string // beside a code, data says what is wrong
		if json.Unmarshal(answer.Data, &more) == nil && more != "" {
			text += ": " + more
		}
		if err != nil && path != loginPath { // nobody repeats a password here
			text = strings.TrimSpace(string(b[:min(len(b), maxText+1)]))
		}
		if err != nil && status == http.StatusOK {
			text = "which is not JSON; is the URL that of Nacos's API?"
		}
		if status == http.StatusNotFound && answer.Code == 0 {
			text = "it has no " + path + "; is it Nacos 3, and the context path in the URL right?"
		}
		if len(text) > maxText {
			text = strings.ToValidUTF8(text[:maxText], "") + "…"
		}
		return &apiError{status, answer.Code, text}
	}
	if out == nil {
		return nil
	}
	// The log-in stands beside code and data, everything else in data.
	if len(answer.Data) == 0 {
		answer.Data = b
	}
	if err := json.Unmarshal(answer.Data, out); err != nil {
		return fmt.Errorf("nacos: %s: %w", path, err)
	}
	return nil
}

// login gives a token other than refused, which the server takes no more; ""
// without credentials. Calls that were refused together log in once.
func (c *client) login(ctx context.Context, refused string) (string, error) {
	if c.credentials == nil {
		return "", nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.token != "" && c.token != refused && time.Now().Before(c.expires) {
		return c.token, nil
	}
	user, password, err := c.credentials()
	if err != nil {
		return "", fmt.Errorf("nacos credentials: %w", err)
	}
	var got struct {
		AccessToken string `json:"accessToken"`
		TokenTTL    int64  `json:"tokenTtl"` // in seconds
	}
	err = c.once(ctx, http.MethodPost, loginPath, url.Values{"username": {user}, "password": {password}}, "", &got)
	if e, ok := errors.AsType[*apiError](err); ok && e.status != http.StatusNotFound && !e.away() {
		// A wrong password is 403 on one version, 500 on another.
		return "", fmt.Errorf("%w: the log-in of user %q: %w; is the password right? It is read again at each try", registry.ErrRefused, user, e)
	}
	if err != nil {
		return "", err
	}
	if got.AccessToken == "" {
		return "", fmt.Errorf("%w: nacos gave user %q no token", registry.ErrRefused, user)
	}
	c.token, c.expires = got.AccessToken, time.Now().Add(time.Duration(min(got.TokenTTL, maxTTL))*time.Second/2)
	return c.token, nil
}

const loginPath = "/v3/auth/user/login"

// maxTTL bounds how long a token is used, in seconds.
const maxTTL = 24 * 60 * 60
