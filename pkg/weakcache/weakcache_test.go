package weakcache

import (
	"errors"
	"runtime"
	"testing"
)

// TestCache: a value is made once while it is used, and is gone when it is not.
func TestCache(t *testing.T) {
	var c Cache[[16]int]
	made := 0
	get := func() *[16]int {
		v, err := c.Get("a", func() (*[16]int, error) { made++; return &[16]int{made}, nil })
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	v := get()
	if get() != v || made != 1 {
		t.Errorf("made %d times", made)
	}
	runtime.KeepAlive(v)
	for c.Len() > 0 { // a test that does not end says that nothing is let go
		runtime.GC()
		runtime.Gosched()
	}
	if get()[0] != 2 {
		t.Error("what was let go is there")
	}
	failed := errors.New("x")
	if _, err := c.Get("b", func() (*[16]int, error) { return nil, failed }); !errors.Is(err, failed) {
		t.Error(err)
	}
}
