package discovery

import "testing"

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
