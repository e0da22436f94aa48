package test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/cache"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/snapshot"
)

// These take minutes. "make stress" runs them.
var stress = flag.Bool("stress", false, "run the tests that take minutes")

func needsStress(t *testing.T) {
	t.Helper()
	if !*stress {
		t.Skip("it takes minutes; make stress runs it")
	}
}

// TestStressRestore takes a machine back two hundred times.
func TestStressRestore(t *testing.T) {
	needsStress(t)
	lab := attest.New(t, small("m"))
	m := lab.Machine("m")
	m.Succeed("echo kept > /root/kept; sync")
	m.SnapshotCreate("here")
	m.SnapshotRestore("here")
	before := holdings(t)
	for i := range 200 {
		m.Succeed(fmt.Sprintf("test ! -e /root/new; echo %d > /root/new; rm /root/kept; sync", i))
		m.SnapshotRestore("here")
	}
	m.Succeed("grep -q kept /root/kept; test ! -e /root/new; dmesg | grep -qi 'i/o error\\|ext4.*error' && exit 1 || :")
	before.compare(t, holdings(t))
}

// TestStressClones has sixteen clones of one machine at work at once.
func TestStressClones(t *testing.T) {
	needsStress(t)
	config := small("m")
	config.Memory = 512
	lab := attest.New(t, config)
	m := lab.Machine("m")
	m.Succeed("true")
	before := holdings(t)
	s, err := lab.Lab.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	clones := make([]*attest.Lab, 16)
	var all sync.WaitGroup
	for i := range clones {
		all.Go(func() {
			var err error
			if clones[i], err = s.Fork(t.Context()); err != nil {
				t.Error(err)
				return
			}
			m := clones[i].Machine("m")
			if _, err := m.Succeed(t.Context(), "true"); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	t.Logf("first command on all after %v", time.Since(start).Round(time.Millisecond))
	if t.Failed() {
		return
	}
	private := privateMemory(t)
	t.Logf("private memory of each VMM: %v MiB", private)
	for i, l := range clones {
		all.Go(func() {
			m := l.Machine("m")
			for range 5 {
				script := fmt.Sprintf("head -c 4M /dev/urandom > /root/data; sha256sum /root/data > /root/sum; echo %d > /root/me; sync; echo 3 > /proc/sys/vm/drop_caches; sha256sum -c /root/sum; cat /root/me", i)
				out, err := m.Succeed(t.Context(), script)
				if want := fmt.Sprintf("/root/data: OK\n%d\n", i); err != nil || out != want {
					t.Errorf("clone %d: %q, %v", i, out, err)
				}
			}
		})
	}
	all.Wait()
	for _, l := range clones {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	m.Succeed("true")
	before.compare(t, holdings(t))
}

// TestStressNetwork has eight machines send to each other for a minute. Nothing is
// lost.
func TestStressNetwork(t *testing.T) {
	needsStress(t)
	dir := t.TempDir()
	p := start(t, newStateDir(t), nil, "attest", "run", "-o", dir, "testdata/load_test.star")
	if code := p.exitCode(t); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	text, err := os.ReadFile(filepath.Join(dir, "events.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for line := range bytes.Lines(text) {
		var e struct {
			Type string
			event.Traffic
		}
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatal(err)
		}
		if e.Type != "traffic" || e.Received.Frames < 1000 {
			continue
		}
		seen[e.Machine] = true
		if e.Sent.Lost != (event.Lost{}) || e.Received.Lost != (event.Lost{}) {
			t.Errorf("%+v", e)
		}
		t.Logf("%s: %d MiB sent, %d received", e.Machine, e.Sent.Bytes>>20, e.Received.Bytes>>20)
	}
	if len(seen) != 8 {
		t.Errorf("traffic of %d machines", len(seen))
	}
}

// held is what this process has: its file descriptors by what they are, what
// descends from it, and the files of its runs.
type held map[string]int

func holdings(t *testing.T) held {
	t.Helper()
	h := held{}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		name, _ := os.Readlink("/proc/self/fd/" + fd.Name())
		kind, _, _ := strings.Cut(name, ":")
		h["descriptor "+kind]++
	}
	for _, p := range processTree(os.Getpid()) {
		h["process "+strings.SplitN(string(p.args), "\x00", 2)[0]]++
	}
	for _, dir := range []string{"/dev/shm", os.Getenv("ATTEST_STATE_DIR")} {
		filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if d != nil {
				h["files in "+dir]++
			}
			return nil
		})
	}
	return h
}

func (before held) compare(t *testing.T, after held) {
	t.Helper()
	for what, n := range after {
		if n > before[what] {
			t.Errorf("leaked: %s: %d before, %d after", what, before[what], n)
		}
	}
}

// privateMemory is what each VMM of this process has for itself, in MiB.
func privateMemory(t *testing.T) (mib []int) {
	t.Helper()
	for _, p := range processTree(os.Getpid()) {
		if !strings.Contains(string(p.args), "qemu-system") {
			continue
		}
		text, err := os.ReadFile(p.file("smaps_rollup"))
		if err != nil {
			t.Fatal(err)
		}
		kib := 0
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); strings.HasPrefix(line, "Private_") {
				n, _ := strconv.Atoi(f[1])
				kib += n
			}
		}
		mib = append(mib, kib>>10)
	}
	return mib
}

