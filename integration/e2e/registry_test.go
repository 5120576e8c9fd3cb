package e2e

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/weft-mesh/weft/integration/servers"
)

// TestHealthInNacos: Nacos itself sees that a proxy was killed, hangs or drains,
// with nobody's help; who is gone is removed, and who only hung is back.
func TestHealthInNacos(t *testing.T) {
	t.Parallel()
	m := prepareMesh(t, servers.SharedEtcd(t))
	m.startControlPlane(append(m.nacosFlags(), "--register-every", "200ms", "--register-grace", "1s", "--register-forget", "3s")...)
	advertise := []string{"--advertise", "127.0.0.1"}
	stays, killed, hangs := m.proxy("stays", advertise...), m.proxy("killed", advertise...), m.proxy("hangs", advertise...)
	drains := m.proxy("drains", append(advertise, "--drain-grace", "4m", "--drain-time", "5m")...)
	finder := m.finder()
	m.awaitRegistered(finder, stays, killed, hangs, drains)
	await := func(what string, want ...string) {
		t.Helper()
		var last []string
		for set := range finder.Watch(m.ctx, m.ns) {
			last = nil
			for _, i := range set {
				last = append(last, fmt.Sprintf("%s %v", i.ID, i.Healthy))
			}
			if slices.Equal(last, want) {
				return
			}
		}
		t.Fatalf("%s: Nacos has %s", what, strings.Join(last, ", "))
	}
	m.must(killed.Kill())
	m.must(hangs.Pause())
	m.must(syscall.Kill(drains.PID(), syscall.SIGTERM))
	// Who was killed is removed when the control plane has not seen it for a
	// while; the hung one's connection stays, so it does.
	await("dead, hung, draining", "drains false", "hangs false", "stays true")
	if !drains.Alive() {
		t.Error("the draining proxy has ended: nothing shows that its readiness was seen")
	}
	m.must(drains.Kill())
	m.must(hangs.Resume())
	await("gone, and back", "hangs true", "stays true")
}
