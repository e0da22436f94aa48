package supervise

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/flock"
)

// patience is how long a test waits for what should happen at once, on a host
// that may be busy with something else.
const patience = time.Minute

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tempRoot is a state root that is short enough, unlike t.TempDir.
func tempRoot(t *testing.T) string {
	t.Helper()
	root, err := os.MkdirTemp("", "supervise")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	return root
}

func start(t *testing.T) *Supervisor {
	t.Helper()
	s, err := Start(t.Context(), Options{Root: tempRoot(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func run(t *testing.T, s *Supervisor, c Command) *Process {
	t.Helper()
	p, err := s.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func shell(script string) Command {
	return Command{Path: "sh", Args: []string{"sh", "-c", script}}
}

// output runs a command to its end and returns what it wrote to stdout and stderr.
func output(t *testing.T, s *Supervisor, c Command) (string, Status) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c.Stdout, c.Stderr = w, w
	p := run(t, s, c)
	w.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), wait(t, p)
}

func wait(t *testing.T, p *Process) Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	st, err := p.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// poll waits until ok, which looks at something that gives no event.
func poll(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not in %v: %s", patience, what)
		}
	}
}

func TestCommand(t *testing.T) {
	s := start(t)
	t.Setenv("FROM_CLIENT", "yes")
	dir := t.TempDir()
	for _, tt := range []struct {
		name    string
		command Command
		want    string
		status  string
	}{
		{"output", shell("echo out; echo err >&2"), "out\nerr\n", "exit status 0"},
		{"exit code", shell("exit 7"), "", "exit status 7"},
		{"signal", shell("kill -TERM $$"), "", "killed by SIGTERM"},
		{"argv", Command{Path: "sh", Args: []string{"other", "-c", "echo $0 $*", "x\xff", "y z"}}, "x\xff y z\n", "exit status 0"},
		{"only a path", Command{Path: "true"}, "", "exit status 0"},
		{"environment of the client", shell("echo $FROM_CLIENT"), "yes\n", "exit status 0"},
		{"own environment", Command{Path: "sh", Args: []string{"sh", "-c", "echo $A$FROM_CLIENT"}, Env: []string{"A=b"}}, "b\n", "exit status 0"},
		{"a variable twice", Command{Path: "sh", Args: []string{"sh", "-c", "env | grep ^A="}, Env: []string{"A=first", "B=", "A=last"}}, "A=last\n", "exit status 0"},
		{"state directory", shell("echo $ATTEST_STATE"), s.Dir() + "\n", "exit status 0"},
		{"directory", Command{Path: "pwd", Dir: dir}, dir + "\n", "exit status 0"},
		{"stdin is empty", Command{Path: "cat"}, "", "exit status 0"},
		{"group of its own", shell(`read -r pid comm state ppid pgrp rest </proc/$$/stat; test "$pgrp" = $$`), "", "exit status 0"},
		{"signals are not ignored", shell("kill -INT $$"), "", "killed by SIGINT"},
		{"no foreign descriptors", shell("ls /proc/self/fd | tr '\n' ' '"), "0 1 2 3 ", "exit status 0"}, // 3 is ls's own
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, st := output(t, s, tt.command)
			if out != tt.want || st.String() != tt.status {
				t.Errorf("got %q, %v; want %q, %s", out, st, tt.want, tt.status)
			}
			if st.Success() != (tt.status == "exit status 0") {
				t.Errorf("Success is %v", st.Success())
			}
		})
	}
}

func TestCommandThatDoesNotExist(t *testing.T) {
	s := start(t)
	for _, isolate := range []bool{false, true} {
		_, err := s.Start(t.Context(), Command{Path: "/nowhere/to/be/found", Isolate: isolate})
		if perr := (*os.PathError)(nil); !errors.As(err, &perr) || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("isolate %v: %v", isolate, err)
		}
		if _, err := s.Start(t.Context(), Command{Path: s.Dir(), Isolate: isolate}); !errors.Is(err, os.ErrPermission) {
			t.Errorf("isolate %v: a directory: %v", isolate, err)
		}
	}
	if _, err := s.Start(t.Context(), Command{Path: "no-such-program"}); !errors.Is(err, exec.ErrNotFound) {
		t.Error(err)
	}
}

