package weft

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/controlplane/embedetcd"
	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/store/binding"
)

// run runs a command as a process would and gives its output and exit status.
func run(ctx context.Context, args ...string) (out, errOut string, code int) {
	var o, e bytes.Buffer
	code = Main(ctx, args, strings.NewReader(""), &o, &e)
	return o.String(), e.String(), code
}

func (m *mesh) run(args ...string) (out, errOut string, code int) {
	return run(m.ctx, append(args, "--server", m.admin)...)
}

// want runs a command and checks its exit status and, in what it says, the
// order of some texts.
func (m *mesh) want(code int, args []string, says ...string) string {
	m.Helper()
	out, errOut, got := m.run(args...)
	all := out + errOut
	if got != code {
		m.Fatalf("weft %v ends with %d: %s", args, got, all)
	}
	rest := all
	for _, s := range says {
		_, after, ok := strings.Cut(rest, s)
		if !ok {
			m.Errorf("weft %v does not say %q (in this order) but\n%s", args, s, all)
		}
		rest = after
	}
	return all
}

// lastChange is the revision of the newest change of what args select.
func (m *mesh) lastChange(args ...string) string {
	m.Helper()
	out, _, _ := m.run(append([]string{"history", "-o", "json", "--limit", "1"}, args...)...)
	match := regexp.MustCompile(`"revision": +"([0-9]+)"`).FindStringSubmatch(out)
	if match == nil {
		m.Fatalf("no revision in %s", out)
	}
	return match[1]
}

func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func topics(ns string, from, to int, label string) string {
	var b strings.Builder
	for i := from; i < to; i++ {
		fmt.Fprintf(&b, "---\napiVersion: weft/v1alpha1\nkind: Topic\nmetadata: {namespace: %s, name: t%d, labels: {by: %s}}\nspec: {store: main}\n", ns, i, label)
	}
	return b.String()
}

func storeYAML(ns, label string) string {
	return fmt.Sprintf("---\napiVersion: weft/v1alpha1\nkind: EventStore\nmetadata: {namespace: %s, name: main, labels: {by: %s}}\nspec: {embedded: {}}\n", ns, label)
}

