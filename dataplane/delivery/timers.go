package delivery

import (
	"container/heap"
	"time"
)

// timers are items by the time that they are due. Each is there once and is taken
// out when it is settled, so that nothing is kept that is done with.
//
// Deliveries are due in the order in which they are made, but for the few after a
// change of the time-out: they are a list, which costs the same however many there
// are. What is extended or waits for another attempt is in a heap.
type timers struct {
	head, tail *item
	others     dueHeap
}

// inList is the slot of an item in the list; those in the heap are counted from 1,
// and 0 is that of an item that is in neither.
const inList = -1

// add puts in an item that is in neither, and most likely is the last to be due.
func (t *timers) add(it *item, due time.Time) {
	if t.tail != nil && due.Before(t.tail.due) {
		t.set(it, due)
		return
	}
	it.due, it.slot, it.prev = due, inList, t.tail
	if t.tail == nil {
		t.head = it
	} else {
		t.tail.next = it
	}
	t.tail = it
}

// set puts an item in, or moves it, to be due then.
func (t *timers) set(it *item, due time.Time) {
	if it.slot == inList {
		t.drop(it)
	}
	if it.due = due; it.slot == 0 {
		heap.Push(&t.others, it)
	} else {
		heap.Fix(&t.others, it.slot-1)
	}
}

// drop takes an item out, if it is in.
func (t *timers) drop(it *item) {
	switch it.slot {
	case 0:
	case inList:
		if it.prev == nil {
			t.head = it.next
		} else {
			it.prev.next = it.next
		}
		if it.next == nil {
			t.tail = it.prev
		} else {
			it.next.prev = it.prev
		}
		it.prev, it.next, it.slot = nil, nil, 0
	default:
		heap.Remove(&t.others, it.slot-1)
	}
}

// first is the item that is due first; nil without any.
func (t *timers) first() *item {
	if len(t.others) == 0 || t.head != nil && t.head.due.Before(t.others[0].due) {
		return t.head
	}
	return t.others[0]
}

// dueHeap is a heap by due.
type dueHeap []*item

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].slot, h[j].slot = i+1, j+1
}

func (h *dueHeap) Push(x any) {
	it := x.(*item)
	*h = append(*h, it)
	it.slot = len(*h)
}

func (h *dueHeap) Pop() any {
	last := len(*h) - 1
	it := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	it.slot = 0
	return it
}
