package moves

import (
	"context"
	"fmt"
	"testing"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/cutover"
)

// progress waits until what is told of how far everyone is fits.
func (w *world) progress(what string, fits func(*adminv1.MoveProgress) bool) {
	w.Helper()
	w.eventually("it is told "+what, func() bool {
		p := Progress(w.store)(context.Background(), migration)
		return p != nil && fits(p)
	})
}

// TestProgress: while a topic moves it is told how far each proxy and each group is, in each
// partition, those first that hold it up; nothing is once the Migration is gone.
func TestProgress(t *testing.T) {
	w := newWorld(t)
	w.office()
	w.mu.Lock()
	w.nodes = append(w.nodes, "zoe")
	w.mu.Unlock()
	p := w.join("p", w.addr, func(p *proxy) { p.busy = true })
	for range 3 {
		w.publish("uid-a", "ns_t", "1")
	}
	w.wish(goOn)
	w.phase(preparing)
	w.admit()
	w.phase(leasing)
	w.progress("who has heard", func(m *adminv1.MoveProgress) bool {
		return len(m.Groups) == 0 && len(m.Proxies) == 2 && m.Proxies[0].NodeId == "zoe" && !m.Proxies[0].Heard && !m.Proxies[0].Says && m.Proxies[1].Heard
	})
	w.mu.Lock()
	w.nodes = []string{"p"}
	w.mu.Unlock()
	w.phase(stopping)
	w.progress("who has something on its way", func(m *adminv1.MoveProgress) bool {
		return len(m.Proxies) == 1 && m.Proxies[0].Heard && !m.Proxies[0].Idle
	})
	p.be(func(p *proxy) { p.busy = false })
	w.phase(draining)
	group := func(settled uint64, read bool) func(m *adminv1.MoveProgress) bool {
		return func(m *adminv1.MoveProgress) bool {
			for _, g := range m.Groups {
				if g.Epoch == 1 {
					return g.Subscription == "s" && g.Store == "a" && g.Group == "group" && g.Read == read && len(g.Partitions) == 1 && g.Partitions[0].End == 3 && g.Partitions[0].Settled == settled
				}
			}
			return false
		}
	}
	w.progress("that nothing is read", group(0, false))
	w.read("uid-a", "ns_t", "group", 2)
	w.progress("that some is read", group(2, false))
	w.read("uid-a", "ns_t", "group", 1)
	w.progress("that all is read", group(3, true))
	w.wish(finish)
	w.jump.Add(int64(1 << 50))
	w.until("the end", func(b *configv1.TopicBinding) bool { return b.Move == nil })
	w.write(configstore.Change{Delete: []string{migration}})
	w.eventually("nothing is told any more", func() bool { return Progress(w.store)(context.Background(), migration) == nil })
}

// TestProgressBounded: of many proxies, groups and partitions those are told that hold a move
// up most, and how many there are beside.
func TestProgressBounded(t *testing.T) {
	w := newWorld(t)
	m := &move{phase: cutover.Leasing, words: map[string]*discoveryv1.Held{}}
	snap, err := w.store.Current()
	w.must(err)
	m.entry = snap.Get(binding)
	for i := range 2 * maxProxies {
		m.nodes = append(m.nodes, fmt.Sprintf("%03d", i))
	}
	m.words["000"] = &discoveryv1.Held{Version: m.entry.Version()}
	if p := m.progress(); len(p.Proxies) != maxProxies || p.ProxiesLeftOut != maxProxies || p.Proxies[0].NodeId != "001" {
		t.Errorf("%d proxies, from %v, and %d more", len(p.Proxies), p.Proxies[0], p.ProxiesLeftOut)
	}
	p := &adminv1.MoveProgress{}
	for i := range maxGroups + 5 {
		g := &adminv1.MoveGroup{Subscription: fmt.Sprint(i), Read: i == 0}
		for n := range 10 {
			g.Partitions = append(g.Partitions, &adminv1.MovePartition{Partition: fmt.Sprint(n), End: uint64(i * n)})
		}
		p.Groups = append(p.Groups, g)
	}
	bounded(p)
	total := 0
	for _, g := range p.Groups {
		total += len(g.Partitions)
		if len(g.Partitions)+int(g.PartitionsLeftOut) != 10 || len(g.Partitions) > 0 && g.Partitions[0].Partition != "9" {
			t.Errorf("group %s has partitions %v, and %d more", g.Subscription, g.Partitions, g.PartitionsLeftOut)
		}
	}
	if len(p.Groups) != maxGroups || p.GroupsLeftOut != 5 || total != maxPartitions || p.Groups[0].Subscription != fmt.Sprint(maxGroups+4) {
		t.Errorf("%d groups, from %s, with %d partitions, and %d more groups", len(p.Groups), p.Groups[0].Subscription, total, p.GroupsLeftOut)
	}
}
