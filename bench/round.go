package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// round has o.goroutines workers call request without end, for the time to warm up and then for that of a round. n counts a worker's
// calls. It returns how many calls a second there were in the round, and how long each took of one worker's: others would be the same.
func round(ctx context.Context, o *options, request func(worker, n int) error) (rate float64, latencies []time.Duration, err error) {
	var phase, calls atomic.Int64 // 0 warms up, 1 counts, 2 ends
	errs := make(chan error, o.goroutines)
	var workers sync.WaitGroup
	for worker := range o.goroutines {
		workers.Go(func() {
			for n := 0; phase.Load() < 2; n++ {
				start := time.Now()
				if err := request(worker, n); err != nil {
					errs <- err
					return
				}
				if phase.Load() == 1 {
					calls.Add(1)
					if worker == 0 {
						latencies = append(latencies, time.Since(start))
					}
				}
			}
		})
	}
	wait := func(d time.Duration) error {
		select {
		case <-time.After(d):
			return nil
		case err := <-errs:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	err = wait(o.warm)
	phase.Store(1)
	start := time.Now()
	if err == nil {
		err = wait(o.round)
	}
	n, took := calls.Load(), time.Since(start)
	phase.Store(2)
	workers.Wait()
	close(errs)
	for e := range errs {
		err = errors.Join(err, e)
	}
	if err == nil && (n == 0 || len(latencies) == 0) {
		err = fmt.Errorf("nothing was done within %v", o.round)
	}
	return float64(n) / took.Seconds(), latencies, err
}
