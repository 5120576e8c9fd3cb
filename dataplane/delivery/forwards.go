package delivery

import (
	"strconv"

	"github.com/weft-mesh/weft/pkg/event"
)

// MaxForwards is how often an event may be forwarded from topic to topic. Rings are
// refused where they are configured; what a proxy's older configuration, or another
// mesh on the same topics, makes of one ends here.
const MaxForwards = 8

// headerForwards is the Mesh header of an event that says how often it was
// forwarded. It stays with the event while it waits and with its dead letter.
const headerForwards = "forwards"

// Forwards is how often an event was forwarded.
func Forwards(e *event.Event) int {
	v, _ := event.Lookup(e.Mesh, headerForwards)
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// Forwarded are the Mesh headers of an event that was forwarded n times, and no
// others.
func Forwarded(n int) []event.Attr {
	if n == 0 {
		return nil
	}
	return []event.Attr{{Name: headerForwards, Value: strconv.Itoa(n)}}
}
