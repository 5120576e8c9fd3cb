package weft

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestUnified: patch(1) makes the second of the first by every diff.
func TestUnified(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 9))
	dir := t.TempDir()
	for i := range 150 {
		var a, b []string
		for n := range rnd.IntN(40) {
			line := fmt.Sprint(rnd.IntN(8))
			switch rnd.IntN(6) {
			case 0:
				a = append(a, line)
			case 1:
				b = append(b, line)
			case 2:
				a, b = append(a, line), append(b, fmt.Sprint(n, "x"))
			default:
				a, b = append(a, line), append(b, line)
			}
		}
		text := func(lines []string) string {
			if len(lines) == 0 {
				return ""
			}
			return strings.Join(lines, "\n") + "\n"
		}
		file, diff := filepath.Join(dir, "f"), filepath.Join(dir, "d")
		hunks := unified(a, b)
		if (len(hunks) == 0) != (text(a) == text(b)) {
			t.Fatalf("%d: %q and %q differ: %v", i, a, b, hunks)
		}
		if len(hunks) == 0 {
			continue
		}
		for name, s := range map[string]string{file: text(a), diff: "--- f\n+++ f\n" + text(hunks)} {
			if err := os.WriteFile(name, []byte(s), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		out, err := exec.Command("patch", "-s", "--fuzz=0", file, diff).CombinedOutput()
		if err != nil {
			t.Fatalf("%d: %v: %s\n%s", i, err, out, text(hunks))
		}
		got, err := os.ReadFile(file)
		if err != nil && len(b) > 0 {
			t.Fatal(err)
		}
		if !bytes.Equal(got, []byte(text(b))) {
			t.Fatalf("%d: patched is %q, want %q\n%s", i, got, text(b), text(hunks))
		}
	}
	if n := len(unified(make([]string, 5000), append(make([]string, 5000), "x"))); n == 0 {
		t.Error("a long one has no diff")
	}
}
