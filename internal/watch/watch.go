// Package watch waits until files change.
//
// What counts is the content: a file that was written again with what it had, or a
// report that appears beside it, is no change.
package watch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/attest-vm/attest/internal/tree"
)

// A Set is files, and directories with all that is in them, as they were when they were
// added to it. The zero value is empty.
type Set struct{ trees map[string]tree.Tree }

// Add adds a path as it is now, unless the set has it. A path that does not exist is one
// that may appear. before saves reading again what another set has read; it may be nil.
func (s *Set) Add(path string, before *Set) {
	if _, ok := s.trees[path]; ok {
		return
	}
	if s.trees == nil {
		s.trees = map[string]tree.Tree{}
	}
	var old tree.Tree
	if before != nil {
		old = before.trees[path]
	}
	s.trees[path] = look(path, old)
}

// Paths are those of the set.
func (s *Set) Paths() []string { return slices.Sorted(maps.Keys(s.trees)) }

// look is what is at a path; nil if nothing is, or if it cannot be read.
func look(path string, before tree.Tree) tree.Tree {
	t, err := tree.Scan(path, before)
	if err != nil {
		return nil
	}
	return t
}

// Changed returns the paths of the set that are not as they were added, with the name of
// the first entry that has changed of a directory.
func (s *Set) Changed() []string {
	var out []string
	for _, path := range s.Paths() {
		old := s.trees[path]
		now := look(path, old)
		c := now.Since(old)
		if c.Empty() && (now == nil) == (old == nil) {
			continue
		}
		first := path
		for _, list := range [][]string{c.Write, c.Remove, c.Clear, slices.Sorted(maps.Keys(c.Modes))} {
			if len(list) > 0 {
				first = filepath.Join(path, list[0])
				break
			}
		}
		out = append(out, first)
	}
	return out
}

// quiet is how long nothing must happen before it is looked what has changed: an editor
// or a build writes more than once. restless is how long that may put it off.
const (
	quiet    = 50 * time.Millisecond
	restless = time.Second
)

// Await blocks until something of the set has changed since it was added, also when that
// was before the call, and returns what. more, which may be nil, is asked as well. Its
// error is that of ctx, or of the host.
func (s *Set) Await(ctx context.Context, more func() []string) ([]string, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, advised(err)
	}
	defer w.Close()
	for {
		// Before it is looked at what has changed: what happens in between is seen.
		if err := s.watch(w); err != nil {
			return nil, err
		}
		changed := s.Changed()
		if more != nil {
			changed = append(changed, more()...)
		}
		if len(changed) > 0 {
			return changed, nil
		}
		if err := settle(ctx, w); err != nil {
			return nil, err
		}
	}
}

// settle blocks until something has happened, and nothing more does.
func settle(ctx context.Context, w *fsnotify.Watcher) error {
	var still, over <-chan time.Time
	for {
		select {
		case _, ok := <-w.Events:
			if !ok {
				return fsnotify.ErrClosed
			}
			still = time.After(quiet)
			if over == nil {
				over = time.After(restless)
			}
		case err := <-w.Errors:
			if !errors.Is(err, fsnotify.ErrEventOverflow) { // then something has happened, too
				return advised(err)
			}
			return nil
		case <-still:
			return nil
		case <-over:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// watch has the kernel tell of everything that happens to the set.
func (s *Set) watch(w *fsnotify.Watcher) error {
	for path, t := range s.trees {
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			real = path
		}
		// A file is replaced by a rename, which is told of its directory.
		for _, dir := range []string{filepath.Dir(path), filepath.Dir(real)} {
			if err := add(w, existing(dir)); err != nil {
				return err
			}
		}
		for rel, e := range t {
			if e.Mode.IsDir() {
				if err := add(w, filepath.Join(real, rel)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// existing is the nearest directory that is there.
func existing(dir string) string {
	for {
		if info, err := os.Stat(dir); err == nil && info.IsDir() || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

func add(w *fsnotify.Watcher, dir string) error {
	if err := w.Add(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return advised(fmt.Errorf("watch %s: %w", dir, err))
	}
	return nil
}

// advised says what to do about the kernel's limits.
func advised(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("%w: this user may watch no more directories; as root: sysctl fs.inotify.max_user_watches=524288", err)
	case errors.Is(err, syscall.EMFILE):
		return fmt.Errorf("%w: this user may have no more inotify instances; as root: sysctl fs.inotify.max_user_instances=512", err)
	}
	return err
}
