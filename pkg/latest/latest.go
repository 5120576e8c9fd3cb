// Package latest holds a value that many follow and one replaces. Readers that
// are slow skip to the newest value; nothing is queued.
package latest

import "sync/atomic"

// Value is a cell with the newest T. Create it with New. All methods are safe
// for concurrent use.
type Value[T any] struct{ cur atomic.Pointer[cell[T]] }

type cell[T any] struct {
	v        T
	replaced chan struct{}
}

// New makes a cell that holds v.
func New[T any](v T) *Value[T] {
	l := new(Value[T])
	l.cur.Store(&cell[T]{v, make(chan struct{})})
	return l
}

// Load returns the newest value and a channel that is closed once it no longer
// is.
func (l *Value[T]) Load() (v T, replaced <-chan struct{}) {
	c := l.cur.Load()
	return c.v, c.replaced
}

// Get returns the newest value.
func (l *Value[T]) Get() T { return l.cur.Load().v }

// Store replaces the value and wakes everyone who waits.
func (l *Value[T]) Store(v T) {
	old := l.cur.Swap(&cell[T]{v, make(chan struct{})})
	close(old.replaced)
}
