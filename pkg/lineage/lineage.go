// Package lineage names the histories of a configuration. A mesh begins one; each
// restore of etcd that is declared begins another.
//
// A lineage is a counter and a random part, "2-91f0…". The counter rises with each
// declared restore; the random part tells two of one count apart, as where the
// backup had lost the counter.
package lineage

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// New makes a lineage that follows others; those that cannot be read, and "",
// count as none.
func New(others ...string) (string, error) {
	n := uint64(0)
	for _, o := range others {
		n = max(n, count(o))
	}
	b := make([]byte, 8)
	if _, err := rand.Read(b); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d-%s", n+1, hex.EncodeToString(b)), nil
}

// Follows reports whether who has the lineage old may take up next: it is the same,
// or more restores were declared, or old is "", which is nothing yet. Two of one
// count are of etcds that know nothing of each other: one was emptied, or is
// another mesh's.
func Follows(next, old string) bool {
	return next == old || old == "" || count(next) > count(old)
}

// count is how many beginnings a lineage counts; 0 where it counts none.
func count(lineage string) uint64 {
	first, _, _ := strings.Cut(lineage, "-")
	n, err := strconv.ParseUint(first, 10, 32)
	if err != nil {
		return 0
	}
	return n
}
