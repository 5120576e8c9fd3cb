package route

import (
	"fmt"
	"hash/fnv"
	"math/bits"
	"sort"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/event"
)

// Table is a compiled Route. It is immutable; a nil Table keeps every event
// where it enters.
type Table struct {
	rules []rule
	index *index // nil where there are few rules
}

type rule struct {
	filter *Filter
	topics []string
	// ends are the running sums of the weights.
	ends []uint64
}

// CompileTable compiles r. The error is a *FieldError with a path that begins
// with "spec".
func CompileTable(r *configv1.Route) (*Table, error) {
	if len(r.Rules) > MaxRules {
		return nil, &FieldError{"spec.rules", fmt.Sprintf("a Route may have %d rules", MaxRules)}
	}
	t := &Table{}
	for i, in := range r.Rules {
		path := fmt.Sprintf("spec.rules[%d]", i)
		f, err := CompileFilter(in.Filter, path+".filter")
		if err != nil {
			return nil, err
		}
		if len(in.To) == 0 {
			return nil, &FieldError{path + ".to", "must not be empty"}
		}
		out := rule{filter: f}
		var sum uint64
		for _, d := range in.To {
			sum += uint64(max(d.Weight, 1))
			out.topics = append(out.topics, d.Topic)
			out.ends = append(out.ends, sum)
		}
		t.rules = append(t.rules, out)
	}
	if len(t.rules) >= indexFrom {
		t.index = newIndex(t.rules)
	}
	return t, nil
}

// Resolve names the topic that keeps e, and whether a rule matched. Among
// weighted destinations the hash of key, or of the event's id where there is
// none, chooses: one key always goes to one topic while the weights stay. failed is
// as for Filter.Match, of the filters that are tried: those of rules that cannot match
// are not. It borrows e and does not allocate.
func (t *Table) Resolve(e *event.Event, key string, failed func(error)) (topic string, ok bool) {
	if t == nil {
		return "", false
	}
	i := t.First(e, failed)
	if i < 0 {
		return "", false
	}
	r := &t.rules[i]
	if len(r.topics) == 1 {
		return r.topics[0], true
	}
	if key == "" {
		key = e.ID
	}
	// A fixed-point multiplication spreads the hash over the weights.
	at, _ := bits.Mul64(hash(key), r.ends[len(r.ends)-1])
	return r.topics[sort.Search(len(r.ends), func(i int) bool { return at < r.ends[i] })], true
}

// First is the number of the first rule whose filter matches e; -1 where none does.
func (t *Table) First(e *event.Event, failed func(error)) int {
	if t.index != nil {
		return t.index.first(t.rules, e, failed)
	}
	for i := range t.rules {
		if t.rules[i].filter.Match(e, failed) {
			return i
		}
	}
	return -1
}

// Topics are the destinations of every rule.
func (t *Table) Topics() []string {
	var all []string
	if t != nil {
		for _, r := range t.rules {
			all = append(all, r.topics...)
		}
	}
	return all
}

// hash is FNV-1a, 64 bit, with a final mix: FNV alone spreads short keys badly
// over the high bits, which are the ones that count here.
func hash(s string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(s))
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
