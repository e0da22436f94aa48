package test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// cleanUpLimit is how long a run that was killed may take until nothing of it
// is left, on a host that is busy. It takes 100 ms on one that is not.
const cleanUpLimit = time.Minute

// newStateDir makes a state directory for one test, at which the test's own
// processes and files can be told from those of others. It is short, since
// sockets have to fit below it, and the test fails if something is left in it.
func newStateDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "at")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left := leftovers(dir); len(left) > 0 {
			t.Errorf("this is left behind:\n%s", strings.Join(left, "\n"))
		}
		os.RemoveAll(dir)
	})
	return dir
}

// leftovers is all that is left of runs that had this state directory:
// processes, files, mounts and sockets.
func leftovers(stateDir string) []string {
	var left []string
	filepath.WalkDir(stateDir, func(path string, _ os.DirEntry, err error) error {
		if path != stateDir {
			left = append(left, "file "+path)
		}
		return nil
	})
	for _, p := range processes() {
		if p.belongsTo(stateDir) {
			left = append(left, "process "+p.String())
		}
	}
	for _, table := range []string{"/proc/self/mountinfo", "/proc/net/unix"} {
		text, err := os.ReadFile(table)
		if err != nil {
			left = append(left, err.Error())
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, stateDir) {
				left = append(left, table+": "+strings.TrimSpace(line))
			}
		}
	}
	return left
}

// waitForNothing waits until nothing is left of the runs with this state
// directory and of these processes.
func waitForNothing(t *testing.T, stateDir string, tree []process) {
	t.Helper()
	start := time.Now()
	left := awaitNothing(stateDir, tree)
	took := time.Since(start).Round(time.Millisecond)
	if left != "" {
		t.Fatalf("this is left after %v:\n%s", took, left)
	}
	t.Logf("nothing is left after %v", took)
}

// awaitNothing waits as waitForNothing does, and returns what is left.
func awaitNothing(stateDir string, tree []process) (left string) {
	for deadline := time.Now().Add(cleanUpLimit); ; time.Sleep(20 * time.Millisecond) {
		found := leftovers(stateDir)
		for _, p := range tree {
			if p.alive() {
				found = append(found, "process "+p.String())
			}
		}
		if len(found) == 0 || time.Now().After(deadline) {
			return strings.Join(found, "\n")
		}
	}
}

// A process as /proc shows it.
type process struct {
	pid, parent int
	started     string // in ticks since the host's boot; with pid it is unique
	name        string
	zombie      bool
	args        []byte
}

func (p process) String() string {
	return fmt.Sprintf("%d %s: %.200s", p.pid, p.name, bytes.ReplaceAll(p.args, []byte{0}, []byte{' '}))
}

func (p process) file(name string) string { return filepath.Join("/proc", strconv.Itoa(p.pid), name) }

// readProcess returns a process unless it is gone.
func readProcess(pid int) (process, bool) {
	p := process{pid: pid}
	stat, err := os.ReadFile(p.file("stat"))
	if err != nil {
		return p, false
	}
	// proc(5): pid (comm) state ppid …; the name can contain anything.
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	fields := strings.Fields(string(stat[end+1:]))
	p.name = string(stat[open+1 : end])
	p.zombie = fields[0] == "Z" || fields[0] == "X"
	p.parent, _ = strconv.Atoi(fields[1])
	p.started = fields[19]
	p.args, _ = os.ReadFile(p.file("cmdline"))
	return p, true
}

// alive reports whether p still runs; a zombie does not. One that has threads left
// still has its files open, and so its locks.
func (p process) alive() bool {
	now, ok := readProcess(p.pid)
	threads, _ := os.ReadDir(p.file("task"))
	return ok && now.started == p.started && (!now.zombie || len(threads) > 1)
}

// belongsTo reports whether p is of a run with this state directory: it is in
// the arguments of a supervisor and in the environment of all others.
func (p process) belongsTo(stateDir string) bool {
	if p.pid == os.Getpid() || p.zombie {
		return false
	}
	env, _ := os.ReadFile(p.file("environ"))
	return bytes.Contains(p.args, []byte(stateDir)) || bytes.Contains(env, []byte(stateDir))
}

func processes() []process {
	entries, _ := os.ReadDir("/proc")
	var all []process
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if p, ok := readProcess(pid); ok {
				all = append(all, p)
			}
		}
	}
	return all
}

// processTree is a process with all its descendants, itself first.
func processTree(pid int) []process {
	all := processes()
	root, ok := readProcess(pid)
	if !ok {
		return nil
	}
	tree := []process{root}
	for i := 0; i < len(tree); i++ {
		for _, p := range all {
			if p.parent == tree[i].pid {
				tree = append(tree, p)
			}
		}
	}
	return tree
}

// find returns the first process of a tree whose arguments contain text.
func find(tree []process, text string) (process, bool) {
	for _, p := range tree {
		if bytes.Contains(p.args, []byte(text)) && !p.zombie {
			return p, true
		}
	}
	return process{}, false
}
