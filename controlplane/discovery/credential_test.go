package discovery

import "testing"

// TestVoter: what takes several nodes takes several credentials, or hosts.
func TestVoter(t *testing.T) {
	type node struct {
		c        credential
		id, peer string
	}
	bound := func(id string) credential { return credential{subject: "CN=" + id, node: id} }
	free := credential{subject: "CN=any"}
	for name, tc := range map[string]struct {
		a, b node
		same bool
	}{
		"two nodes by their certificates":        {node{bound("a"), "a", "10.0.0.1:1"}, node{bound("b"), "b", "10.0.0.1:2"}, false},
		"one node that comes again":              {node{bound("a"), "a", "10.0.0.1:1"}, node{bound("a"), "a", "10.0.0.9:2"}, true},
		"one free certificate, two names":        {node{free, "a", "10.0.0.1:1"}, node{free, "b", "10.0.0.1:2"}, true},
		"one free certificate, on two hosts":     {node{free, "a", "10.0.0.1:1"}, node{free, "b", "10.0.0.2:2"}, false},
		"two names over loopback, without a key": {node{credential{}, "a", "127.0.0.1:1"}, node{credential{}, "b", "127.0.0.1:2"}, false},
	} {
		if a, b := tc.a.c.voter(tc.a.id, tc.a.peer), tc.b.c.voter(tc.b.id, tc.b.peer); (a == b) != tc.same {
			t.Errorf("%s: %q, %q", name, a, b)
		}
	}
}
