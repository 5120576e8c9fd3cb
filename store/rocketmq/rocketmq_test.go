package rocketmq

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
)

func TestMain(m *testing.M) { os.Exit(servers.DriverMain(m)) }

func open(t testing.TB, nameServer string, window int) *Store {
	t.Helper()
	return openWith(t, window, Options{NameServers: []string{nameServer}})
}

func openWith(t testing.TB, window int, o Options) *Store {
	t.Helper()
	st, err := Driver{}.Open(t.Context(), store.Config{Name: "test", ClientID: uuid.NewString(), Window: window, Options: o})
	if err != nil {
		t.Fatal(err)
	}
	return st.(*Store)
}

func TestConformance(t *testing.T) { storetest.Run(t, harness(t)) }

func TestHalfWindow(t *testing.T) {
	often := commitInterval
	commitInterval = time.Hour
	t.Cleanup(func() { commitInterval = often })
	storetest.HalfWindow(t, harness(t))
}

func harness(t *testing.T) storetest.Harness {
	nameServer := servers.SharedRocketMQ(t)
	ns := servers.Namespace(t)
	return storetest.Harness{
		Open:   func(t *testing.T, window int) store.Store { return open(t, nameServer, window) },
		Topic:  func(_ *testing.T, name string) string { return names.Physical(ns, name+uuid.NewString()[:4]) },
		Expect: store.Capabilities{Durability: store.DurabilityDisk, Delay: maxDelay, DelayPrecision: time.Second, Order: true, Tail: true, Replay: true},
	}
}

// TestNewEnough: brokers that hold no event back are refused, with what is needed.
func TestNewEnough(t *testing.T) {
	for version, want := range map[string]fault.Class{"4.9.8": fault.Precondition, "5.0.0": 0, "5.3.3": 0, "": 0} {
		err := newEnough("broker-a", version)
		if want == 0 && err != nil || want != 0 && (fault.ClassOf(err) != want || !strings.Contains(err.Error(), "5.0 or later")) {
			t.Errorf("%q: %v", version, err)
		}
	}
}
