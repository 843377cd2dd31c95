// Package lru is a bounded map that forgets the least recently used entry first.
package lru

// Cache maps keys to values, at most as many as its capacity. It is not safe for concurrent use.
//
// While it is not more than half full, it does not note which entries are used, since that costs more than finding one: as many
// again have to come before one has to go, and what is used meanwhile is noted by then.
type Cache[K comparable, V any] struct {
	capacity int
	entries  map[K]*entry[K, V]
	ring     entry[K, V] // next is the most recently used entry, prev the least
}

// entry is one of a ring. A list.List would have each twice, as an element and as what is in it.
type entry[K comparable, V any] struct {
	next, prev *entry[K, V]
	key        K
	value      V
}

// New returns a cache of at most capacity entries. With a capacity of 0 or less it keeps nothing.
func New[K comparable, V any](capacity int) *Cache[K, V] {
	c := &Cache[K, V]{capacity: capacity, entries: make(map[K]*entry[K, V])}
	c.Clear()
	return c
}

// use makes e, which is in no ring, the most recently used.
func (c *Cache[K, V]) use(e *entry[K, V]) {
	e.prev, e.next = &c.ring, c.ring.next
	e.prev.next, e.next.prev = e, e
}

func (e *entry[K, V]) unlink() { e.prev.next, e.next.prev = e.next, e.prev }

// Get returns the value of key and makes it the most recently used.
func (c *Cache[K, V]) Get(key K) (value V, ok bool) {
	e, ok := c.entries[key]
	if !ok {
		return value, false
	}
	if c.ring.next != e && len(c.entries) > c.capacity/2 {
		e.unlink()
		c.use(e)
	}
	return e.value, true
}

// Put stores the value of key and reports the entry that had to go for it, if one had to.
func (c *Cache[K, V]) Put(key K, value V) (evicted V, ok bool) {
	if e, ok := c.entries[key]; ok {
		e.value = value
		e.unlink()
		c.use(e)
		return evicted, false
	}
	if c.capacity <= 0 {
		return value, true
	}
	if len(c.entries) >= c.capacity {
		oldest := c.ring.prev
		oldest.unlink()
		delete(c.entries, oldest.key)
		evicted, ok = oldest.value, true
	}
	e := &entry[K, V]{key: key, value: value}
	c.entries[key] = e
	c.use(e)
	return evicted, ok
}

// Delete forgets key.
func (c *Cache[K, V]) Delete(key K) {
	if e, ok := c.entries[key]; ok {
		e.unlink()
		delete(c.entries, key)
	}
}

// Clear forgets everything.
func (c *Cache[K, V]) Clear() {
	c.ring.next, c.ring.prev = &c.ring, &c.ring
	clear(c.entries)
}

// Oldest returns the entry that would go first.
func (c *Cache[K, V]) Oldest() (value V, ok bool) {
	if c.ring.prev == &c.ring {
		return value, false
	}
	return c.ring.prev.value, true
}

// Len returns the number of entries, and Cap the bound.
func (c *Cache[K, V]) Len() int { return len(c.entries) }

// Cap returns the largest number of entries.
func (c *Cache[K, V]) Cap() int { return c.capacity }
