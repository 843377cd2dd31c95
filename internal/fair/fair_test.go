package fair_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgtenancy/pgtenancy/internal/fair"
)

var ctx = context.Background()

func acquire(t *testing.T, q *fair.Queue, key string, limit fair.Limit) {
	t.Helper()
	if _, err := q.Acquire(ctx, key, limit); err != nil {
		t.Fatalf("Acquire(%s): %v", key, err)
	}
}

// TestQueue_RoundRobin has three keys wait, one of them with many callers, and sees whose turn comes when.
func TestQueue_RoundRobin(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := fair.New(1)
		acquire(t, q, "first", fair.Limit{})
		var mu sync.Mutex
		var got []string
		wait := func(key string) {
			go func() {
				if _, err := q.Acquire(ctx, key, fair.Limit{}); err != nil {
					t.Error(err)
				}
				mu.Lock()
				got = append(got, key)
				mu.Unlock()
				q.Release(key)
			}()
			synctest.Wait() // so that the order of waiting is the order of these calls
		}
		for range 5 {
			wait("flood")
		}
		wait("a")
		wait("b")
		q.Release("first")
		synctest.Wait()
		want := []string{"flood", "a", "b", "flood", "flood", "flood", "flood"}
		if !slices.Equal(got, want) {
			t.Errorf("places went to %v, want %v: a key waits for its turn, not for the flood", got, want)
		}
		if n := len(q.Keys()); n != 0 {
			t.Errorf("%d keys are kept that have nothing", n)
		}
	})
}

// TestQueue_Limit has a key at its limit leave places to others.
func TestQueue_Limit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := fair.New(3)
		limit := fair.Limit{Places: 2, Waiters: 1}
		acquire(t, q, "a", limit)
		acquire(t, q, "a", limit)
		granted := make(chan error, 1)
		go func() { granted <- second(q.Acquire(ctx, "a", limit)) }()
		synctest.Wait()
		if _, err := q.Acquire(ctx, "a", limit); !errors.Is(err, fair.ErrBusy) {
			t.Errorf("a second waiter got %v, want ErrBusy", err)
		}
		acquire(t, q, "b", fair.Limit{}) // the third place is not a's to wait for
		if s := q.Keys()["a"]; s.InUse != 2 || s.Waiting != 1 || s.Refused != 1 {
			t.Errorf("a's figures are %+v", s)
		}
		select {
		case <-granted:
			t.Error("a got a third place")
		default:
		}
		q.Release("b")
		synctest.Wait()
		select {
		case <-granted:
			t.Error("a got a third place when b left")
		default:
		}
		q.Release("a")
		if err := <-granted; err != nil {
			t.Error(err)
		}
		if _, err := q.Acquire(ctx, "c", fair.Limit{Waiters: -1}); err != nil {
			t.Errorf("a free place was refused: %v", err)
		}
		if _, err := q.Acquire(ctx, "c", fair.Limit{Waiters: -1}); !errors.Is(err, fair.ErrBusy) {
			t.Errorf("got %v, want ErrBusy where none may wait", err)
		}
	})
}

// TestQueue_Cancel has a waiter give up: its place in the queue goes, and the others get what is free.
func TestQueue_Cancel(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := fair.New(1)
		acquire(t, q, "a", fair.Limit{})
		cctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := q.Acquire(cctx, "b", fair.Limit{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the context's error", err)
		}
		if _, err := q.Acquire(cctx, "b", fair.Limit{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the context's error at once", err)
		}
		if s := q.Stat(); s.Waiting != 0 || s.Waited != 1 || s.Wait != time.Second || s.InUse != 1 {
			t.Errorf("the figures are %+v", s)
		}
		if _, ok := q.Keys()["b"]; ok {
			t.Error("b is kept, which has nothing")
		}
		q.Release("a")
		acquire(t, q, "b", fair.Limit{})
	})
}

// TestQueue_Storm checks under a storm of callers, some of which give up, that no place is ever lost or given twice, and
// that no key gets more than its limit.
func TestQueue_Storm(t *testing.T) {
	t.Parallel()
	const places, most = 4, 2
	q := fair.New(places)
	var inUse atomic.Int64
	perKey := make([]atomic.Int64, 8)
	var wg sync.WaitGroup
	for g := range 64 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(g)))
			for range 300 {
				k := rng.IntN(len(perKey))
				cctx, cancel := context.WithTimeout(ctx, time.Duration(rng.IntN(400))*time.Microsecond)
				_, err := q.Acquire(cctx, fmt.Sprint(k), fair.Limit{Places: most})
				cancel()
				if err != nil {
					continue
				}
				if n := inUse.Add(1); n > places {
					t.Errorf("%d places are in use", n)
				}
				if n := perKey[k].Add(1); n > most {
					t.Errorf("key %d has %d places", k, n)
				}
				time.Sleep(time.Duration(rng.IntN(50)) * time.Microsecond)
				perKey[k].Add(-1)
				inUse.Add(-1)
				q.Release(fmt.Sprint(k))
			}
		})
	}
	wg.Wait()
	if s := q.Stat(); s.InUse != 0 || s.Waiting != 0 || len(q.Keys()) != 0 {
		t.Errorf("left: %+v, %d keys", s, len(q.Keys()))
	}
	for range places {
		acquire(t, q, "x", fair.Limit{Waiters: -1}) // all places are there
	}
}

func second[T any](_ T, err error) error { return err }
