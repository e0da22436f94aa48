package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/cache"
	"github.com/attest-vm/attest/internal/event"
)

// Kinds of objects; each has a directory of its own in the cache.
const (
	kindBase     = "base"
	kindLayer    = "layer"
	kindRootfs   = "rootfs"
	kindKernel   = "kernel"
	kindImage    = "image"
	kindTemplate = "template"
	kindRoot     = "root"
)

var kinds = []string{kindImage, kindLayer, kindBase, kindRootfs, kindKernel, kindTemplate, kindRoot}

const (
	metaName = "meta.json" // what the object is, for this package
	usedName = "used"      // its modification time is the last use
)

// ref names an object: KIND/KEY.
type ref string

func makeRef(kind, key string) ref { return ref(kind + "/" + key) }

func (r ref) kind() string { return strings.SplitN(string(r), "/", 2)[0] }

func (r ref) key() string { return strings.SplitN(string(r), "/", 2)[1] }

// A lease is a shared lock on an object: it is complete and stays.
type lease struct {
	*cache.Lease
	ref ref
	dir string
}

func (l *lease) release() { l.Release() }

// object returns a lease on an object and reads its record into meta. If the
// object is missing, one process makes it: make fills a directory and meta.
func (s *Store) object(ctx context.Context, r ref, meta any, make func(ctx context.Context, dir string) error) (*lease, error) {
	for {
		l, err := s.acquire(r, meta)
		var bad *incompleteError
		switch {
		case errors.As(err, &bad):
			if _, rerr := s.removeObject(r); errors.Is(rerr, unix.EWOULDBLOCK) {
				return nil, &BuildError{Image: string(r), Phase: "replacing it in the cache", Reason: bad.reason + ", and another process uses it; end that first"}
			} else if rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
				return nil, rerr
			}
			event.Warnf(ctx, "%v; it is made again", bad)
		case err == nil || !errors.Is(err, fs.ErrNotExist):
			return l, err
		}
		if err := s.make(ctx, r, meta, make); err != nil {
			return nil, err
		}
	}
}

// acquire is object for one that exists; otherwise fs.ErrNotExist.
func (s *Store) acquire(r ref, meta any) (*lease, error) {
	dir := filepath.Join(s.root, string(r))
	held, err := cache.Acquire(dir)
	if err != nil {
		return nil, err
	}
	err = checkMark(dir)
	if err == nil && meta != nil {
		err = readMeta(dir, meta)
	}
	if err != nil {
		held.Release()
		return nil, err
	}
	now := time.Now()
	// Only prune looks at it, and a cache can be read-only.
	os.Chtimes(filepath.Join(dir, usedName), now, now)
	return &lease{held, r, dir}, nil
}

// readMeta reads the record of an object.
func readMeta(dir string, meta any) error {
	data, err := os.ReadFile(filepath.Join(dir, metaName))
	if err == nil {
		err = json.Unmarshal(data, meta)
	}
	if err != nil {
		return &incompleteError{dir, fmt.Sprintf("its record cannot be read: %v", err)}
	}
	return nil
}

// make makes an object unless another process does so meanwhile.
func (s *Store) make(ctx context.Context, r ref, meta any, fill func(ctx context.Context, dir string) error) error {
	unlock, err := s.lock(ctx, r)
	if err != nil {
		return err
	}
	defer unlock()
	dir := filepath.Join(s.root, string(r))
	if _, err := os.Lstat(dir); err == nil {
		return nil // whoever held the lock before has made it
	}
	if _, err := s.Sweep(ctx); err != nil {
		event.Warnf(ctx, "%v", err) // it takes space, and harms nothing else
	}
	tmp, err := s.scratch()
	if err != nil {
		return err
	}
	defer tmp.Remove()
	content := filepath.Join(tmp.Dir, "object")
	err = inMemory(ctx, func(ctx context.Context) error {
		if err := os.RemoveAll(content); err != nil {
			return err
		}
		if err := os.Mkdir(content, 0o755); err != nil {
			return err
		}
		return s.explain(fill(ctx, content))
	})
	if err != nil {
		return err
	}
	if err := s.publish(content, dir, meta); err != nil {
		return s.explain(err)
	}
	return nil
}

// publish makes a finished directory an object, with its record.
func (s *Store) publish(content, dir string, meta any) error {
	data, err := json.MarshalIndent(meta, "", "  ")
	if err != nil {
		return err
	}
	for name, b := range map[string][]byte{metaName: append(data, '\n'), usedName: nil} {
		if err := os.WriteFile(filepath.Join(content, name), b, 0o644); err != nil {
			return err
		}
	}
	if err := markComplete(content); err != nil {
		return err
	}
	return cache.Publish(content, dir)
}

// lock gives this process the right to make an object. While it waits it says
// for whom.
func (s *Store) lock(ctx context.Context, r ref) (unlock func(), err error) {
	w, anyone := work(ctx)
	unlock, err = cache.Lock(ctx, filepath.Join(s.root, "lock", r.kind()+"-"+r.key()), s.sup, func(pid string) {
		w.Say("waiting for process %s, which builds the same %s", pid, r.kind())
	})
	if !anyone { // nothing else ends what it has begun
		w.Done(err)
	}
	return unlock, err
}

// explain turns a lack of space into a *SpaceError.
func (s *Store) explain(err error) error {
	var already *SpaceError
	if !cache.NoSpace(err) || errors.As(err, &already) {
		return err
	}
	return &SpaceError{Path: s.root, Has: cache.Free(s.root), Err: err}
}

// reserve refuses to start what needs more bytes than there are.
func (s *Store) reserve(need int64) error {
	if has := cache.Free(s.root); has < need {
		return &SpaceError{Path: s.root, Need: need, Has: has, Err: unix.ENOSPC}
	}
	return nil
}

type workKey struct{}

// withWork begins a piece of work, which travels in the context.
func withWork(ctx context.Context, title string) (context.Context, *event.Work) {
	w := event.NewWork(ctx, title)
	return context.WithValue(ctx, workKey{}, w), w
}

// work is what withWork has put into the context, or work of nobody.
func work(ctx context.Context) (w *event.Work, anyone bool) {
	if w, ok := ctx.Value(workKey{}).(*event.Work); ok {
		return w, true
	}
	return event.NewWork(ctx, ""), false
}

func say(ctx context.Context, format string, args ...any) {
	w, _ := work(ctx)
	w.Say(format, args...)
}