// TestAdministration: a mesh is changed, looked at and taken back from the command
// line.
func TestAdministration(t *testing.T) {
	m := start(t, t.TempDir())
	few := file(t, "few.yaml", storeYAML("shop", "git")+topics("shop", 0, 3, "git"))

	m.want(1, []string{"diff", "-f", few}, "--- /dev/null", "+++ b/eventstore/shop/main", "+kind: EventStore", "+++ b/topic/shop/t2")
	m.want(0, []string{"apply", "-f", few, "--diff"}, "+++ b/topic/shop/t0", "eventstore/shop/main created", "topic/shop/t2 created")
	if said := m.want(0, []string{"diff", "-f", few}); said != "" {
		t.Errorf("what is the same differs: %s", said)
	}
	m.want(0, []string{"apply", "-f", few}, "topic/shop/t1 unchanged")
	number := m.lastChange("topic", "t0", "-n", "shop")

	// Prune.
	fewer := file(t, "fewer.yaml", storeYAML("shop", "git")+topics("shop", 0, 2, "git"))
	other := file(t, "other.yaml", topics("shop", 7, 8, "hand"))
	m.want(0, []string{"apply", "-f", other}, "created")
	for _, tc := range []struct {
		args []string
		says string
	}{
		{[]string{"apply", "-f", fewer, "--prune"}, "say of what"},
		{[]string{"apply", "-f", fewer, "-l", "by=git"}, "go with it"},
		{[]string{"apply", "-f", fewer, "--prune", "-n", "shop", "--kind", "topicbinding"}, "is not a kind that is applied"},
		{[]string{"apply", "-f", fewer, "--prune", "-n", "elsewhere"}, "is not of what --prune is to look after"},
		{[]string{"apply", "-f", file(t, "none.yaml", "# nothing\n"), "--prune", "-n", "shop"}, "there are no resources in"},
		{[]string{"apply", "-f", few, "-f", fewer}, "is in"},
		{[]string{"apply"}, "name what to apply: -f FILE"},
		{[]string{"apply", few}, "weft apply -f " + few},
		{[]string{"rollback", "x"}, "is no revision"},
	} {
		m.want(1, tc.args, tc.says)
	}
	m.want(2, []string{"diff"}, "give files with -f, or one or two revisions")
	m.want(2, []string{"diff", "99999999"}, "revision 99999999 is not there yet")
	m.want(1, []string{"diff", "-f", fewer, "--prune", "-l", "by=git"}, "--- a/topic/shop/t2", "+++ /dev/null")
	m.want(0, []string{"apply", "-f", fewer, "--prune", "-l", "by=git"}, "topic/shop/t1 unchanged", "topic/shop/t2 deleted")
	m.want(0, []string{"get", "topics", "-n", "shop"}, "t7")

	// How one resource is, of any kind.
	m.want(0, []string{"wait", "--timeout", "1m"}, "is in force at 1 proxy")
	m.want(0, []string{"status", "eventstores/shop/main"}, "resource", "eventstore/shop/main", "1 of 1 proxy has it", "is used by topic/shop/t0", "is used by topic/shop/t1")
	m.want(1, []string{"status", "topic/shop/none"}, "topic/shop/none does not exist; weft get topic -A lists what does")
	m.want(1, []string{"status", "tropic/shop/t0"}, `"tropic" is not a kind; there are eventstore`)
	m.want(0, []string{"status", "topic/shop/t0", "-o", "json"}, `"in_force"`)
	m.want(0, []string{"get", "topics", "-n", "shop"}, "STATE", "t0", "Ready")
	m.want(0, []string{"get", "topicbindings", "-n", "shop"}, "t0", "-")

	// What differs since, and back.
	m.want(1, []string{"diff", number, "-n", "shop"}, "--- a/topic/shop/t2", "+++ b/topic/shop/t7")
	m.want(0, []string{"rollback", number, "-n", "shop", "--dry-run"}, "+++ b/topic/shop/t2", "--- a/topic/shop/t7", "2 resources would be as they were at revision "+number)
	m.want(0, []string{"rollback", number, "topic", "t2", "-n", "shop"}, "1 resource is as it was at revision "+number)
	m.want(0, []string{"rollback", number, "topic", "t2", "-n", "shop"}, "nothing differs")
	m.want(0, []string{"history", "-n", "shop"}, "REVISION", "Rollback", "topic/shop/t2 created", "Apply", "topic/shop/t2 deleted")

	// What the mesh does in a store's place is said before anything changes, and what
	// nobody does; of what does not change, and of what the store does, nothing.
	needs := file(t, "needs.yaml", strings.Replace(topics("shop", 0, 1, "git"), "store: main", "store: main, needs: {delay: 1h, request_reply: true, order: true}", 1))
	costs := []string{"topic/shop/t0 needs order by key: emulated, the store gives a partition to one reader", "topic/shop/t0 needs request/reply: emulated, no write"}
	m.want(0, []string{"apply", "-f", needs, "--dry-run"}, append(costs, "topic/shop/t0 would be updated")...)
	m.want(1, []string{"diff", "-f", needs}, costs...)
	said := m.want(0, []string{"apply", "-f", needs}, append(costs, "topic/shop/t0 updated")...)
	if strings.Count(said, "emulated") != 2 || strings.Contains(said, "delay") {
		t.Errorf("of what the store does itself, or twice: %s", said)
	}
	if said := m.want(0, []string{"apply", "-f", needs}, "topic/shop/t0 unchanged"); strings.Contains(said, "needs") {
		t.Errorf("of what does not change: %s", said)
	}
	m.want(0, []string{"apply", "-f", needs, "-o", "json"}, `"needs"`, "order by key", "MEANS_EMULATED", "delay 1h0m0s", "MEANS_NATIVE", "precision 10 ms")
	m.want(0, []string{"status", "topic/shop/t0"}, "NeedsMet: Emulated: order by key: emulated, the store", "delay 1h0m0s: native, precision 10 ms", "request/reply: emulated, no write")
	m.want(0, []string{"apply", "-f", file(t, "later.yaml", strings.Replace(topics("shop", 9, 10, "git"), "main", "later, needs: {replay: true}", 1)+
		"---\napiVersion: weft/v1alpha1\nkind: EventStore\nmetadata: {namespace: shop, name: later}\nspec: {rocketmq: {name_servers: ['127.0.0.1:1']}}\n"), "--diff"},
		"+++ b/topic/shop/t9", "topic/shop/t9 needs replay: EventStore later was not observed yet; the topic is not ready as long", "topic/shop/t9 created")
	m.want(0, []string{"delete", "topic", "t9", "-n", "shop"})
	m.want(0, []string{"delete", "eventstore", "later", "-n", "shop"})
	m.want(0, []string{"apply", "-f", few}, "topic/shop/t0 updated")

	// Stages.
	many := file(t, "many.yaml", storeYAML("bulk", "git")+topics("bulk", 0, 150, "git"))
	m.want(0, []string{"apply", "-f", many, "--dry-run"}, "would be: 151 created", "3 stages: only the first is checked")
	m.want(0, []string{"apply", "-f", many}, "stage 1 of 3: 60 resources … done", "stage 3 of 3: 31 resources … done", "151 created, 0 updated, 0 deleted, 0 unchanged")
	m.want(0, []string{"apply", "-f", many}, "0 created, 0 updated, 0 deleted, 151 unchanged")
	bad := file(t, "bad.yaml", storeYAML("bulk", "git")+strings.ReplaceAll(topics("bulk", 0, 230, "git2"), "t229, labels: {by: git2}}\nspec: {store: main}", "t229}\nspec: {store: none}"))
	m.want(1, []string{"apply", "-f", bad}, "stage 1 of 3: ", "stage 3 of 3: ", "failed", "stages 1 to 2 are in force; nothing of it was made, it was the last one", "same command again", "there is no EventStore none")
	mended := file(t, "mended.yaml", storeYAML("bulk", "git")+topics("bulk", 0, 230, "git2"))
	m.want(0, []string{"apply", "-f", mended}, "topic/bulk/t229 created", "45 created, 0 updated, 0 deleted, 186 unchanged")
	full := m.lastChange("-n", "bulk")
	one := file(t, "one.yaml", storeYAML("bulk", "git"))
	m.want(1, []string{"apply", "-f", one, "--prune", "-n", "bulk"}, "removes 230 of the 231 resources of namespace bulk", "--allow-mass-removal")
	m.want(0, []string{"apply", "-f", one, "--prune", "-n", "bulk", "--allow-mass-removal"}, "stage 1 of ", "0 created, 0 updated, 230 deleted, 1 unchanged")
	m.want(1, []string{"rollback", full, "-n", "bulk", "--allow-mass-removal"}, "230 resources differ from revision "+full, "weft rollback --stages")
	m.want(0, []string{"rollback", full, "-n", "bulk", "--stages", "--dry-run"}, "+++ b/topic/bulk/t0", "would be: 230 created", "stages: only the first is checked")
	m.want(0, []string{"rollback", full, "-n", "bulk", "--stages"}, "stage 1 of ", "230 created, 0 updated, 0 deleted, 0 unchanged")
	m.want(0, []string{"diff", "-f", mended})
	m.want(1, []string{"rollback", number, "-n", "bulk", "--stages"}, "removes 231 of the 231 resources of namespace bulk")
	m.want(0, []string{"rollback", number, "-n", "bulk", "--stages", "--allow-mass-removal"}, "231 deleted")
	m.want(0, []string{"apply", "-f", file(t, "some.yaml", topics("shop", 20, 40, "git"))}, "created")
	m.want(1, []string{"apply", "-f", few, "--prune", "-n", "shop"}, "--allow-mass-removal")

	// Wrong addresses.
	for _, tc := range []struct{ server, says string }{
		{"http://" + m.admin, "name the address alone, without http://: " + m.admin},
		{"127.0.0.1", "is not HOST:PORT; the admin API's port is 7420"},
		{m.grpc, "is it a proxy"},
	} {
		out, errOut, code := run(m.ctx, "get", "topics", "--server", tc.server)
		if code != 1 || !strings.Contains(errOut, tc.says) {
			t.Errorf("%s: %d: %s%s", tc.server, code, out, errOut)
		}
	}
}

