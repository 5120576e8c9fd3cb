package pipeline

import (
	"slices"
	"sync"

	"github.com/weft-mesh/weft/store"
)

// call is what one call of a store is told and tells.
type call struct {
	out []store.Outgoing
	got []store.Result
}

// calls are those that stores are done with.
var calls = sync.Pool{New: func() any { return &call{} }}

// maxKept bounds the events that there is room for in a call that is used again.
const maxKept = 256

func newCall(n int) *call {
	c := calls.Get().(*call) //nolint:forcetypeassert // there is nothing else in it
	c.out, c.got = slices.Grow(c.out, n)[:n], slices.Grow(c.got, n)[:n]
	return c
}

// unkept is err where the store has acknowledged nothing; else nil.
func (c *call) unkept(err error) error {
	for i := range c.got {
		if c.got[i].Err == nil {
			return nil
		}
	}
	return err
}

// release gives the call's memory back. A store that has not acknowledged all may
// still read it: then the garbage collector knows when.
func (c *call) release() {
	if cap(c.out) > maxKept {
		return
	}
	clear(c.out)
	clear(c.got)
	c.out, c.got = c.out[:0], c.got[:0]
	calls.Put(c)
}
