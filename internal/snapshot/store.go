package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/cache"
	"github.com/attest-vm/attest/internal/supervise"
)

// SizeEnv names the environment variable that limits the cache, in MiB.
const SizeEnv = "ATTEST_SNAPSHOT_CACHE_MIB"

// defaultSize is the limit of the cache otherwise, in bytes: some fifty machines.
const defaultSize = 10 << 30

// A Store is a cache of saved machines. Its methods can be called from any
// goroutine, and from any number of processes on the same directory.
type Store struct {
	dir   string // of the entries, DIR/KEY
	locks string
	tmp   string
	limit int64
	sup   *supervise.Supervisor
}

// OpenStore opens the cache below a directory, which is made if missing. sup removes
// what this process leaves if it is killed while it makes an entry; it may be nil.
func OpenStore(root string, sup *supervise.Supervisor) (*Store, error) {
	s := &Store{dir: filepath.Join(root, "snapshot"), locks: filepath.Join(root, "lock"), tmp: filepath.Join(root, "tmp"), limit: defaultSize, sup: sup}
	for _, dir := range []string{s.dir, s.locks, s.tmp} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("snapshot cache: %w", err)
		}
	}
	if v := os.Getenv(SizeEnv); v != "" {
		mib, err := strconv.ParseInt(v, 10, 44)
		if err != nil || mib < 0 {
			return nil, fmt.Errorf("%s=%q: want a number of MiB", SizeEnv, v)
		}
		s.limit = mib << 20
	}
	return s, nil
}

// Key is the name in the cache of what must fit.
func Key(fits map[string]string) string {
	data, err := json.Marshal(fits) // sorted by name
	if err != nil {
		panic(err) // a map of strings
	}
	sum := sha256.Sum256(fmt.Appendf(data, "\nformat %d", Format))
	return hex.EncodeToString(sum[:])[:32]
}

// An Entry is a saved machine of the cache that stays there until Close.
type Entry struct {
	*Saved
	lease *cache.Lease
}

// Close gives the entry back.
func (e *Entry) Close() error {
	err := e.Saved.Close()
	e.lease.Release()
	return err
}

// Has reports whether there is an entry. The entry may be damaged.
func (s *Store) Has(fits map[string]string) bool {
	_, err := os.Stat(filepath.Join(s.dir, Key(fits)))
	return err == nil
}

// Get opens an entry. Without an entry it returns fs.ErrNotExist. A damaged entry is
// a *DamagedError, and is removed so that another can be made.
func (s *Store) Get(fits map[string]string) (*Entry, error) {
	dir := filepath.Join(s.dir, Key(fits))
	lease, err := cache.Acquire(dir)
	if err != nil {
		return nil, err
	}
	saved, err := Open(dir)
	if err == nil {
		err = saved.Check(fits)
	}
	if err != nil {
		lease.Release()
		if damaged := (*DamagedError)(nil); errors.As(err, &damaged) {
			cache.Remove(dir, s.tmp, s.sup) // if somebody has it open, they have what they need
		}
		return nil, err
	}
	now := time.Now()
	os.Chtimes(filepath.Join(dir, usedName), now, now) // only eviction looks at it
	return &Entry{saved, lease}, nil
}

// Make makes an entry. If another process is making it, Make calls waiting and
// blocks until that process is done. fill fills the draft; if it fails nothing is left.
func (s *Store) Make(ctx context.Context, fits map[string]string, title string, waiting func(pid string), fill func(*Draft) error) error {
	key := Key(fits)
	dir := filepath.Join(s.dir, key)
	unlock, err := cache.Lock(ctx, filepath.Join(s.locks, "snapshot-"+key), s.sup, waiting)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Lstat(dir); err == nil {
		return nil // whoever held the lock before has made it
	}
	cache.Sweep(ctx, s.tmp) // what cannot be removed takes space, and harms nothing else
	tmp, err := cache.NewScratch(s.tmp, s.sup)
	if err != nil {
		return err
	}
	defer tmp.Remove()
	content := filepath.Join(tmp.Dir, "snapshot")
	if err := os.Mkdir(content, 0o700); err != nil {
		return err
	}
	d, err := NewDraft(content, Meta{Title: title, Fits: fits})
	if err != nil {
		return err
	}
	defer d.Memory.Close()
	if err := fill(d); err != nil {
		return err
	}
	// Without a sync: what a crash of the host leaves is read and compared before
	// it is used (see the package documentation).
	if err := os.Rename(content, dir); err != nil {
		return err
	}
	_, _, err = s.Prune(ctx, PruneOptions{MaxSize: s.limit, Keep: key})
	return err
}

// Info is an entry as List shows it.
type Info struct {
	ID       string // its key
	Title    string
	Created  time.Time
	Size     int64 // bytes on disk
	LastUsed time.Time
	InUse    bool
	Reason   string // why it is of no use: it is damaged, or of another version
}

// List returns the entries, last used first.
func (s *Store) List() ([]Info, error) {
	names, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("snapshot cache: %w", err)
	}
	var list []Info
	for _, name := range names {
		dir := filepath.Join(s.dir, name.Name())
		i := Info{ID: name.Name(), Size: cache.DiskUsage(dir), InUse: cache.Locked(dir)}
		m, err := ReadMeta(dir)
		if err != nil {
			i.Reason = err.Error()
		}
		i.Title, i.Created = m.Title, m.Created
		if st, err := os.Stat(filepath.Join(dir, usedName)); err == nil {
			i.LastUsed = st.ModTime()
		}
		list = append(list, i)
	}
	slices.SortFunc(list, func(a, b Info) int {
		if c := b.LastUsed.Compare(a.LastUsed); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list, nil
}

// An InUseError is an entry that cannot be removed because it is in use.
type InUseError struct{ ID, Title string }

func (e *InUseError) Error() string {
	return fmt.Sprintf("snapshot %.12s (%s) is in use; end the runs that use it first", e.ID, e.Title)
}

// Remove removes an entry and returns how many bytes that freed. An entry in use is
// an *InUseError.
func (s *Store) Remove(i Info) (freed int64, err error) {
	freed, err = cache.Remove(filepath.Join(s.dir, i.ID), s.tmp, s.sup)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = &InUseError{i.ID, i.Title}
	}
	return freed, err
}

// PruneOptions say what to remove. The zero value removes everything that is not in use.
type PruneOptions struct {
	OlderThan time.Duration // only what was not used for this long
	MaxSize   int64         // the least recently used, until at most so many bytes are left; 0: all
	Keep      string        // not this one
}

// Prune removes entries that are not in use.
func (s *Store) Prune(ctx context.Context, o PruneOptions) (removed []Info, freed int64, err error) {
	list, err := s.List()
	if err != nil {
		return nil, 0, err
	}
	var size int64
	for _, i := range list {
		size += i.Size
	}
	for _, i := range slices.Backward(list) {
		if err := ctx.Err(); err != nil {
			return removed, freed, err
		}
		if i.ID == o.Keep || time.Since(i.LastUsed) < o.OlderThan || o.MaxSize > 0 && size <= o.MaxSize {
			continue
		}
		n, err := s.Remove(i)
		var inUse *InUseError
		if errors.As(err, &inUse) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return removed, freed, err
		}
		removed, freed, size = append(removed, i), freed+n, size-i.Size
	}
	return removed, freed, nil
}
