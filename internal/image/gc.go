package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/cache"
)

// Entry is an image in the cache.
type Entry struct {
	ID       string    `json:"id"`
	Title    string    `json:"title"`
	Spec     Spec      `json:"spec"`
	Size     int64     `json:"size"` // bytes on disk, parts shared with other images included
	Own      int64     `json:"own"`  // bytes of it that no other image has: what Remove frees
	LastUsed time.Time `json:"last_used"`
	InUse    bool      `json:"in_use"` // by a machine, or by a build
	// Reason is why it is of no use; empty: it is. What is of no use is used by
	// nobody, and RemoveUseless removes it.
	Reason string `json:"reason,omitempty"`

	ref   ref
	parts []ref
}

// InUseError is an image that cannot be removed because it is in use.
type InUseError struct{ Title, ID string }

func (e *InUseError) Error() string {
	return fmt.Sprintf("image %s (%.12s) is in use; end the runs that use it first", e.Title, e.ID)
}

// object is what gc knows of an object.
type object struct {
	ref   ref
	dir   string
	size  int64
	used  time.Time
	users int   // images that have it as a part
	bad   error // it has no end mark, or is not as that says
}

// List returns the images in the cache, last used first, and the parts of no image
// that are of no use.
func (s *Store) List(ctx context.Context) ([]Entry, error) {
	_, entries, err := s.survey()
	return entries, err
}

// survey reads the whole cache.
func (s *Store) survey() (map[ref]*object, []Entry, error) {
	objects := map[ref]*object{}
	for _, kind := range kinds {
		names, err := os.ReadDir(filepath.Join(s.root, kind))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, fmt.Errorf("image cache: %w", err)
		}
		for _, name := range names {
			o := &object{ref: makeRef(kind, name.Name()), dir: filepath.Join(s.root, kind, name.Name())}
			o.size, o.bad = cache.DiskUsage(o.dir), checkMark(o.dir)
			if st, err := os.Stat(filepath.Join(o.dir, usedName)); err == nil {
				o.used = st.ModTime()
			}
			objects[o.ref] = o
		}
	}
	roots := map[string][]ref{} // by the image that they are made of
	for r, o := range objects {
		var m rootMeta
		if r.kind() == kindRoot && o.bad == nil && readMeta(o.dir, &m) == nil {
			roots[m.Image] = append(roots[m.Image], r)
		}
	}
	var entries []Entry
	for r, o := range objects {
		if r.kind() != kindImage {
			continue
		}
		var m imageMeta
		// A record that cannot be read still takes space and can be removed.
		if err := readMeta(o.dir, &m); err != nil {
			m = imageMeta{ID: r.key(), Title: "(damaged)"}
			o.bad = cmp.Or(o.bad, err)
		}
		e := Entry{ID: m.ID, Title: m.Title, Spec: m.Spec, LastUsed: o.used, InUse: cache.Locked(o.dir), ref: r, parts: m.Parts}
		if m.Kernel != "" {
			e.parts = append(e.parts, m.Kernel)
		}
		e.parts = append(e.parts, roots[m.ID]...)
		for _, p := range e.parts {
			if part := objects[p]; part != nil {
				part.users++
			}
		}
		entries = append(entries, e)
	}
	for r, o := range objects {
		if o.bad != nil && o.users == 0 && r.kind() != kindImage {
			entries = append(entries, Entry{ID: r.key(), Title: "(" + r.kind() + ")", LastUsed: o.used, InUse: cache.Locked(o.dir), ref: r})
		}
	}
	for i := range entries {
		e := &entries[i]
		e.Reason = useless(objects, e)
		e.Size, e.Own = objects[e.ref].size, objects[e.ref].size
		for _, p := range e.parts {
			if part := objects[p]; part != nil {
				e.Size += part.size
				if part.users == 1 {
					e.Own += part.size
				}
			}
		}
	}
	slices.SortFunc(entries, func(a, b Entry) int {
		if c := b.LastUsed.Compare(a.LastUsed); c != 0 {
			return c
		}
		return strings.Compare(string(a.ref), string(b.ref))
	})
	return objects, entries, nil
}

// useless returns why an image is unusable, or an empty text.
func useless(objects map[ref]*object, e *Entry) string {
	for _, r := range append([]ref{e.ref}, e.parts...) {
		var bad *incompleteError
		switch o := objects[r]; {
		case o == nil:
			return fmt.Sprintf("its %s is gone", r.kind())
		case errors.As(o.bad, &bad) && r == e.ref:
			return bad.reason
		case errors.As(o.bad, &bad):
			return fmt.Sprintf("its %s: %s", r.kind(), bad.reason)
		}
	}
	return ""
}

