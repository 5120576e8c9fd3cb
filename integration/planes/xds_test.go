package planes

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	sotw "github.com/envoyproxy/go-control-plane/pkg/client/sotw/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/resource"
)

// TestSotwClient: go-control-plane's State-of-the-World client is given everything,
// and everything again when something changes.
func TestSotwClient(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cp := startReplica(ctx, t, startEtcd(ctx, t))
	apply(ctx, t, cp, eventStore("demo", "a", "1"), eventStore("other", "b", "1"))
	conn, err := grpc.NewClient(cp.Addrs().Discovery, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := sotw.NewADSClient(ctx, &corev3.Node{Id: "go-control-plane"}, resource.TypeURL)
	if err := c.InitConnect(conn); err != nil {
		t.Fatal(err)
	}
	next := func(want string) {
		t.Helper()
		resp, err := c.Fetch()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range resp.Resources {
			var r configv1.Resource
			if err := a.UnmarshalTo(&r); err != nil {
				t.Fatal(err)
			}
			got = append(got, strings.TrimPrefix(r.Name, "eventstore/")+"="+r.Metadata.Labels["v"])
		}
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("%v came, want %s", got, want)
		}
	}
	acked := func(want string) {
		t.Helper()
		next(want)
		if err := c.Ack(); err != nil {
			t.Fatal(err)
		}
	}
	acked("demo/a=1 other/b=1")
	apply(ctx, t, cp, eventStore("demo", "a", "2"))
	acked("demo/a=2 other/b=1")
	// What it refuses it is not sent again before something changes.
	apply(ctx, t, cp, eventStore("demo", "a", "3"))
	next("demo/a=3 other/b=1")
	if err := c.Nack("not to its taste"); err != nil {
		t.Fatal(err)
	}
	apply(ctx, t, cp, eventStore("other", "b", "2"))
	acked("demo/a=3 other/b=2")
	if _, err := cp.admin.Delete(ctx, &adminv1.DeleteRequest{Targets: []*adminv1.DeleteTarget{{Name: "eventstore/demo/a"}}}); err != nil {
		t.Fatal(err)
	}
	acked("other/b=2")
}

// deltaClient is the client in Python.
type deltaClient struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Scanner
}

func startDeltaClient(ctx context.Context, t *testing.T) *deltaClient {
	t.Helper()
	python, err := servers.PythonXDS(ctx, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, python, filepath.Join("testdata", "delta.py"))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		var exit *exec.ExitError
		if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
			t.Error(err)
		}
	})
	return &deltaClient{t, in, bufio.NewScanner(out)}
}

// said is what the client answers to a command.
type said struct {
	Resources map[string]string
	Removed   []string
	Version   string
	Code      string
}

func (c *deltaClient) do(what string, args map[string]any) said {
	c.t.Helper()
	if args == nil {
		args = map[string]any{}
	}
	args["do"] = what
	b, err := json.Marshal(args)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.in.Write(append(b, '\n')); err != nil {
		c.t.Fatal(err)
	}
	if !c.out.Scan() {
		c.t.Fatalf("the client has ended at %s", what)
	}
	var s said
	if err := json.Unmarshal(c.out.Bytes(), &s); err != nil {
		c.t.Fatal(err)
	}
	return s
}

func (c *deltaClient) open(addr string, initial map[string]string, names ...string) {
	c.t.Helper()
	c.do("open", map[string]any{"addr": addr, "names": names, "initial": initial})
}

// recv receives a response and compares it: "+name" and "-name", sorted.
func (c *deltaClient) recv(want string) said {
	c.t.Helper()
	s := c.do("recv", nil)
	var got []string
	for name := range s.Resources {
		got = append(got, "+"+strings.TrimPrefix(name, "eventstore/"))
	}
	for _, name := range s.Removed {
		got = append(got, "-"+strings.TrimPrefix(name, "eventstore/"))
	}
	slices.Sort(got)
	if strings.Join(got, " ") != want {
		c.t.Errorf("%v came, want %s", got, want)
	}
	return s
}

func (c *deltaClient) acked(want string) said {
	c.t.Helper()
	s := c.recv(want)
	c.do("ack", nil)
	return s
}

// TestDeltaClient: a delta client that is not ours, in another language, follows:
// its scope at first, changes of it, nothing of others, removals; what it refuses
// is not sent again and others are; it resumes at another replica by the versions
// that it has; a name that is not there is said to be so, and comes when it is.
func TestDeltaClient(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	e := startEtcd(ctx, t)
	first, second := startReplica(ctx, t, e), startReplica(ctx, t, e)
	remove := func(name string) {
		t.Helper()
		if _, err := first.admin.Delete(ctx, &adminv1.DeleteRequest{Targets: []*adminv1.DeleteTarget{{Name: name}}}); err != nil {
			t.Fatal(err)
		}
	}
	apply(ctx, t, first, eventStore("demo", "a", "1"), eventStore("demo", "b", "1"), eventStore("other", "x", "1"))
	c := startDeltaClient(ctx, t)
	c.open(first.Addrs().Discovery, nil, "*/demo/*")
	has := c.acked("+demo/a +demo/b")
	apply(ctx, t, first, eventStore("demo", "a", "2"))
	changed := c.acked("+demo/a")
	if changed.Resources["eventstore/demo/a"] == has.Resources["eventstore/demo/a"] || changed.Version == has.Version {
		t.Errorf("the version is %v after %v", changed, has)
	}
	// Of another namespace it hears nothing: the next is b's.
	apply(ctx, t, first, eventStore("other", "x", "2"))
	apply(ctx, t, first, eventStore("demo", "b", "2"))
	c.acked("+demo/b")
	remove("eventstore/demo/b")
	c.acked("-demo/b")
	// A refusal.
	apply(ctx, t, first, eventStore("demo", "a", "3"))
	c.recv("+demo/a")
	c.do("nack", map[string]any{"message": "not to its taste"})
	apply(ctx, t, first, eventStore("demo", "c", "1"))
	c.acked("+demo/c")
	apply(ctx, t, first, eventStore("demo", "a", "4"))
	last := c.acked("+demo/a")
	if s := c.do("close", nil); s.Code != "OK" {
		t.Errorf("the half-close is answered %s", s.Code)
	}
	// At another replica, with the versions that it has.
	apply(ctx, t, first, eventStore("demo", "d", "1"))
	remove("eventstore/demo/c")
	if _, err := second.admin.Apply(ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{eventStore("demo", "e", "1")}}); err != nil {
		t.Fatal(err)
	}
	c.open(second.Addrs().Discovery, map[string]string{"eventstore/demo/a": last.Resources["eventstore/demo/a"], "eventstore/demo/c": "7"}, "*/demo/*")
	c.acked("+demo/d +demo/e -demo/c")
	c.do("close", nil)
	// A name on demand.
	c.open(second.Addrs().Discovery, nil, "eventstore/demo/later")
	c.acked("-demo/later")
	apply(ctx, t, second, eventStore("demo", "f", "1"))
	apply(ctx, t, second, eventStore("demo", "later", "1"))
	c.acked("+demo/later")
	c.do("close", nil)
}
