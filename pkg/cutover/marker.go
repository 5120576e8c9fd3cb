package cutover

import (
	"fmt"
	"slices"

	"github.com/weft-mesh/weft/pkg/event"
)

// MarkerType is the type of a marker, for whoever reads a store without the mesh.
const MarkerType = "io.weft.cut"

// headerCut is the mesh header that makes an event a marker: clients cannot set it.
const headerCut = "cut"

// Marker is the event that a Marking writes into every partition of the place that the
// topic with this uid leaves: it says which epoch that is, and which attempt to mark it.
// It has no data. Nobody is delivered it.
func Marker(topicUID string, epoch, attempt uint32) *event.Event {
	id := fmt.Sprintf("%s/%d/%d", topicUID, epoch, attempt)
	return &event.Event{ID: id, Source: "/weft/topics/" + topicUID, Type: MarkerType, Mesh: []event.Attr{{Name: headerCut, Value: id}}}
}

// headerPlace is the mesh header of what a proxy writes to a topic that moves away: the
// place that it wrote to.
const headerPlace = "place"

func place(topicUID string, epoch uint32) string { return fmt.Sprintf("%s/%d", topicUID, epoch) }

// Placed are copies of events, which they borrow, with the header of what a proxy writes to
// an epoch which the topic moves away from.
//
// What comes too late there lies behind the cut, and its publisher has not heard that it
// was kept: it may have gone on in the next epoch. So it is no event, where one of somebody
// who writes past the mesh is. What was on its way since before the move began has no such
// header, nor has what proxies of older versions write: it may come later than it should, of
// which its publisher has not heard either.
func Placed(events []event.Event, topicUID string, epoch uint32) []event.Event {
	at := place(topicUID, epoch)
	alone := []event.Attr{{Name: headerPlace, Value: at}}
	out := slices.Clone(events)
	for i := range out {
		if mesh := out[i].Mesh; len(mesh) == 0 {
			out[i].Mesh = alone
		} else {
			out[i].Mesh = event.With(mesh, headerPlace, at)
		}
	}
	return out
}

// PlacedIn reports whether e, which it borrows, was written by a proxy to this epoch of a
// topic, which was about to leave it.
func PlacedIn(e *event.Event, topicUID string, epoch uint32) bool {
	at, ok := event.Lookup(e.Mesh, headerPlace)
	return ok && at == place(topicUID, epoch)
}

// IsMarker reports whether e, which it borrows, is a marker of any topic, epoch and
// attempt. An event of a client is none, whatever its type.
func IsMarker(e *event.Event) bool {
	if len(e.Mesh) == 0 || e.Type != MarkerType {
		return false
	}
	_, cut := event.Lookup(e.Mesh, headerCut)
	return cut
}