// RemoveUseless removes what is of no use, unless somebody uses it, and returns its
// paths.
func (s *Store) RemoveUseless(ctx context.Context) (removed []string, err error) {
	objects, entries, err := s.survey()
	if err != nil {
		return nil, err
	}
	refs := map[ref]bool{}
	for r, o := range objects {
		refs[r] = o.bad != nil
	}
	for _, e := range entries {
		refs[e.ref] = e.Reason != ""
	}
	for _, r := range slices.Sorted(maps.Keys(refs)) {
		if err := ctx.Err(); err != nil || !refs[r] {
			continue
		}
		_, err := s.removeObject(r)
		switch {
		case err == nil:
			removed = append(removed, objects[r].dir)
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, fs.ErrNotExist):
			return removed, err
		}
	}
	return removed, ctx.Err()
}

// Find returns the images whose ID begins with prefix or whose title is it.
func (s *Store) Find(ctx context.Context, name string) ([]Entry, error) {
	all, err := s.List(ctx)
	return slices.DeleteFunc(all, func(e Entry) bool {
		return name == "" || e.Title != name && !strings.HasPrefix(e.ID, name)
	}), err
}

// Remove removes an image and the parts that no other image has, and returns
// how many bytes that freed. An image in use is an *InUseError.
func (s *Store) Remove(ctx context.Context, e Entry) (freed int64, err error) {
	freed, err = s.removeObject(e.ref)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return 0, &InUseError{e.Title, e.ID}
	}
	if err != nil {
		return 0, err
	}
	more, err := s.removeUnused()
	return freed + more, err
}

// PruneOptions say what to remove. The zero value removes all that is not in use.
type PruneOptions struct {
	OlderThan time.Duration // only images not used for this long
	MaxSize   int64         // only as many images, least recently used first, as it takes to get the cache below this many bytes; 0: all
}

// Prune removes images that nobody uses, and all parts that no image has, and
// returns the images that are gone and how many bytes that freed.
func (s *Store) Prune(ctx context.Context, o PruneOptions) (removed []Entry, freed int64, err error) {
	if _, err := s.Sweep(ctx); err != nil {
		return nil, 0, err
	}
	if freed, err = s.removeUnused(); err != nil {
		return nil, freed, err
	}
	_, entries, err := s.survey()
	if err != nil {
		return nil, freed, err
	}
	for _, e := range slices.Backward(entries) {
		if err := ctx.Err(); err != nil {
			return removed, freed, err
		}
		if time.Since(e.LastUsed) < o.OlderThan || o.MaxSize > 0 && cache.DiskUsage(s.root) <= o.MaxSize {
			continue
		}
		n, err := s.Remove(ctx, e)
		freed += n
		var inUse *InUseError
		if errors.As(err, &inUse) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return removed, freed, err
		}
		removed = append(removed, e)
	}
	return removed, freed, nil
}

// removeUnused removes the parts that no image has, except those that a build
// holds. The template stays: it is small, and every machine starts from it.
func (s *Store) removeUnused() (freed int64, err error) {
	objects, _, err := s.survey()
	if err != nil {
		return 0, err
	}
	for _, r := range slices.Sorted(maps.Keys(objects)) {
		if objects[r].users > 0 || r.kind() == kindImage || r.kind() == kindTemplate {
			continue
		}
		n, err := s.removeObject(r)
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, fs.ErrNotExist) {
			return freed, err
		}
		freed += n
	}
	return freed, nil
}

// removeObject removes an object. EWOULDBLOCK: it is in use.
func (s *Store) removeObject(r ref) (freed int64, err error) {
	return cache.Remove(filepath.Join(s.root, string(r)), filepath.Join(s.root, "tmp"), s.sup)
}

func (s *Store) scratch() (*cache.Scratch, error) {
	return cache.NewScratch(filepath.Join(s.root, "tmp"), s.sup)
}

// Sweep removes what killed builds left below the cache's tmp, and their locks, and
// returns its paths. Every build does it first. Builds under way are left alone.
func (s *Store) Sweep(ctx context.Context) (removed []string, err error) {
	for _, parent := range []string{filepath.Join(s.root, "tmp"), otherTmp()} {
		more, serr := cache.Sweep(ctx, parent)
		removed = append(removed, more...)
		if serr != nil && !errors.Is(serr, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("image cache: leftover of a build: %w", serr))
		}
	}
	locks, lerr := cache.SweepLocks(ctx, filepath.Join(s.root, "lock"))
	return append(removed, locks...), errors.Join(err, lerr)
}

// Sweep is Store.Sweep and Store.RemoveUseless on the user's cache.
func Sweep(ctx context.Context) ([]string, error) {
	s, err := OpenStore(nil)
	if err != nil {
		return nil, err
	}
	removed, err := s.Sweep(ctx)
	useless, uerr := s.RemoveUseless(ctx)
	return append(removed, useless...), errors.Join(err, uerr)
}
