package egress

import (
	"errors"
	"net/netip"
	"testing"
)

func TestGuard(t *testing.T) {
	closed, open := Guard(nil), Guard([]netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/32")})
	for _, tc := range []struct {
		addr         string
		closed, open bool
	}{
		{"8.8.8.8:80", true, true}, {"[2606:4700::1111]:443", true, true}, {"[::ffff:8.8.8.8]:80", true, true},
		{"127.0.0.1:80", false, false}, {"127.9.9.9:80", false, false}, {"[::1]:80", false, false}, {"0.0.0.0:80", false, false}, {"[::]:80", false, false},
		{"10.0.0.1:80", false, false}, {"10.1.2.3:80", false, true}, {"[::ffff:10.1.2.3]:80", false, true}, {"172.31.255.255:80", false, false},
		{"172.32.0.1:80", true, true}, {"192.168.1.1:80", false, false}, {"169.254.169.254:80", false, false}, {"100.64.0.1:80", false, false},
		{"100.100.100.200:80", false, false}, {"168.63.129.16:80", false, false}, {"198.18.0.1:80", false, false}, {"224.0.0.1:80", false, false},
		{"255.255.255.255:80", false, false}, {"[fd00:ec2::254]:80", false, false}, {"[fd00:1::5]:80", false, true}, {"[fe80::1%eth0]:80", false, false},
		{"[ff02::1]:80", false, false}, {"[::ffff:127.0.0.1]:80", false, false}, {"[::127.0.0.1]:80", false, false}, {"[64:ff9b::7f00:1]:80", false, false},
		{"[2002:7f00:1::]:80", false, false}, {"[2001:0:7f00:1::]:80", false, false}, {"[2001:db8::1]:80", false, false}, {"[fec0::1]:80", false, false},
		{"nonsense", false, false}, {"localhost:80", false, false},
	} {
		for name, g := range map[string]struct {
			f    func(string, string) error
			want bool
		}{"closed": {func(n, a string) error { return closed(n, a, nil) }, tc.closed}, "open": {func(n, a string) error { return open(n, a, nil) }, tc.open}} {
			err := g.f("tcp4", tc.addr)
			if (err == nil) != g.want || err != nil && !errors.Is(err, ErrForbidden) {
				t.Errorf("%s, %s: %v", name, tc.addr, err)
			}
		}
	}
	if closed("unix", "/var/run/docker.sock", nil) == nil || closed("udp4", "8.8.8.8:53", nil) == nil {
		t.Error("only TCP is called")
	}
}
