package test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A killing is a command of attest's of which one process after the other is killed.
type killing struct {
	name  string
	home  string // XDG_CACHE_HOME
	args  []string
	wipe  []string // kinds of objects of the cache that are removed before each second kill
	codes []int    // exit codes that are right after a kill; -1: attest itself was killed
}

// unharmed runs it without a kill, and returns how long that took.
func (k *killing) unharmed(t *testing.T) (time.Duration, error) {
	start := time.Now()
	code, _, err := k.run(t, 0, false)
	if err == nil && code != 0 {
		err = fmt.Errorf("exit code %d without a kill", code)
	}
	return time.Since(start), err
}

// run runs it, and kills one of its processes at a moment, or attest and its
// supervisor together. What must be then is checked: nothing is left, and the cache is
// valid.
func (k *killing) run(t *testing.T, moment time.Duration, both bool) (code int, victim string, err error) {
	t.Helper()
	stateDir := newStateDir(t)
	env := []string{"XDG_CACHE_HOME=" + k.home}
	p := start(t, stateDir, env, "attest", k.args...)
	var tree []process
	if moment > 0 {
		select {
		case <-time.After(moment): // the moment is the test
			tree = processTree(p.cmd.Process.Pid)
		case <-p.exited: // its number may be another's by now
		}
		supervisor, supervised := find(tree, "attest-supervisor")
		switch {
		case len(tree) == 0: // it has ended
		case both && supervised:
			victim = "attest and its supervisor"
			syscall.Kill(supervisor.pid, syscall.SIGSTOP) // or it would clean up in between
			p.cmd.Process.Kill()
			<-p.exited
			syscall.Kill(supervisor.pid, syscall.SIGKILL)
		default:
			v := tree[rand.IntN(len(tree))]
			victim = v.String()
			syscall.Kill(v.pid, syscall.SIGKILL)
		}
	}
	code = p.exitCode(t)
	if both {
		awaitEnd(t, tree)
		gc := start(t, stateDir, env, "attest", "gc")
		if c := gc.exitCode(t); c != 0 {
			return code, victim, fmt.Errorf("attest gc: exit code %d: %s", c, gc.said())
		}
	}
	if left := awaitNothing(stateDir, tree); left != "" {
		return code, victim, fmt.Errorf("this is left after a kill of %s:\n%s", victim, left)
	}
	if bad := cacheFaults(k.home); bad != "" {
		return code, victim, fmt.Errorf("the cache after a kill of %s: %s", victim, bad)
	}
	for _, ok := range k.codes {
		if code == ok || code == 0 {
			return code, victim, nil
		}
	}
	return code, victim, fmt.Errorf("exit code %d after a kill of %s\n%s", code, victim, p.said())
}

// kill kills a number of processes, at moments of runs with and without what the cache
// keeps, and has it run unharmed after every tenth.
func (k *killing) kill(t *testing.T, a *attack, kills int) {
	t.Helper()
	var takes [2]time.Duration // from an empty cache, and from one that has all
	for i := range takes {
		var err error
		if takes[i], err = k.unharmed(t); err != nil {
			t.Fatalf("%s: %v", k.name, err)
		}
	}
	outcomes, victims := map[int]int{}, map[string]int{}
	for i := 0; i < kills && a.timeFor(3*takes[0]); { // under load, with the one that is unharmed
		if i%2 == 0 {
			for _, kind := range k.wipe {
				os.RemoveAll(filepath.Join(k.home, "attest", kind))
			}
		}
		code, victim, err := k.run(t, 1+rand.N(takes[i%2]), i%8 == 7)
		if victim == "" && err == nil {
			continue // it had ended before
		}
		a.try(k.name, err)
		outcomes[code]++
		victims[programOf(victim)]++
		if i++; i%10 == 0 || i == kills || !a.timeFor(3*takes[0]) {
			if _, err := k.unharmed(t); err != nil {
				t.Errorf("%s: the next one after a kill of %s: %v", k.name, victim, err)
			}
		}
	}
	t.Logf("%s takes %v; exit codes: %v (-1: attest itself was killed); victims: %v", k.name, takes, outcomes, victims)
}

// programOf is the name of a program in a process's text.
func programOf(victim string) string {
	name, _, _ := strings.Cut(strings.TrimLeft(victim, "0123456789 "), ":")
	return name
}

// awaitEnd waits for the end of processes.
func awaitEnd(t *testing.T, tree []process) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		alive := 0
		for _, p := range tree {
			if p.alive() {
				alive++
			}
		}
		if alive == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %v are alive", alive, tree)
		}
	}
}

// TestStressKillMocks kills every process of runs of machines without a VMM: with
// canned answers, which have templates, snapshots, forks and restores, and with
// commands that are executed, in namespaces.
func TestStressKillMocks(t *testing.T) {
	a := newAttack(t, "kill -9 of a process of a run of mocks (template, restore, fork, run)")
	dir := t.TempDir()
	config := writeFile(t, filepath.Join(dir, "lab.json"), `{"machines": [
  {"name": "one", "backend": "mock", "script": {"delay": 0.02, "answers": [{"match": ".*", "stdout": "x\n"}]}},
  {"name": "two", "backend": "mock", "script": {"delay": 0.02, "answers": [{"match": ".*", "stdout": "x\n"}]}}
]}`)
	canned := writeFile(t, filepath.Join(dir, "canned_test.star"), `
def setup():
    one.succeed("prepare")
    two.succeed("prepare")

def test_restore():
    one.snapshot_create("here")
    one.succeed("change")
    one.snapshot_restore("here")
    two.succeed("look")

def test_fork():
    wait_all([one, two], lambda m: m.succeed("look"))
`)
	executed := writeFile(t, filepath.Join(dir, "executed_test.star"), `
one = machine(backend = "mock")
two = machine(backend = "mock")

def setup():
    one.succeed("echo set > /root/set; sleep 0.1")
    two.spawn("sleep 100")

def test_a():
    assert_eq(one.succeed("cat /root/set; (sleep 0.2 & sleep 0.3)"), "set\n")
    one.copy_from_machine("/root/set")

def test_b():
    two.wait_until_succeeds("ping -c 1 -W 1 one || sleep 0.1; test -e /proc/self")
`)
	run := func(name string, more ...string) *killing {
		out := filepath.Join(dir, name)
		return &killing{
			name: name, home: t.TempDir(), wipe: []string{"snapshot", "initramfs"},
			args: append([]string{"run", "-o", out}, more...), codes: []int{-1, 1, 3},
		}
	}
	run("canned", "--machine-config", config, canned).kill(t, a, 80)
	run("executed", executed).kill(t, a, 80)
}

// TestStressKillGuests kills every process of runs of real machines.
func TestStressKillGuests(t *testing.T) {
	a := newAttack(t, "kill -9 of a process of a run of guests (template, restore, fork, run)")
	dir := t.TempDir()
	file := writeFile(t, filepath.Join(dir, "kill_test.star"), `
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
	k := &killing{
		name: "guest", home: ownCache(t, imageKinds...), wipe: []string{"snapshot"},
		args: []string{"run", "-o", filepath.Join(dir, "out"), file}, codes: []int{-1, 1, 3},
	}
	k.kill(t, a, 40)
}
