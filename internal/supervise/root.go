package supervise

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/flock"
)

// What has to fit below the state root. A socket's path has 108 bytes with its
// NUL (unix(7)); longer ones cannot be bound or connected to.
const (
	maxSocketPath  = 107
	maxMachineName = 32
	maxSocketName  = 16
	idLength       = 6

	maxRoot = maxSocketPath - len("/") - idLength - len("/") - maxMachineName - len("/") - maxSocketName
)

// PathTooLongError is a state root below which unix sockets would not fit.
type PathTooLongError struct {
	Path   string
	Limit  int    // longest possible state root, in bytes
	Source string // what gave the path: an environment variable, or an option
}

func (e *PathTooLongError) Error() string {
	return fmt.Sprintf("state directory %s (from %s) has %d bytes, and the limit is %d: the path of a unix socket in it must fit in %d bytes; set ATTEST_STATE_DIR to a shorter directory, such as /tmp/attest",
		e.Path, e.Source, len(e.Path), e.Limit, maxSocketPath)
}

// Status is that of a setting that the user has to change.
func (*PathTooLongError) Status() event.Status { return event.Invalid }

// NoParentError is a state directory whose parent does not exist.
type NoParentError struct {
	Path, Parent string
	Source       string // the environment variable that gave the path
}

func (e *NoParentError) Error() string {
	return fmt.Sprintf("state directory %s (from %s): %s does not exist; make that directory, or set %s to one that exists", e.Path, e.Source, e.Parent, e.Source)
}

// Status is that of a setting that the user has to change.
func (*NoParentError) Status() event.Status { return event.Invalid }

// StateRoot is the directory in which every run makes its own: $ATTEST_STATE_DIR,
// or $XDG_RUNTIME_DIR/attest, or attest-<uid> in the directory for temporary
// files. It is made if missing, but no directory of TMPDIR is: that is a
// *NoParentError. One that somebody else could write to is an
// error, and one that is too long for sockets a *PathTooLongError.
func StateRoot() (string, error) {
	path, source := os.Getenv("ATTEST_STATE_DIR"), "ATTEST_STATE_DIR"
	if path == "" {
		// A runtime directory of another user is what sudo -E leaves; a
		// directory of root's in there would lock that user out.
		if run := os.Getenv("XDG_RUNTIME_DIR"); run != "" && checkOwned(run) == nil {
			path, source = filepath.Join(run, "attest"), "XDG_RUNTIME_DIR"
		} else {
			path, source = filepath.Join(os.TempDir(), "attest-"+strconv.Itoa(os.Geteuid())), "TMPDIR"
		}
	}
	return prepareRoot(path, source)
}

func prepareRoot(path, source string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if len(path) > maxRoot {
		return "", &PathTooLongError{Path: path, Limit: maxRoot, Source: source}
	}
	// What is above is attest's only if somebody has named the path for it.
	if source != "TMPDIR" && source != "XDG_RUNTIME_DIR" {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return "", fmt.Errorf("state directory (from %s): %w", source, err)
		}
	}
	// Mkdir, not MkdirAll, for the last element: it does not follow a symbolic
	// link that another user planted in /tmp.
	err = os.Mkdir(path, 0o700)
	if parent := filepath.Dir(path); errors.Is(err, os.ErrNotExist) {
		return "", &NoParentError{Path: path, Parent: parent, Source: source}
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("state directory (from %s): %w", source, err)
	}
	if err := checkOwned(path); err != nil {
		return "", fmt.Errorf("state directory: %w; remove it, or set ATTEST_STATE_DIR to a directory of your own", err)
	}
	return path, nil
}

// checkOwned returns an error if path is not a directory of this user's, or if
// others can write to it.
func checkOwned(path string) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	st := fi.Sys().(*syscall.Stat_t)
	switch {
	case !fi.IsDir():
		return fmt.Errorf("%s is not a directory (%v)", path, fi.Mode())
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to uid %d, not to uid %d", path, st.Uid, os.Geteuid())
	case fi.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%s is writable by other users (%v)", path, fi.Mode())
	}
	return nil
}

// newName is the path of a directory below root that does not exist.
func newName(root string) string {
	for {
		dir := filepath.Join(root, newID())
		if _, err := os.Lstat(dir); err != nil {
			return dir
		}
	}
}

// makeDir makes a directory and returns it open and locked. The lock lives as long as
// any copy of the returned descriptor.
func makeDir(dir string) (*os.File, error) {
	// Sweep takes an unlocked directory for a dead one. The lock on the root
	// keeps it away between the making and the locking.
	unlock, err := lockRoot(filepath.Dir(dir))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	f, err := os.Open(dir)
	if err == nil {
		if err = flock.Lock(f, unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return f, nil
		}
		f.Close()
	}
	return nil, fmt.Errorf("state directory: %w", err)
}

// lockRoot waits for the lock on the state root, which is never held for long.
func lockRoot(root string) (unlock func(), err error) {
	f, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	if err := flock.Lock(f, unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", root, err)
	}
	return func() { f.Close() }, nil
}
