package kafka

import (
	"os"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
)

func TestMain(m *testing.M) { os.Exit(servers.DriverMain(m)) }

func open(t testing.TB, o Options, window int) *Store {
	t.Helper()
	st, err := Driver{}.Open(t.Context(), store.Config{Name: "test", ClientID: uuid.NewString(), Window: window, Options: o})
	if err != nil {
		t.Fatal(err)
	}
	return st.(*Store)
}

func TestConformance(t *testing.T) {
	conform(t, []string{servers.SharedKafka(t)}, store.DurabilityProcess)
}

// conform runs the whole suite against brokers.
func conform(t *testing.T, brokers []string, durability store.Durability) {
	storetest.Run(t, harness(t, brokers, durability))
}

func TestHalfWindow(t *testing.T) {
	often := commitInterval
	commitInterval = time.Hour
	t.Cleanup(func() { commitInterval = often })
	storetest.HalfWindow(t, harness(t, []string{servers.SharedKafka(t)}, store.DurabilityProcess))
}

func harness(t *testing.T, brokers []string, durability store.Durability) storetest.Harness {
	ns := servers.Namespace(t)
	return storetest.Harness{
		Open:   func(t *testing.T, window int) store.Store { return open(t, Options{Brokers: brokers}, window) },
		Topic:  func(_ *testing.T, name string) string { return names.Physical(ns, name+uuid.NewString()[:4]) },
		Hander: true,
		Expect: store.Capabilities{Durability: durability, Order: true, Tail: true, Replay: true, TopicRetention: true},
	}
}
