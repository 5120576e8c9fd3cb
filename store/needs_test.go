package store

import (
	"slices"
	"testing"
	"time"
)

// TestMeet: each need is met by the store, by the mesh at a price, or refused with
// what the store was observed to give; what is not needed is not answered.
func TestMeet(t *testing.T) {
	all := Needs{Durability: DurabilityDisk, Order: true, Delay: time.Hour, Replay: true, Broadcast: true, RequestReply: true, MaxEventBytes: 1000}
	able := Capabilities{Durability: DurabilityDisk, Delay: time.Hour, DelayPrecision: time.Second, Order: true, Replay: true, Tail: true, MaxEventBytes: 1000}
	with := func(change func(*Capabilities)) Capabilities {
		c := able
		change(&c)
		return c
	}
	const (
		durability = iota
		order
		delay
		replay
		broadcast
		reply
		size
	)
	for _, tc := range []struct {
		name string
		caps Capabilities
		of   int
		want Answer
	}{
		{"durability", able, durability, Answer{"durability disk", MeansNative, "", "Durability"}},
		{"less durability", with(func(c *Capabilities) { c.Durability = DurabilityProcess }), durability, Answer{"durability disk", MeansNone, "was observed to give process", "Durability"}},
		{"no order", with(func(c *Capabilities) { c.Order = false }), order, Answer{"order by key", MeansNone, "cannot give a partition to one reader at a time", "Order"}},
		{"delay", able, delay, Answer{"delay 1h0m0s", MeansNative, "precision 1 s", "Delay"}},
		{"emulated delay", with(func(c *Capabilities) { c.DelayEmulated, c.DelayPrecision = true, 100*time.Millisecond }), delay,
			Answer{"delay 1h0m0s", MeansEmulated, "one more write per event that is delayed, precision 100 ms", "Delay"}},
		{"shorter delay", with(func(c *Capabilities) { c.Delay = time.Hour - 1 }), delay, Answer{"delay 1h0m0s", MeansNone, "was observed to hold an event back for 59m59.999999999s at most", "Delay"}},
		{"shorter emulated delay", with(func(c *Capabilities) { c.Delay, c.DelayEmulated = time.Minute, true }), delay, Answer{"delay 1h0m0s", MeansNone, "was observed to hold an event back for 1m0s at most", "Delay"}},
		{"no delay", with(func(c *Capabilities) { c.Delay = 0 }), delay, Answer{"delay 1h0m0s", MeansNone, "was observed to hold no event back", "Delay"}},
		{"replay", able, replay, Answer{"replay", MeansNative, "", "Replay"}},
		{"no replay", with(func(c *Capabilities) { c.Replay = false }), replay, Answer{"replay", MeansNone, "cannot be read from a time or position", "Replay"}},
		{"broadcast", able, broadcast, Answer{"broadcast", MeansEmulated, "each proxy with tails reads the topic once more and fans it out", "Broadcast"}},
		{"no broadcast", with(func(c *Capabilities) { c.Tail = false }), broadcast, Answer{"broadcast", MeansNone, "cannot be read without a group", "Broadcast"}},
		{"no replies", with(func(c *Capabilities) { c.Tail = false }), reply, Answer{"request/reply", MeansNone, "cannot be read without a group, as replies to other proxies must be", "RequestReply"}},
		{"replies in one process", with(func(c *Capabilities) { c.Local = true }), reply, Answer{"request/reply", MeansEmulated, "no write: the store has one proxy, where requests and replies meet", "RequestReply"}},
		{"size", able, size, Answer{"events of 1000 bytes", MeansNative, "", "Size"}},
		{"smaller size", with(func(c *Capabilities) { c.MaxEventBytes = 999 }), size, Answer{"events of 1000 bytes", MeansNone, "was observed to take 999 bytes", "Size"}},
	} {
		got := Meet(all, tc.caps)
		if len(got) != size+1 || got[tc.of] != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
		refused := slices.DeleteFunc(got, func(a Answer) bool { return a.Means != MeansNone })
		if tc.want.Means != MeansNone && len(refused) > 0 {
			t.Errorf("%s: refused %+v", tc.name, refused)
		}
	}
	if got := Meet(Needs{}, Capabilities{}); len(got) != 0 {
		t.Errorf("nothing is needed: %+v", got)
	}
	if got := Meet(all, Capabilities{}); slices.ContainsFunc(got, func(a Answer) bool { return a.Means != MeansNone || a.Detail == "" }) {
		t.Errorf("of a store that can do nothing: %+v", got)
	}
}
