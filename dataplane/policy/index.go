package policy

import "strings"

// index finds the rules of a namespace that may apply, without trying the others:
// by who asks and what for. Most rules stand under each pair of a principal or group
// and a name or pattern that they have; what has too many pairs stands under its
// rarer side, and is tried.
type index struct {
	principals map[whoKey]id
	groups     map[string]id
	names      map[string]id
	patterns   trie
	pairs      map[pair][]int32
	byWho      map[side][]int32
	byName     map[side][]int32
}

type (
	id     uint32
	whoKey struct{ namespace, name string }
	// pair is who, what and the action.
	pair struct {
		who, what id
		action    Action
	}
	side struct {
		id     id
		action Action
	}
)

// anyone is the id of everyone who is authenticated.
const anyone id = 1

// maxPairs is how many pairs a rule may stand under.
const maxPairs = 64

// build makes the index of rules, whose order stays.
func build(rules []accessRule) *index {
	x := &index{principals: map[whoKey]id{}, groups: map[string]id{}, names: map[string]id{}, pairs: map[pair][]int32{}, byWho: map[side][]int32{}, byName: map[side][]int32{}}
	last := anyone
	next := func() id { last++; return last }
	whos, whats := make([][]id, len(rules)), make([][3][]id, len(rules))
	patterns := map[string]id{}
	count := map[side]int{} // how many rules stand on either side
	for i := range rules {
		r := &rules[i]
		if r.anyone {
			whos[i] = append(whos[i], anyone)
		}
		for who := range r.principals {
			whos[i] = append(whos[i], intern(x.principals, who, next))
		}
		for g := range r.groups {
			whos[i] = append(whos[i], intern(x.groups, g, next))
		}
		for a := range r.actions {
			if !r.actions[a] {
				continue
			}
			m := r.of(Action(a))
			for n := range m.names {
				whats[i][a] = append(whats[i][a], intern(x.names, n, next))
			}
			for _, p := range m.patterns {
				whats[i][a] = append(whats[i][a], intern(patterns, p, next))
			}
			for _, n := range [][]id{whos[i], whats[i][a]} {
				for _, d := range n {
					count[side{d, Action(a)}]++
				}
			}
		}
	}
	for p, d := range patterns {
		x.patterns.add(p, d)
	}
	for i := range rules {
		for a, names := range whats[i] {
			x.post(int32(i), &rules[i], Action(a), whos[i], names, rules, count)
		}
	}
	return x
}

// post makes rule i stand where it is found.
func (x *index) post(i int32, r *accessRule, a Action, whos, whats []id, rules []accessRule, count map[side]int) {
	if len(whos)*len(whats) <= maxPairs {
		for _, who := range whos {
			for _, what := range whats {
				k := pair{who, what, a}
				x.pairs[k] = add(x.pairs[k], i, r, rules)
			}
		}
		return
	}
	most := func(ids []id) int {
		n := 0
		for _, d := range ids {
			n = max(n, count[side{d, a}])
		}
		return n
	}
	if most(whos) <= most(whats) {
		for _, d := range whos {
			x.byWho[side{d, a}] = append(x.byWho[side{d, a}], i)
		}
		return
	}
	for _, d := range whats {
		x.byName[side{d, a}] = append(x.byName[side{d, a}], i)
	}
}

// add appends rule i to those of one pair, unless another one before it decides the
// same for every event.
func add(list []int32, i int32, r *accessRule, rules []accessRule) []int32 {
	for _, j := range list {
		if rules[j].class() == r.class() && !rules[j].perEvent() {
			return list
		}
	}
	return append(list, i)
}

func intern[K comparable](m map[K]id, k K, next func() id) id {
	d, ok := m[k]
	if !ok {
		d = next()
		m[k] = d
	}
	return d
}

// find calls f with the number of each rule that names who, the action and the name;
// with some of them several times.
func (x *index) find(rules []accessRule, p *Principal, a Action, name string, f func(i int32)) {
	var fewWhos, fewWhats [16]id
	whos := append(fewWhos[:0], anyone)
	if d, ok := x.principals[whoKey{p.Namespace, p.Name}]; ok {
		whos = append(whos, d)
	}
	for _, g := range p.Groups {
		if d, ok := x.groups[g]; ok {
			whos = append(whos, d)
		}
	}
	whats := fewWhats[:0]
	if d, ok := x.names[name]; ok {
		whats = append(whats, d)
	}
	whats = x.patterns.match(name, whats)
	for _, who := range whos {
		for _, what := range whats {
			for _, i := range x.pairs[pair{who, what, a}] {
				f(i)
			}
		}
	}
	for _, who := range whos {
		for _, i := range x.byWho[side{who, a}] {
			if rules[i].of(a).match(name) {
				f(i)
			}
		}
	}
	for _, what := range whats {
		for _, i := range x.byName[side{what, a}] {
			if rules[i].names(p) {
				f(i)
			}
		}
	}
}

// trie has patterns by their segments.
type trie struct {
	children map[string]*trie
	any      *trie // "*"
	rest     id    // of the pattern that ends here with ">"; 0 without one
	here     id    // of the pattern that ends here
}

func (t *trie) add(pattern string, d id) {
	for more := true; more; {
		var seg string
		switch seg, pattern, more = strings.Cut(pattern, "."); seg {
		case ">":
			t.rest = d
			return
		case "*":
			if t.any == nil {
				t.any = &trie{}
			}
			t = t.any
		default:
			next := t.children[seg]
			if next == nil {
				if t.children == nil {
					t.children = map[string]*trie{}
				}
				next = &trie{}
				t.children[seg] = next
			}
			t = next
		}
	}
	t.here = d
}

// match appends the ids of the patterns that match name, as names.Match does.
func (t *trie) match(name string, out []id) []id {
	if name == "" {
		return out
	}
	if t.rest != 0 {
		out = append(out, t.rest)
	}
	seg, rest, more := strings.Cut(name, ".")
	if seg == "" {
		return out
	}
	for _, next := range [...]*trie{t.children[seg], t.any} {
		switch {
		case next == nil:
		case more:
			out = next.match(rest, out)
		case next.here != 0:
			out = append(out, next.here)
		}
	}
	return out
}
