package weft

import (
	"path/filepath"
	"testing"
)

// TestDeleteFiles: what files have is deleted, and nothing that was changed since they were
// written; a name with a comma is one file.
func TestDeleteFiles(t *testing.T) {
	m := start(t, filepath.Join(t.TempDir(), "data"))
	const topic = "apiVersion: weft/v1alpha1\nkind: Topic\nmetadata: {namespace: demo, name: orders}\nspec: {store: main}\n"
	m.must("apply", "-f", file(t, "orders,made.yaml", topic))
	read := file(t, "orders,read.yaml", m.must("get", "topic", "orders", "-o", "yaml"))
	m.must("apply", "-f", file(t, "orders,changed.yaml", topic[:len(topic)-2]+", partitions: 16}\n"))
	m.want(1, []string{"delete", "-f", read}, "version")
	m.want(1, []string{"delete", "-f", read, "--dry-run"}, "version")
	m.want(0, []string{"get", "topic", "orders"}, "orders")
	m.want(0, []string{"diff", "-f", file(t, "orders,changed.yaml", topic[:len(topic)-2]+", partitions: 16}\n")})
	m.want(0, []string{"delete", "-f", file(t, "orders,again.yaml", m.must("get", "topic", "orders", "-o", "yaml"))}, "topic/demo/orders deleted")
}
