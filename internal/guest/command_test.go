package guest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/guest"
)

func TestCommandSemantics(t *testing.T) {
	m := newMachine(t)
	for _, tt := range []struct {
		script string
		code   int
		stdout string
		stderr string // contained
	}{
		{"true", 0, "", ""},
		{"echo hello", 0, "hello\n", ""},
		{"echo out; echo err >&2; exit 7", 7, "out\n", "err\n"},
		{"false; echo not reached", 1, "", ""},
		{"echo $nothing", 1, "", "nothing: unbound variable"},
		{"false | true", 1, "", ""},
		{"pwd; echo $USER $HOME $DISPLAY [$PAGER]", 0, "/tmp\nroot /root :0.0 []\n", ""},
		{"cat", 0, "", ""},
		{"echo $0 $#", 0, "bash 0\n", ""},
		{"nosuchcommand", 127, "", "bash: line 1: nosuchcommand: command not found"},
		{"if", 2, "", "syntax error"},
		{"kill -KILL $$", 137, "", ""},
		{"sleep 0.05 & echo done", 0, "done\n", ""},
		{"(sleep 0.05; echo late) & echo first", 0, "first\nlate\n", ""},
		{"printf '\\377\\000x'", 0, "\xff\x00x", ""},
		{"trap 'echo bye' EXIT; echo hi", 0, "hi\nbye\n", ""},
		{"echo $SHLVL $BASH_SUBSHELL; test $$ = $BASHPID", 0, "2 0\n", ""},
		{"trap; jobs; echo $-", 0, "ehuBc\n", ""},
		{"cat /proc/self/oom_score_adj", 0, "0\n", ""},
	} {
		for _, warm := range []bool{false, true} {
			if warm {
				if err := m.Warm(testContext(t)); err != nil {
					t.Fatal(err)
				}
			}
			r, err := m.Run(testContext(t), guest.Command{Script: tt.script})
			if err != nil {
				t.Fatalf("%s: %v", tt.script, err)
			}
			if r.ExitCode != tt.code || string(r.Stdout) != tt.stdout || !strings.Contains(string(r.Stderr), tt.stderr) {
				t.Errorf("%s (warm=%v): code %d, stdout %q, stderr %q; want %d, %q, %q",
					tt.script, r.Warm, r.ExitCode, r.Stdout, r.Stderr, tt.code, tt.stdout, tt.stderr)
			}
		}
	}
}

// What a script can see of its shell is the same on a warm one and on a fresh one.
func TestWarmShellIsLikeFresh(t *testing.T) {
	m := newMachine(t)
	for _, script := range []string{
		"ls /proc/self/fd",
		"set -o; shopt",
		"env | sort",
		"declare -p | grep -v -e BASH -e RANDOM -e EPOCH -e PPI -e SECONDS",
		"declare -f; alias; trap; jobs; hash; umask; ulimit -a",
		"echo $SECONDS $LINENO $# $- $0 $_",
		"readlink /proc/self/fd/0; pwd",
		"grep -e Sig -e Cap -e Seccomp -e NoNewPrivs /proc/self/status | grep -v SigQ",
		"cat /proc/self/comm /proc/self/oom_score_adj",
		"nosuchcommand",
		"true\nfalse\necho no",
		"echo ${novar}",
		"return 3",
		"local x",
		"exec false",
		"cd /nonexistent",
		"(exit 3) | cat",
		"set +e; false; echo $?",
		"x=$(exit 4); echo no",
		"readonly a=1; a=2; echo no",
		"kill -TERM 0",
	} {
		// A script that says $$ gets a shell of its own.
		fresh, err := m.Run(testContext(t), guest.Command{Script: script + "\n: $$"})
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Warm(testContext(t)); err != nil {
			t.Fatal(err)
		}
		warm, err := m.Run(testContext(t), guest.Command{Script: script + "\n: xx"})
		if err != nil {
			t.Fatal(err)
		}
		if fresh.Warm || !warm.Warm {
			t.Errorf("%s: ran on a warm shell: %v and %v, want false and true", script, fresh.Warm, warm.Warm)
		}
		if warm.ExitCode != fresh.ExitCode || string(warm.Stdout) != string(fresh.Stdout) || string(warm.Stderr) != string(fresh.Stderr) {
			t.Errorf("%s\nwarm (%v):  %d %q %q\nfresh: %d %q %q", script, warm.Warm, warm.ExitCode, warm.Stdout, warm.Stderr,
				fresh.ExitCode, fresh.Stdout, fresh.Stderr)
		}
	}
}

