package main

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// waiter waits for a point in time with a timer of the kernel. time.Sleep would not do: while all goroutines of a program
// wait, Go on Linux rounds what is below a millisecond up to one.
type waiter struct {
	timer *os.File
	buf   [8]byte
}

func newWaiter() (*waiter, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	return &waiter{timer: os.NewFile(uintptr(fd), "timer")}, nil
}

func (w *waiter) until(t time.Time) {
	d := time.Until(t)
	if d <= 0 {
		return
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}
	conn, err := w.timer.SyscallConn()
	if err == nil {
		_ = conn.Control(func(fd uintptr) { err = unix.TimerfdSettime(int(fd), 0, &spec, nil) })
	}
	if err == nil {
		_, err = w.timer.Read(w.buf[:])
	}
	if err != nil {
		time.Sleep(time.Until(t))
	}
}

func (w *waiter) close() { _ = w.timer.Close() }
