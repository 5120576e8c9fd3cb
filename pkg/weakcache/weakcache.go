// Package weakcache keeps what is dear to make for as long as somebody uses it: a
// configuration that is compiled again finds what the one before it compiled.
package weakcache

import (
	"runtime"
	"sync"
	"weak"
)

// Cache holds values by their keys, weakly. The zero value is empty and ready. It is
// safe for concurrent use.
type Cache[T any] struct {
	mu sync.Mutex
	m  map[string]weak.Pointer[T]
}

// Get returns the value of key, from make where nobody holds it any more. What make
// gives is shared and must not be changed; its errors are not kept. Two calls at once
// may both make.
func (c *Cache[T]) Get(key string, make func() (*T, error)) (*T, error) {
	c.mu.Lock()
	v := c.m[key].Value()
	c.mu.Unlock()
	if v != nil {
		return v, nil
	}
	v, err := make()
	if err != nil {
		return nil, err
	}
	p := weak.Make(v)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = map[string]weak.Pointer[T]{}
	}
	c.m[key] = p
	runtime.AddCleanup(v, func(key string) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.m[key] == p {
			delete(c.m, key)
		}
	}, key)
	return v, nil
}

// Len is the number of values that are kept.
func (c *Cache[T]) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.m)
}
