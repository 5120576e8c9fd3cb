package main

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestGaps: the longest pause is that of one publisher of several, also of one that has
// not published since.
func TestGaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGaps(2)
		<-time.After(time.Second)
		g.published(0)
		<-time.After(2 * time.Second)
		g.published(0)
		g.published(1)
		if got := g.take(); got != 3000 {
			t.Errorf("%v ms, want 3000", got)
		}
		<-time.After(4 * time.Second)
		g.published(0)
		<-time.After(time.Second)
		if got := g.take(); got != 5000 {
			t.Errorf("%v ms of one that has not published since, want 5000", got)
		}
		g.published(0)
		g.published(1)
		g.take()
		if got := g.take(); got != 0 {
			t.Errorf("%v ms of nothing", got)
		}
	})
}
