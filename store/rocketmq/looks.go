package rocketmq

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store/rocketmq/remoting"
)

// place is what is known of where a topic is.
type place struct {
	route   *route    // nil until it is found
	doubted time.Time // a route that was asked for before this may be wrong
	failed  time.Time // when the last look ended, where that found nothing out; else zero
	look    *look     // that is under way; nil where none is
}

// look is one look for a topic's route, for all who wait for it. It goes by no caller's
// context: how long it takes is up to the name servers. (A singleflight.Group would not
// tell when a look began.)
type look struct {
	began time.Time
	done  chan struct{} // closed when it has ended
	route *route        // this and err are set by then
	err   error
}

// wait waits until a look has ended, or is as old as most if that is not zero, or ctx
// ends. It reports whether the look has ended.
func (l *look) wait(ctx context.Context, most time.Duration) bool {
	var over <-chan time.Time
	if most != 0 {
		timer := time.NewTimer(most - time.Since(l.began))
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-l.done:
		return true
	case <-over:
	case <-ctx.Done():
	}
	return false
}

// route finds a topic; fresh does not take a remembered answer.
//
// Who has a route that is only old goes on with it where a look takes long or has just
// failed: brokers may be there while name servers are not. Who has none, or one that a
// broker has made doubtful while name servers answer, waits for an answer to what was
// asked afterwards.
func (c *cluster) route(ctx context.Context, topic string, fresh bool) (*route, error) {
	if fresh {
		return c.find(ctx, topic)
	}
	asked := time.Now()
	for {
		c.mu.Lock()
		p := c.placeLocked(topic)
		old, must, most := p.route, p.route == nil, time.Duration(0)
		if old != nil {
			doubted := old.at.Before(p.doubted)
			if !doubted && time.Since(old.at) < c.age(old) || p.look == nil && time.Since(p.failed) < c.times.again {
				c.mu.Unlock()
				return old, nil
			}
			if must = doubted && p.failed.IsZero(); !must {
				most = c.times.patience
			}
		}
		l := c.lookLocked(topic, p)
		c.mu.Unlock()
		if !l.wait(ctx, most) {
			if old == nil {
				return nil, unavailable(ctx.Err())
			}
			return old, nil
		}
		switch {
		case must && l.began.Before(asked):
			// It may have been answered before: only what it found counts, unless that is doubted.
		case l.err == nil:
			return l.route, nil
		case old == nil || fault.ClassOf(l.err) == fault.NotFound:
			return nil, l.err
		default:
			return old, nil
		}
	}
}

// lookLocked is the look for a topic that is under way, or begins one.
func (c *cluster) lookLocked(topic string, p *place) *look {
	if p.look != nil {
		return p.look
	}
	l := &look{began: time.Now(), done: make(chan struct{})}
	if c.closed {
		l.err = unavailable(fmt.Errorf("%w: the store is closed", remoting.ErrNotSent))
		close(l.done)
		return l
	}
	p.look = l
	c.work.Go(func() {
		defer close(l.done)
		l.route, l.err = c.find(c.life, topic)
		c.mu.Lock()
		defer c.mu.Unlock()
		p.look = nil
		if l.err != nil && fault.ClassOf(l.err) != fault.NotFound {
			p.failed = time.Now()
		}
		if p.route == nil && c.places[topic] == p {
			delete(c.places, topic)
		}
	})
	return l
}

// find asks name servers for a topic, and remembers what they say.
func (c *cluster) find(ctx context.Context, topic string) (*route, error) {
	old, began := c.remembered(topic), time.Now()
	cmd, err := c.askRoute(ctx, topic)
	if err != nil && fault.ClassOf(err) == fault.NotFound {
		cmd, err = c.missing(ctx, topic, old)
		if err != nil && fault.ClassOf(err) == fault.NotFound {
			c.gone(topic, old)
		}
	}
	if err != nil {
		return nil, err
	}
	r, err := decodeRoute(cmd.Body, began)
	if err != nil {
		return nil, unavailable(fmt.Errorf("route of %s: %w", topic, err))
	}
	r = c.withoutRemoved(ctx, topic, r, c.waitedFor)
	c.mu.Lock()
	c.rememberLocked(topic, r)
	c.mu.Unlock()
	return r, nil
}

