package policy

import (
	"time"
	"weak"
)

// refreshed is what Current found out last about a principal.
type refreshed struct {
	// by does not keep identities alive that nobody uses any more.
	by weak.Pointer[Identities]
	p  *Principal
}

// Current is Refresh for whoever holds a session and asks at every operation:
// the answer of one configuration is kept in p, so that certificates are
// verified once for each.
func (i *Identities) Current(p *Principal, now time.Time) (_ *Principal, ok bool) {
	if c := p.current.Load(); c != nil && c.by.Value() == i {
		if c.p == nil || c.p.Expired(now) {
			return nil, false
		}
		return c.p, true
	}
	q, ok := i.Refresh(p, now)
	if !ok {
		q = nil
	}
	p.current.Store(&refreshed{weak.Make(i), q})
	return q, ok
}