func TestStartWithDeadContext(t *testing.T) {
	s := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Start(ctx, shell("sleep 1000")); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestExtraFiles(t *testing.T) {
	s := start(t)
	var files []*os.File
	var ends []*os.File
	for range 20 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		files, ends = append(files, w), append(ends, r)
	}
	c := Command{Path: "bash", Args: []string{"bash", "-c", "for i in $(seq 3 22); do echo to $i >&$i; done"}, ExtraFiles: files}
	p := run(t, s, c)
	for i, r := range ends {
		files[i].Close()
		b, err := io.ReadAll(r)
		if want := fmt.Sprintf("to %d\n", i+3); err != nil || string(b) != want {
			t.Errorf("got %q, %v; want %q", b, err, want)
		}
	}
	if st := wait(t, p); !st.Success() {
		t.Error(st)
	}
}

func TestTooManyFiles(t *testing.T) {
	s := start(t)
	_, err := s.Start(t.Context(), Command{Path: "true", ExtraFiles: slices.Repeat([]*os.File{os.Stderr}, maxFiles+1)})
	if err == nil || !strings.Contains(err.Error(), "at most 253") {
		t.Error(err)
	}
}

func TestManyAtOnce(t *testing.T) {
	s := start(t)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			r, w, err := os.Pipe()
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			c := shell(fmt.Sprintf("echo %d; exit %[1]d", i))
			c.Stdout = w
			p, err := s.Start(t.Context(), c)
			w.Close()
			if err != nil {
				t.Error(err)
				return
			}
			out, _ := io.ReadAll(r)
			<-p.Done()
			if string(out) != fmt.Sprintln(i) || p.Status().ExitCode != i {
				t.Errorf("%d: %q, %v", i, out, p.Status())
			}
		})
	}
	wg.Wait()
}

func TestSignalReachesTheWholeGroup(t *testing.T) {
	s := start(t)
	p := run(t, s, shell("sleep 1000 & sleep 1000 & wait; true"))
	group := holdTree(t, p.Pid(), 2)
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if st := wait(t, p); st.Signal != syscall.SIGTERM {
		t.Error(st)
	}
	group.expectGone(t)
	if err := p.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal to a process that has ended: %v", err)
	}
	if err := p.Kill(); err != nil {
		t.Errorf("kill of a process that has ended: %v", err)
	}
	if err := p.Signal(0); !errors.Is(err, syscall.EINVAL) && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal 0: %v", err)
	}
}