func TestTimeoutKillsTheProcessGroup(t *testing.T) {
	m := newMachine(t)
	for _, script := range []string{
		"sleep 1000",
		"trap '' TERM; sleep 1000 & sleep 1000; sleep 1000",
		"sleep 1000 & exit 0", // holds standard output
		"kill -STOP $$",
	} {
		r, err := m.Run(testContext(t), guest.Command{Script: "echo started; " + script, Timeout: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if !r.TimedOut || r.ExitCode != 124 || string(r.Stdout) != "started\n" {
			t.Errorf("%s: %+v", script, r)
		}
	}
}

func TestCancelKillsTheCommandAndTheNextOneWorks(t *testing.T) {
	m := newMachine(t)
	dir := t.TempDir()
	script := "echo ready; sleep 1000; touch " + dir + "/late"
	for _, cmd := range []guest.Command{
		{Script: script},
		{Argv: []string{"sh", "-c", script}},
		{Script: "sleep 1000 & kill -STOP $!; echo ready; kill -STOP $$"},
	} {
		ctx, cancel := context.WithCancel(testContext(t))
		r, w := io.Pipe()
		cmd.Stdout = w
		p, err := m.Start(ctx, cmd)
		if err != nil {
			t.Fatal(err)
		}
		io.ReadFull(r, make([]byte, 6))
		cancel()
		_, err = p.Wait()
		var wait *guest.WaitError
		if !errors.As(err, &wait) || !errors.Is(err, context.Canceled) || !strings.HasPrefix(err.Error(), "m: ") {
			t.Errorf("error %v", err)
		}
		if r, err := m.Run(testContext(t), guest.Command{Script: "echo next"}); err != nil || string(r.Stdout) != "next\n" {
			t.Errorf("the next command: %+v, %v", r, err)
		}
	}
}

func TestSignals(t *testing.T) {
	m := newMachine(t)
	r, w := io.Pipe()
	p, err := m.Start(testContext(t), guest.Command{Argv: []string{"sh", "-c", "echo ready; exec sleep 1000"}, Stdout: w})
	if err != nil {
		t.Fatal(err)
	}
	io.ReadFull(r, make([]byte, 6))
	p.Signal(syscall.SIGINT)
	result, err := p.Wait()
	if err != nil || result.ExitCode != 130 || result.Signal != "SIGINT" {
		t.Errorf("%+v, %v", result, err)
	}
}

// Twenty commands at once, a mebibyte on each of their streams: nothing is mixed.
func TestManyCommandsAtOnce(t *testing.T) {
	m := newMachine(t)
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			letter := string(rune('a' + i))
			script := fmt.Sprintf("head -c 1M /dev/zero | tr '\\0' %s; head -c 1M /dev/zero | tr '\\0' %s >&2", letter, strings.ToUpper(letter))
			r, err := m.Run(testContext(t), guest.Command{Script: script})
			if err != nil || r.ExitCode != 0 {
				t.Errorf("command %d: code %d, %v", i, r.ExitCode, err)
				return
			}
			if string(r.Stdout) != strings.Repeat(letter, 1<<20) || string(r.Stderr) != strings.Repeat(strings.ToUpper(letter), 1<<20) {
				t.Errorf("command %d: %d and %d bytes, not all its own", i, len(r.Stdout), len(r.Stderr))
			}
		})
	}
	all.Wait()
}

func TestStdin(t *testing.T) {
	m := newMachine(t)
	input := strings.Repeat("some input\n", 100_000)
	r, err := m.Run(testContext(t), guest.Command{Script: "cat; echo end", Stdin: strings.NewReader(input)})
	if err != nil || string(r.Stdout) != input+"end\n" {
		t.Fatalf("%d bytes came back of %d, %v", len(r.Stdout), len(input), err)
	}
	// A command that does not read it ends all the same.
	if r, err := m.Run(testContext(t), guest.Command{Script: "true", Stdin: strings.NewReader(input)}); err != nil || r.ExitCode != 0 {
		t.Fatalf("code %d, %v", r.ExitCode, err)
	}
}

