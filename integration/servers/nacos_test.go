package servers

import (
	"context"
	"net/http"
	"net/url"
	"testing"
)

// TestNacos: the server starts, knows its administrator, and keeps what it
// knows over a kill -9.
func TestNacos(t *testing.T) {
	NeedServers(t)
	ctx, cancel := context.WithTimeout(context.Background(), 3*StartTimeout)
	defer cancel()
	n, err := StartNacos(ctx, NacosOptions{Progress: func(s string) { t.Log(s) }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.Stop(); err != nil {
			t.Error(err)
		}
	}()
	login := func(password string) error {
		return n.postForm(ctx, "/nacos/v3/auth/user/login", url.Values{"username": {n.User}, "password": {password}})
	}
	for _, when := range []string{"started", "restarted"} {
		// Right credentials may be refused for a while after a start.
		for err = login(n.Password); err != nil; err = login(n.Password) {
			if ctx.Err() != nil {
				t.Fatalf("%s: %v", when, err)
			}
		}
		if login("wrong") == nil {
			t.Errorf("%s: a wrong password is accepted", when)
		}
		if when == "started" {
			if err := n.Kill(); err != nil {
				t.Fatal(err)
			}
			if _, err := http.Get("http://" + n.Addr); err == nil {
				t.Error("it answers after it was killed")
			}
			if err := n.Start(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
}
