package lru_test

import (
	"testing"

	"github.com/pgtenancy/pgtenancy/internal/lru"
)

func TestCache(t *testing.T) {
	t.Parallel()
	c := lru.New[string, int](2)
	if _, ok := c.Oldest(); ok {
		t.Error("an empty cache has an oldest entry")
	}
	put := func(key string, value, wantEvicted int) {
		t.Helper()
		got, ok := c.Put(key, value)
		if got != wantEvicted || ok != (wantEvicted != 0) {
			t.Errorf("Put(%s) evicts %d, %t, want %d", key, got, ok, wantEvicted)
		}
	}
	get := func(key string, want int) {
		t.Helper()
		if got, ok := c.Get(key); got != want || ok != (want != 0) {
			t.Errorf("Get(%s) = %d, %t, want %d", key, got, ok, want)
		}
	}
	put("a", 1, 0)
	put("b", 2, 0)
	get("a", 1) // b is the oldest now
	if got, ok := c.Oldest(); got != 2 || !ok {
		t.Errorf("Oldest = %d, %t, want 2", got, ok)
	}
	put("c", 3, 2)
	get("b", 0)
	put("a", 4, 0) // c is the oldest now
	put("d", 5, 3)
	get("a", 4)
	if c.Len() != 2 || c.Cap() != 2 {
		t.Errorf("Len %d, Cap %d", c.Len(), c.Cap())
	}
	c.Delete("a")
	c.Delete("a")
	get("a", 0)
	c.Clear()
	get("d", 0)
	if c.Len() != 0 {
		t.Errorf("Len %d after Clear", c.Len())
	}
	put("e", 6, 0)
	get("e", 6)
}

func TestNoCapacity(t *testing.T) {
	t.Parallel()
	for _, capacity := range []int{0, -1} {
		c := lru.New[string, int](capacity)
		if got, ok := c.Put("a", 1); got != 1 || !ok {
			t.Errorf("Put = %d, %t, want it back", got, ok)
		}
		if _, ok := c.Get("a"); ok || c.Len() != 0 {
			t.Error("it was kept")
		}
	}
}
