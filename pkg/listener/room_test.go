package listener

import (
	"bytes"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
)

// takes accepts all that come to l until it is closed.
func takes(t *testing.T, l *Listener) chan net.Conn {
	t.Helper()
	accepted := make(chan net.Conn)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	})
	t.Cleanup(func() { _ = l.Close(); running.Wait() })
	return accepted
}

// TestRoom: listeners that share a room take no more together than there is, and one
// leaves a third to the others; who is refused is counted by the reason and told of once,
// and so is that there is room again.
func TestRoom(t *testing.T) {
	for descriptors, most := range map[int]int{1: 1, 16: 2, 64: 8, 256: 128, 512: 384, 1024: 768, 20000: 15000, 1 << 20: 3 << 18} {
		if r := NewRoom(descriptors, nil); r.most != int64(most) || r.Small(1<<30) > max(descriptors-most, 8)/8 {
			t.Errorf("of %d descriptors %d are for connections and %d for pages", descriptors, r.most, r.Small(1<<30))
		}
	}
	var out bytes.Buffer
	room := NewRoom(136, slog.New(slog.NewTextHandler(&out, nil)))
	if room.most != 17 {
		t.Fatalf("the room is %d", room.most)
	}
	var open []net.Conn
	lists := make([]*Listener, 2)
	for i, name := range []string{"one", "two"} {
		l, err := Listen("127.0.0.1:0", 100)
		if err != nil {
			t.Fatal(err)
		}
		l.Share(room, name)
		lists[i] = l
	}
	if n := strings.Count(out.String(), `level=WARN msg="connections are bounded"`); n != 2 {
		t.Errorf("%d times is said that there is little room:\n%s", n, &out)
	}
	one, two := takes(t, lists[0]), takes(t, lists[1])
	for range 11 {
		dial(t, lists[0].Addr())
		open = append(open, <-one)
	}
	for range 3 {
		dial(t, lists[0].Addr()).closed("more than two thirds")
	}
	for range 6 {
		dial(t, lists[1].Addr())
		open = append(open, <-two)
	}
	for range 3 {
		dial(t, lists[1].Addr()).closed("more than there is")
	}
	if a, b := lists[0].Refused(Descriptors), lists[1].Refused(Descriptors); a != 3 || b != 3 || lists[0].Refused(Limit) != 0 {
		t.Errorf("%d and %d were refused", a, b)
	}
	if n := strings.Count(out.String(), "connections are refused"); n != 2 {
		t.Errorf("refusals are %d lines:\n%s", n, &out)
	}
	for _, c := range open {
		_ = c.Close()
		_ = c.Close() // twice is once
	}
	if n := room.taken.Load(); n != 0 {
		t.Errorf("%d of the room are taken by nobody", n)
	}
	dial(t, lists[1].Addr())
	_ = (<-two).Close()
	if n := strings.Count(out.String(), "there is room for connections again"); n != 2 {
		t.Errorf("of room again %d lines are said:\n%s", n, &out)
	}
}
