package servers

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// TestFreePort: a port that was given is given to nobody else, in this process or in
// another, though nothing listens on it yet.
func TestFreePort(t *testing.T) {
	if given := os.Getenv("WEFT_TEST_PORTS"); given != "" { // the other process
		if _, err := FreePort(); err != nil {
			t.Fatal(err)
		}
		ports.Lock()
		defer ports.Unlock()
		for p := range strings.SplitSeq(given, ",") {
			n, err := strconv.Atoi(p)
			if err != nil {
				t.Fatal(err)
			}
			if took, err := take([]int{n}); err != nil || took {
				t.Errorf("%d was given twice: %v", n, err)
			}
		}
		return
	}
	var given []string
	for range 20 {
		p, err := FreePort(1)
		if err != nil {
			t.Fatal(err)
		}
		given = append(given, strconv.Itoa(p), strconv.Itoa(p+1))
		ports.Lock()
		kept := ports.held[p+2]
		took, err := take([]int{p + 2, p + 1})
		if took || err != nil {
			t.Errorf("%d was given twice: %v", p+1, err)
		}
		if ports.held[p+2] != kept {
			t.Errorf("%d is kept, and was not given", p+2)
		}
		ports.Unlock()
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestFreePort$")
	cmd.Env = append(os.Environ(), "WEFT_TEST_PORTS="+strings.Join(given, ","))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
