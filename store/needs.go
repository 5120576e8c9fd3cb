package store

import (
	"fmt"
	"time"
)

// Needs are what a topic requires of its store; what is zero is not needed.
type Needs struct {
	Durability Durability
	// Order: events of a key reach an ordered group one after the other.
	Order bool
	// Delay is the longest that a retry is held back.
	Delay time.Duration
	// Replay: readers begin at the beginning, a time or a position.
	Replay bool
	// Broadcast: any number of tails, each with every event.
	Broadcast bool
	// RequestReply: senders wait for a reply.
	RequestReply bool
	// MaxEventBytes is the largest event, data and attributes.
	MaxEventBytes int
}

// Means is by whom a need is met.
type Means uint8

// Means.
const (
	MeansNone     Means = iota // by nobody: it is refused
	MeansNative                // by the store
	MeansEmulated              // by the mesh in the store's place, at a price
)

// Answer is how one need is met.
type Answer struct {
	// Need is what is needed, in words: "delay 1h0m0s".
	Need  string
	Means Means
	// Detail is the price and precision of what is met, or what the store was observed
	// to give of what is refused; "" where there is nothing to say.
	Detail string
	// Word is what is needed in one: "Delay".
	Word string
}

// Meet tells how a store that was observed to have caps meets needs: one answer for
// each, in the order of the fields of Needs. Whatever is to be in a store, now or as
// the target of a Migration, is asked for with it first; nothing is given less of
// than an answer says.
func Meet(n Needs, caps Capabilities) []Answer {
	var out []Answer
	add := func(word, need string, met bool, a Answer, lacks string) {
		if !met {
			a = Answer{Detail: lacks}
		}
		a.Word, a.Need = word, need
		out = append(out, a)
	}
	if n.Durability != DurabilityUnknown {
		add("Durability", "durability "+n.Durability.String(), n.Durability <= caps.Durability, Answer{Means: MeansNative}, "was observed to give "+caps.Durability.String())
	}
	if n.Order {
		add("Order", "order by key", caps.Order, Answer{Means: MeansEmulated, Detail: "the store gives a partition to one reader, the mesh has one event of a key under way at a time: a key waits for its event that is retried"},
			"cannot give a partition to one reader at a time")
	}
	if n.Delay > 0 {
		lacks := fmt.Sprintf("was observed to hold an event back for %s at most", caps.Delay)
		if caps.Delay == 0 {
			lacks = "was observed to hold no event back"
		}
		a := Answer{Means: MeansNative, Detail: fmt.Sprintf("precision %s", precision(caps.DelayPrecision))}
		if caps.DelayEmulated {
			a.Means, a.Detail = MeansEmulated, fmt.Sprintf("one more write per event that is delayed, precision %s", precision(caps.DelayPrecision))
		}
		add("Delay", "delay "+n.Delay.String(), n.Delay <= caps.Delay, a, lacks)
	}
	if n.Replay {
		add("Replay", "replay", caps.Replay, Answer{Means: MeansNative}, "cannot be read from a time or position")
	}
	if n.Broadcast {
		add("Broadcast", "broadcast", caps.Tail, Answer{Means: MeansEmulated, Detail: "each proxy with tails reads the topic once more and fans it out"}, "cannot be read without a group")
	}
	if n.RequestReply {
		a := Answer{Means: MeansEmulated, Detail: "one more write per reply to a request of another proxy; each proxy with requests under way reads all such replies of the store"}
		if caps.Local {
			a.Detail = "no write: the store has one proxy, where requests and replies meet"
		}
		add("RequestReply", "request/reply", caps.Tail || caps.Local, a, "cannot be read without a group, as replies to other proxies must be")
	}
	if n.MaxEventBytes > 0 {
		add("Size", fmt.Sprintf("events of %d bytes", n.MaxEventBytes), n.MaxEventBytes <= caps.MaxEventBytes, Answer{Means: MeansNative}, fmt.Sprintf("was observed to take %d bytes", caps.MaxEventBytes))
	}
	return out
}

// precision is a precision in words.
func precision(d time.Duration) string {
	if d == time.Second {
		return "1 s"
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}

// String is the durability's name, as configuration has it.
func (d Durability) String() string {
	return [...]string{"unknown", "process", "disk", "replicated"}[min(d, DurabilityReplicated)]
}

// Stater is a Driver whose stores all have the same capabilities, which nobody needs
// to ask them for: those of stores that live in the process that opens them.
type Stater interface {
	States() Capabilities
}