func TestClose(t *testing.T) {
	s := start(t)
	if fi, err := os.Stat(s.Dir()); err != nil || fi.Mode().Perm() != 0o700 {
		t.Fatalf("%v, %v", fi, err)
	}
	stubborn := run(t, s, shell("trap '' TERM INT HUP; sleep 1000; true"))
	run(t, s, shell("(setsid sh -c 'sleep 1000 & sleep 1000; true' &)")) // a daemon: nobody's child, in its own session
	run(t, s, shell("env -i setsid sleep 1000; true"))                   // has no environment to be known by
	all := holdTree(t, s.cmd.Process.Pid, 4)
	os.WriteFile(filepath.Join(s.Dir(), "file"), []byte("x"), 0o400)
	os.Mkdir(filepath.Join(s.Dir(), "readonly"), 0o500)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	all.expectGone(t)
	expectNoDir(t, s.Dir())
	if st, err := stubborn.Wait(t.Context()); !st.Lost || err == nil {
		t.Errorf("%v, %v", st, err)
	}
	select {
	case <-s.Done():
	default:
		t.Error("not done after Close")
	}
	if _, err := s.Start(t.Context(), Command{Path: "true"}); err == nil {
		t.Error("a closed supervisor starts processes")
	}
	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestKeep(t *testing.T) {
	s := start(t)
	if err := s.Keep(true); err != nil {
		t.Fatal(err)
	}
	run(t, s, shell("sleep 1000"))
	all := holdTree(t, s.cmd.Process.Pid, 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	all.expectGone(t)
	if _, err := os.Stat(s.Dir()); err != nil {
		t.Errorf("not kept: %v", err)
	}
	if removed, err := Sweep(t.Context(), filepath.Dir(s.Dir())); err != nil || len(removed) > 0 {
		t.Errorf("swept: %v, %v", removed, err)
	}
}

func TestKilledSupervisor(t *testing.T) {
	s := start(t)
	child := run(t, s, Command{Path: "sleep", Args: []string{"sleep", "1000"}})
	run(t, s, shell("(setsid sleep 1000 &)")) // gets no signal when its parent's parent dies
	all := holdTree(t, s.cmd.Process.Pid, 2)
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Done():
	case <-time.After(patience):
		t.Fatal("not noticed")
	}
	all.expectGone(t)
	if st, err := child.Wait(t.Context()); !st.Lost || err == nil || !strings.Contains(err.Error(), "signal: killed") {
		t.Errorf("%v, %v", st, err)
	}
	if _, err := s.Start(t.Context(), Command{Path: "true"}); err == nil || !strings.Contains(err.Error(), "signal: killed") {
		t.Errorf("start: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	expectNoDir(t, s.Dir())
}

func TestTerminatedSupervisorCleansUp(t *testing.T) {
	s := start(t)
	run(t, s, shell("(setsid sleep 1000 &)"))
	all := holdTree(t, s.cmd.Process.Pid, 1)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGHUP, syscall.SIGTERM} { // the first two do nothing
		if err := s.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if _, st := output(t, s, shell("exit 3")); sig != syscall.SIGTERM && st.ExitCode != 3 {
			t.Errorf("after %v: %v", sig, st)
		}
		if sig == syscall.SIGHUP {
			break
		}
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	all.expectGone(t)
	<-s.Done()
	expectNoDir(t, s.Dir())
}

func TestIsolate(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("isolation is for root only")
	}
	s := start(t)
	mnt := t.TempDir()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c := shell(`mount -t tmpfs none "$0" && touch "$0/inside"; cat /proc/$$/comm; setsid sleep 1000 & echo ready; wait`)
	c.Args, c.Isolate, c.Stdout = append(c.Args, mnt), true, w
	p := run(t, s, c)
	w.Close()
	lines := bufio.NewScanner(r)
	for _, want := range []string{"sh", "ready"} {
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("got %q, want %q", lines.Text(), want)
		}
	}
	if entries, err := os.ReadDir(mnt); err != nil || len(entries) > 0 {
		t.Errorf("the mount is seen outside: %v, %v", entries, err)
	}
	all := holdTree(t, p.Pid(), 1)
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	wait(t, p)
	all.expectGone(t)

	for script, code := range map[string]int{"exit 5": 5, "kill -9 $$": 137} {
		c := shell(script)
		c.Isolate = true
		if st := wait(t, run(t, s, c)); st.ExitCode != code {
			t.Errorf("%s: %v", script, st)
		}
	}
	p = run(t, s, Command{Path: "sleep", Args: []string{"sleep", "1000"}, Isolate: true})
	holdTree(t, p.Pid(), 1)
	p.Signal(syscall.SIGTERM)
	if st := wait(t, p); st.ExitCode != 128+15 {
		t.Errorf("after SIGTERM: %v", st)
	}
}

// What has become another user does not end with its parent's signal any more, and still does
// not outlive the supervisor.
func TestIsolateWithNetwork(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("isolation is for root only")
	}
	s := start(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c := shell(`echo $$; setpriv --reuid 65534 --clear-groups env -i sleep 1000 & wait`)
	c.Isolate, c.Network, c.Stdout = true, true, w
	p := run(t, s, c)
	w.Close()
	if line, err := bufio.NewReader(r).ReadString('\n'); err != nil || line != "1\n" {
		t.Errorf("it is process %q (%v)", line, err)
	}
	for _, ns := range []string{"pid", "net", "mnt"} {
		ours, err := os.Readlink("/proc/self/ns/" + ns)
		if theirs, theirErr := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", p.Pid(), ns)); theirs == ours || err != nil || theirErr != nil {
			t.Errorf("%s: %s and %s (%v, %v)", ns, ours, theirs, err, theirErr)
		}
	}
	all := holdTree(t, p.Pid(), 1)
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	all.expectGone(t)
}

