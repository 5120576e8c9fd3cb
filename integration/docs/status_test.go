package docs

import (
	"fmt"
	"testing"

	"github.com/weft-mesh/weft/integration/servers"
)

// TestStatus is docs/status.md, with etcd keys of its own.
func TestStatus(t *testing.T) {
	etcd := servers.SharedEtcd(t)
	s := newShell(t)
	s.env = append(s.env, servers.EnvEtcd+"="+etcd)
	s.replace("/status/", "/"+servers.Namespace(t)+"/")
	for _, port := range []string{"7520", "7521", "7529"} { // of the second replica
		free, err := servers.FreePort()
		s.must(err)
		s.replace("127.0.0.1:"+port, fmt.Sprintf("127.0.0.1:%d", free))
	}
	s.walk(blocks(t, "docs/status.md", ""),
		step{begins: "weft control-plane", after: s.answers("http://127.0.0.1:7418/readyz")},
		step{begins: "weft apply", says: []string{`eventstore/demo/main created`, `revision \d+ is in force at 1 proxy`}},
		step{begins: "weft status --server", says: []string{`1 of 1 proxy has all of it`, `(?m)^gateway-1 .* has all of it`, `serves`, `(?m)^proxy +gateway-1$`}},
		step{begins: "weft status eventstore", says: []string{`(?m)^in force +1 of 1 proxy has it`, `(?m)^demo +main .*`}},
		step{begins: "kill -9", says: []string{`it does not answer|last sign of life`, `1 of 1 proxy has all of it`}},
		step{begins: "weft admin drain", says: []string{`gateway-1 was told`, `last connected`, `gateway-1 has not been connected for \d+s, and had revision \d+`}})
}
