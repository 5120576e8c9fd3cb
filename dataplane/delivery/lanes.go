package delivery

import "cmp"

// A Subscription that asks for order has lanes: the events of one key of a topic that
// are on this proxy, as they were fetched. The first is in one of the places where an
// item can be, the buffer, a member's hands, waiting or being written; the others are
// in the lane alone. So one event of a key is out at a time, and one that failed
// waits, in memory, while those behind it do.
//
// An event without a key is in no lane, and neither is any without Ordered.

// lane is the events of one key. It is there while it has any.
type lane struct {
	key     laneKey
	items   []*item
	blocked bool // the first has failed
	home    home
}

// backlog is what waits behind others in lanes. It does not count against MaxInFlight,
// or a key that is blocked would soon hold up all partitions: how many events it has is
// bounded by the window that the store keeps of each partition, and how much by maxBehind (held.go).
type backlog struct{ events, bytes int }

func (b *backlog) add(it *item) {
	b.events++
	b.bytes += it.msg.stored.Held()
}

func (b *backlog) drop(it *item) {
	b.events--
	b.bytes -= it.msg.stored.Held()
}

// laneKey is an ordering key of a Topic of the Subscription.
type laneKey struct{ topic, key string }

// enterLocked puts an item that was fetched into its lane, and, where it is the first
// or in none, into the buffer.
func (r *runtime) enterLocked(it *item) {
	if r.sub.Ordered {
		if key := cmp.Or(it.msg.stored.Key(r.keyFromLocked(it)), it.msg.stored.StoredKey); key != "" {
			k := laneKey{it.msg.topic, key}
			l := r.lanes[k]
			if l == nil {
				l = &lane{key: k, home: r.homeOf(k)}
				r.lanes[k] = l
			}
			it.lane = l
			if l.items = append(l.items, it); len(l.items) > 1 {
				r.behind.add(it)
				return
			}
		}
	}
	r.buffer = append(r.buffer, it)
}

// keyFromLocked is what names the key of an item that has no partitionkey.
func (r *runtime) keyFromLocked(it *item) string {
	for i := range r.sub.Sources {
		if t := r.sub.Sources[i].Topic; t.Name == it.msg.topic {
			return t.KeyFrom
		}
	}
	return ""
}

// leaveLocked takes an item that is done with out of its lane; the next one's turn
// has come.
func (r *runtime) leaveLocked(it *item) {
	l := it.lane
	if l == nil {
		return
	}
	it.lane = nil
	delete(r.stuck, it)
	l.items[0] = nil
	l.items = l.items[1:]
	r.nextLocked(l)
}

// nextLocked gives a lane's new first item its turn, and drops a lane without any.
func (r *runtime) nextLocked(l *lane) {
	if l.blocked {
		l.blocked = false
		r.metrics.blockedKeys.Dec()
	}
	if len(l.items) == 0 {
		delete(r.lanes, l.key)
		return
	}
	r.behind.drop(l.items[0])
	r.buffer = append(r.buffer, l.items[0])
}

// blockLocked: an item has failed and holds up its lane; for good where its attempts
// are over.
func (r *runtime) blockLocked(it *item, exhausted bool) {
	if it.lane != nil && exhausted {
		r.stuck[it] = struct{}{}
	}
	if it.lane != nil && !it.lane.blocked {
		it.lane.blocked = true
		r.metrics.blockedKeys.Inc()
	}
}

// forgetLanesLocked drops what is lost from the lanes. The first items were dropped
// where they were; what is being written is so by its writer.
func (r *runtime) forgetLanesLocked(lost func(*item) bool) {
	for _, l := range r.lanes {
		first := l.items[0]
		kept := l.items[:0]
		for i, it := range l.items {
			switch {
			case !lost(it):
				kept = append(kept, it)
				continue
			case i > 0:
				r.dropLocked(it)
				r.behind.drop(it)
			}
			it.lane = nil
			delete(r.stuck, it)
		}
		clear(l.items[len(kept):])
		if l.items = kept; len(kept) == 0 || kept[0] != first {
			r.nextLocked(l)
		}
	}
}

// closeLanesLocked drops all lanes.
func (r *runtime) closeLanesLocked() {
	r.forgetLanesLocked(func(*item) bool { return true })
}

// pickLocked takes up to n items for mem out of the buffer. With Ordered only such that
// are for mem and still this proxy's to deliver: those of others stay until their source
// has dropped them, which is soon.
func (r *runtime) pickLocked(mem *member, n int) []*item {
	if !r.sub.Ordered && r.suspects == 0 {
		items := r.buffer[:n]
		r.buffer = r.buffer[n:]
		return items
	}
	items := make([]*item, 0, n)
	var kept []*item
	seen, full, singled := 0, r.fullLocked(), mem.singled > 0
	for ; seen < len(r.buffer) && len(items) < n; seen++ {
		if it := r.buffer[seen]; it.src.holds(it) && r.forLocked(it, mem, full) && !(it.msg.suspect && singled) {
			items = append(items, it)
			singled = singled || it.msg.suspect
		} else {
			kept = append(kept, it)
		}
	}
	from := seen - len(kept)
	clear(r.buffer[:from])
	copy(r.buffer[from:], kept)
	r.buffer = r.buffer[from:]
	return items
}
