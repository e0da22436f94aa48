package cache

import (
	"context"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/supervise"
)

// A Scratch is a directory that belongs to one process as long as that, or
// something that inherited the descriptor, lives.
type Scratch struct {
	Dir  string
	File *os.File // the directory, locked; for what shall keep it
}

// The name is short: sockets are made below.
const scratchPrefix = "b-"

// NewScratch makes a scratch directory in parent.
func NewScratch(parent string) (*Scratch, error) {
	// Held while a directory exists that is not locked yet.
	guard, err := os.Open(parent)
	if err != nil {
		return nil, err
	}
	defer guard.Close()
	if err := flock(guard, unix.LOCK_SH); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(parent, scratchPrefix)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err == nil {
		err = flock(f, unix.LOCK_EX)
	}
	if err != nil {
		os.Remove(dir)
		return nil, err
	}
	return &Scratch{dir, f}, nil
}

// Remove removes the directory with all that is in it.
func (t *Scratch) Remove() error {
	defer t.File.Close()
	return supervise.RemoveTree(t.Dir)
}

// Sweep removes the scratch directories in parent that belong to nobody any
// more, and returns their paths.
func Sweep(ctx context.Context, parent string) (removed []string, err error) {
	if st, err := os.Lstat(parent); err != nil || st.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) {
		return nil, err // /var/tmp is everybody's: what has our name may be another's
	}
	guard, err := os.OpenFile(parent, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer guard.Close()
	if err := flock(guard, unix.LOCK_EX); err != nil {
		return nil, err
	}
	names, err := guard.Readdirnames(-1)
	for _, name := range names {
		dir := filepath.Join(parent, name)
		if ctx.Err() != nil {
			return removed, ctx.Err()
		}
		if Locked(dir) {
			continue
		}
		if err := supervise.RemoveTree(dir); err != nil {
			return removed, err
		}
		removed = append(removed, dir)
	}
	return removed, err
}
