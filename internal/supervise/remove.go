package supervise

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/flock"
)

// RemoveTree removes a directory and its contents. What is mounted below
// is detached and not touched. Directories that their owner cannot write to are
// no obstacle, nor are files of subordinate uids, which a build in a user
// namespace leaves.
func RemoveTree(dir string) error {
	if err := detachBelow(dir); err != nil {
		return err
	}
	err := os.RemoveAll(dir)
	if err == nil || os.Geteuid() == 0 {
		return err
	}
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			// The walk calls this before it reads the directory.
			os.Chmod(path, 0o700)
		}
		return nil
	})
	if err = os.RemoveAll(dir); err == nil || !errors.Is(err, os.ErrPermission) {
		return err
	}
	out, uerr := exec.Command("unshare", "--user", "--map-root-user", "--map-auto", "rm", "-rf", "--", dir).CombinedOutput()
	if uerr != nil {
		return fmt.Errorf("%w (and in a user namespace: %v: %s)", err, uerr, strings.TrimSpace(string(out)))
	}
	return nil
}

// removeDirs removes the directories of a run.
func removeDirs(dirs ...string) (err error) {
	for _, dir := range dirs {
		if dir != "" {
			err = errors.Join(err, RemoveTree(dir))
		}
	}
	return err
}

// removeOwned removes what a client left; see Supervisor.Own.
func removeOwned(paths map[string]bool) (err error) {
	for path := range paths {
		fi, lerr := os.Lstat(path)
		switch {
		case errors.Is(lerr, fs.ErrNotExist):
		case lerr != nil:
			err = errors.Join(err, lerr)
		case fi.IsDir():
			err = errors.Join(err, RemoveTree(path))
		default:
			_, rerr := RemoveUnlocked(path)
			err = errors.Join(err, rerr)
		}
	}
	return err
}

// RemoveUnlocked removes a lock file, unless its lock is held.
func RemoveUnlocked(path string) (removed bool, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	if err := flock.Lock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil || !flock.Current(f, path) {
		return false, nil // somebody's, or the name is another file's by now
	}
	return true, os.Remove(path)
}

// detachBelow detaches every mount below dir, and fails if one stays: to remove
// the files behind a bind mount would be a disaster.
func detachBelow(dir string) error {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	points, err := mountsBelow(dir)
	for i := len(points) - 1; i >= 0; i-- {
		if uerr := unix.Unmount(points[i], unix.MNT_DETACH); uerr != nil {
			err = errors.Join(err, &os.PathError{Op: "unmount", Path: points[i], Err: uerr})
		}
	}
	return err
}

// mountsBelow lists the mount points at or below dir in the order in which
// they were mounted. It reads /proc/self/mountinfo (proc(5)).
func mountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var points []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		if point := unescape.Replace(fields[4]); point == dir || strings.HasPrefix(point, dir+"/") {
			points = append(points, point)
		}
	}
	return points, lines.Err()
}
