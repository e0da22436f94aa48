package test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attest-vm/attest"
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

// cacheFaults opens every snapshot, and looks for what is left in a cache. It returns
// what is not as it should be.
func cacheFaults(home string) string {
	var faults []string
	dirs, _ := filepath.Glob(filepath.Join(home, "attest", "snapshot", "*"))
	for _, dir := range dirs {
		s, err := snapshot.Open(dir)
		if err != nil {
			faults = append(faults, err.Error())
			continue
		}
		s.Close()
	}
	for _, pattern := range []string{"run/*", "tmp/*", "lock/*", "initramfs/.*", "guest/.*"} {
		if left, _ := filepath.Glob(filepath.Join(home, "attest", pattern)); len(left) > 0 {
			faults = append(faults, fmt.Sprintf("left: %v", left))
		}
	}
	return strings.Join(faults, "\n")
}