// withoutRemoved has brokers of a kind waited for no more from which a topic was taken
// while they are there, and gives what is its route by then. They are looked for between
// two routes, as one may just have come back.
func (c *cluster) withoutRemoved(ctx context.Context, topic string, r *route, of func(name string, h had) bool) *route {
	absent := func(r *route) (names []string) {
		c.mu.Lock()
		defer c.mu.Unlock()
		for name, h := range c.had[topic] {
			if r.brokers[name] == "" && of(name, h) {
				names = append(names, name)
			}
		}
		return names
	}
	away := absent(r)
	if len(away) == 0 {
		return r
	}
	there, err := c.masters(ctx)
	if err != nil {
		return r
	}
	away = slices.DeleteFunc(away, func(name string) bool { return there[name] == "" })
	if len(away) == 0 {
		return r
	}
	began := time.Now()
	cmd, err := c.askRoute(ctx, topic)
	if err != nil {
		return r
	}
	later, err := decodeRoute(cmd.Body, began)
	if err != nil {
		return r
	}
	gone := absent(later)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range away {
		if slices.Contains(gone, name) {
			delete(c.had[topic], name)
		}
	}
	return later
}

// heartbeat is how soon a member of a group of a topic looks after its queues again: those
// of a broker that is away go on once it is back.
func (c *cluster) heartbeat(topic string) time.Duration {
	if r := c.remembered(topic); r != nil && c.age(r) < routeAge {
		return maxRetry
	}
	return heartbeatEvery
}

func (c *cluster) askRoute(ctx context.Context, topic string) (*remoting.Command, error) {
	return c.fromNames(ctx, reqRoute, map[string]string{"topic": topic, "acceptStandardJsonOnly": "true"})
}

// remembered is the last route of a topic; nil where there is none.
func (c *cluster) remembered(topic string) *route {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.places[topic]; p != nil {
		return p.route
	}
	return nil
}

func (c *cluster) placeLocked(topic string) *place {
	p := c.places[topic]
	if p == nil {
		p = &place{}
		c.places[topic] = p
	}
	return p
}

func (c *cluster) rememberLocked(topic string, r *route) {
	p := c.placeLocked(topic)
	p.failed = time.Time{}
	if p.route == nil || !r.at.Before(p.route.at) {
		p.route = r // or one that was asked for later has overtaken it
	}
	if c.had[topic] == nil {
		c.had[topic] = map[string]had{}
	}
	for name := range r.brokers {
		c.had[topic][name] = had{at: r.at}
	}
	for _, q := range r.write {
		h := c.had[topic][q.broker]
		h.write++
		c.had[topic][q.broker] = h
	}
	r.keyed = slices.Clone(r.write)
	for name, h := range c.had[topic] {
		if r.brokers[name] == "" && c.waitedFor(name, h) {
			for i := range h.write {
				r.keyed = append(r.keyed, queue{name, i})
			}
		}
	}
	slices.SortFunc(r.keyed, queue.compare)
}

// waitedFor reports whether events wait for a broker that is away, whose queues have
// their keys: elsewhere they would overtake what is in it and was not read yet. It is one
// that the options name or, where they name none, that has not been away for so long that
// it was removed.
func (c *cluster) waitedFor(name string, h had) bool {
	if len(c.op.Brokers) > 0 {
		return slices.Contains(c.op.Brokers, name)
	}
	return time.Since(h.at) < removedAfter
}

// age is how old a route may be: while a broker is away it is looked for more often.
func (c *cluster) age(r *route) time.Duration {
	if len(r.keyed) > len(r.write) {
		return c.times.again
	}
	return routeAge
}

// doubt has a route looked up again when it is used next.
func (c *cluster) doubt(topic string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.places[topic]; p != nil {
		p.doubted = time.Now()
	}
}

// gone drops the route of a topic that is nowhere, as of when old was its route. Brokers
// that had it, and of which nobody has said that they are there, are not forgotten.
func (c *cluster) gone(topic string, old *route) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.places[topic]
	if old == nil || p == nil || p.route != old {
		return
	}
	if p.route = nil; p.look == nil {
		delete(c.places, topic)
	}
	for name := range old.brokers {
		delete(c.had[topic], name)
	}
	if len(c.had[topic]) == 0 {
		delete(c.had, topic)
	}
}

// forget drops the route of a topic that was deleted.
func (c *cluster) forget(topic string) {
	c.mu.Lock()
	delete(c.places, topic)
	delete(c.had, topic)
	c.mu.Unlock()
}
