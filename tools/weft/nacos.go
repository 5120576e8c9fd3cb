package weft

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/pkg/tlsconf"
	"github.com/weft-mesh/weft/registry/nacos"
	"github.com/weft-mesh/weft/tools/proxycmd"
)

// nacosFlags say where proxies are registered.
type nacosFlags struct {
	url, user, passwordFile, namespace, group string
	tls                                       tlsconf.Files
}

func (n *nacosFlags) add(f *pflag.FlagSet, cfg *server.Config) {
	f.StringVar(&n.url, "nacos", proxycmd.Env("WEFT_NACOS", ""), "URL of Nacos's API where proxies are registered, such as http://127.0.0.1:8848/nacos (WEFT_NACOS)")
	f.StringVar(&n.user, "nacos-user", proxycmd.Env("WEFT_NACOS_USER", ""), "user of Nacos (WEFT_NACOS_USER)")
	f.StringVar(&n.passwordFile, "nacos-password-file", proxycmd.Env("WEFT_NACOS_PASSWORD_FILE", ""), "file with its password (WEFT_NACOS_PASSWORD_FILE)")
	f.StringVar(&n.namespace, "nacos-namespace", proxycmd.Env("WEFT_NACOS_NAMESPACE", "public"), "id of the namespace of Nacos, which must exist there (WEFT_NACOS_NAMESPACE)")
	f.StringVar(&n.group, "nacos-group", proxycmd.Env("WEFT_NACOS_GROUP", "DEFAULT_GROUP"), "group of Nacos that the mesh is a service of (WEFT_NACOS_GROUP)")
	f.StringVar(&n.tls.CA, "nacos-ca", proxycmd.Env("WEFT_NACOS_CA", ""), "file with the authorities that Nacos's certificate must have; the system's when empty (WEFT_NACOS_CA)")
	f.StringVar(&n.tls.Cert, "nacos-cert", proxycmd.Env("WEFT_NACOS_CERT", ""), "file with the certificate to show Nacos, where it asks for one (WEFT_NACOS_CERT)")
	f.StringVar(&n.tls.Key, "nacos-key", proxycmd.Env("WEFT_NACOS_KEY", ""), "file with its key (WEFT_NACOS_KEY)")
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
	c := nacos.Config{URL: n.url, Namespace: n.namespace, Group: n.group}
	if !n.tls.Empty() {
		files, err := tlsconf.Open("nacos", n.tls, cfg.Log)
		if err != nil {
			return nil, fmt.Errorf("--nacos-ca, --nacos-cert, --nacos-key: %w", err)
		}
		c.TLS, cfg.TLSSources = files.Client, append(cfg.TLSSources, files)
	}
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
