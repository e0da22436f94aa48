package test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/attest-vm/attest"
)

// TestCommands tries everything that runs a command, on one machine.
func TestCommands(t *testing.T) {
	t.Parallel()
	lab := attest.New(t, attest.MachineConfig{Name: "client", Image: attest.Debian{}, Memory: 384})
	m := lab.Machine("client")
	m.WaitForUnit("multi-user.target")
	for _, test := range []struct {
		name string
		run  func(*testing.T, tried)
	}{
		{"commands", testCommands},
		{"surroundings", testSurroundings},
		{"errors of commands", testCommandErrors},
		{"background", testBackground},
		{"timeout", testTimeout},
		{"cancel", testCancel},
		{"output", testOutput},
		{"streamed output", testStreamedOutput},
		{"concurrent commands", testConcurrentCommands},
		{"concurrent output", testConcurrentOutput},
		{"jobs", testJobs},
		{"errors of jobs", testJobErrors},
		{"sleep", testSleep},
		{"a new agent", testNewAgent},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, tried{m.Machine, t}) })
	}
}

// A command is a fresh bash with the NixOS driver's options and environment.
func testCommands(t *testing.T, m tried) {
	for _, tt := range []struct {
		script string
		code   int
		stdout string
		stderr string // contained
	}{
		{"echo out; echo err >&2; exit 7", 7, "out\n", "err"},
		{"false; echo not reached", 1, "", ""},
		{"false | true", 1, "", ""},
		{"echo $no_such_variable", 1, "", "unbound variable"},
		{"echo $USER $HOME $DISPLAY [$PAGER]; pwd; id -un", 0, "root /root :0.0 []\n/tmp\nroot\n", ""},
		{"no-such-command", 127, "", "command not found"},
		{"if", 2, "", "syntax error"},
		{"kill -KILL $$", 137, "", ""},
		{"kill -TERM $$", 143, "", ""},
		{"cat", 0, "", ""}, // nothing to read, and no terminal to wait for
		{"declare -A a=([x]=1); echo ${a[x]} <(true) | tr -d 0-9", 0, " /dev/fd/\n", ""},
		// What the script can see of how it was started.
		{"test $$ = $BASHPID; kill -0 $PPID; echo $0 $# $SHLVL $BASH_SUBSHELL; trap; jobs", 0, "bash 0 2 0\n", ""},
		{"trap 'echo bye' EXIT; echo hi", 0, "hi\nbye\n", ""},
		{"export LEFT=behind; cd /; set +u; alias x=y; umask 0", 0, "", ""},
		{"pwd; echo ${LEFT-nothing}; alias; umask", 0, "/tmp\nnothing\n0022\n", ""},
		{"printf 'zwölf Boxkämpfer 🦀\\n'", 0, "zwölf Boxkämpfer 🦀\n", ""},
		{"echo line one\necho line two", 0, "line one\nline two\n", ""},
	} {
		r := m.execute(tt.script)
		if r.ExitCode != tt.code || r.Stdout != tt.stdout || !strings.Contains(r.Stderr, tt.stderr) {
			t.Errorf("%s\n got %d, stdout %q, stderr %q\nwant %d, stdout %q, stderr %q", tt.script, r.ExitCode, r.Stdout, r.Stderr, tt.code, tt.stdout, tt.stderr)
		}
	}
}

