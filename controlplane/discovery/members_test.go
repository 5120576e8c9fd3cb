package discovery

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestClassesEnd: of streams that have ended no class is left, whatever they were about to
// subscribe to.
func TestClassesEnd(t *testing.T) {
	w := newWorld(t)
	for name, order := range map[string]string{"it subscribes and ends": "ab-", "it ends and subscribes": "-a", "it subscribes, ends, and subscribes": "a-b", "it ends and subscribes twice": "-ab"} {
		st := &stream{server: w.server, nodeID: "n"}
		_, err := w.server.admit(st)
		w.must(err)
		for _, does := range order {
			if does == '-' {
				w.server.close(st)
				continue
			}
			st.scope.spaces = map[string]bool{string(does): true}
			w.server.classify(st)
		}
		if n := len(w.server.classes); n != 0 || st.class == nil {
			t.Errorf("%s: %d classes are kept; its own is %v", name, n, st.class)
		}
	}
}

// TestNewerStreamEnds: where the newest of a node's streams ends first, as that of a process
// that was to take another one's place and failed, the node is connected by the one before.
func TestNewerStreamEnds(t *testing.T) {
	w := newWorld(t)
	begun := time.Unix(1000, 0)
	admit := func(subject string) (*stream, error) {
		begun = begun.Add(time.Second)
		st := &stream{server: w.server, nodeID: "n", connected: begun, credential: credential{subject: subject}}
		_, err := w.server.admit(st)
		return st, err
	}
	var open []*stream
	for range 4 {
		st, err := admit("its own")
		w.must(err)
		open = append(open, st)
	}
	for n := len(open); n > 0; n-- {
		list := w.server.Proxies()
		if want := open[n-1].connected; len(list) != 1 || !list[0].ConnectedAt.AsTime().Equal(want) {
			t.Fatalf("of %d streams the one since %v counts, not %v", n, want, list)
		}
		if _, err := admit("another's"); status.Code(err) != codes.PermissionDenied {
			t.Errorf("with %d streams of the node, one with another certificate: %v", n, err)
		}
		w.server.close(open[n-1])
	}
	if list := w.server.Proxies(); len(list) != 0 {
		t.Errorf("without streams there are %v", list)
	}
}
