package supervise

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// killDescendants kills and reaps all descendants of this process, which
// is a subreaper: whatever loses its parent becomes a child of it.
func killDescendants(timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 && !errors.Is(err, syscall.EINTR) {
				break
			}
		}
		left := descendants(os.Getpid())
		if len(left) == 0 {
			return nil
		}
		for _, pid := range left {
			killIf(pid, func() bool { return descendsFrom(pid, os.Getpid()) })
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v survive SIGKILL", left)
		}
		time.Sleep(pause)
	}
}

// killBelonging kills every process that has dir as its state directory in its
// environment, and reports whether any is left.
func killBelonging(dir string, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		var left []int
		for _, pid := range pids() {
			if pid != os.Getpid() && belongs(pid, dir) {
				left = append(left, pid)
				killIf(pid, func() bool { return belongs(pid, dir) })
			}
		}
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v survive SIGKILL", left)
		}
		time.Sleep(pause)
	}
}

// killIf kills the process if ok still holds once we have a hold on it: a
// number alone may have come to mean another process in the meantime.
func killIf(pid int, ok func() bool) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if ok() {
		unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

// belongs reports whether the process was started with dir as its state
// directory. A zombie has no environment, and so does not.
func belongs(pid int, dir string) bool {
	env, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
	if err != nil {
		return false
	}
	for e := range bytes.SplitSeq(env, []byte{0}) {
		if string(e) == stateVar+"="+dir {
			return true
		}
	}
	return false
}

// descendants lists the children of a process, and theirs.
func descendants(root int) []int {
	children := map[int][]int{}
	for _, pid := range pids() {
		if parent, err := parentOf(pid); err == nil {
			children[parent] = append(children[parent], pid)
		}
	}
	found := children[root]
	for i := 0; i < len(found); i++ {
		found = append(found, children[found[i]]...)
	}
	return found
}

func descendsFrom(pid, root int) bool {
	for pid > 1 {
		parent, err := parentOf(pid)
		if err != nil {
			return false
		}
		if parent == root {
			return true
		}
		pid = parent
	}
	return false
}

func pids() []int {
	f, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer f.Close()
	names, _ := f.Readdirnames(-1)
	var found []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			found = append(found, pid)
		}
	}
	return found
}

func parentOf(pid int) (int, error) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, err
	}
	return parseParent(string(stat))
}

// parseParent reads the fourth field of /proc/<pid>/stat (proc(5)). The second,
// the program's name in parentheses, may contain anything.
func parseParent(stat string) (int, error) {
	i := strings.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, errors.New("no program name")
	}
	fields := strings.Fields(stat[i+1:])
	if len(fields) < 2 {
		return 0, errors.New("too few fields")
	}
	return strconv.Atoi(fields[1])
}