func TestLongCommands(t *testing.T) {
	m := newMachine(t)
	for _, size := range []int{10_000, 100_000, 3 << 20} {
		script := "wc -c <<'END'\n" + strings.Repeat("x", size) + "\nEND\nfalse\necho no"
		r, err := m.Run(testContext(t), guest.Command{Script: script})
		if want := fmt.Sprintln(size + 1); err != nil || r.ExitCode != 1 || string(r.Stdout) != want {
			t.Errorf("%d bytes: code %d, stdout %q, want %q; stderr %.100q, %v", size, r.ExitCode, r.Stdout, want, r.Stderr, err)
		}
	}
}

func TestOutputLimit(t *testing.T) {
	m := newMachine(t)
	_, err := m.Run(testContext(t), guest.Command{Script: "yes", Limit: 1 << 20})
	var limit *guest.OutputLimitError
	if !errors.As(err, &limit) || limit.Stream != "stdout" || !strings.Contains(err.Error(), "m: the command wrote more than 1 MiB to stdout, which is the limit, and was ended; have it write to a file") {
		t.Fatalf("error %v", err)
	}
	var n countWriter
	r, err := m.Run(testContext(t), guest.Command{Script: "head -c 200M /dev/zero", Stdout: &n, Limit: 1})
	if err != nil || r.ExitCode != 0 || n != 200<<20 {
		t.Fatalf("%d bytes, %+v, %v", n, r, err)
	}
}

type countWriter int

func (c *countWriter) Write(p []byte) (int, error) { *c += countWriter(len(p)); return len(p), nil }

func TestSurroundings(t *testing.T) {
	m := newMachine(t)
	dir := t.TempDir()
	for _, tt := range []struct {
		cmd  guest.Command
		want string
	}{
		{guest.Command{Script: "pwd", Dir: dir}, dir},
		{guest.Command{Script: "echo $A $USER", Env: map[string]string{"A": "b c"}}, "b c root"},
		{guest.Command{Argv: []string{"echo", "$A", "x  y"}}, "$A x  y"},
	} {
		r, err := m.Run(testContext(t), tt.cmd)
		if err != nil || r.ExitCode != 0 || strings.TrimSpace(string(r.Stdout)) != tt.want {
			t.Errorf("%+v: %+v, %v; want %q", tt.cmd, r, err, tt.want)
		}
	}
	// An agent that is not root, which no guest's is, cannot be anybody else.
	r, err := m.Run(testContext(t), guest.Command{Script: "id -un; echo $USER $HOME", User: "nobody", Dir: "/"})
	if os.Geteuid() != 0 {
		if err == nil || !strings.Contains(err.Error(), "operation not permitted") {
			t.Errorf("as nobody: %+v, %v", r, err)
		}
	} else if err != nil || string(r.Stdout) != "nobody\nnobody /nonexistent\n" {
		t.Errorf("as nobody: %+v, %v", r, err)
	}
	for _, tt := range []struct {
		cmd  guest.Command
		want string
	}{
		{guest.Command{Script: "true", User: "nosuchuser"}, `m: exec: no user "nosuchuser" in the guest's /etc/passwd`},
		{guest.Command{Script: "true", Dir: "/nonexistent"}, "m: exec: stat /nonexistent: no such file or directory"},
		{guest.Command{Argv: []string{"nosuchprogram"}}, "m: exec: nosuchprogram: not found in PATH"},
		{guest.Command{Script: "a\x00b"}, "m: exec: a command cannot contain a NUL byte"},
		{guest.Command{Script: "x", Argv: []string{"x"}}, "m: want either a script or arguments, not both"},
	} {
		if _, err := m.Run(testContext(t), tt.cmd); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%+v: error %v, want %s", tt.cmd, err, tt.want)
		}
	}
}

