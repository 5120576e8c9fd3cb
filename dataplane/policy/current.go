package policy

import (
	"time"
	"weak"

	"github.com/weft-mesh/weft/pkg/fault"
)

// refreshed is what Current found out last about a principal.
type refreshed struct {
	// by does not keep identities alive that nobody uses any more.
	by  weak.Pointer[Identities]
	p   *Principal
	err error
}

// Current is Refresh for whoever holds a session and asks at every operation:
// the answer of one configuration is kept in p, so that certificates are
// verified once for each.
func (i *Identities) Current(p *Principal, now time.Time) (*Principal, error) {
	if c := p.current.Load(); c != nil && c.by.Value() == i {
		if c.err == nil && c.p.Expired(now) {
			return nil, errRevoked
		}
		return c.p, c.err
	}
	q, err := i.Refresh(p, now)
	if err == nil || fault.ClassOf(err) != fault.Unavailable { // else the keys come without another configuration
		p.current.Store(&refreshed{weak.Make(i), q, err})
	}
	return q, err
}
