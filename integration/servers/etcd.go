package servers

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"

	"github.com/weft-mesh/weft/pkg/tlsconf"
)

// etcdVersion is the one that go.mod names.
const etcdVersion = "3.7.3"

// Etcd is one etcd server in a process of its own.
type Etcd struct {
	*Process
	// Endpoint is "http://host:port", with TLS "https://host:port".
	Endpoint string
	dir      string
}

// EtcdOptions change what StartEtcd starts.
type EtcdOptions struct {
	// Args are more flags of etcd.
	Args []string
	// TLS, unless empty, is what clients have to speak: they show a certificate of its
	// CA. Its certificate is good for clients too.
	TLS tlsconf.Files
	// Progress is told about builds; may be nil.
	Progress func(string)
}

// EtcdBinary builds etcd, once, and gives its path. progress is told about the
// build; it may be nil.
func EtcdBinary(ctx context.Context, progress func(string)) (string, error) {
	return goBinary(ctx, "github.com/weft-mesh/weft/integration/servers/cmd/etcd", "etcd", etcdVersion, progressOf(progress))
}

// StartEtcd starts a server with an empty data folder and waits until it
// serves.
func StartEtcd(ctx context.Context, o EtcdOptions) (_ *Etcd, err error) {
	bin, err := EtcdBinary(ctx, o.Progress)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "weft-etcd-")
	if err != nil {
		return nil, err
	}
	client, err := FreePort(1)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	clientURL := "http://127.0.0.1:" + strconv.Itoa(client)
	asker, args := http.DefaultClient, o.Args
	if !o.TLS.Empty() {
		conf, err := tlsconf.Client(o.TLS)
		if err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
		transport := &http.Transport{TLSClientConfig: conf}
		defer transport.CloseIdleConnections()
		asker = &http.Client{Transport: transport}
		clientURL = "https://127.0.0.1:" + strconv.Itoa(client)
		args = append([]string{"--cert-file=" + o.TLS.Cert, "--key-file=" + o.TLS.Key, "--trusted-ca-file=" + o.TLS.CA, "--client-cert-auth"}, args...)
	}
	peerURL := "http://127.0.0.1:" + strconv.Itoa(client+1)
	e := &Etcd{Endpoint: clientURL, dir: dir, Process: &Process{
		Name: "etcd", Log: filepath.Join(dir, "etcd.log"),
		Args: append([]string{bin, "--name=a", "--data-dir=" + filepath.Join(dir, "data"),
			"--listen-client-urls=" + clientURL, "--advertise-client-urls=" + clientURL,
			"--listen-peer-urls=" + peerURL, "--initial-advertise-peer-urls=" + peerURL,
			"--initial-cluster=a=" + peerURL, "--log-level=warn"}, args...),
		Ready: answersTo(asker, clientURL+"/readyz"),
	}}
	if err := e.Start(ctx); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return e, nil
}

// Stop ends the server and removes its data.
func (e *Etcd) Stop() error { return errors.Join(e.Kill(), os.RemoveAll(e.dir)) }

// answers is ready once url answers 200.
func answers(url string) func(context.Context, []byte) error {
	return answersTo(http.DefaultClient, url)
}

func answersTo(c *http.Client, url string) func(context.Context, []byte) error {
	return func(ctx context.Context, _ []byte) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := c.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s answers %s", url, resp.Status)
		}
		return nil
	}
}
