package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/wire"
)

// waitFile waits until path exists, links followed, as test -e has it.
func waitFile(ctx context.Context, q wire.FileRequest) (seen wire.Observation, err error) {
	if q.Path == "" {
		return seen, errorf(wire.KindInvalid, "no file name")
	}
	path := q.Path
	if !filepath.IsAbs(path) {
		path = filepath.Join(workDir(), path)
	}
	err = watch(ctx, path, func() (bool, error) {
		_, err := os.Stat(path)
		if err == nil {
			return true, nil
		}
		seen.Seen = err.Error()
		if dir := nearest(path); dir != filepath.Dir(path) {
			seen.Seen += "; of the directories above, " + dir + " is there"
		}
		if q.Once {
			return false, errNotYet
		}
		return false, nil
	})
	return seen, err
}

// recheck is how often watch looks without being told to: a link may lead
// elsewhere, and /proc, /sys and network file systems tell nothing.
const recheck = 100 * time.Millisecond

// watch calls check now, and after everything that happens in the nearest
// directory above path that exists, until it says yes.
func watch(ctx context.Context, path string, check func() (bool, error)) error {
	return watchEvery(ctx, recheck, path, check)
}

// watchEvery is watch that looks as often as this without being told to.
func watchEvery(ctx context.Context, recheck time.Duration, path string, check func() (bool, error)) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("inotify: %w", err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	stop := context.AfterFunc(ctx, func() { events.Close() })
	defer stop()
	const mask = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_ATTRIB | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
	buf := make([]byte, 16<<10)
	watched, wd := "", 0
	for {
		// First the watch, then the look: what happens in between is an event.
		if dir := nearest(path); dir != watched {
			if watched != "" {
				unix.InotifyRmWatch(fd, uint32(wd))
			}
			if wd, err = unix.InotifyAddWatch(fd, dir, mask); err != nil {
				watched = "" // it is gone again
			} else {
				watched = dir
			}
			if err == nil && nearest(path) != dir {
				continue
			}
		}
		if ok, err := check(); ok || err != nil {
			return err
		}
		events.SetReadDeadline(time.Now().Add(recheck))
		_, err := events.Read(buf)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !os.IsTimeout(err) {
			return fmt.Errorf("inotify: %w", err)
		}
	}
}

// nearest is the closest directory above path that exists.
func nearest(path string) string {
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if fi, err := os.Stat(dir); err == nil && fi.IsDir() || dir == "/" || dir == "." {
			return dir
		}
	}
}
