package route

import (
	"hash/maphash"
	"slices"
	"strings"
)

// table finds what stands under a key. It is a hash table that does
// not change: half of its slots are empty, and a look-up is mostly one comparison.
type table[T any] struct {
	seed  maphash.Seed
	slots []slot[T] // a power of two, or none
}

type slot[T any] struct {
	hash  uint64 // 0 where the slot is empty
	key   string
	value T
}

func newTable[T any](of map[string]T) table[T] {
	if len(of) == 0 {
		return table[T]{}
	}
	size := 2
	for size < 2*len(of) {
		size *= 2
	}
	t := table[T]{maphash.MakeSeed(), make([]slot[T], size)}
	for key, value := range of {
		h := t.hash(key)
		i := h & uint64(size-1)
		for t.slots[i].hash != 0 {
			i = (i + 1) & uint64(size-1)
		}
		t.slots[i] = slot[T]{h, key, value}
	}
	return t
}

func (t *table[T]) hash(key string) uint64 { return maphash.String(t.seed, key) | 1<<63 }

// get is nil where there is nothing. The table must not be empty.
func (t *table[T]) get(key string) *T {
	h, mask := t.hash(key), uint64(len(t.slots)-1)
	for i := h & mask; ; i = (i + 1) & mask {
		switch s := &t.slots[i&mask]; {
		case s.hash == 0:
			return nil
		case s.hash == h && s.key == key:
			return &s.value
		}
	}
}

// ends has prefixes, or suffixes: one look-up of as many bytes as the shortest of them
// has, and from there a trie.
type ends struct {
	shared int // bytes; 0 where there are none
	heads  table[head]
}

// head is what some of the prefixes begin with.
type head struct {
	rules posting // of the one that is no longer
	more  *trie   // the rest of those that are; nil where none is
}

// newEnds makes it of values and their rules. With back they are suffixes.
func newEnds(values map[string]posting, back bool) ends {
	e := ends{}
	for v := range values {
		if e.shared == 0 || len(v) < e.shared {
			e.shared = len(v)
		}
	}
	heads, longer := map[string]head{}, map[string]map[string]posting{}
	for v, p := range values {
		first, rest := v[:e.shared], v[e.shared:]
		if back {
			rest, first = v[:len(v)-e.shared], v[len(v)-e.shared:]
		}
		h, ok := heads[first]
		if !ok {
			h.rules.match = MaxRules
			longer[first] = map[string]posting{}
		}
		if rest == "" {
			h.rules = p
		} else {
			longer[first][rest] = p
		}
		heads[first] = h
	}
	for first, values := range longer {
		h := heads[first]
		h.more = newTrie(values, back)
		heads[first] = h
	}
	e.heads = newTable(heads)
	return e
}

// trie has prefixes, or suffixes, by what they share. A nil one is empty.
type trie struct {
	label  string // more of the value than the node above
	rules  posting
	firsts string // what the labels of next begin with, for suffixes: end with
	next   []*trie
}

// newTrie makes a trie of values and their rules. With back they are suffixes.
func newTrie(values map[string]posting, back bool) *trie {
	if len(values) == 0 {
		return nil
	}
	var all []string
	for v := range values {
		all = append(all, v)
	}
	n := 0 // bytes that all of them share
	for ; ; n++ {
		c, ok := nth(all[0], n, back)
		if !ok || slices.ContainsFunc(all[1:], func(v string) bool { d, ok := nth(v, n, back); return !ok || d != c }) {
			break
		}
	}
	cut := func(v string) (label, rest string) {
		if back {
			return v[len(v)-n:], v[:len(v)-n]
		}
		return v[:n], v[n:]
	}
	t := &trie{rules: posting{match: MaxRules}}
	t.label, _ = cut(all[0])
	groups := map[byte]map[string]posting{}
	for v, rules := range values {
		_, rest := cut(v)
		c, more := nth(rest, 0, back)
		if !more {
			t.rules = rules
			continue
		}
		if groups[c] == nil {
			groups[c] = map[string]posting{}
		}
		groups[c][rest] = rules
	}
	var firsts []byte
	for c, group := range groups {
		firsts = append(firsts, c)
		t.next = append(t.next, newTrie(group, back))
	}
	t.firsts = string(firsts)
	return t
}

// nth is byte n of v, with back from its end.
func nth(v string, n int, back bool) (byte, bool) {
	switch {
	case n >= len(v):
		return 0, false
	case back:
		return v[len(v)-1-n], true
	}
	return v[n], true
}

// prefixes adds the rules of all that v begins with.
func (t *trie) prefixes(v string, known *found) {
	for t != nil && strings.HasPrefix(v, t.label) {
		known.add(&t.rules)
		if v = v[len(t.label):]; v == "" {
			return
		}
		t = t.child(v[0])
	}
}

// suffixes adds the rules of all that v ends with.
func (t *trie) suffixes(v string, known *found) {
	for t != nil && strings.HasSuffix(v, t.label) {
		known.add(&t.rules)
		if v = v[:len(v)-len(t.label)]; v == "" {
			return
		}
		t = t.child(v[len(v)-1])
	}
}

func (t *trie) child(first byte) *trie {
	if i := strings.IndexByte(t.firsts, first); i >= 0 {
		return t.next[i]
	}
	return nil
}
