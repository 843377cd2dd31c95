// Package fair hands out a number of places to callers of many keys, in turn.
//
// Whoever comes while places are free gets one at once. Who has to wait, waits behind the callers of the same key only:
// a place that becomes free goes to the key whose turn it is, and to the caller of it who has waited the longest. A key
// that floods the queue so makes its own callers wait, and any other key at most for its turn.
package fair

import (
	"context"
	"errors"
	"sync"
	"time"
)

// ErrBusy says that as many callers of the key are waiting as may.
var ErrBusy = errors.New("queue is full")

// Limit is how much of the queue one key may have.
type Limit struct {
	Places  int // at a time; 0 is all of them
	Waiters int // 0 is any number; less than 0 is none
}

// Queue hands out places. It is safe for concurrent use.
type Queue struct {
	mu    sync.Mutex
	free  int
	keys  map[string]*key // those that have places or waiters
	turns list[key]       // those whose first waiter may have a place, the next one first
	spare *key            // one that has nothing any more, for the next one to come
	total Stat

	waiters sync.Pool // of *waiter, to be used again with their channels
}

// Stat is a snapshot of what a key, or all of them, have and had.
type Stat struct {
	InUse   int           // places
	Waiting int           // callers
	Waited  int64         // times that a caller had to wait, and got a place or gave up
	Wait    time.Duration // how long they did, in all
	Refused int64         // times that the queue was full
}

type key struct {
	links[key]
	name    string
	limit   Limit
	waiters list[waiter] // the longest first
	inTurns bool
	stat    Stat
}

type waiter struct {
	links[waiter]
	place   chan struct{} // gets one when the place is the waiter's
	granted bool          // it has
	since   time.Time
}

// New returns a queue for a number of places.
func New(places int) *Queue {
	return &Queue{free: places, keys: make(map[string]*key)}
}

// Acquire waits for a place, and says whether it had to. It returns ErrBusy at once where the key's queue is full, and ctx's
// error when ctx ends before. Each Acquire without an error needs a Release of the same key. The newest limit of a key counts.
func (q *Queue) Acquire(ctx context.Context, name string, limit Limit) (waited bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	q.mu.Lock()
	k := q.keys[name]
	if k == nil {
		if k = q.spare; k == nil {
			k = &key{}
		}
		q.spare = nil
		k.name, k.stat = name, Stat{}
		q.keys[name] = k
	}
	k.limit = limit
	if q.free > 0 && k.waiters.len == 0 && k.mayHave() {
		// No other key waits for a place that it could have, or there would be none free.
		q.take(k)
		q.mu.Unlock()
		return false, nil
	}
	if limit.Waiters < 0 || limit.Waiters > 0 && k.waiters.len >= limit.Waiters {
		k.stat.Refused++
		q.total.Refused++
		q.drop(k)
		q.mu.Unlock()
		return false, ErrBusy
	}
	w, ok := q.waiters.Get().(*waiter)
	if !ok {
		w = &waiter{place: make(chan struct{}, 1)}
	}
	w.granted, w.since = false, time.Now()
	k.waiters.pushBack(w)
	k.stat.Waiting++
	q.total.Waiting++
	q.schedule(k)
	q.mu.Unlock()

	select {
	case <-w.place:
		q.waiters.Put(w)
		return true, nil
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if w.granted { // just now
		<-w.place
		q.release(k)
	} else {
		k.waiters.remove(w)
		q.waited(k, w)
		q.schedule(k)
		q.drop(k)
	}
	q.waiters.Put(w)
	return true, ctx.Err()
}

// Release gives a place of the key back.
func (q *Queue) Release(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.release(q.keys[name])
}

// release takes a place from k and gives it to whose turn it is.
func (q *Queue) release(k *key) {
	k.stat.InUse--
	q.total.InUse--
	q.free++
	q.schedule(k) // it may have been at its limit
	for q.free > 0 && q.turns.len > 0 {
		next := q.turns.first
		q.turns.remove(next)
		next.inTurns = false
		w := next.waiters.first
		next.waiters.remove(w)
		q.waited(next, w)
		q.take(next)
		w.granted = true
		w.place <- struct{}{}
		q.schedule(next) // behind the others
	}
	q.drop(k)
}

func (k *key) mayHave() bool { return k.limit.Places <= 0 || k.stat.InUse < k.limit.Places }

func (q *Queue) take(k *key) {
	q.free--
	k.stat.InUse++
	q.total.InUse++
}

func (q *Queue) waited(k *key, w *waiter) {
	d := time.Since(w.since)
	for _, s := range []*Stat{&k.stat, &q.total} {
		s.Waiting--
		s.Waited++
		s.Wait += d
	}
}

// schedule gives k a turn where a waiter of it may have a place, and takes it away where none may.
func (q *Queue) schedule(k *key) {
	switch may := k.waiters.len > 0 && k.mayHave(); {
	case may && !k.inTurns:
		q.turns.pushBack(k)
	case !may && k.inTurns:
		q.turns.remove(k)
	default:
		return
	}
	k.inTurns = !k.inTurns
}

// drop forgets a key that has nothing any more, so that the queue does not grow with the keys it has seen.
func (q *Queue) drop(k *key) {
	if k.stat.InUse == 0 && k.waiters.len == 0 {
		delete(q.keys, k.name)
		q.spare = k
	}
}

// Stat returns the figures of all keys together, since the queue was made.
func (q *Queue) Stat() Stat {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.total
}

// Keys returns the figures of the keys that have places or waiters now, each since it last had neither.
func (q *Queue) Keys() map[string]Stat {
	q.mu.Lock()
	defer q.mu.Unlock()
	m := make(map[string]Stat, len(q.keys))
	for name, k := range q.keys {
		m[name] = k.stat
	}
	return m
}
