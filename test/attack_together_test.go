package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestStressTogether has two and four runs on one cache, again and again, beside those
// commands that remove what is not in use. No command fails, and nothing is left.
func TestStressTogether(t *testing.T) {
	a := newAttack(t, "two and four runs of mocks beside gc and prune")
	dir := t.TempDir()
	config := writeFile(t, filepath.Join(dir, "lab.json"), `{"machines": [
  {"name": "one", "backend": "mock", "script": {"delay": 0.01, "answers": [{"match": ".*", "stdout": "x\n"}]}}
]}`)
	file := writeFile(t, filepath.Join(dir, "together_test.star"), `
def setup():
    one.succeed("prepare")

def test_restore():
    one.snapshot_create("here")
    one.succeed("change")
    one.snapshot_restore("here")

def test_fork():
    one.succeed("look")
`)
	for _, runs := range []int{2, 4} {
		together(t, a, runs, 40*time.Second, t.TempDir(), []string{"run", "--machine-config", config, file},
			[]string{"gc"}, []string{"snapshot", "prune"}, []string{"image", "prune"}, []string{"snapshot", "list"}, []string{"image", "list"})
	}
}

// TestStressTogetherGuests is the same with real machines. Their images stay: to build
// them again takes longer than all the rest.
func TestStressTogetherGuests(t *testing.T) {
	a := newAttack(t, "two and four runs of guests beside gc and prune")
	file := writeFile(t, filepath.Join(t.TempDir(), "together_test.star"), `
m = machine(image = debian(), memory = 128, cmdline = "attest.init=none")

def setup():
    m.succeed("echo set > /root/set")

def test_restore():
    m.snapshot_create("here")
    m.succeed("rm /root/set; sync")
    m.snapshot_restore("here")
    m.succeed("cat /root/set")

def test_fork():
    m.succeed("cat /root/set")
`)
	home := ownCache(t, imageKinds...)
	for _, runs := range []int{2, 4} {
		together(t, a, runs, 2*time.Minute, home, []string{"run", file}, []string{"gc"}, []string{"snapshot", "prune"}, []string{"image", "list"})
	}
}

// together has a number of runs at once for a while, and each of the other commands in a
// loop beside them.
func together(t *testing.T, a *attack, runs int, during time.Duration, home string, run []string, others ...[]string) {
	t.Helper()
	stateDir := newStateDir(t)
	end := time.Now().Add(during)
	var all sync.WaitGroup
	var counts [2]atomic.Int64
	loop := func(kind int, args []string) {
		all.Go(func() {
			for first := true; first || time.Now().Before(end); first = false {
				cmd := exec.Command("attest", args...)
				cmd.Env = append(os.Environ(), "ATTEST_STATE_DIR="+stateDir, "XDG_CACHE_HOME="+home)
				out, err := cmd.CombinedOutput()
				if err != nil {
					err = fmt.Errorf("%w\n%s", err, out)
				}
				a.try(fmt.Sprintf("%d runs: attest %v", runs, args), err)
				counts[kind].Add(1)
			}
		})
	}
	for range runs {
		loop(0, run)
	}
	for _, args := range others {
		loop(1, args)
	}
	all.Wait()
	if left := awaitNothing(stateDir, nil); left != "" {
		t.Errorf("%d runs: this is left:\n%s", runs, left)
	}
	if faults := cacheFaults(home); faults != "" {
		t.Errorf("%d runs: the cache: %s", runs, faults)
	}
	t.Logf("%d at once: %d runs, %d other commands", runs, counts[0].Load(), counts[1].Load())
}
