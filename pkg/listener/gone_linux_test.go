package listener

import "testing"

// TestHandshakeWithNobody: who has given up while others had their turn costs nothing.
func TestHandshakeWithNobody(t *testing.T) {
	l, err := Listen("127.0.0.1:0", 100)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.LimitHandshakes()
	for range 20 {
		p := dial(t, l.Addr())
		p.say("\x16\x03\x01")
		_ = p.Close()
	}
	there := dial(t, l.Addr())
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.RemoteAddr().String() != there.LocalAddr().String() || l.Accepted() != 1 || l.Count() != 1 {
		t.Errorf("%d were taken, the last from %v", l.Accepted(), c.RemoteAddr())
	}
}
