package delay

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// write writes messages to their topic, and settles them. It gives back what it could not
// write. What has had no topic for long has no reader: it is dropped.
func (m *member) write(topic string, all []parked) (left []parked, err error) {
	if topic == "" {
		m.s.cfg.Log.Warn("what is no delayed event was dropped from a topic of them", "events", len(all))
		m.settle(all)
		return nil, nil
	}
	if left, err = m.publish(topic, all); err == nil || !fault.Untakeable(err) {
		return left, err
	}
	if len(left) == 1 {
		left[0].alone, left[0].why = true, err
		return left, nil // the topic takes others
	}
	// It may be another one that the topic does not take, with which it would come again
	// each time.
	var refused []parked
	for i := range left {
		one, err := m.write(topic, left[i:i+1])
		if err != nil {
			return append(refused, left[i:]...), err // the topic takes nothing now
		}
		refused = append(refused, one...)
	}
	return refused, nil
}

// publish writes messages to a topic, settles those that are acknowledged and gives back
// the others.
func (m *member) publish(topic string, all []parked) (left []parked, err error) {
	out, res := make([]store.Outgoing, len(all)), make([]store.Result, len(all))
	for i, p := range all {
		e := p.msg.Event
		e.Mesh = without(e.Mesh)
		out[i].Event = &e
	}
	err = m.s.inner.Publish(m.s.life, topic, out, res)
	left = m.settleWritten(all, res, err)
	if m.s.gone(topic, err) {
		m.s.cfg.Log.Warn("delayed events were dropped: their topic is gone", "topic", topic, "events", len(left))
		m.settle(left)
		return nil, err
	}
	return left, err
}

// refer gives what a topic does not take to somebody else, and settles what that takes. It
// gives back the others.
func (m *member) refer(topic string, all []parked) (left []parked, failed error) {
	ctx, cancel := context.WithTimeout(m.s.life, referTimeout)
	defer cancel()
	for i, p := range all {
		if p.why == nil { // it was tried before: its topic may take it by now
			one, err := m.publish(topic, all[i:i+1])
			if len(one) == 0 {
				failed = cmp.Or(failed, err)
				continue
			}
			if !fault.Untakeable(err) {
				return append(left, all[i:]...), err
			}
			p.why = err
		}
		err := p.why
		if m.s.cfg.Refused != nil {
			e := p.msg.Event
			e.Mesh = without(e.Mesh)
			if err = m.s.cfg.Refused(ctx, topic, &e, p.why); err != nil {
				err = fmt.Errorf("%w; it goes nowhere else: %w", p.why, err)
			}
		}
		if err == nil {
			m.settle(all[i : i+1])
			continue
		}
		p.why = nil
		left, failed = append(left, p), err
	}
	return left, failed
}

// park parks messages anew: behind others, for the shortest delay of a class, so that none
// of that is late for them.
func (m *member) park(all []parked) (left []parked, err error) {
	due := m.s.clock.Now().Add(classes[1])
	out, res := make([]store.Outgoing, len(all)), make([]store.Result, len(all))
	for i, p := range all {
		e := p.msg.Event
		e.Mesh = parking(without(e.Mesh), p.to, due)
		out[i].Event = &e
	}
	err = m.s.inner.Publish(m.s.life, m.s.topic(1), out, res)
	return m.settleWritten(all, res, err), err
}

// settleWritten settles what a store has acknowledged, and gives back the others.
func (m *member) settleWritten(all []parked, res []store.Result, err error) (left []parked) {
	var done []parked
	for i, p := range all {
		if err == nil || res[i].Err == nil {
			done = append(done, p)
		} else {
			left = append(left, p)
		}
	}
	m.settle(done)
	return left
}

func (m *member) settle(all []parked) {
	msgs := make([]*store.Message, len(all))
	for i, p := range all {
		msgs[i] = p.msg
	}
	m.sub.Settle(msgs)
}

// parking is an event's headers with those of parking.
func parking(mesh []event.Attr, topic string, due time.Time) []event.Attr {
	return event.With(event.With(mesh, headerDue, strconv.FormatInt(due.UnixNano(), 10)), headerTopic, topic)
}

// without is a parked message's headers without those of parking.
func without(mesh []event.Attr) []event.Attr {
	out := make([]event.Attr, 0, len(mesh))
	for _, a := range mesh {
		if a.Name != headerDue && a.Name != headerTopic {
			out = append(out, a)
		}
	}
	return out
}
