package delivery

import "iter"

// flights are the deliveries that members have, by id. Ids rise, and an item stands in a
// table at its id's lower bits: one is added and found without a look at others. An id
// whose place somebody has still is left out.
type flights struct {
	table []*item // a power of two of places, at most half of them taken
	n     int
	last  uint64 // id that was given
}

// add gives an item an id, and puts it in.
func (f *flights) add(it *item) {
	if 2*f.n >= len(f.table) {
		old := f.table
		f.table = make([]*item, max(2*len(old), 16))
		for _, x := range old {
			if x != nil {
				*f.at(x.id) = x // two that had places of their own have them still
			}
		}
	}
	for f.last++; *f.at(f.last) != nil; {
		f.last++
	}
	it.id = f.last
	*f.at(it.id) = it
	f.n++
}

func (f *flights) at(id uint64) **item { return &f.table[id&uint64(len(f.table)-1)] }

// of is the item with an id; nil without one.
func (f *flights) of(id uint64) *item {
	if f.n == 0 {
		return nil
	}
	if it := *f.at(id); it != nil && it.id == id {
		return it
	}
	return nil
}

// drop takes out an item that is in.
func (f *flights) drop(it *item) {
	*f.at(it.id) = nil
	f.n--
}

// all are those that are in; they may be dropped meanwhile.
func (f *flights) all() iter.Seq[*item] {
	return func(yield func(*item) bool) {
		for _, it := range f.table {
			if it != nil && !yield(it) {
				return
			}
		}
	}
}
