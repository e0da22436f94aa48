package boot

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/flock"
)

// cacheDir is a directory of the user's cache, made if missing.
func cacheDir(name string) (string, error) {
	base, err := os.UserCacheDir() // $XDG_CACHE_HOME, or $HOME/.cache
	if err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	dir := filepath.Join(base, "attest", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	return dir, nil
}

// What is in the cache of initramfs and of binaries for guests is made again in
// a second, and each build of attest makes its own.
const (
	keepUnused = 7 * 24 * time.Hour // what was not used for so long goes
	keepNewest = 16                 // and all but the newest,
	keepRecent = time.Hour          // unless they were used a moment ago
)

// used notes that a file of the cache is in use.
func used(path string) {
	now := time.Now()
	os.Chtimes(path, now, now) // only Prune looks at it
}

// An Owner removes what it owns when this process is killed
// (*supervise.Supervisor). It is told of a path before that is made.
type Owner interface {
	Own(path string)
	Disown(path string)
}

// A scratch is a directory for what is not finished. It belongs to this process, and
// goes with it: its owner removes it, or else the next who looks after the cache.
type scratch struct {
	dir   string
	lock  *os.File // the directory, locked as long as the process lives
	owner Owner    // may be nil
}

const scratchPrefix = ".building-"

// newScratch makes a scratch directory below dir, in the file system of what is to be
// made there.
func newScratch(dir string, owner Owner) (_ *scratch, err error) {
	// Held while the directory exists and is not locked yet; see sweep.
	guard, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer guard.Close()
	if err := flock.Lock(guard, unix.LOCK_SH); err != nil {
		return nil, err
	}
	s := &scratch{dir: filepath.Join(dir, scratchPrefix+rand.Text()[:8]), owner: owner}
	if owner != nil {
		owner.Own(s.dir)
	}
	defer func() {
		if err != nil {
			s.remove()
		}
	}()
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		return nil, err
	}
	if s.lock, err = os.Open(s.dir); err != nil {
		return nil, err
	}
	return s, flock.Lock(s.lock, unix.LOCK_EX)
}

// remove removes it with all that is in it.
func (s *scratch) remove() error {
	err := os.RemoveAll(s.dir)
	if s.lock != nil {
		s.lock.Close()
	}
	if err == nil && s.owner != nil {
		s.owner.Disown(s.dir)
	}
	return err
}

// sweep removes the scratch directories below dir whose processes have ended.
func sweep(dir string) (removed []string, err error) {
	guard, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer guard.Close()
	if err := flock.Lock(guard, unix.LOCK_EX); err != nil {
		return nil, err
	}
	names, err := guard.Readdirnames(-1)
	for _, name := range names {
		if !strings.HasPrefix(name, scratchPrefix) {
			continue
		}
		path := filepath.Join(dir, name)
		f, openErr := os.Open(path)
		if openErr != nil {
			continue // removed by its owner
		}
		if flock.Lock(f, unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = errors.Join(err, os.RemoveAll(path))
			removed = append(removed, path)
		}
		f.Close()
	}
	return removed, err
}

// Prune removes what processes that were killed have left unfinished, and initramfs and
// binaries for guests that were not used for a while,
// and returns their paths. Whoever needs one makes it again.
func Prune() (removed []string, err error) {
	for _, name := range []string{"initramfs", "guest"} {
		dir, err := cacheDir(name)
		if err != nil {
			return removed, err
		}
		more, err := pruneDir(dir)
		removed = append(removed, more...)
		if err != nil {
			return removed, err
		}
	}
	return removed, nil
}

func pruneDir(dir string) (removed []string, err error) {
	removed, err = sweep(dir)
	if err != nil {
		return removed, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return removed, err
	}
	type file struct {
		path string
		used time.Time
	}
	var files []file
	for _, e := range entries {
		if info, err := e.Info(); err == nil && e.Name() != memoDir && !strings.HasPrefix(e.Name(), scratchPrefix) {
			files = append(files, file{filepath.Join(dir, e.Name()), info.ModTime()})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return b.used.Compare(a.used) })
	for i, f := range files {
		if age := time.Since(f.used); age > keepUnused || i >= keepNewest && age > keepRecent {
			err = errors.Join(err, os.RemoveAll(f.path))
			removed = append(removed, f.path)
		}
	}
	// Older versions of attest built in the directories of what they built.
	builds, _ := filepath.Glob(filepath.Join(dir, "*", ".build-*"))
	for _, path := range builds {
		if info, statErr := os.Stat(path); statErr == nil && time.Since(info.ModTime()) > keepRecent {
			err = errors.Join(err, os.RemoveAll(path))
			removed = append(removed, path)
		}
	}
	// Memos of what is gone.
	memos, _ := filepath.Glob(filepath.Join(dir, memoDir, "*"))
	for _, memo := range memos {
		if _, statErr := os.Stat(memo); errors.Is(statErr, os.ErrNotExist) {
			err = errors.Join(err, os.Remove(memo))
		}
	}
	return removed, err
}
