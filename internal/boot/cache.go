package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
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

// Prune removes initramfs and binaries for guests that were not used for a while,
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
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	type file struct {
		path string
		used time.Time
	}
	var files []file
	for _, e := range entries {
		if info, err := e.Info(); err == nil && e.Name() != memoDir {
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
	// Memos of what is gone.
	memos, _ := filepath.Glob(filepath.Join(dir, memoDir, "*"))
	for _, memo := range memos {
		if _, statErr := os.Stat(memo); errors.Is(statErr, os.ErrNotExist) {
			err = errors.Join(err, os.Remove(memo))
		}
	}
	return removed, err
}
