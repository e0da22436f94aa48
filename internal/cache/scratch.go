package cache

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/flock"
	"github.com/attest-vm/attest/internal/supervise"
)

// A Scratch is a directory that belongs to one process as long as that, or
// something that inherited the descriptor, lives.
type Scratch struct {
	Dir  string
	File *os.File // the directory, locked; for what shall keep it

	sup *supervise.Supervisor
}

// The name is short: sockets are made below.
const scratchPrefix = "b-"

// NewScratch makes a scratch directory in parent. sup removes it if this process is
// killed; nil: the next sweep does.
func NewScratch(parent string, sup *supervise.Supervisor) (_ *Scratch, err error) {
	// Held while a directory exists that is not locked yet.
	guard, err := os.Open(parent)
	if err != nil {
		return nil, err
	}
	defer guard.Close()
	if err := flock.Lock(guard, unix.LOCK_SH); err != nil {
		return nil, err
	}
	// A name that nobody else has: the supervisor removes what it stands for.
	dir := filepath.Join(parent, scratchPrefix+rand.Text()[:12])
	sup.Own(dir)
	defer func() {
		if err != nil {
			os.Remove(dir)
			sup.Disown(dir)
		}
	}()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := flock.Lock(f, unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return &Scratch{dir, f, sup}, nil
}

// Remove removes the directory and its contents.
func (t *Scratch) Remove() error {
	defer t.File.Close()
	if err := supervise.RemoveTree(t.Dir); err != nil {
		return err
	}
	t.sup.Disown(t.Dir)
	return nil
}

// Sweep removes the scratch directories in parent whose processes have ended,
// and returns their paths.
func Sweep(ctx context.Context, parent string) (removed []string, err error) {
	if st, err := os.Lstat(parent); err != nil || st.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) {
		return nil, err // anybody can write to /var/tmp, so a directory of our name may be another user's
	}
	guard, err := os.OpenFile(parent, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer guard.Close()
	if err := flock.Lock(guard, unix.LOCK_EX); err != nil {
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

// SweepLocks removes the lock files in a directory that nobody holds any more, and
// returns their paths.
func SweepLocks(ctx context.Context, dir string) (removed []string, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if ctx.Err() != nil {
			return removed, ctx.Err()
		}
		path := filepath.Join(dir, e.Name())
		gone, rerr := supervise.RemoveUnlocked(path)
		if gone {
			removed = append(removed, path)
		}
		err = errors.Join(err, rerr)
	}
	return removed, err
}