// TestClientProcess is no test: the tests below run it as a process that
// starts a supervisor and then ends in some bad way.
func TestClientProcess(t *testing.T) {
	root, how := os.Getenv("CLIENT_ROOT"), os.Getenv("CLIENT_END")
	if root == "" {
		return
	}
	s, err := Start(t.Context(), Options{Root: root, Scratch: os.Getenv("CLIENT_SCRATCH")})
	if err != nil {
		t.Fatal(err)
	}
	for _, script := range []string{
		"sleep 1000; true",
		"trap '' TERM INT HUP; sleep 1000; true",
		"(setsid sh -c 'sleep 1000 & sleep 1000; true' &)",
	} {
		if _, err := s.Start(t.Context(), shell(script)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"scratch", "lock", "never-made"} {
		s.Own(filepath.Join(root, name))
	}
	if err := os.MkdirAll(filepath.Join(root, "scratch", "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	unlock, err := flock.File(t.Context(), filepath.Join(root, "lock"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock() // never, but the file stays open
	json.NewEncoder(os.Stdout).Encode(client{Dir: s.Dir(), Supervisor: s.cmd.Process.Pid})
	if how == "panic" {
		bufio.NewReader(os.Stdin).ReadString('\n')
		panic("as asked")
	}
	select {}
}

// The supervisor runs before there is a directory that it has to remove: whatever is killed
// while the directories are made, nothing is left. The locks of their roots, which are
// taken for each, hold the client up at one place after the other.
func TestKilledWhileItStarts(t *testing.T) {
	for _, tt := range []struct {
		name   string
		inRoot int  // directories that are there when the kill comes
		client bool // is killed; otherwise the supervisor is
	}{
		{"the client, before the first directory", 0, true},
		{"the client, between the directories", 1, true},
		{"the supervisor, before the first directory", 0, false},
		{"the supervisor, between the directories", 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			root, scratch := tempRoot(t), tempRoot(t)
			unlock, err := lockRoot([]string{root, scratch}[tt.inRoot])
			if err != nil {
				t.Fatal(err)
			}
			defer unlock()
			cmd := clientCommand(t)
			cmd.Env = append(cmd.Env, "CLIENT_ROOT="+root, "CLIENT_SCRATCH="+scratch)
			var said strings.Builder
			cmd.Stdout = &said
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { cmd.Process.Kill() })
			all := held{}
			poll(t, "the client's supervisor, and its directories", func() bool {
				dirs, _ := os.ReadDir(root)
				return len(dirs) == tt.inRoot && len(children(cmd.Process.Pid, supervisorName)) == 1
			})
			supervisor := children(cmd.Process.Pid, supervisorName)[0]
			all.hold(t, supervisor)
			if tt.client {
				cmd.Process.Kill()
			} else {
				syscall.Kill(supervisor, syscall.SIGKILL)
				all.expectGone(t)
				unlock() // it finds that there is no supervisor
			}
			if err := cmd.Wait(); err == nil {
				t.Error("the client ended well")
			}
			all.expectGone(t)
			if !tt.client && !strings.Contains(said.String(), "the supervisor: signal: killed") {
				t.Errorf("it does not say what was killed: %s", said.String())
			}
			for _, dir := range []string{root, scratch} {
				if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
					t.Errorf("this is left in %s: %v, %v", dir, left, err)
				}
			}
		})
	}
}

// children are those of a process with a name of their own.
func children(pid int, name string) (found []int) {
	for _, child := range descendants(pid) {
		if cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", child)); strings.HasPrefix(string(cmdline), name+"\x00") {
			found = append(found, child)
		}
	}
	return found
}

type client struct {
	cmd        *exec.Cmd
	stdin      io.Writer
	Dir        string
	Supervisor int
}

// clientCommand is TestClientProcess.
func clientCommand(t *testing.T) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestClientProcess$", "-test.timeout=0")
	cmd.Env = os.Environ()
	return cmd
}

func startClient(t *testing.T, root, end string) *client {
	t.Helper()
	cmd := clientCommand(t)
	if end == "timeout" {
		cmd.Args[2] = "-test.timeout=5s"
	}
	cmd.Env = append(cmd.Env, "CLIENT_ROOT="+root, "CLIENT_END="+end)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	c := &client{cmd: cmd, stdin: stdin}
	if err := json.NewDecoder(stdout).Decode(c); err != nil {
		t.Fatalf("client: %v", err)
	}
	return c
}

func TestNothingIsLeftOfAClientThatEnds(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(*client)
	}{
		{"kill -9", func(c *client) { c.cmd.Process.Kill() }},
		{"SIGINT", func(c *client) { c.cmd.Process.Signal(os.Interrupt) }},
		{"panic", func(c *client) { io.WriteString(c.stdin, "\n") }},
		{"timeout", func(c *client) {}}, // of go test
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			root := tempRoot(t)
			c := startClient(t, root, tt.name)
			all := holdTree(t, c.Supervisor, 4)
			tt.end(c)
			if err := c.cmd.Wait(); err == nil {
				t.Error("the client ended well")
			}
			ended := time.Now()
			all.expectGone(t)
			for _, path := range []string{c.Dir, filepath.Join(root, "scratch"), filepath.Join(root, "lock")} {
				expectNoDir(t, path)
			}
			t.Logf("clean after %v", time.Since(ended))
		})
	}
}

