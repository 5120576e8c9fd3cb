// Package egress says which addresses a proxy may call because a configuration
// names them: webhooks, and where issuers of tokens publish their keys.
package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
)

// ErrForbidden is the guard's answer.
var ErrForbidden = errors.New("the address may not be called")

// Guard is a net.Dialer's Control that refuses connections to addresses that are
// not public, but for allow. It looks at the address that is connected to, after
// every resolution: names that resolve to something else a moment later, redirects
// and odd spellings of addresses do not get past it.
func Guard(allow []netip.Prefix) func(network, address string, _ syscall.RawConn) error {
	forbidden, public6 := notPublic(), netip.MustParsePrefix("2000::/3")
	return func(network, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil || network != "tcp4" && network != "tcp6" {
			return fmt.Errorf("%w: %s %s", ErrForbidden, network, address)
		}
		ip := at.Addr().WithZone("").Unmap()
		for _, p := range allow {
			if p.Contains(ip) {
				return nil
			}
		}
		for _, p := range forbidden {
			if p.Contains(ip) {
				return fmt.Errorf("%w: %s", ErrForbidden, ip)
			}
		}
		if ip.Is6() && !public6.Contains(ip) {
			return fmt.Errorf("%w: %s", ErrForbidden, ip)
		}
		return nil
	}
}

// notPublic are the networks of the IANA special-purpose registries that are not
// reachable from everywhere, multicast, what carries an IPv4 address inside an
// IPv6 one, and the one public address at which a cloud answers its own machines. Of IPv6 only 2000::/3 is public at all.
func notPublic() []netip.Prefix {
	var out []netip.Prefix
	for _, s := range []string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
		"168.63.129.16/32", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
		"2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
	} {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}
