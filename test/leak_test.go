package test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/attest-vm/attest"
)

// patience is for anything that takes a guest on a host that is busy.
const patience = 10 * time.Minute

// A program is attest, or this test binary again, while it runs.
type program struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	exited chan struct{} // closed when it has ended and all that it wrote is in output

	mu     sync.Mutex
	output bytes.Buffer // stdout and stderr
}

func (p *program) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.Write(b)
}

func (p *program) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

// start starts a program with a state directory, and ends it with the test.
func start(t *testing.T, stateDir string, env []string, name string, args ...string) *program {
	t.Helper()
	p := &program{cmd: exec.Command(name, args...), exited: make(chan struct{})}
	p.cmd.Env = append(append(os.Environ(), "ATTEST_STATE_DIR="+stateDir), env...)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.exited)
		p.cmd.Wait()
	}()
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		<-p.exited
		if t.Failed() {
			t.Logf("%s said:\n%s", filepath.Base(name), p.said())
		}
	})
	return p
}

// exitCode waits for the end of the program.
func (p *program) exitCode(t *testing.T) int {
	t.Helper()
	return p.exitCodeWithin(t, patience)
}

func (p *program) exitCodeWithin(t *testing.T, limit time.Duration) int {
	t.Helper()
	select {
	case <-p.exited:
	case <-time.After(limit):
		t.Fatalf("it still runs after %v", limit)
	}
	return p.cmd.ProcessState.ExitCode()
}

// poll calls done until it is true.
func (p *program) poll(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !done() {
		select {
		case <-p.exited:
			t.Fatalf("it ended before %s", what)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %s after %v", what, patience)
		}
	}
}

// hasEvent reports whether a file of JSON lines has an event of this type whose
// other fields are these.
func hasEvent(path string, want map[string]any) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e map[string]any
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			return false // the last line is being written
		}
		found := true
		for k, v := range want {
			found = found && e[k] == v
		}
		if found {
			return true
		}
	}
	return false
}

func writeFile(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// A run whose machine boots, and what it consists of: attest, its supervisor
// and the VMM.
type bootingRun struct {
	*program
	stateDir, out string
	tree          []process
}

func startBooting(t *testing.T) bootingRun {
	t.Helper()
	r := bootingRun{stateDir: newStateDir(t), out: t.TempDir()}
	file := writeFile(t, filepath.Join(r.out, "boot.star"), `
m = machine(image = debian(), memory = 256)

def main():
    m.wait_for_file("/never")
`)
	r.program = start(t, r.stateDir, nil, "attest", "run", "-o", r.out, file)
	r.poll(t, "machine that runs", func() bool {
		return hasEvent(filepath.Join(r.out, "events.jsonl"), map[string]any{"type": "machine_state", "state": "running"})
	})
	r.tree = processTree(r.cmd.Process.Pid)
	r.process(t, "qemu-system")
	r.process(t, "attest-supervisor")
	if len(leftovers(r.stateDir)) == 0 {
		t.Fatal("leftovers does not see a run that is under way")
	}
	return r
}

// process is the run's process with this text in its arguments.
func (r bootingRun) process(t *testing.T, text string) process {
	t.Helper()
	p, ok := find(r.tree, text)
	if !ok {
		t.Fatalf("no process %s in %v", text, r.tree)
	}
	return p
}

// A run that is ended in the middle of a boot leaves nothing.
func TestSignalsLeaveNothing(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		signal syscall.Signal
		code   int // -1: killed by a signal
	}{
		{syscall.SIGKILL, -1},
		{syscall.SIGINT, 130},
		{syscall.SIGTERM, 130},
		{syscall.SIGQUIT, -1}, // by SIGABRT, with a stack trace, so that it is not taken for exit code 2
	} {
		t.Run(tt.signal.String(), func(t *testing.T) {
			r := startBooting(t)
			if err := r.cmd.Process.Signal(tt.signal); err != nil {
				t.Fatal(err)
			}
			if code := r.exitCode(t); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			waitForNothing(t, r.stateDir, r.tree)
			if tt.code == 130 {
				r.wantInterrupted(t)
			}
		})
	}
}