// TestStressKill kills attest at random moments while it makes a snapshot and
// while it restores from it. The cache stays valid.
func TestStressKill(t *testing.T) {
	needsStress(t)
	home := newCache(t)
	file := writeFile(t, filepath.Join(t.TempDir(), "kill.star"), `
m = machine(image = debian(), memory = 128, cmdline = "attest.init=none")

def main():
    for _ in range(20):
        m.succeed("true")
        m.snapshot_create("here")
        m.snapshot_restore("here")
`)
	run := func(until map[string]any, after time.Duration) {
		t.Helper()
		stateDir, out := newStateDir(t), t.TempDir()
		p := start(t, stateDir, []string{"XDG_CACHE_HOME=" + home}, "attest", "run", "-o", out, file)
		p.poll(t, fmt.Sprint(until), func() bool { return hasEvent(filepath.Join(out, "events.jsonl"), until) })
		select {
		case <-time.After(after):
		case <-p.exited:
		}
		tree := processTree(p.cmd.Process.Pid)
		p.cmd.Process.Kill()
		<-p.exited
		waitForNothing(t, stateDir, tree)
		checkCache(t, home)
	}
	for range 15 {
		os.RemoveAll(filepath.Join(home, "attest", "snapshot"))
		run(map[string]any{"type": "progress", "message": "saving"}, time.Duration(rand.N(400))*time.Millisecond)
	}
	for range 35 {
		run(map[string]any{"type": "machine_state", "state": "starting"}, time.Duration(rand.N(2000))*time.Millisecond)
	}
	stateDir := newStateDir(t)
	p := start(t, stateDir, []string{"XDG_CACHE_HOME=" + home}, "attest", "run", file)
	if code := p.exitCode(t); code != 0 {
		t.Errorf("the next run: exit code %d", code)
	}
}

// newCache is a cache that has the images of the user's and no snapshots.
func newCache(t *testing.T) (home string) {
	t.Helper()
	root, err := cache.Root()
	if err != nil {
		t.Fatal(err)
	}
	home = t.TempDir()
	if err := os.Mkdir(filepath.Join(home, "attest"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"image", "layer", "base", "rootfs", "kernel", "template"} {
		if err := os.Symlink(filepath.Join(root, kind), filepath.Join(home, "attest", kind)); err != nil {
			t.Fatal(err)
		}
	}
	return home
}

// checkCache opens every snapshot.
func checkCache(t *testing.T, home string) {
	t.Helper()
	dirs, _ := filepath.Glob(filepath.Join(home, "attest", "snapshot", "*"))
	for _, dir := range dirs {
		s, err := snapshot.Open(dir)
		if err != nil {
			t.Error(err)
			continue
		}
		s.Close()
	}
	for _, dir := range []string{"run", "tmp", "lock"} {
		if left, _ := os.ReadDir(filepath.Join(home, "attest", dir)); len(left) > 0 {
			t.Errorf("left in the cache's %s: %v", dir, left)
		}
	}
}