func TestDetach(t *testing.T) {
	m := newMachine(t)
	dir := t.TempDir()
	script := fmt.Sprintf("cd %s; until test -e go; do sleep 0.01; done; touch done", dir)
	// Nobody writes to what it reads; the agent survives that somebody asks for it.
	r, err := m.Run(testContext(t), guest.Command{Script: script, Detach: true, Stdin: strings.NewReader("x")})
	if err != nil || r.Pid == 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := m.WaitFile(testContext(t), filepath.Join(dir, "done"), false); err != nil {
		t.Fatal(err)
	}
}

// A background process that holds only standard error delays nobody, and does not die of it.
func TestBackgroundHoldsStderr(t *testing.T) {
	m := newMachine(t)
	dir := t.TempDir()
	script := fmt.Sprintf("cd %s; (exec >/dev/null; until test -e go; do sleep 0.01; done; echo late >&2; touch survived) & echo early >&2", dir)
	r, err := m.Run(testContext(t), guest.Command{Script: script})
	if err != nil || string(r.Stderr) != "early\n" {
		t.Fatalf("%+v, %v", r, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := m.WaitFile(testContext(t), filepath.Join(dir, "survived"), false); err != nil {
		t.Fatal(err)
	}
}

func TestRunUntil(t *testing.T) {
	m := newMachine(t)
	dir := t.TempDir()
	script := "echo try >> " + dir + "/tries; echo this one; test $(wc -l < " + dir + "/tries) -ge 4"
	r, err := m.RunUntil(testContext(t), guest.Command{Script: script}, guest.UntilOptions{})
	if err != nil || !r.Met || r.Tries != 4 || r.ExitCode != 0 || string(r.Stdout) != "this one\n" {
		t.Errorf("until it succeeds: %+v, %v", r, err)
	}
	r, err = m.RunUntil(testContext(t), guest.Command{Script: "exit 3"}, guest.UntilOptions{Fail: true})
	if err != nil || !r.Met || r.Tries != 1 || r.ExitCode != 3 {
		t.Errorf("until it fails: %+v, %v", r, err)
	}
	r, err = m.RunUntil(testContext(t), guest.Command{Script: "echo no; exit 5"}, guest.UntilOptions{Timeout: 100 * time.Millisecond})
	if err != nil || r.Met || r.Tries < 1 {
		t.Errorf("never: %+v, %v", r, err)
	}
	script = "echo try >> " + dir + "/others; test $(wc -l < " + dir + "/others) -lt 3 || sleep 1000; exit 6"
	r, err = m.RunUntil(testContext(t), guest.Command{Script: script}, guest.UntilOptions{Timeout: 2 * time.Second})
	if err != nil || r.Tries != 3 || !r.TimedOut || r.Ended == nil || *r.Ended != 6 {
		t.Errorf("the last one hangs: %+v, %v", r, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	r, err = m.RunUntil(ctx, guest.Command{Script: "sleep 1000"}, guest.UntilOptions{})
	if !errors.Is(err, context.DeadlineExceeded) || r.Tries != 1 {
		t.Errorf("canceled: %+v, %v", r, err)
	}
}

// A warm shell that somebody kills is replaced, and the command that ran on it
// is not reported as anything it was not.
func TestWarmShellIsKilled(t *testing.T) {
	m := newMachine(t)
	if err := m.Warm(testContext(t)); err != nil {
		t.Fatal(err)
	}
	// The child of the agent, this process, that is above the command is the warm shell.
	script := fmt.Sprintf("p=self; for i in 1 2 3 4 5; do q=$p; read -r _ _ _ p _ < /proc/$p/stat; test $p != %d || break; done; kill -KILL $q; sleep 1000", os.Getpid())
	r, err := m.Run(testContext(t), guest.Command{Script: script})
	var op *guest.OpError
	if !errors.As(err, &op) || !strings.Contains(err.Error(), "exit status of the command is unknown") {
		t.Errorf("%+v, error %v", r, err)
	}
	for range 20 {
		if r, err := m.Run(testContext(t), guest.Command{Script: "echo next"}); err != nil || !bytes.Equal(r.Stdout, []byte("next\n")) {
			t.Fatalf("the next command: %+v, %v", r, err)
		}
	}
}
