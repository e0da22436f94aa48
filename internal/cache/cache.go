// Package cache is what the caches of images and of snapshots have in common:
// directories that are made once, never modified, and removed when they are no
// longer used, by any number of processes at once.
//
// All locks are on open descriptors (flock(2)), so a process that has ended holds
// none. An object is a directory. Each of its users has a shared
// lock on it (Lease), and only an unused one can be removed (Remove). It
// appears complete, by a rename (Publish), out of a scratch directory that
// belongs to its maker (Scratch) and goes with it. If a maker's supervisor is killed
// at the same time, the next sweep removes what they left.
package cache

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/flock"
	"github.com/attest-vm/attest/internal/supervise"
)

// A Lease is a shared lock on an object: it is complete and stays.
type Lease struct{ f *os.File }

// Release ends the lease.
func (l *Lease) Release() { l.f.Close() }

// Acquire takes a lease on an object. If there is no such object it returns fs.ErrNotExist.
func Acquire(dir string) (*Lease, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := flock.Lock(f, unix.LOCK_SH); err != nil {
		f.Close()
		return nil, err
	}
	if !flock.Current(f, dir) { // removed before the lock was ours
		f.Close()
		return nil, fs.ErrNotExist
	}
	return &Lease{f}, nil
}

// Locked reports whether a process holds a lease on an object.
func Locked(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(flock.Lock(f, unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// Lock gives this process the right that a file stands for, such as to make an
// object. While another has it, waiting is called once with that process's id. sup
// removes the file if this process is killed; nil: the next sweep does.
func Lock(ctx context.Context, name string, sup *supervise.Supervisor, waiting func(pid string)) (unlock func(), err error) {
	sup.Own(name)
	release, err := flock.File(ctx, name, waiting)
	if err != nil {
		sup.Disown(name)
		return nil, err
	}
	return func() {
		release()
		sup.Disown(name)
	}, nil
}

// Publish makes a finished directory, with files only, an object: sync, rename, sync.
func Publish(content, dir string) error {
	entries, err := os.ReadDir(content)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := syncPath(filepath.Join(content, e.Name())); err != nil {
			return err
		}
	}
	if err := syncPath(content); err != nil {
		return err
	}
	if err := os.Rename(content, dir); err != nil {
		return err
	}
	return syncPath(filepath.Dir(dir))
}

func syncPath(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Remove takes an object out of the cache in one step and then deletes it, by
// way of a scratch directory in tmp. unix.EWOULDBLOCK: it is in use.
func Remove(dir, tmp string, sup *supervise.Supervisor) (freed int64, err error) {
	f, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := flock.Lock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return 0, err
	}
	if !flock.Current(f, dir) {
		return 0, fs.ErrNotExist
	}
	t, err := NewScratch(tmp, sup)
	if err != nil {
		return 0, err
	}
	defer t.Remove()
	freed = DiskUsage(dir)
	return freed, os.Rename(dir, filepath.Join(t.Dir, "removed"))
}

// DiskUsage is what a directory occupies, as du counts.
func DiskUsage(dir string) (bytes int64) {
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := d.Info(); err == nil {
			bytes += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	return bytes
}

// Free is how many bytes a user can write below dir.
func Free(dir string) int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0
	}
	return int64(st.Bavail) * st.Bsize
}

// NoSpace reports whether err is caused by a full disk or a quota.
func NoSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// Root is the directory of the user's caches, $XDG_CACHE_HOME/attest.
func Root() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "attest"), nil
}

// RunRoot is where runs have their scratch directories (supervise.Options), on
// the disk that has the images: state directories are often in memory.
func RunRoot() (string, error) {
	root, err := Root()
	return filepath.Join(root, "run"), err
}