// A client's connection may be gone before its locks are: its end is waited for.
func TestAwaitEnd(t *testing.T) {
	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	if err := errors.Join(err, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if awaitEnd(pidfd, 0) {
		t.Error("it has ended before its input has")
	}
	stdin.Close()
	if !awaitEnd(pidfd, patience) {
		t.Error("its end was not seen")
	}
}

// A lock file that somebody holds stays, and what is owned no longer, too.
func TestOwned(t *testing.T) {
	s := start(t)
	dir := t.TempDir()
	held, free, kept := filepath.Join(dir, "held"), filepath.Join(dir, "free"), filepath.Join(dir, "kept")
	for _, path := range []string{held, free, kept} {
		s.Own(path)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.Disown(kept)
	f, err := os.Open(held)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(flock.Lock(f, unix.LOCK_EX), s.Close()); err != nil {
		t.Fatal(err)
	}
	for path, there := range map[string]bool{held: true, free: false, kept: true} {
		if _, err := os.Lstat(path); (err == nil) != there {
			t.Errorf("%s: %v", path, err)
		}
	}
	var none *Supervisor
	none.Own(free)
	none.Disown(free)
}

func TestSweepAfterClientAndSupervisorWereKilled(t *testing.T) {
	root := tempRoot(t)
	c := startClient(t, root, "")
	alive, err := Start(t.Context(), Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	survivor := run(t, alive, shell("sleep 1000"))

	all := holdTree(t, c.Supervisor, 4)
	super := held{c.Supervisor: all[c.Supervisor]}
	syscall.Kill(c.cmd.Process.Pid, syscall.SIGSTOP) // so that it cannot do the supervisor's work
	syscall.Kill(c.Supervisor, syscall.SIGKILL)
	c.cmd.Process.Kill()
	c.cmd.Wait()
	super.expectGone(t)

	removed, err := Sweep(t.Context(), root)
	if err != nil || len(removed) != 1 || removed[0] != c.Dir {
		t.Errorf("removed %v, %v; want %s", removed, err, c.Dir)
	}
	all.expectGone(t)
	expectNoDir(t, c.Dir)
	if _, err := os.Stat(alive.Dir()); err != nil {
		t.Errorf("a live one was swept: %v", err)
	}
	select {
	case <-survivor.Done():
		t.Error("a live one's process was killed")
	default:
	}
}

func TestSweepWhileOthersStart(t *testing.T) {
	root := tempRoot(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5 {
				s, err := Start(t.Context(), Options{Root: root})
				if err != nil {
					t.Error(err)
					return
				}
				if removed, err := Sweep(t.Context(), root); err != nil || len(removed) > 0 {
					t.Errorf("swept %v, %v", removed, err)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestSweepOfNothing(t *testing.T) {
	if removed, err := Sweep(t.Context(), filepath.Join(tempRoot(t), "missing")); err != nil || removed != nil {
		t.Errorf("%v, %v", removed, err)
	}
}

// held are processes that we hold by pidfd, so that their numbers cannot come
// to mean others.
type held map[int]int // pid → pidfd

// holdTree waits until sleepers of root's descendants are "sleep 1000", and
// holds them, what is between them and root, and root. It is content with what
// it finds when root ends meanwhile.
func holdTree(t *testing.T, root, sleepers int) held {
	t.Helper()
	h := held{}
	h.hold(t, root)
	var tree []int
	poll(t, fmt.Sprintf("%d sleepers", sleepers), func() bool {
		tree = descendants(root)
		n := 0
		for _, pid := range tree {
			if cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); string(cmdline) == "sleep\x001000\x00" {
				n++
			}
		}
		return n == sleepers || syscall.Kill(root, 0) != nil
	})
	for _, pid := range tree {
		h.hold(t, pid)
	}
	return h
}

// hold adds a process, unless it has ended.
func (h held) hold(t *testing.T, pid int) {
	t.Helper()
	if fd, err := unix.PidfdOpen(pid, 0); err == nil {
		t.Cleanup(func() { unix.Close(fd) })
		h[pid] = fd
	} else if !errors.Is(err, unix.ESRCH) {
		t.Fatal(err)
	}
}

func (h held) expectGone(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for pid, fd := range h {
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, max(0, int(time.Until(deadline).Milliseconds())))
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if n != 1 {
				cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
				t.Errorf("process %d is left: %q, %v", pid, cmdline, err)
			}
			break
		}
	}
}

func expectNoDir(t *testing.T, dir string) {
	t.Helper()
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", dir, err)
	}
}
