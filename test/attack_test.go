package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/cache"
)

// The attacks (attack_*_test.go) try what attest promises in SECURITY.md. "make
// stress" runs them, and each prints its figure: how often it tried, and how often what
// is promised held. docs/security.md has the figures of a run.

// An attack counts.
type attack struct {
	t               *testing.T
	name            string
	tried, survived atomic.Int64
}

// newAttack is for an attack that is a test of its own. Its figure is printed at the end.
func newAttack(t *testing.T, name string) *attack {
	t.Helper()
	needsStress(t)
	a := &attack{t: t, name: name}
	t.Cleanup(func() {
		tried, survived := a.tried.Load(), a.survived.Load()
		fmt.Printf("attack: %s: tried %d, survived %d\n", a.name, tried, survived)
		if tried == 0 || survived != tried {
			t.Errorf("%s: of %d attempts %d were survived", a.name, tried, survived)
		}
	})
	return a
}

// try is one attempt; it is survived unless err is something.
func (a *attack) try(what string, err error) {
	a.t.Helper()
	a.count(1, what, err)
}

// count is several attempts with one outcome.
func (a *attack) count(n int, what string, err error) {
	a.t.Helper()
	a.tried.Add(int64(n))
	if err != nil {
		a.t.Errorf("%s: %s: %v", a.name, what, err)
		return
	}
	a.survived.Add(int64(n))
}

// timeFor reports whether there is time left for one more attempt, which takes so long,
// so that an attack whose time is short still has its figure.
func (a *attack) timeFor(attempt time.Duration) bool {
	end, limited := a.t.Deadline()
	if !limited || time.Until(end) > attempt+time.Minute {
		return true
	}
	a.t.Logf("%s: no time for more attempts", a.name)
	return false
}

// imageKinds are the objects of a cache from which machines boot.
var imageKinds = []string{"image", "layer", "base", "rootfs", "kernel", "initramfs", "guest"}

// hostileProgram builds testdata/hostile, which runs in guests.
func hostileProgram(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "hostile")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./testdata/hostile")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

// residentMemory is what this process has in memory, in MiB.
func residentMemory(t *testing.T) int {
	t.Helper()
	mib, ok := statusMiB(os.Getpid(), "VmRSS:")
	if !ok {
		t.Fatal("no VmRSS in /proc/self/status")
	}
	return mib
}

// statusMiB is a size of a process, if it has one.
func statusMiB(pid int, field string) (mib int, ok bool) {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == field {
			kib, err := strconv.Atoi(f[1])
			return kib >> 10, err == nil
		}
	}
	return 0, false
}

// ownCache is a cache of its own that begins with some kinds of objects of the user's.
// Their files are the same ones, so that it costs no space; locks and removals are
// apart.
func ownCache(t *testing.T, kinds ...string) (home string) {
	t.Helper()
	root, err := cache.Root()
	if err != nil {
		t.Fatal(err)
	}
	// Beside the user's, for the sake of the links.
	home, err = os.MkdirTemp(filepath.Dir(root), "attest-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	if err := os.Mkdir(filepath.Join(home, "attest"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, kind := range kinds {
		from := filepath.Join(root, kind)
		if _, err := os.Stat(from); err != nil {
			continue
		}
		if out, err := exec.Command("cp", "-al", from, filepath.Join(home, "attest", kind)).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	return home
}