// TestToken: a token is shown over loopback, never to another machine in the
// clear, and who has none is told what to do.
func TestToken(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	e, err := embedetcd.Start(ctx, filepath.Join(t.TempDir(), "etcd"))
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	sum := sha256.Sum256([]byte("s3cret"))
	access := file(t, "access.yaml", "tokens: [{subject: ci, sha256: "+hex.EncodeToString(sum[:])+"}]\nbindings: [{subjects: [ci], role: viewer, namespaces: ['*']}]\n")
	s, err := server.New(server.Config{Etcd: e.Client(), AdminAddr: "127.0.0.1:0", DiscoveryAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0", AdminAccess: access,
		Drivers: binding.Drivers(), Options: binding.AdminOptions, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	if err := s.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	addr := s.Addrs().Admin
	good, bad, empty := file(t, "good", "s3cret\n"), file(t, "bad", "other"), file(t, "empty", "\n")
	for _, tc := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"get", "topics", "--server", addr, "--server-token-file", good}, 0, "NAME"},
		{[]string{"get", "topics", "--server", addr}, 1, "local may not List: that needs the role viewer in namespace demo"},
		{[]string{"get", "topics", "--server", addr, "--server-token-file", bad}, 1, "the token is not known, nor is its issuer\n--server-token-file"},
		{[]string{"get", "topics", "--server", addr, "--server-token-file", empty}, 1, "has not one token"},
		{[]string{"get", "topics", "--server", addr, "--server-token-file", "/none"}, 1, "--server-token-file: open /none"},
		{[]string{"get", "topics", "--server", "192.0.2.1:7420", "--server-token-file", good}, 1, "is not sent to 192.0.2.1:7420 in the clear"},
		{[]string{"apply", "--server", addr, "--server-token-file", good, "-f", file(t, "x.yaml", storeYAML("shop", "x"))}, 1, "ci may not Apply: that needs the role admin in namespace shop"},
		{[]string{"history", "--server", addr, "--server-token-file", good}, 0, "REFUSED: PermissionDenied: ci may not Apply"},
	} {
		out, errOut, code := run(ctx, tc.args...)
		if code != tc.code || !strings.Contains(out+errOut, tc.says) || strings.Contains(out+errOut, "s3cret") {
			t.Errorf("weft %v: %d: %s%s", tc.args, code, out, errOut)
		}
	}
	t.Setenv("WEFT_TOKEN", "s3cret\n") // as of a file
	if out, errOut, code := run(ctx, "get", "topics", "--server", addr); code != 0 {
		t.Errorf("WEFT_TOKEN: %s%s", out, errOut)
	}
}

