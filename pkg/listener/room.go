package listener

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"syscall"

	"github.com/weft-mesh/weft/pkg/outage"
)

// Room is how many connections listeners take together: what the descriptors of the
// process leave beside files and what it dials itself. It is safe for concurrent use.
type Room struct {
	descriptors, most int64
	taken             atomic.Int64
	log               *slog.Logger
}

// leastReserve is how many descriptors are kept for the rest at least, where there are
// as many: an embedded store, a stream to the control plane, pages of operations.
const leastReserve = 128

// few are so few connections that a limit of descriptors was hardly meant so.
const few = 500

// FileLimit is how many descriptors the process may have.
func FileLimit() (int, error) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("the limit of open files: %w", err)
	}
	return int(min(l.Cur, 1<<30)), nil //nolint:gosec // it is small
}

// NewRoom is the room that descriptors leave: three quarters of them, or less where
// there are few.
func NewRoom(descriptors int, log *slog.Logger) *Room {
	d := int64(descriptors)
	return &Room{descriptors: d, most: max(d-max(d/4, leastReserve), d/8, 1), log: log}
}

// Small is how many connections a listener takes that would take most and has no part
// of the room, so that all such leave descriptors for the rest.
func (r *Room) Small(most int) int { return int(min(int64(most), max((r.descriptors-r.most)/8, 1))) }

func (r *Room) take() bool {
	if r.taken.Add(1) > r.most {
		r.taken.Add(-1)
		return false
	}
	return true
}

func (r *Room) leave() { r.taken.Add(-1) }

// Share makes l, whose name is told, take its connections out of r, and two thirds of it
// at most: who comes over one listener does not keep everybody from another. It is
// called before Accept.
func (l *Listener) Share(r *Room, name string) {
	log := r.log.With("listener", name)
	l.room, l.share, l.say = r, int(max(r.most*2/3, 1)), outage.New(log, "connections are refused", "there is room for connections again")
	level := slog.LevelInfo
	if l.share < min(l.most, few) {
		level = slog.LevelWarn
	}
	log.Log(context.Background(), level, "connections are bounded", "most", min(l.most, l.share), "of_all_clients", r.most, "descriptors", r.descriptors)
}

// Reason is why a connection was refused.
type Reason int

// Reasons.
const (
	Limit       Reason = iota // the listener has as many as it may
	Descriptors               // the process has as many as its descriptors allow
	reasons
)

func (r Reason) String() string { return [...]string{"limit", "descriptors"}[r] }

// Reasons are all of them.
func Reasons() []Reason { return []Reason{Limit, Descriptors} }
