//go:build !linux

package main

import "time"

// waiter waits for a point in time.
type waiter struct{}

func newWaiter() (*waiter, error) { return &waiter{}, nil }

func (*waiter) until(t time.Time) { time.Sleep(time.Until(t)) }

func (*waiter) close() {}
