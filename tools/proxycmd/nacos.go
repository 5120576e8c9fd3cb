package proxycmd

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/weft-mesh/weft/dataplane/proxy"
	"github.com/weft-mesh/weft/dataplane/push"
	"github.com/weft-mesh/weft/pkg/tlsconf"
	"github.com/weft-mesh/weft/registry/nacos"
)

// NacosFlags say where Nacos is, and as whom it is asked.
type NacosFlags struct {
	url, user, passwordFile, namespace string
	tls                                tlsconf.Files
}

// Add adds the flags; use is what Nacos is for.
func (n *NacosFlags) Add(f *pflag.FlagSet, use string) {
	f.StringVar(&n.url, "nacos", Env("WEFT_NACOS", ""), "URL of Nacos's API where "+use+", such as http://127.0.0.1:8848/nacos (WEFT_NACOS)")
	f.StringVar(&n.user, "nacos-user", Env("WEFT_NACOS_USER", ""), "user of Nacos (WEFT_NACOS_USER)")
	f.StringVar(&n.passwordFile, "nacos-password-file", Env("WEFT_NACOS_PASSWORD_FILE", ""), "file with its password (WEFT_NACOS_PASSWORD_FILE)")
	f.StringVar(&n.namespace, "nacos-namespace", Env("WEFT_NACOS_NAMESPACE", "public"), "id of the namespace of Nacos, which must exist there (WEFT_NACOS_NAMESPACE)")
	f.StringVar(&n.tls.CA, "nacos-ca", Env("WEFT_NACOS_CA", ""), "file with the authorities that Nacos's certificate must have; the system's when empty (WEFT_NACOS_CA)")
	f.StringVar(&n.tls.Cert, "nacos-cert", Env("WEFT_NACOS_CERT", ""), "file with the certificate to show Nacos, where it asks for one (WEFT_NACOS_CERT)")
	f.StringVar(&n.tls.Key, "nacos-key", Env("WEFT_NACOS_KEY", ""), "file with its key (WEFT_NACOS_KEY)")
}

// Open opens Nacos; nil without --nacos. files are those of TLS, nil without. The
// function that it gives closes it.
func (n *NacosFlags) Open(group string, log *slog.Logger) (r *nacos.Registry, files *tlsconf.Source, stop func(), err error) {
	if n.url == "" {
		return nil, nil, func() {}, nil
	}
	if (n.user == "") != (n.passwordFile == "") {
		return nil, nil, nil, errors.New("--nacos-user and --nacos-password-file go together")
	}
	c := nacos.Config{URL: n.url, Namespace: n.namespace, Group: group}
	if !n.tls.Empty() {
		if files, err = tlsconf.Open("nacos", n.tls, log); err != nil {
			return nil, nil, nil, fmt.Errorf("--nacos-ca, --nacos-cert, --nacos-key: %w", err)
		}
		c.TLS = files.Client
	}
	if n.user != "" {
		c.Credentials = func() (string, string, error) {
			b, err := os.ReadFile(n.passwordFile)
			return n.user, strings.TrimSpace(string(b)), err
		}
	}
	if r, err = nacos.New(c); err != nil {
		return nil, nil, nil, fmt.Errorf("--nacos: %w", err)
	}
	return r, files, func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := r.Close(ctx); err != nil {
			log.Warn("closing the registry", "error", err)
		}
	}, nil
}

// FindServices has a proxy find the services that it pushes to there, if --nacos says
// where that is. The function that it gives closes it.
func (n *NacosFlags) FindServices(cfg *proxy.Config) (stop func(), err error) {
	r, _, stop, err := n.Open("", cfg.Log)
	if r != nil {
		cfg.PushServices = services{r}
	}
	return stop, err
}

// services are those of Nacos, as push has them.
type services struct{ nacos *nacos.Registry }

func (s services) Endpoints(ctx context.Context, group, name string, clusters []string) iter.Seq2[[]push.Endpoint, error] {
	return func(yield func([]push.Endpoint, error) bool) {
		for set, err := range s.nacos.Endpoints(ctx, group, name, clusters) {
			out := make([]push.Endpoint, len(set))
			for i, e := range set {
				out[i] = push.Endpoint(e)
			}
			if !yield(out, err) {
				return
			}
		}
	}
}
