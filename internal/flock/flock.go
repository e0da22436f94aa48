// Package flock takes locks that end with the process, whatever way it ends.
package flock

import (
	"context"
	"errors"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Lock applies flock(2), also of a directory: how is unix.LOCK_SH or unix.LOCK_EX,
// with unix.LOCK_NB to get unix.EWOULDBLOCK instead of waiting. The lock lives as
// long as any copy of the descriptor. Unlike the system call it waits on after a
// signal.
func Lock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Current reports whether name still leads to f. It may have been removed, or
// replaced, while the lock was waited for.
func Current(f *os.File, name string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(name)
	return err == nil && os.SameFile(a, b)
}

// File gives this process the right that a file stands for, such as to make an
// object of a cache. While another process has it, File tries again and again,
// because flock(2) cannot be cancelled while it waits; waiting, if there is one, is
// called once with that process's id. unlock removes the file.
func File(ctx context.Context, name string, waiting func(pid string)) (unlock func(), err error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return nil, err
		}
		err = Lock(f, unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil && Current(f, name):
			f.Truncate(0)
			f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
			return func() {
				os.Remove(name) // while locked: the next one makes a new file
				f.Close()
			}, nil
		case err == nil: // removed by its last owner
			f.Close()
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			f.Close()
			return nil, err
		}
		if waiting != nil {
			pid := make([]byte, 20)
			if n, _ := f.ReadAt(pid, 0); n > 0 { // otherwise it has only just got it
				waiting(string(pid[:n]))
				waiting = nil
			}
		}
		f.Close()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}