// TestApplyWaits: with --wait a topic can be used once it has returned; one that cannot be
// made is named, with the reason.
func TestApplyWaits(t *testing.T) {
	m := start(t, filepath.Join(t.TempDir(), "data"))
	for i := range 5 {
		topic := fmt.Sprintf("fresh-%d", i)
		m.must("apply", "--wait", "1m", "-f", file(t, topic, fmt.Sprintf(`
apiVersion: weft/v1alpha1
kind: Topic
metadata: {namespace: demo, name: %s}
spec: {store: main}
---
apiVersion: weft/v1alpha1
kind: AccessPolicy
metadata: {namespace: demo, name: %[1]s}
spec: {rules: [{name: all, effect: allow, principals: [local], actions: [publish], topics: [%[1]s]}]}
`, topic)))
		m.must("publish", topic, "--data", "{}")
	}
	m.want(1, []string{"apply", "--wait", "1s", "-f", file(t, "away.yaml", `
apiVersion: weft/v1alpha1
kind: EventStore
metadata: {namespace: demo, name: away}
spec: {kafka: {brokers: ["127.0.0.1:1"]}}
---
apiVersion: weft/v1alpha1
kind: Topic
metadata: {namespace: demo, name: lost}
spec: {store: away}
`)}, "1 topic is not made in the store after 1s:\n  topic/demo/lost: ")
	// What needs stages and is in force already is waited for as well.
	many := file(t, "many.yaml", storeYAML("bulk", "git")+"---\napiVersion: weft/v1alpha1\nkind: EventStore\nmetadata: {namespace: bulk, name: away}\nspec: {kafka: {brokers: [\"127.0.0.1:1\"]}}\n"+
		topics("bulk", 0, 120, "git")+strings.Replace(topics("bulk", 120, 121, "git"), "main", "away", 1))
	m.want(0, []string{"apply", "-f", many}, "123 created")
	m.want(1, []string{"apply", "-f", many, "--wait", "1s"}, "123 unchanged", "not made in the store after 1s:\n", "topic/bulk/t120: ")
	m.want(0, []string{"delete", "topic", "t120", "-n", "bulk"})
	made := file(t, "made.yaml", storeYAML("bulk", "git")+topics("bulk", 0, 120, "git"))
	m.want(0, []string{"apply", "-f", made, "--wait", "1m"}, "121 unchanged", "is in force at 1 proxy")
}

// TestFolders: what a mounted ConfigMap has is read once, a link to a folder as that folder,
// and no folder that a set of files seems to have is left out silently.
func TestFolders(t *testing.T) {
	dir := t.TempDir()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	mounted, linked, within := filepath.Join(dir, "mounted"), filepath.Join(dir, "linked"), filepath.Join(dir, "within")
	must(os.MkdirAll(filepath.Join(mounted, "..2026_01_31"), 0o700))
	must(os.MkdirAll(filepath.Join(within, "sub"), 0o700))
	must(os.WriteFile(filepath.Join(mounted, "..2026_01_31", "x.yaml"), []byte(topics("shop", 0, 1, "git")), 0o600))
	must(os.Symlink("..2026_01_31", filepath.Join(mounted, "..data")))
	must(os.Symlink("..data/x.yaml", filepath.Join(mounted, "x.yaml")))
	must(os.Symlink("mounted", linked))
	must(os.WriteFile(filepath.Join(within, "sub", "y.yaml"), []byte(topics("shop", 1, 2, "git")), 0o600))
	for path, want := range map[string]int{mounted: 1, linked: 1, within: 1} {
		docs, err := readManifests(Command(), []string{path}, "")
		if err != nil || len(docs) != want {
			t.Errorf("%s: %v %v", path, docs, err)
		}
	}
	must(os.Symlink("../mounted", filepath.Join(within, "team")))
	if docs, err := readManifests(Command(), []string{within}, ""); err == nil || !strings.Contains(err.Error(), "within/team is a link to a folder") {
		t.Errorf("%v %v", docs, err)
	}
}
