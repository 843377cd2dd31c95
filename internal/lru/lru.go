// Package lru is a bounded map that forgets the least recently used entry first.
package lru

import "container/list"

// Cache maps keys to values, at most as many as its capacity. It is not safe for concurrent use.
type Cache[K comparable, V any] struct {
	capacity int
	order    *list.List // of *entry[K, V], the most recently used first
	entries  map[K]*list.Element
}

type entry[K comparable, V any] struct {
	key   K
	value V
}

// New returns a cache of at most capacity entries. With a capacity of 0 or less it keeps nothing.
func New[K comparable, V any](capacity int) *Cache[K, V] {
	return &Cache[K, V]{capacity: capacity, order: list.New(), entries: make(map[K]*list.Element)}
}

// Get returns the value of key and makes it the most recently used.
func (c *Cache[K, V]) Get(key K) (value V, ok bool) {
	e, ok := c.entries[key]
	if !ok {
		return value, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*entry[K, V]).value, true
}

// Put stores the value of key and reports the entry that had to go for it, if one had to.
func (c *Cache[K, V]) Put(key K, value V) (evicted V, ok bool) {
	if e, ok := c.entries[key]; ok {
		e.Value.(*entry[K, V]).value = value
		c.order.MoveToFront(e)
		return evicted, false
	}
	if c.capacity <= 0 {
		return value, true
	}
	if len(c.entries) >= c.capacity {
		oldest := c.order.Remove(c.order.Back()).(*entry[K, V])
		delete(c.entries, oldest.key)
		evicted, ok = oldest.value, true
	}
	c.entries[key] = c.order.PushFront(&entry[K, V]{key, value})
	return evicted, ok
}

// Delete forgets key.
func (c *Cache[K, V]) Delete(key K) {
	if e, ok := c.entries[key]; ok {
		c.order.Remove(e)
		delete(c.entries, key)
	}
}

// Clear forgets everything.
func (c *Cache[K, V]) Clear() {
	c.order.Init()
	clear(c.entries)
}

// Oldest returns the entry that would go first.
func (c *Cache[K, V]) Oldest() (value V, ok bool) {
	e := c.order.Back()
	if e == nil {
		return value, false
	}
	return e.Value.(*entry[K, V]).value, true
}

// Len returns the number of entries, and Cap the bound.
func (c *Cache[K, V]) Len() int { return len(c.entries) }

// Cap returns the largest number of entries.
func (c *Cache[K, V]) Cap() int { return c.capacity }
