package nacos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 32 << 20

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
	return fmt.Sprintf("nacos answers %d (code %d): %s", e.status, e.code, e.text)
}

func hasCode(err error, code int) bool {
	e, ok := errors.AsType[*apiError](err)
	return ok && e.code == code
}

// client calls the HTTP API of Nacos 3, which nacos-sdk-go has no calls for.
type client struct {
	base        string
	credentials func() (user, password string, err error)
	http        *http.Client

	mu      sync.Mutex
	token   string
	expires time.Time
}

// call makes one call, logs in first if need be, and decodes the answer's data
// into out, which may be nil.
func (c *client) call(ctx context.Context, method, path string, params url.Values, out any) error {
	for again := false; ; again = true {
		token, err := c.login(ctx, again)
		if err != nil {
			return err
		}
		err = c.once(ctx, method, path, params, token, out)
		// A token ends with the server's key, before its time.
		if e, ok := errors.AsType[*apiError](err); ok && (e.status == http.StatusForbidden || e.status == http.StatusUnauthorized) && token != "" && !again {
			continue
		}
		return err
	}
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
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("nacos: %w", err)
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
	if json.Unmarshal(b, &answer) != nil || status != http.StatusOK || answer.Code != 0 {
		return &apiError{status, answer.Code, answer.Message}
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

// login gives a token; "" without credentials.
func (c *client) login(ctx context.Context, again bool) (string, error) {
	if c.credentials == nil {
		return "", nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !again && c.token != "" && time.Now().Before(c.expires) {
		return c.token, nil
	}
	user, password, err := c.credentials()
	if err != nil {
		return "", fmt.Errorf("nacos credentials: %w", err)
	}
	var got struct {
		AccessToken string `json:"accessToken"`
		TokenTTL    int64  `json:"tokenTtl"`
	}
	if err := c.once(ctx, http.MethodPost, "/v3/auth/user/login", url.Values{"username": {user}, "password": {password}}, "", &got); err != nil {
		return "", fmt.Errorf("nacos refuses the log-in of user %s: %w", user, err)
	}
	if got.AccessToken == "" {
		return "", fmt.Errorf("nacos gave user %s no token", user)
	}
	c.token, c.expires = got.AccessToken, time.Now().Add(time.Duration(got.TokenTTL)*time.Second/2)
	return c.token, nil
}
