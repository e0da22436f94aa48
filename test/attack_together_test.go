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

	goerofs "github.com/erofs/go-erofs"

	"github.com/attest-vm/attest/internal/cache"
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

// smallRoot makes a root that takes no time to read: a shell, and what it needs.
const smallRoot = `
cd "$1" && mkdir -p usr/bin usr/lib usr/lib64 etc dev proc sys run tmp root var && ln -s usr/bin usr/lib usr/lib64 . && ln -s bash usr/bin/sh
for program in bash cat rm sync; do
	path=$(command -v $program)
	for file in "$path" $(ldd "$path" | grep -o '/[^ ]*'); do install -D "$file" ".$file"; done
done
`

// TestStressTogetherGuests is the same with real machines. Their image is made in a moment
// of what a cache has of a kernel: it is removed whenever nobody uses it.
func TestStressTogetherGuests(t *testing.T) {
	a := newAttack(t, "two and four runs of guests beside gc and prune")
	dir := t.TempDir()
	kernel, modules, root := filepath.Join(dir, "bzImage"), filepath.Join(dir, "modules"), filepath.Join(dir, "root")
	copyKernel(t, kernel, modules)
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("bash", "-ec", smallRoot, "bash", root).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	file := writeFile(t, filepath.Join(dir, "together_test.star"), fmt.Sprintf("root = rootfs(%q, kernel = %q, modules = %q)\n", root, kernel, modules)+`
m = machine(image = root, memory = 128, cmdline = "attest.init=none")

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
	for _, runs := range []int{2, 4} {
		together(t, a, runs, 3*time.Minute, t.TempDir(), []string{"run", file},
			[]string{"gc"}, []string{"snapshot", "prune"}, []string{"image", "prune"}, []string{"image", "list"})
	}
}

// copyKernel copies a kernel of the user's cache, with its modules.
func copyKernel(t *testing.T, kernel, modules string) {
	t.Helper()
	root, err := cache.Root()
	if err != nil {
		t.Fatal(err)
	}
	found, _ := filepath.Glob(filepath.Join(root, "kernel", "*", "modules.erofs"))
	if len(found) == 0 {
		t.Fatal("there is no kernel in the cache; attest image build makes one")
	}
	data, err := os.ReadFile(filepath.Join(filepath.Dir(found[0]), "bzImage"))
	if err == nil {
		err = os.WriteFile(kernel, data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(found[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fsys, err := goerofs.Open(f)
	if err == nil {
		err = os.CopyFS(modules, fsys)
	}
	if err != nil {
		t.Fatal(err)
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
