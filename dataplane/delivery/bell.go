package delivery

import "sync"

// bell tells one client that there may be something for it. Its mutex is taken last.
type bell struct {
	mu   sync.Mutex
	rung bool // while nobody listened
	wake func()
}

// ring wakes who listens, or whoever does so next.
func (b *bell) ring() {
	b.mu.Lock()
	wake := b.wake
	b.rung, b.wake = wake == nil, nil
	b.mu.Unlock()
	if wake != nil {
		wake()
	}
}

// listen has wake called at the next ring, once. It is false where it rang since it was
// listened to last: then there may be something already.
func (b *bell) listen(wake func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rung {
		b.rung = false
		return false
	}
	b.wake = wake
	return true
}

// ear is what a goroutine listens with.
type ear struct {
	heard chan struct{} // capacity 1
	wake  func()
}

func newEar() *ear {
	e := &ear{heard: make(chan struct{}, 1)}
	e.wake = func() {
		select {
		case e.heard <- struct{}{}:
		default:
		}
	}
	return e
}
