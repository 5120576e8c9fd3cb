package weft

import (
	"strings"
	"testing"
)

// TestExport: what weft export writes makes the same configuration in an empty mesh, and
// changes nothing in its own, where a topic was moved meanwhile.
func TestExport(t *testing.T) {
	m := start(t, t.TempDir())
	before := file(t, "mesh.yaml", storeYAML("shop", "git")+strings.ReplaceAll(storeYAML("shop", "git"), "name: main", "name: second")+topics("shop", 0, 2, "git")+topics("shop", 2, 3, "ui")+`---
apiVersion: weft/v1alpha1
kind: Subscription
metadata: {namespace: shop, name: billing}
spec: {topics: [t0], dead_letter_topic: t2, stream: {}}
---
apiVersion: weft/v1alpha1
kind: AccessPolicy
metadata: {namespace: shop, name: all}
spec: {rules: [{name: local, effect: allow, principals: [local], actions: [publish, subscribe], topics: [">"]}]}
`+storeYAML("other", "git"))
	m.want(0, []string{"apply", "-f", before, "--wait", "1m"})
	m.want(0, []string{"migrate", "t0", "-n", "shop", "--to", "second", "--yes"})
	m.want(0, []string{"migrate", "status", "t0", "-n", "shop", "--watch"}, "phase         drained")
	m.want(0, []string{"migrate", "finish", "t0", "-n", "shop", "--yes"})
	m.want(0, []string{"migrate", "status", "t0", "-n", "shop", "--watch"}, "finished: it is in second alone")

	exported, errOut, code := m.run("export", "-A")
	if code != 0 {
		t.Fatal(errOut)
	}
	rest := exported
	for _, want := range []string{"namespace: other\n", "kind: EventStore\nmetadata:\n  namespace: shop\n  name: main\n  labels:\n    by: git\n", "name: second\n", "kind: Topic\nmetadata:\n  namespace: shop\n  name: t0\n", "  store: second\n", "name: t1\n", "  store: main\n", "kind: Subscription\n", "kind: AccessPolicy\n"} {
		_, after, ok := strings.Cut(rest, want)
		if !ok {
			t.Fatalf("%q is not there, in this order:\n%s", want, exported)
		}
		rest = after
	}
	for _, not := range []string{"uid:", "version:", "created_at:", "Migration", "TopicBinding", "Admission"} {
		if strings.Contains(strings.ReplaceAll(exported, "apiVersion:", ""), not) {
			t.Errorf("%s is in\n%s", not, exported)
		}
	}
	all := file(t, "exported.yaml", exported)
	m.want(0, []string{"apply", "-f", all})
	if again, _, _ := m.run("export", "-A"); again != exported {
		t.Errorf("after it was applied where it is from:\n%s", again)
	}

	empty := start(t, t.TempDir())
	empty.want(0, []string{"delete", "-f", file(t, "own.yaml", func() string { out, _, _ := empty.run("export", "-A"); return out }()), "--allow-mass-removal"})
	empty.want(1, []string{"export", "-A"}, "there is nothing to export")
	empty.want(0, []string{"apply", "-f", all, "--wait", "1m"}, "topic/shop/t0 created")
	if copied, _, _ := empty.run("export", "-A"); copied != exported {
		t.Errorf("in a mesh of its own:\n%s\nnot\n%s", copied, exported)
	}

	one := m.want(0, []string{"export", "-n", "shop", "--kind", "topics", "-l", "by=ui"}, "name: t2\n")
	if strings.Count(one, "kind:") != 1 {
		t.Errorf("of topics with a label:\n%s", one)
	}
	m.want(0, []string{"export", "-n", "shop", "--kind", "migration"}, "kind: Migration\n", "name: t0\n")
	m.want(1, []string{"export", "-n", "none"}, "there is nothing to export: none has no such resources")
	m.want(1, []string{"export", "-n", "shop", "-A"}, "not both")
	m.want(1, []string{"export", "--kind", "topicbinding"}, `--kind: "topicbinding" is not a kind that is applied`)
}
