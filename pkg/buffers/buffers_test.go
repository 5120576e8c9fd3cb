package buffers

import "testing"

// TestSizes: whatever is asked for is given, and whatever is given back is never too
// small for who gets it next.
func TestSizes(t *testing.T) {
	p := New()
	for range 2 {
		for _, n := range []int{0, 1, 255, 256, 257, 1000, 1024, 1025, 4<<20 - 1, 1 << 24, 1<<24 + 1} {
			b := p.Get(n)
			if len(*b) != n || cap(*b) >= max(4*n, 512) { // one of others is up to twice its size
				t.Fatalf("Get(%d): len %d, cap %d", n, len(*b), cap(*b))
			}
			p.Put(b)
		}
		for _, n := range []int{0, 100, 300, 1<<24 + 1} {
			b := make([]byte, n)
			p.Put(&b) // of others
		}
	}
}

func BenchmarkFrame(b *testing.B) {
	p := New()
	for b.Loop() {
		p.Put(p.Get(16 << 10))
	}
}
