package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/weft-mesh/weft/pkg/cloudevents"
)

// Waits of a client over HTTP before it comes back.
const (
	minWait = 100 * time.Millisecond
	maxWait = 5 * time.Second
)

// overHTTP follows the topic, as a browser's EventSource does.
func (c *crowd) overHTTP(o *one) error {
	key, err := os.ReadFile(c.key)
	if err != nil {
		return err
	}
	last, wait := "", minWait
	for {
		err := c.stream(strings.TrimSpace(string(key)), &last, func() { wait = minWait; o.opened() }, o.got)
		if err != nil {
			return err
		}
		<-time.After(wait/2 + rand.N(wait))
		wait = min(2*wait, maxWait)
	}
}

// stream is one connection; it gives an error where coming back cannot help.
func (c *crowd) stream(key string, last *string, opened func(), got func(id string)) error {
	conn, err := net.Dial("tcp", c.http.addr())
	if err != nil {
		return nil //nolint:nilerr // it comes back
	}
	if c.tls != nil {
		config := c.tls.Clone()
		config.ServerName = "127.0.0.1"
		conn = tls.Client(conn, config)
	}
	defer conn.Close()
	request := "GET /v1/" + c.ns + "/topics/" + c.topic + "/events?from=beginning HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + key + "\r\n"
	if *last != "" {
		request += "Last-Event-ID: " + *last + "\r\n"
	}
	if _, err := conn.Write([]byte(request + "\r\n")); err != nil {
		return nil //nolint:nilerr // likewise
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return nil //nolint:nilerr // likewise
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusServiceUnavailable:
		return nil // it starts, or stops
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("the stream is refused: %s", resp.Status)
	}
	opened()
	id := ""
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if v, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			id = v
		}
		if v, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			if e, err := cloudevents.DecodeJSON([]byte(v)); err == nil {
				got(e.ID)
			}
		}
		if lines.Text() == "" && id != "" {
			*last = id
		}
	}
	return nil
}
