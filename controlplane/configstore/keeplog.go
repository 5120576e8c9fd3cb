package configstore

import "slices"

// keepLog carries the log of changes over a new reading of everything, by
// comparing the two, so that streams need not start again.
func keepLog(old, now *Snapshot) *Snapshot {
	if old == nil || old.Lineage != now.Lineage {
		return now
	}
	next := *now
	next.floor, next.changes, next.gaps = old.floor, old.changes, old.gaps
	log := func(name string) {
		entry := logEntry{revision: now.Revision, name: name}
		before, _ := old.Served(name)
		if before != nil {
			entry.before = before.Mark
		}
		next.changes = append(next.changes, entry)
	}
	same := func(a, b *Entry) bool {
		return a != nil && b != nil && a.Mark.Digest == b.Mark.Digest // of one version and one content
	}
	for e := range now.All("") {
		if !same(old.Get(e.Name), e) {
			log(e.Name)
		}
	}
	for e := range old.All("") {
		if now.Get(e.Name) == nil {
			log(e.Name)
		}
	}
	// What is served may differ where nothing was written under that name.
	for _, list := range []*Snapshot{old, now} {
		for name := range list.Quarantined() {
			before, _ := old.Served(name)
			after, _ := now.Served(name)
			if same(old.Get(name), now.Get(name)) && !same(before, after) {
				log(name)
			}
		}
	}
	if len(next.changes) > len(old.changes) || now.Generation > old.Revision {
		// Another replica may have told proxies of what was between the two.
		next.gaps = append(slices.Clone(old.gaps), gap{old.Revision, now.Revision})
		if over := len(next.gaps) - maxGaps; over > 0 {
			next.floor, next.gaps = max(next.floor, next.gaps[over-1].until), next.gaps[over:]
		}
	}
	return &next
}