// wantInterrupted checks that a run that was interrupted says so everywhere.
func (r bootingRun) wantInterrupted(t *testing.T) {
	t.Helper()
	if !strings.Contains(r.said(), "INTERRUPTED") {
		t.Error("it does not say INTERRUPTED")
	}
	junit, err := os.ReadFile(filepath.Join(r.out, "junit.xml"))
	if err != nil || !bytes.Contains(junit, []byte(`type="interrupted"`)) {
		t.Errorf("junit.xml: %v\n%s", err, junit)
	}
	if !hasEvent(filepath.Join(r.out, "events.jsonl"), map[string]any{"type": "run_finished", "status": "interrupted"}) {
		t.Error("events.jsonl does not end with the end of the run")
	}
}

// When the supervisor is killed, the run fails as one whose host is broken.
func TestKillSupervisor(t *testing.T) {
	t.Parallel()
	r := startBooting(t)
	kill(t, r.process(t, "attest-supervisor"))
	if code := r.exitCode(t); code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
	waitForNothing(t, r.stateDir, r.tree)
}

// When the supervisor is killed together with its client, processes are gone
// and attest gc finds the rest.
func TestGarbageCollection(t *testing.T) {
	t.Parallel()
	r := startBooting(t)
	supervisor := r.process(t, "attest-supervisor")
	// Stopped, it cannot clean up before it is killed.
	if err := syscall.Kill(supervisor.pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	r.cmd.Process.Kill()
	<-r.exited
	kill(t, supervisor)
	deadline := time.Now().Add(patience)
	for _, p := range r.tree {
		for p.alive() {
			if time.Now().After(deadline) {
				t.Fatalf("%v is still alive", p)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	gc := exec.Command("attest", "gc")
	gc.Env = append(os.Environ(), "ATTEST_STATE_DIR="+r.stateDir)
	out, err := gc.CombinedOutput()
	if err != nil || !bytes.HasPrefix(out, []byte("removed "+r.stateDir)) {
		t.Errorf("attest gc: %v\n%s", err, out)
	}
	waitForNothing(t, r.stateDir, r.tree)
}

func kill(t *testing.T, p process) {
	t.Helper()
	if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill %v: %v", p, err)
	}
}

const (
	victimEnv     = "ATTEST_TEST_VICTIM"
	victimStarted = "the victim's machine runs"
)

// TestVictim is what the tests below run in a process of its own, and end.
func TestVictim(t *testing.T) {
	fate := os.Getenv(victimEnv)
	if fate == "" {
		return
	}
	lab := attest.New(t, attest.MachineConfig{Name: "victim", Image: attest.Debian{}, Memory: 256, Egress: []string{"host"}})
	victim := lab.Machine("victim")
	victim.Start()
	switch fate {
	case "ports":
		openPorts(t, lab.Lab)
	case "foreign":
		startForeign(t)
	}
	fmt.Println(victimStarted)
	switch fate {
	case "panic":
		io.ReadAll(os.Stdin) // until it was looked at
		panic("a mistake in a test")
	case "hang", "ports", "foreign":
		select {}
	case "wait":
		victim.WaitForFile("/never")
	}
}

// startVictim starts TestVictim and waits until its machine runs.
func startVictim(t *testing.T, stateDir, fate string, timeout time.Duration) (*program, []process, bool) {
	t.Helper()
	// Who is killed does not remove its directories.
	p := start(t, stateDir, []string{victimEnv + "=" + fate, "TMPDIR=" + t.TempDir()}, os.Args[0],
		"-test.run=^TestVictim$", "-test.v", fmt.Sprintf("-test.timeout=%v", timeout))
	for !strings.Contains(p.said(), victimStarted) {
		select {
		case <-p.exited:
			return p, nil, false
		case <-time.After(10 * time.Millisecond):
		}
	}
	tree := processTree(p.cmd.Process.Pid)
	_, ok := find(tree, "qemu-system")
	return p, tree, ok
}

// A panic in a Go test leaves nothing.
func TestPanicLeavesNothing(t *testing.T) {
	t.Parallel()
	state := newStateDir(t)
	p, tree, running := startVictim(t, state, "panic", patience)
	if !running {
		t.Fatal("the machine does not run")
	}
	p.stdin.Close()
	if code := p.exitCode(t); code != 2 || !strings.Contains(p.said(), "panic: a mistake in a test") {
		t.Errorf("exit code %d, want 2 after a panic", code)
	}
	waitForNothing(t, state, tree)
}

// go test -timeout in the middle of a boot leaves nothing: not when the test
// waits for a machine, which attest ends in time to say why, and not when it
// hangs in something else, so that the testing package ends the process.
func TestTimeoutLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		fate string
		code int
		says string
	}{
		{"wait", 1, "the test binary's -timeout is near"},
		{"hang", 2, "panic: test timed out"},
	} {
		t.Run(tt.fate, func(t *testing.T) {
			// It must strike when the machine runs, and a busy host may need longer for that.
			for timeout := 15 * time.Second; timeout < patience; timeout *= 2 {
				state := newStateDir(t)
				p, tree, running := startVictim(t, state, tt.fate, timeout)
				if code := p.exitCode(t); running && (code != tt.code || !strings.Contains(p.said(), tt.says)) {
					t.Errorf("exit code %d, want %d and %q", code, tt.code, tt.says)
				}
				waitForNothing(t, state, tree)
				if running {
					return
				}
			}
			t.Fatal("the machine never ran before the timeout")
		})
	}
}

// kill -9 in the middle of an image build leaves nothing, and the next build
// of the same image works.
func TestKillInImageBuild(t *testing.T) {
	t.Parallel()
	state := newStateDir(t)
	// Long enough to be found and killed, and different in each run of this test.
	pause := fmt.Sprintf("sleep 20.%d", time.Now().UnixNano())
	build := []string{"image", "build", "--run", pause}

	p := start(t, state, nil, "attest", build...)
	var tree []process
	p.poll(t, "process "+pause, func() bool {
		tree = processTree(p.cmd.Process.Pid)
		_, ok := find(tree, strings.ReplaceAll(pause, " ", "\x00"))
		return ok
	})
	dir := buildDir(t, tree)
	p.cmd.Process.Kill()
	waitForNothing(t, state, tree)

	p = start(t, state, nil, "attest", build...)
	if code := p.exitCode(t); code != 0 {
		t.Fatalf("the next build: exit code %d", code)
	}
	id, _, _ := strings.Cut(lastLine(p.said()), " ")
	remove := start(t, state, nil, "attest", "image", "remove", id)
	if code := remove.exitCode(t); code != 0 {
		t.Errorf("remove the image: exit code %d", code)
	}
	gc := start(t, state, nil, "attest", "gc")
	if code := gc.exitCode(t); code != 0 {
		t.Errorf("attest gc: exit code %d", code)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s of the killed build is still there (%v)", dir, err)
	}
}

// kill -9 in the middle of building the base image, into an empty cache.
func TestKillInBaseBuild(t *testing.T) {
	t.Parallel()
	state, cache := newStateDir(t), t.TempDir()
	env := []string{"XDG_CACHE_HOME=" + cache}
	p := start(t, state, env, "attest", "image", "build")
	var tree []process
	p.poll(t, "apt-get", func() bool {
		tree = processTree(p.cmd.Process.Pid)
		_, ok := find(tree, "apt-get\x00")
		return ok
	})
	dir := buildDir(t, tree)
	p.cmd.Process.Kill()
	waitForNothing(t, state, tree)

	gc := start(t, state, env, "attest", "gc")
	if code := gc.exitCode(t); code != 0 {
		t.Errorf("attest gc: exit code %d", code)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s of the killed build is still there (%v)", dir, err)
	}
	list := start(t, state, env, "attest", "image", "list")
	if code := list.exitCode(t); code != 0 || strings.Count(list.said(), "\n") != 1 {
		t.Errorf("exit code %d; want an empty list of images, not\n%s", code, list.said())
	}
}

// buildDir is the directory in the cache in which a tree of processes builds an image.
func buildDir(t *testing.T, tree []process) string {
	t.Helper()
	for _, p := range tree {
		env, _ := os.ReadFile(p.file("environ"))
		for v := range bytes.SplitSeq(env, []byte{0}) {
			if script, ok := bytes.CutPrefix(v, []byte("ATTEST_SCRIPT=")); ok {
				return filepath.Dir(string(script))
			}
		}
	}
	t.Fatalf("no process builds an image: %v", tree)
	return ""
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
