package e2e

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/binding"
	"github.com/weft-mesh/weft/store/embedded"
	"github.com/weft-mesh/weft/store/kafka"
	"github.com/weft-mesh/weft/store/rocketmq"
)

// shownBy are the patterns of the matrix that show that a need is met, by the need's
// word. What an acknowledged event survives is shown by tests that kill stores.
var shownBy = map[string]string{
	"Order":        "order-by-key",
	"Delay":        "retry-later",
	"Replay":       "start-beginning start-at start-positions",
	"Broadcast":    "broadcast",
	"RequestReply": "requests",
}

// inPlaceOf is what the mesh does in the place of each store of the matrix. A driver
// that states otherwise, or nothing of it, is another store than the matrix was played
// with.
var inPlaceOf = map[string]string{
	"embedded": "Broadcast Order RequestReply",
	"kafka":    "Broadcast Delay Order RequestReply",
	"rocketmq": "Broadcast Order RequestReply",
}

// TestMatrixNeeds: the matrix has a pattern for each need, and each of its stores is
// observed to meet all of them, by itself or by the mesh as the matrix has it.
func TestMatrixNeeds(t *testing.T) {
	t.Parallel()
	options := map[string]any{
		"embedded": embedded.Options{FS: vfs.NewMem()},
		"kafka":    kafka.Options{Brokers: []string{servers.SharedKafka(t)}},
		"rocketmq": rocketmq.Options{NameServers: []string{servers.SharedRocketMQ(t)}},
	}
	needs := store.Needs{Order: true, Delay: time.Hour, Replay: true, Broadcast: true, RequestReply: true}
	for kind, d := range binding.Drivers() {
		caps := probed(t, d, options[kind])
		var met, byMesh []string
		for _, a := range store.Meet(needs, caps) {
			switch met = append(met, a.Word); a.Means {
			case store.MeansNone:
				t.Errorf("%s: %s is refused, %s; the matrix plays %s with it", kind, a.Need, a.Detail, shownBy[a.Word])
			case store.MeansEmulated:
				byMesh = append(byMesh, a.Word)
			}
			if a.Means == store.MeansEmulated && a.Detail == "" {
				t.Errorf("%s: %s is emulated without a price", kind, a.Need)
			}
		}
		slices.Sort(met)
		slices.Sort(byMesh)
		if got := strings.Join(byMesh, " "); got != inPlaceOf[kind] {
			t.Errorf("%s: the mesh does %q in its place, the matrix was played with %q", kind, got, inPlaceOf[kind])
		}
		if want := slices.Sorted(maps.Keys(shownBy)); !slices.Equal(met, want) {
			t.Errorf("there are the needs %v, the matrix shows %v", met, want)
		}
	}
	played := map[string]bool{}
	for _, p := range patterns {
		played[p.name] = true
	}
	for need, names := range shownBy {
		for _, name := range strings.Fields(names) {
			if !played[name] {
				t.Errorf("%s is to be shown by %s, which the matrix has not", need, name)
			}
		}
	}
}

func probed(t *testing.T, d store.Driver, options any) store.Capabilities {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	st, err := d.Open(ctx, store.Config{Name: "matrix", UID: "matrix", ClientID: "matrix", Dir: "matrix", Options: options})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = st.Close(ctx) }()
	caps, err := st.Probe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return caps
}