// All operations that run a command take the same options.
func testSurroundings(t *testing.T, m tried) {
	opts := []attest.CommandOption{attest.Input([]byte("from the host\n")), attest.Dir("/usr"), attest.Env("COLOR", "blue"), attest.User("nobody")}
	const script, want = "cat; pwd; echo $COLOR; whoami", "from the host\n/usr\nblue\nnobody\n"
	ctx := t.Context()
	for name, run := range map[string]func() (string, error){
		"succeed": func() (string, error) { return m.Succeed(ctx, script, opts...) },
		"fail":    func() (string, error) { return m.Fail(ctx, script+"; exit 1", opts...) },
		"execute": func() (string, error) { r, err := m.Execute(ctx, script, opts...); return r.Stdout, err },
		"wait_until_succeeds": func() (string, error) {
			return m.WaitUntilSucceeds(ctx, script+"; mkdir /tmp/once 2>/dev/null && exit 1; rmdir /tmp/once", opts...)
		},
		"wait_until_fails": func() (string, error) { return m.WaitUntilFails(ctx, script+"; exit 1", opts...) },
		"spawn": func() (string, error) {
			j, err := m.Spawn(ctx, script, opts...)
			if err != nil {
				return "", err
			}
			r, err := j.Wait(ctx)
			return r.Stdout, err
		},
	} {
		if got, err := run(); err != nil || got != want {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
	if got, err := m.SucceedAll(ctx, []string{"cat", "cat; echo end"}, attest.Input([]byte("again "))); err != nil || got != "again again end\n" {
		t.Errorf("several commands: got %q, %v", got, err)
	}
	if got := m.succeed("cat", attest.Stdin(strings.NewReader("a reader"))); got != "a reader" {
		t.Errorf("got %q", got)
	}
	for _, tt := range []struct {
		opt  attest.CommandOption
		want string
	}{
		{attest.User("nobody-at-all"), `no user "nobody-at-all"`},
		{attest.Dir("/no/such/dir"), "/no/such/dir: no such file or directory"},
		{attest.Dir("/etc/passwd"), "/etc/passwd is not a directory"},
		{attest.Env("A=B", "x"), `environment variable "A=B" cannot be set`},
	} {
		if _, err := m.Succeed(ctx, "true", tt.opt); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
}

func testCommandErrors(t *testing.T, m tried) {
	_, err := m.Succeed(t.Context(), "echo out; echo err >&2; exit 3")
	e := errorAs[*attest.CommandError](t, err)
	if e.Machine != "client" || e.Result.ExitCode != 3 || e.Result.Stdout != "out\n" || e.Result.Stderr != "err\n" || len(e.Console) == 0 {
		t.Errorf("got %+v", e)
	}
	if want := "client: command `echo out; echo err >&2; exit 3` failed (exit code 3)"; err.Error() != want || attest.StatusOf(err) != attest.Failed {
		t.Errorf("got %v (%s), want %s", err, attest.StatusOf(err), want)
	}
	out, err := m.SucceedAll(t.Context(), []string{"echo one", "echo two; exit 4", "echo three"})
	if want := "client: command 2 of 3, `echo two; exit 4`, failed (exit code 4)"; errorAs[*attest.CommandError](t, err).Error() != want || out != "one\ntwo\n" {
		t.Errorf("got %q, %v, want %s", out, err, want)
	}
	_, err = m.FailAll(t.Context(), []string{"false", "true"})
	if want := "client: command 2 of 2, `true`, unexpectedly succeeded"; errorAs[*attest.CommandError](t, err).Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if out, err := m.Fail(t.Context(), "echo out; false"); err != nil || out != "out\n" {
		t.Errorf("fail: %q, %v", out, err)
	}
	_, err = m.Fail(t.Context(), "true")
	if want := "client: command `true` unexpectedly succeeded"; errorAs[*attest.CommandError](t, err).Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// A command is over when it has ended and its standard output is closed.
func testBackground(t *testing.T, m tried) {
	if got := m.succeed("(until test -e /tmp/released; do sleep 0.05; done; echo late) & echo early; touch /tmp/released"); got != "early\nlate\n" {
		t.Errorf("a child that holds standard output: %q", got)
	}
	// Much longer than the test may take.
	if got := m.succeed("sleep 99999 >/dev/null 2>&1 & echo $!"); m.execute("kill "+got).ExitCode != 0 {
		t.Errorf("sleep in the background, process %s, has ended", got)
	}
	if err := m.Detach(t.Context(), "touch /tmp/detached; sleep 99999"); err != nil {
		t.Error(err)
	}
	m.succeed("until test -e /tmp/detached; do sleep 0.05; done; pkill -f '^sleep 99999'")
}

// A command whose time is over ends with all that it started.
func testTimeout(t *testing.T, m tried) {
	inTime(t, 2*time.Second, func(limit time.Duration) (bool, any) {
		r := m.execute("echo begun; sleep 88888 | sleep 88888", attest.Timeout(limit))
		return r.ExitCode == 124 && r.TimedOut && r.Stdout == "begun\n", r
	})
	if left := m.execute("pgrep -a -f '^sleep 88888'"); left.ExitCode != 1 {
		t.Errorf("still there: %s", left.Stdout)
	}
	r := m.execute("trap '' TERM; sleep 88888; sleep 88888", attest.Timeout(2*time.Second)) // deaf to SIGTERM
	if r.ExitCode != 124 || !r.TimedOut {
		t.Errorf("got %+v", r)
	}
	_, err := m.Succeed(t.Context(), "sleep 88888", attest.Timeout(time.Second))
	if e := errorAs[*attest.CommandError](t, err); !e.Result.TimedOut || !strings.Contains(err.Error(), "timed out after") {
		t.Errorf("got %v", err)
	}
}

// A caller who goes away takes the command along, with all of its process group,
// and the next command works.
func testCancel(t *testing.T, m tried) {
	for name, script := range map[string]string{
		"grandchildren":     "bash -c 'sleep 77777 & sleep 77777' & wait",
		"deaf to SIGTERM":   "trap '' TERM; bash -c 'sleep 77777; true' & while :; do sleep 0.1; wait; done",
		"a shell of a user": "su nobody -s /bin/bash -c 'sleep 77777'",
	} {
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() {
			_, err := m.Execute(ctx, "touch /tmp/canceled; "+script)
			result <- err
		}()
		m.succeed("until test -e /tmp/canceled && pgrep -f '^sleep 77777'; do sleep 0.05; done; rm /tmp/canceled", attest.Timeout(patience))
		cancel()
		if err := <-result; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: got %v, want %v", name, err, context.Canceled)
		}
		m.succeed("while pgrep -f '^sleep 77777'; do sleep 0.05; done", attest.Timeout(patience))
	}
}

// Output comes byte for byte, whatever it is and however much.
func testOutput(t *testing.T, m tried) {
	var out bytes.Buffer
	m.succeed(`for i in {0..255}; do printf "\\x$(printf %x $i)"; done`, attest.Stdout(&out))
	want := make([]byte, 256)
	for i := range want {
		want[i] = byte(i)
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("all bytes: got %q", out.Bytes())
	}
	// Byte for byte, UTF-8 or not.
	if got := m.succeed(`printf 'a\0b\377c'`); got != "a\x00b\xffc" {
		t.Errorf("got %q", got)
	}
	out.Reset()
	var stderr bytes.Buffer
	m.succeed("head -c 1048576 /dev/urandom > /tmp/megabyte; cat /tmp/megabyte; cat /tmp/megabyte >&2", attest.Stdout(&out), attest.Stderr(&stderr))
	sum := m.succeed("sha256sum < /tmp/megabyte")[:64]
	for name, data := range map[string][]byte{"stdout": out.Bytes(), "stderr": stderr.Bytes()} {
		if got := fmt.Sprintf("%x", sha256.Sum256(data)); got != sum {
			t.Errorf("%s: %d bytes, %s; want %s", name, len(data), got, sum)
		}
	}
	if got := m.succeed("head -c 1048576 /dev/zero | tr '\\0' x"); got != strings.Repeat("x", 1<<20) {
		t.Errorf("1 MiB of text: got %d bytes", len(got))
	}
}

// Commands run at once: each of these waits for the next one.
func testConcurrentCommands(t *testing.T, m tried) {
	const n = 12
	m.succeed(fmt.Sprintf("mkdir /tmp/ring; cd /tmp/ring; for i in {1..%d}; do mkfifo $i; done", n))
	var wg sync.WaitGroup
	for i := 1; i <= n; i++ {
		wg.Go(func() {
			script := fmt.Sprintf("cd /tmp/ring; cat %d; echo %d > %d", i, i, i%n+1)
			if i == 1 {
				script = fmt.Sprintf("cd /tmp/ring; echo 1 > 2; cat 1; exit 0; # %d", n)
			}
			want := fmt.Sprintf("%d\n", (i+n-2)%n+1)
			if got, err := m.Succeed(t.Context(), script, attest.Timeout(patience)); err != nil || got != want {
				t.Errorf("%s: got %q, %v; want %q", script, got, err, want)
			}
		})
	}
	wg.Wait()
}

func testSleep(t *testing.T, m tried) {
	const uptime = "cut -d. -f1 /proc/uptime"
	var before, after int
	fmt.Sscan(m.succeed(uptime), &before)
	if err := m.Sleep(t.Context(), 2*time.Second); err != nil {
		t.Error(err)
	}
	if fmt.Sscan(m.succeed(uptime), &after); after < before+2 {
		t.Errorf("uptime %d before and %d after", before, after)
	}
}

// A counter takes a stream without keeping it.
type counter struct {
	bytes int64
	sum   hash.Hash
	peak  func()
}

func (c *counter) Write(p []byte) (int, error) {
	if before := c.bytes >> 24; before != (c.bytes+int64(len(p)))>>24 {
		c.peak()
	}
	c.bytes += int64(len(p))
	c.sum.Write(p)
	return len(p), nil
}

// Output that is streamed needs no memory, neither here nor in the agent,
// however much it is. ATTEST_STRESS makes it a gigabyte, and keeps too much.
func testStreamedOutput(t *testing.T, m tried) {
	size, stress := int64(32<<20), os.Getenv("ATTEST_STRESS") != ""
	if stress {
		size = 1 << 30
	}
	const limit = 24 << 20 // of growth: less than any of the outputs
	const resident = "ps -o rss= -p $(pgrep -o -f ^@attest-agent)"
	rss := func() int64 {
		kib, err := strconv.ParseInt(strings.TrimSpace(m.succeed(resident)), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return kib << 10
	}
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	agentBefore := rss()
	var most uint64
	out := &counter{sum: sha256.New(), peak: func() {
		runtime.ReadMemStats(&now)
		most = max(most, now.HeapInuse)
	}}
	script := fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x", size)
	m.succeed(script, attest.Stdout(out))
	want := sha256.New()
	for chunk := []byte(strings.Repeat("x", 1<<20)); want.Size() > 0 && size > 0; size -= 1 << 20 {
		want.Write(chunk)
	}
	if !bytes.Equal(out.sum.Sum(nil), want.Sum(nil)) {
		t.Errorf("%d bytes arrived, and not those that were sent", out.bytes)
	}
	if grown := rss() - agentBefore; grown > limit {
		t.Errorf("the agent grew by %d MiB", grown>>20)
	}
	if most > before.HeapInuse+limit {
		t.Errorf("this process grew from %d to %d MiB", before.HeapInuse>>20, most>>20)
	}
	if !stress { // TestOutputLimit of internal/guest has a smaller one
		return
	}
	// What nobody streams is kept, up to a limit.
	_, err := m.Succeed(t.Context(), "head -c 70000000 /dev/zero")
	if err == nil || !strings.Contains(err.Error(), "the command wrote more than 64 MiB to stdout") {
		t.Errorf("got %v", err)
	}
}

// Twenty commands at once, each with much on both streams: nothing is mixed.
// TestManyCommandsAtOnce of internal/guest has four times as much.
func testConcurrentOutput(t *testing.T, m tried) {
	const n, size = 20, 1 << 18
	var running sync.WaitGroup
	for i := range n {
		running.Go(func() {
			name := func(stream string) string { return fmt.Sprintf("%s of command %02d\n", stream, i) }
			// Head ends yes by SIGPIPE, which is no failure here.
			script := fmt.Sprintf("set +o pipefail; yes '%s' | head -c %d & yes '%s' | head -c %d >&2; wait",
				strings.TrimSpace(name("stdout")), size, strings.TrimSpace(name("stderr")), size)
			r, err := m.Execute(t.Context(), script, attest.Timeout(patience))
			if err != nil || r.ExitCode != 0 {
				t.Errorf("command %d: %d, %v", i, r.ExitCode, err)
			}
			for stream, got := range map[string]string{"stdout": r.Stdout, "stderr": r.Stderr} {
				want := strings.Repeat(name(stream), size/len(name(stream))+1)[:size]
				if got != want {
					t.Errorf("command %d: %s has %d bytes, and not those that were written", i, stream, len(got))
				}
			}
		})
	}
	running.Wait()
}

// A job runs in the background, and what it writes can be waited for.
func testJobs(t *testing.T, m tried) {
	ctx := t.Context()
	j, err := m.Spawn(ctx, "echo ready; echo also >&2; until test -e /tmp/go-on; do sleep 0.05; done; echo going on; exit 5")
	if err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"^rea(.)y$", "also"} {
		if got, err := j.WaitForOutput(ctx, pattern); err != nil || !strings.Contains("ready also", got) {
			t.Errorf("%s: got %q, %v", pattern, got, err)
		}
	}
	if !j.Running() || j.Stdout() != "ready\n" || j.Stderr() != "also\n" {
		t.Errorf("running %v, stdout %q, stderr %q", j.Running(), j.Stdout(), j.Stderr())
	}
	m.succeed("touch /tmp/go-on") // a command beside it
	r, err := j.Wait(ctx)
	if err != nil || r.ExitCode != 5 || r.Stdout != "ready\ngoing on\n" || r.Stderr != "also\n" || j.Running() {
		t.Errorf("got %+v, %v", r, err)
	}
	// Signals reach the whole group.
	j, err = m.Spawn(ctx, "trap 'echo got it; exit 9' INT; echo here; sleep 55555 & wait")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.WaitForOutput(ctx, "here"); err != nil {
		t.Error(err)
	}
	if err := j.Kill(ctx, syscall.SIGINT); err != nil {
		t.Error(err)
	}
	if _, err := j.WaitForOutput(ctx, "got it"); err != nil {
		t.Error(err)
	}
	if err := j.Kill(ctx, syscall.SIGKILL); err != nil { // sleep ignores SIGINT, as a shell's background does
		t.Error(err)
	}
	if r, err := j.Wait(ctx); err != nil || !slices.Contains([]int{9, 137}, r.ExitCode) {
		t.Errorf("got %+v, %v", r, err)
	}
	m.succeed("while pgrep -f '^sleep 55555'; do sleep 0.05; done", attest.Timeout(patience))
	if err := j.Kill(ctx); err != nil {
		t.Errorf("one that has ended: %v", err)
	}
}

func testJobErrors(t *testing.T, m tried) {
	ctx := t.Context()
	j, err := m.Spawn(ctx, "echo busy; exec sleep 44444", attest.Timeout(patience))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.WaitForOutput(ctx, "busy"); err != nil {
		t.Fatal(err)
	}
	_, err = j.Wait(ctx, attest.Timeout(100*time.Millisecond))
	if e := errorAs[*attest.WaitError](t, err); !e.Timeout() || e.LastSeen != "the job still runs: busy" || !j.Running() {
		t.Errorf("got %+v, running %v", e, j.Running())
	}
	_, err = j.WaitForOutput(ctx, "never said", attest.Timeout(100*time.Millisecond))
	if e := errorAs[*attest.WaitError](t, err); !e.Timeout() || e.LastSeen != "busy" {
		t.Errorf("got %+v", e)
	}
	if _, err := j.WaitForOutput(ctx, "("); attest.StatusOf(err) != attest.Invalid {
		t.Errorf("got %v", err)
	}
	// It will never say it when it has ended.
	ended := make(chan error, 1)
	go func() {
		_, err := j.WaitForOutput(ctx, "never said")
		ended <- err
	}()
	if err := j.Kill(ctx); err != nil {
		t.Error(err)
	}
	if e := errorAs[*attest.WaitError](t, <-ended); e.Timeout() || !strings.Contains(e.Reason, "ended with exit code 143") {
		t.Errorf("got %+v", e)
	}
	// A job's own limit, and one that cannot be started.
	if j, err = m.Spawn(ctx, "sleep 44444", attest.Timeout(time.Second)); err != nil {
		t.Fatal(err)
	}
	if r, err := j.Wait(ctx); err != nil || !r.TimedOut || r.ExitCode != 124 {
		t.Errorf("got %+v, %v", r, err)
	}
	if j, err = m.Spawn(ctx, "true", attest.User("nobody-at-all")); err == nil {
		_, err = j.Wait(ctx)
	}
	if err == nil || !strings.Contains(err.Error(), "no user") {
		t.Errorf("got %v", err)
	}
	m.succeed("while pgrep -f '^sleep 44444'; do sleep 0.05; done", attest.Timeout(patience))
}

// An agent that is killed takes what is under way along, and says so; another
// one serves the next operation.
func testNewAgent(t *testing.T, m tried) {
	ctx := t.Context()
	for range 2 { // the second agent has a keeper, too
		ended := make(chan error, 3)
		go func() { _, err := m.Succeed(ctx, "touch /tmp/under-way; sleep 33333"); ended <- err }()
		go func() { ended <- m.WaitForFile(ctx, "/tmp/never") }()
		m.succeed("until test -e /tmp/under-way; do sleep 0.05; done; rm /tmp/under-way")
		_, err := m.Succeed(ctx, "kill -9 $(pgrep -o -f ^@attest-agent); sleep 33333")
		ended <- err
		for range 3 {
			errorAs[*attest.AgentError](t, <-ended)
		}
		if got := m.succeed("echo $((6 * 7))", attest.Timeout(patience)); got != "42\n" {
			t.Errorf("got %q", got)
		}
		m.execute("pkill -f '^sleep 33333'")
		// The keeper is replaced as well.
		keeper := m.succeed("pgrep -n -x attest-keeper")
		m.succeed("kill -9 " + strings.TrimSpace(keeper) + "; until pgrep -n -x attest-keeper | grep -vqx " + strings.TrimSpace(keeper) + "; do sleep 0.05; done")
	}
	if err := m.WaitForUnit(ctx, "multi-user.target"); err != nil {
		t.Error(err)
	}
}
