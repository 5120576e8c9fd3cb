package weft

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/pkg/tlsconf"
)

// TestEtcdFlags: what cannot be meant is refused by its flag before anything is connected
// to, a password that would cross a network in the clear above all.
func TestEtcdFlags(t *testing.T) {
	password, empty, missing := file(t, "password", "canary\n"), file(t, "empty", "\n"), t.TempDir()+"/none"
	ca := tlsconf.Files{CA: missing}
	for _, tc := range []struct {
		at   string
		user bool
		tls  tlsconf.Files
		says string // "" where it is taken
	}{
		{at: "", says: "--etcd: name the endpoints"},
		{at: "htps://etcd:2379", says: `--etcd: "htps://etcd:2379" is neither`},
		{at: "etcd", says: `--etcd: "etcd" is neither`},
		{at: "https://", says: "--etcd: "},
		{at: "http://root:canary@etcd:2379", says: "--etcd: an endpoint has no user"},
		{at: "https://a:2379,http://b:2379", says: "--etcd: https://a:2379 and http://b:2379: either all"},
		{at: "b:2379,https://a:2379", says: "either all"},
		{at: "https://a:2379", tls: tlsconf.Files{Cert: missing}, says: "--etcd-cert and --etcd-key go together"},
		{at: "https://a:2379", tls: tlsconf.Files{CA: missing, Key: missing}, says: "--etcd-cert and --etcd-key go together"},
		{at: "https://a:2379", tls: ca, says: "--etcd-ca: authorities: open " + missing},
		{at: "https://a:2379", tls: tlsconf.Files{CA: password}, says: "--etcd-ca: authorities: " + password + " has no certificate"},
		{at: "https://a:2379", tls: tlsconf.Files{Cert: missing, Key: missing}, says: "--etcd-cert, --etcd-key: certificate " + missing},
		{at: "http://127.0.0.1:2379", tls: ca, says: "--etcd-ca: http://127.0.0.1:2379 is not https://"},
		{at: "127.0.0.1:2379", tls: tlsconf.Files{Cert: missing, Key: missing}, says: "--etcd-cert, --etcd-key: 127.0.0.1:2379 is not https://"},
		{at: "http://etcd:2379", user: true, says: "--etcd-password-file: the password is not sent to http://etcd:2379 in the clear"},
		{at: "etcd:2379", user: true, says: "in the clear"},
		{at: "http://127.0.0.1:2379,http://192.0.2.1:2379", user: true, says: "in the clear"},
		{at: "http://127.0.0.1.example:2379", user: true, says: "in the clear"},
		{at: "http://127.0.0.1:2379", user: true},
		{at: "http://[::1]:2379,localhost:2379,http://localhost", user: true},
		{at: "unix:///run/etcd.sock", user: true},
		{at: "https://etcd:2379", user: true},
		{at: "http://etcd:2379"},
		{at: "etcd:2379"},
	} {
		e := etcdFlags{tls: tc.tls}
		if tc.at != "" {
			e.endpoints = strings.Split(tc.at, ",")
		}
		if tc.user {
			e.user, e.passwordFile = "weft", password
		}
		secure, err := e.check()
		if err == nil && tc.says != "" {
			_, err = e.files(slog.New(slog.DiscardHandler))
		}
		if tc.says == "" && (err != nil || secure != strings.HasPrefix(tc.at, "https")) {
			t.Errorf("%s: %v, %t", tc.at, err, secure)
		}
		if tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "canary")) {
			t.Errorf("%s: %v, want %q", tc.at, err, tc.says)
		}
	}
	for says, e := range map[string]etcdFlags{
		"--etcd-user and --etcd-password-file go together": {user: "weft"},
		"--etcd-password-file: open " + missing:            {user: "weft", passwordFile: missing},
		"--etcd-password-file: " + empty + " is empty":     {user: "weft", passwordFile: empty},
	} {
		e.endpoints = []string{"http://127.0.0.1:1"}
		if err := e.open(&server.Config{Log: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
}
