package weft

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/registry/nacos"
	"github.com/weft-mesh/weft/tools/proxycmd"
)

// nacosFlags say where proxies are registered.
type nacosFlags struct{ url, user, passwordFile string }

func (n *nacosFlags) add(f *pflag.FlagSet, cfg *server.Config) {
	f.StringVar(&n.url, "nacos", proxycmd.Env("WEFT_NACOS", ""), "URL of Nacos's API where proxies are registered, such as http://127.0.0.1:8848/nacos (WEFT_NACOS)")
	f.StringVar(&n.user, "nacos-user", proxycmd.Env("WEFT_NACOS_USER", ""), "user of Nacos (WEFT_NACOS_USER)")
	f.StringVar(&n.passwordFile, "nacos-password-file", proxycmd.Env("WEFT_NACOS_PASSWORD_FILE", ""), "file with its password (WEFT_NACOS_PASSWORD_FILE)")
	f.StringVar(&cfg.Service, "mesh", proxycmd.Env("WEFT_MESH", "weft"), "name of the mesh: the service's name in Nacos (WEFT_MESH)")
}

// open sets cfg's registry; the function that it gives closes it.
func (n *nacosFlags) open(cfg *server.Config) (func(), error) {
	if n.url == "" {
		return func() {}, nil
	}
	if (n.user == "") != (n.passwordFile == "") {
		return nil, fmt.Errorf("--nacos-user and --nacos-password-file go together")
	}
	c := nacos.Config{URL: n.url, Log: cfg.Log}
	if n.user != "" {
		c.Credentials = func() (string, string, error) {
			b, err := os.ReadFile(n.passwordFile)
			return n.user, strings.TrimSpace(string(b)), err
		}
	}
	r, err := nacos.New(c)
	if err != nil {
		return nil, fmt.Errorf("--nacos: %w", err)
	}
	cfg.Registry = r
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := r.Close(ctx); err != nil {
			cfg.Log.Warn("closing the registry", "error", err)
		}
	}, nil
}
