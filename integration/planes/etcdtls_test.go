package planes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/tlsconf"
	"github.com/weft-mesh/weft/tools/weft"
)

// patience is for what takes two waits of 5 s, one for the files and one for etcd, so that
// a test that fails does not take as long as all may.
const patience = time.Minute

// controlPlane is weft control-plane, in this process.
type controlPlane struct {
	t     *testing.T
	log   *lines
	ops   string
	admin adminv1.AdminServiceClient
}

var listensOn = regexp.MustCompile(`(?m)^control plane: admin (\S+), discovery \S+, operations (\S+)$`)

// weftControlPlane starts one, with an etcd that asks for certificates and those of f.
func weftControlPlane(ctx context.Context, t *testing.T, etcd string, f tlsconf.Files) *controlPlane {
	t.Helper()
	c := &controlPlane{t: t, log: &lines{}}
	runs(t, func(ctx context.Context) error {
		if code := weft.Main(ctx, controlPlaneArgs(etcd, f), strings.NewReader(""), c.log, c.log); code != 0 {
			return fmt.Errorf("weft control-plane: %d\n%s", code, c.log.text())
		}
		return nil
	})
	until(ctx, t, "its addresses", func() error {
		at := listensOn.FindStringSubmatch(c.log.text())
		if at == nil {
			return errors.New(c.log.text())
		}
		conn, err := grpc.NewClient(at[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		c.ops, c.admin = at[2], adminv1.NewAdminServiceClient(conn)
		return nil
	})
	return c
}

func controlPlaneArgs(etcd string, f tlsconf.Files, more ...string) []string {
	args := []string{"control-plane", "--etcd", etcd, "--admin", "127.0.0.1:0", "--discovery", "127.0.0.1:0", "--ops", "127.0.0.1:0"}
	for flag, file := range map[string]string{"--etcd-ca": f.CA, "--etcd-cert": f.Cert, "--etcd-key": f.Key} {
		if file != "" {
			args = append(args, flag, file)
		}
	}
	return append(args, more...)
}

// says waits until it has logged why there is no connection to etcd.
func (c *controlPlane) says(ctx context.Context, what, endpoint, why string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	until(ctx, c.t, what, func() error {
		if c.log.count("level=WARN", "no connection to etcd", "endpoint="+strings.TrimPrefix(endpoint, "https://"), why) == 0 {
			return errors.New(c.log.text())
		}
		return nil
	})
	if _, err := c.admin.Get(ctx, &adminv1.GetRequest{Name: "topic/demo/orders"}); err == nil || !strings.Contains(err.Error(), "has not read the configuration") {
		c.t.Errorf("%s: it answers %v", what, err)
	}
}

// takes waits until a change is taken.
func (c *controlPlane) takes(ctx context.Context, when string, rs ...*configv1.Resource) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	until(ctx, c.t, when, func() error {
		_, err := c.admin.Apply(ctx, &adminv1.ApplyRequest{Resources: rs})
		return err
	})
}

// TestEtcdTLS: with an etcd that asks for certificates a control plane is ready and takes
// changes. One that does not trust it, or that it does not, says which flag has what is
// wrong; it needs no restart once the files are right, nor to go over to others.
func TestEtcdTLS(t *testing.T) {
	t.Parallel()
	servers.NeedServers(t)
	ctx := testContext(t)
	a, other := newAuthority(t), newAuthority(t)
	e, err := servers.StartEtcd(ctx, servers.EtcdOptions{TLS: a.issue("etcd")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Stop(); err != nil {
			t.Error(err)
		}
	})
	good := a.issue("good")
	c := weftControlPlane(ctx, t, e.Endpoint, good)
	c.takes(ctx, "a change", eventStore("demo", "main", "1"), topic("demo", "orders"))
	if c.log.count("no connection to etcd") > 0 {
		t.Errorf("it has logged\n%s", c.log.text())
	}
	if end := scrape(t, c.ops).value(`weft_controlplane_tls_certificate_expiry_timestamp_seconds{files="etcd"}`); end <= 0 {
		t.Errorf("its certificate ends at %v", end)
	}

	// Each has files of its own, which are put right.
	copied := func(from tlsconf.Files) tlsconf.Files {
		dir := t.TempDir()
		to := tlsconf.Files{CA: filepath.Join(dir, "ca"), Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key")}
		replaceFiles(t, to, from)
		return to
	}
	mistaken := good
	mistaken.CA = other.file
	mistaken = copied(mistaken)
	distrustful := weftControlPlane(ctx, t, e.Endpoint, mistaken)
	distrustful.says(ctx, "another authority", e.Endpoint, "no authority that --etcd-ca has")
	without := weftControlPlane(ctx, t, e.Endpoint, tlsconf.Files{CA: a.file})
	without.says(ctx, "no certificate", e.Endpoint, "--etcd-cert")
	foreign := other.issue("foreign")
	foreign.CA = a.file
	foreign = copied(foreign)
	stranger := weftControlPlane(ctx, t, e.Endpoint, foreign)
	stranger.says(ctx, "a certificate of another authority", e.Endpoint, "--etcd-cert")
	ends := &lines{}
	password := filepath.Join(t.TempDir(), "password")
	replace(t, password, []byte("canary"))
	// With a user nothing is served before etcd has been asked.
	args := controlPlaneArgs(e.Endpoint, tlsconf.Files{CA: other.file}, "--etcd-user", "weft", "--etcd-password-file", password)
	if code := weft.Main(ctx, args, strings.NewReader(""), ends, ends); code != 1 || ends.count("weft: --etcd: ", "no authority that --etcd-ca has") != 1 || strings.Contains(ends.text(), "canary") {
		t.Errorf("with a user: %d\n%s", code, ends.text())
	}

	replaceFiles(t, mistaken, good)
	distrustful.takes(ctx, "a change, once the authority is right", topic("demo", "trusting"))
	replaceFiles(t, foreign, good)
	stranger.takes(ctx, "a change, once the certificate is right", topic("demo", "trusted"))

	// etcd goes over to the other authority. A connection that is made before the files
	// are looked at fails, and the next one does not.
	fresh := other.issue("fresh")
	for _, f := range []tlsconf.Files{good, mistaken, foreign} {
		replaceFiles(t, f, fresh)
	}
	if err := e.Kill(); err != nil {
		t.Fatal(err)
	}
	served := other.issue("etcd")
	e.Args = slices.Concat(e.Args, []string{"--cert-file=" + served.Cert, "--key-file=" + served.Key, "--trusted-ca-file=" + served.CA})
	e.Ready = func(context.Context, []byte) error { return nil } // the replicas tell
	if err := e.Start(ctx); err != nil {
		t.Fatal(err)
	}
	for i, c := range []*controlPlane{c, distrustful, stranger} {
		c.takes(ctx, "a change after etcd went over to another authority", topic("demo", fmt.Sprintf("after-%d", i)))
	}
}

// replaceFiles puts what others have where files are.
func replaceFiles(t *testing.T, old, from tlsconf.Files) {
	t.Helper()
	for file, by := range map[string]string{old.CA: from.CA, old.Cert: from.Cert, old.Key: from.Key} {
		b, err := os.ReadFile(by)
		if err != nil {
			t.Fatal(err)
		}
		replace(t, file, b)
	}
}
