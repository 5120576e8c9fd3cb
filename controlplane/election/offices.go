package election

import (
	"maps"
	"slices"
	"sync"
)

// Offices knows which offices this process holds, for those who show it. The zero
// value holds none. Its methods are safe for concurrent use.
type Offices struct {
	mu   sync.Mutex
	held map[string]bool
}

// Held names the offices, sorted: the last part of each one's key.
func (o *Offices) Held() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Sorted(maps.Keys(o.held))
}

// hold notes an office until the returned function is called; nil notes nothing.
func (o *Offices) hold(name string) (end func()) {
	if o == nil {
		return func() {}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.held == nil {
		o.held = map[string]bool{}
	}
	o.held[name] = true
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.held, name)
	}
}
