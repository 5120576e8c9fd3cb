package rocketmq

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// Seal writes e into every queue, behind what waits for it here; see store.Sealer. Also
// into those that clients are told to read only, or to leave alone: events may be in
// them, and brokers take it. One that is away fails it if the options name it or, where
// they name none, if it had the topic since the store was opened, however long that is
// ago: it may come back with what nobody has read.
func (s *Store) Seal(ctx context.Context, topic string, e *event.Event) ([]store.Position, error) {
	if err := ctx.Err(); err != nil {
		return nil, fault.From(err)
	}
	r, err := s.c.whole(ctx, topic, math.MaxInt64)
	if err != nil {
		return nil, err
	}
	n := len(r.all)
	if n == 0 {
		return nil, unavailable(errors.New("no broker has a queue of the topic"))
	}
	all := make([]outgoing, n)
	s.mu.Lock()
	for i, q := range r.all {
		fill(&all[i], e, time.Time{})
		s.addressLocked(&all[i], r, senderKey{topic: topic, queue: q})
	}
	c, err := s.out.Give(all)
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return c.Positions(ctx)
}

// removedAfter is how long a broker is away that was removed from the cluster.
const removedAfter = time.Hour

// whole finds all queues of a topic, by what all name servers that answer say now: one
// that has just started knows few brokers. It fails while a broker is away that has some
// of them, or was seen to within a time, as name servers forget it with them, unless it is
// there without; or while one of those is that the options name, and then for no others.
func (c *cluster) whole(ctx context.Context, topic string, within time.Duration) (*route, error) {
	before, err := c.there(ctx)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	var all routeData
	var gone, silent error
	for _, addr := range c.op.NameServers {
		cmd, err := c.ask(ctx, addr, reqRoute, map[string]string{"topic": topic, "acceptStandardJsonOnly": "true"}, nil)
		var one routeData
		if err == nil {
			if err = decodeJSON(cmd.Body, &one); err != nil {
				err = unavailable(fmt.Errorf("route of %s: %w", topic, err))
			}
		}
		switch {
		case err == nil:
			all.add(one)
		case fault.ClassOf(err) == fault.NotFound:
			gone = err
		default:
			silent = err
		}
	}
	if len(all.QueueDatas) == 0 {
		if gone == nil {
			return nil, silent
		}
		_, err := c.missing(ctx, topic, c.remembered(topic))
		if err == nil {
			err = unavailable(fmt.Errorf("a broker that has topic %s has just come back", topic))
		}
		return nil, err
	}
	r, err := all.route(began)
	if err != nil {
		return nil, unavailable(fmt.Errorf("route of %s: %w", topic, err))
	}
	seen := func(_ string, h had) bool { return time.Since(h.at) < within }
	if len(c.op.Brokers) == 0 {
		c.withoutRemoved(ctx, topic, r, seen)
	}
	away := r.away
	c.mu.Lock()
	c.rememberLocked(topic, r)
	for name, h := range c.had[topic] {
		if r.brokers[name] == "" && seen(name, h) {
			away = append(away, name)
		}
	}
	c.mu.Unlock()
	if len(c.op.Brokers) > 0 {
		after, err := c.there(ctx)
		if err != nil {
			return nil, err
		}
		away = missed(c.op.Brokers, r, before, after)
	}
	if len(away) > 0 {
		slices.Sort(away)
		return nil, unavailable(fmt.Errorf("brokers that have the topic are away: %s", strings.Join(slices.Compact(away), ", ")))
	}
	return r, nil
}

// there are the brokers that are there, where the options name some; else nil.
func (c *cluster) there(ctx context.Context) (map[string]string, error) {
	if len(c.op.Brokers) == 0 {
		return nil, nil
	}
	return c.masters(ctx)
}

// missed are the brokers of some that a route may lack for being away. One that was there
// before name servers were asked for it, and after that, has no queue of the topic: it is
// not waited for.
func missed(of []string, r *route, before, after map[string]string) (away []string) {
	for _, name := range of {
		if r.brokers[name] == "" && (before[name] == "" || after[name] == "") {
			away = append(away, name)
		}
	}
	return away
}

var _ store.Sealer = (*Store)(nil)
