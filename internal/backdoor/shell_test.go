package backdoor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/socketpair"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/wire"
)

// A bashBox is a guest whose root shell is a bash of this host.
type bashBox struct {
	t       *testing.T
	door    *Door
	client  *guest.Client
	console plug
	theirs  *os.File // what the shell reads and writes
	ports   string   // of the guest; empty: it has none
	upload  net.Conn // nil: there is none
	garbage func(error)
	bashes  []*exec.Cmd
}

// newBashBox is one that says what it says by its port.
func newBashBox(t *testing.T, opt guest.Options) *bashBox {
	t.Helper()
	ours, theirs, err := socketpair.New(unix.SOCK_STREAM)
	if err != nil {
		t.Fatal(err)
	}
	b := &bashBox{t: t, console: newPlug(ours), theirs: theirs, ports: t.TempDir(), garbage: func(err error) { t.Error(err) }}
	if err := errors.Join(os.MkdirAll(b.ports+"/sys/vport1p2", 0o700), os.Mkdir(b.ports+"/dev", 0o700),
		os.WriteFile(b.ports+"/sys/vport1p2/name", []byte(wire.UploadPort+"\n"), 0o600), syscall.Mkfifo(b.ports+"/dev/vport1p2", 0o600)); err != nil {
		t.Fatal(err)
	}
	port, err := os.OpenFile(b.ports+"/dev/vport1p2", os.O_RDWR, 0) // both, so that it has no end
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { port.Close() })
	b.upload = fileConn{port}
	b.begin(opt, ours)
	return b
}

// A fileConn is a file in the place of a connection.
type fileConn struct{ *os.File }

func (fileConn) LocalAddr() net.Addr  { return nil }
func (fileConn) RemoteAddr() net.Addr { return nil }

// begin has the guest boot, and this host use it, until the test ends.
func (b *bashBox) begin(opt guest.Options, ours io.Closer) {
	b.start()
	b.take(opt, "")
	b.t.Cleanup(func() {
		b.leave()
		ours.Close()
		b.theirs.Close()
		for _, bash := range b.bashes {
			bash.Wait()
		}
	})
}

// start boots the guest.
func (b *bashBox) start() {
	bash := exec.Command("bash", "--norc")
	bash.Stdin, bash.Stdout = b.theirs, b.theirs
	bash.Env = append(os.Environ(), "FOREIGN=1")
	if _, err := fmt.Fprint(b.theirs, "some login: \x1b[2JSpawning backdoor "); err != nil {
		b.t.Error(err)
	}
	fmt.Fprint(b.theirs, "root shell...\n")
	if err := bash.Start(); err != nil {
		b.t.Error(err)
	}
	b.bashes = append(b.bashes, bash)
}

// take makes a host of the guest.
func (b *bashBox) take(opt guest.Options, saved string) {
	b.door = New(Options{Machine: "box", Shell: b.console.conn(), Upgrade: Never, Agent: noAgent, Saved: saved, Garbage: b.garbage, LookAfter: 300 * time.Millisecond,
		Upload: b.upload, Ports: b.ports + "/sys", Devices: b.ports + "/dev"})
	opt.StandIn = b.door.StandIn
	b.client = guest.New("box", b.door.Dial, opt)
	b.door.Start()
}

// leave ends the host.
func (b *bashBox) leave() {
	b.client.Close(nil)
	b.door.Close()
}

// A plug is the host's end of a console, which outlives its hosts.
type plug struct{ net.Conn }

func newPlug(c net.Conn) plug { return plug{c} }

// conn is the console for one host.
func (p plug) conn() net.Conn {
	channel := vmm.NewChannel(p.Conn, nil)
	conn, err := channel.Dial(context.Background())
	if err != nil {
		panic(err) // nobody has it
	}
	return conn
}

func (b *bashBox) run(cmd guest.Command) guest.Result {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	r, err := b.client.Run(ctx, cmd)
	if err != nil {
		b.t.Fatalf("%+.80v: %v", cmd, err)
	}
	return r
}

// Commands have the results that the agent gives them.
func TestShellCommands(t *testing.T) {
	b := newBashBox(t, guest.Options{})
	every := make([]byte, 0, 3*256)
	for i := range 3 * 256 {
		every = append(every, byte(i))
	}
	for _, tt := range []struct {
		name string
		cmd  guest.Command
		want guest.Result
	}{
		{"nothing", guest.Command{Script: "true"}, guest.Result{}},
		{"output", guest.Command{Script: "echo out; echo err >&2; exit 3"}, guest.Result{ExitCode: 3, Stdout: []byte("out\n"), Stderr: []byte("err\n")}},
		{"no newline", guest.Command{Script: "printf 'a b'; printf c >&2"}, guest.Result{Stdout: []byte("a b"), Stderr: []byte("c")}},
		{"looks like a frame", guest.Command{Script: "echo 0; echo .; echo +; echo \"''\"; echo attest:x:y:z; echo 'Spawning backdoor root shell...'"},
			guest.Result{Stdout: []byte("0\n.\n+\n''\nattest:x:y:z\nSpawning backdoor root shell...\n")}},
		{"one 0", guest.Command{Script: "printf 0"}, guest.Result{Stdout: []byte("0")}},
		{"quotes", guest.Command{Script: `echo "a'b" '$x' \\ % "` + "`" + `echo ü` + "`" + `"  # comment` + "\necho second"}, guest.Result{Stdout: []byte("a'b $x \\ % ü\nsecond\n")}},
		{"all bytes", guest.Command{Script: "cat", Stdin: bytes.NewReader(every)}, guest.Result{Stdout: every}},
		{"large input", guest.Command{Script: "wc -c; echo done", Stdin: bytes.NewReader(make([]byte, 300<<10))}, guest.Result{Stdout: []byte("307200\ndone\n")}},
		{"input that nobody reads", guest.Command{Script: "echo done", Stdin: bytes.NewReader(make([]byte, 300<<10))}, guest.Result{Stdout: []byte("done\n")}},
		{"no input", guest.Command{Script: "cat; readlink /proc/self/fd/0"}, guest.Result{Stdout: []byte("/dev/null\n")}},
		{"errexit", guest.Command{Script: "false | true; echo no"}, guest.Result{ExitCode: 1}},
		{"nounset", guest.Command{Script: "true ${ATTEST_UNSET:-}; : $FOREIGN"}, guest.Result{ExitCode: 1, Stderr: []byte("bash: line 1: FOREIGN: unbound variable\n")}},
		{"a signal", guest.Command{Script: "kill -9 $$"}, guest.Result{ExitCode: 137, Signal: "SIGKILL"}},
		{"SIGPIPE", guest.Command{Script: "yes | head -n 1"}, guest.Result{ExitCode: 141, Signal: "SIGPIPE", Stdout: []byte("y\n")}},
		{"SIGINT", guest.Command{Script: "kill -INT $$; echo no"}, guest.Result{ExitCode: 130, Signal: "SIGINT"}},
		{"surroundings", guest.Command{Script: "echo $USER $HOME $DISPLAY \"$PAGER\" $SHLVL $0; pwd; umask; ls /proc/self/fd | wc -l; ps -o pgid= $$ | tr -d ' ' | grep -qx $$"},
			guest.Result{Stdout: []byte("root /root :0.0  2 bash\n/tmp\n0022\n4\n")}},
		{"env and directory", guest.Command{Script: "echo \"$A\" $PWD", Env: map[string]string{"A": "x y='\n%"}, Dir: "/usr"}, guest.Result{Stdout: []byte("x y='\n% /usr\n")}},
		{"a user", guest.Command{Script: "id -un; id -gn; echo $USER $XDG_RUNTIME_DIR; pwd", User: "nobody"}, guest.Result{Stdout: []byte("nobody\nnogroup\nnobody /run/user/65534\n/\n")}},
		{"arguments", guest.Command{Argv: []string{"printf", "%s|", "a b", "", "*"}}, guest.Result{Stdout: []byte("a b||*|")}},
		{"a timeout", guest.Command{Script: "echo early; sleep 1000", Timeout: 300 * time.Millisecond}, guest.Result{ExitCode: 124, TimedOut: true, Stdout: []byte("early\n")}},
		{"one that ignores SIGTERM", guest.Command{Script: "trap '' TERM; echo early; while :; do sleep 1000; done", Timeout: 300 * time.Millisecond}, guest.Result{ExitCode: 124, TimedOut: true, Stdout: []byte("early\n")}},
		{"stderr that stays open", guest.Command{Script: "sleep 1000 >/dev/null & echo $! >&2"}, guest.Result{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := *b
			b.t = t
			got := b.run(tt.cmd)
			if tt.name == "stderr that stays open" {
				syscall.Kill(atoi(t, strings.TrimSpace(string(got.Stderr))), syscall.SIGKILL)
				got.Stderr = nil
			}
			if got.ExitCode != tt.want.ExitCode || got.Signal != tt.want.Signal || got.TimedOut != tt.want.TimedOut ||
				!bytes.Equal(got.Stdout, tt.want.Stdout) || !bytes.Equal(got.Stderr, tt.want.Stderr) {
				t.Errorf("got %d %s %v %q %q\nwant %d %s %v %q %q", got.ExitCode, got.Signal, got.TimedOut, got.Stdout, got.Stderr,
					tt.want.ExitCode, tt.want.Signal, tt.want.TimedOut, tt.want.Stdout, tt.want.Stderr)
			}
		})
	}
}

func atoi(t *testing.T, text string) (n int) {
	t.Helper()
	if _, err := fmt.Sscan(text, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// Scripts of every size run, and output of every size comes whole and in order.
func TestShellSizes(t *testing.T) {
	b := newBashBox(t, guest.Options{})
	for _, n := range []int{1, maxWord, maxWord + 1, 40 << 10, 127 << 10, 129 << 10, 400 << 10} {
		script := "x='" + strings.Repeat("ä '\\''", n/6) + "'; echo ${#x}; echo -n \"$x\" | md5sum; echo $SHLVL"
		cmd := exec.Command("bash")
		cmd.Stdin, cmd.Env, cmd.Dir = strings.NewReader(strings.ReplaceAll(script, "$SHLVL", "2")), append(os.Environ(), "LC_ALL=C"), "/tmp"
		want, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		got := b.run(guest.Command{Script: script, Env: map[string]string{"LC_ALL": "C"}})
		if string(got.Stdout) != string(want) || got.ExitCode != 0 {
			t.Errorf("a script of %d bytes: got %q, %d, %s, want %q", len(script), got.Stdout, got.ExitCode, got.Stderr, want)
		}
	}
	for _, n := range []int{4095, 4096, 4097, 100_000, 3 << 20} {
		script := fmt.Sprintf("head -c %d /dev/urandom | tee >(md5sum >&2)", n)
		got := b.run(guest.Command{Script: script})
		cmd := exec.Command("md5sum")
		cmd.Stdin = bytes.NewReader(got.Stdout)
		sum, err := cmd.Output()
		if err != nil || len(got.Stdout) != n || len(got.Stderr) > 0 && string(sum) != string(got.Stderr) {
			t.Errorf("%d of %d bytes of output, %s, want %s, %v", len(got.Stdout), n, sum, got.Stderr, err)
		}
	}
	// Both at once.
	got := b.run(guest.Command{Script: "seq 60000 | tee /dev/stderr"})
	if !bytes.Equal(got.Stdout, got.Stderr) || len(got.Stdout) != 348894 {
		t.Errorf("%d and %d bytes", len(got.Stdout), len(got.Stderr))
	}
}

// Callers that come at the same time get each what is theirs, and do not wait for each other.
func TestShellConcurrently(t *testing.T) {
	b := newBashBox(t, guest.Options{})
	dir := t.TempDir()
	var all sync.WaitGroup
	for i := range 12 {
		all.Go(func() {
			// Each waits for the one after it.
			got := b.run(guest.Command{Script: fmt.Sprintf("cd %s; until [ %d = 11 ] || [ -e %d ]; do sleep 0.05; done; touch %d; seq %d000 %d999; echo %d >&2", dir, i, i+1, i, i+1, i+1, i)})
			want, err := exec.Command("seq", fmt.Sprintf("%d000", i+1), fmt.Sprintf("%d999", i+1)).Output()
			if err != nil || !bytes.Equal(got.Stdout, want) || string(got.Stderr) != fmt.Sprintf("%d\n", i) {
				t.Errorf("%d: got %d bytes, %q", i, len(got.Stdout), got.Stderr)
			}
		})
	}
	all.Wait()
}

// What is given up ends in the guest, with all that belongs to it.
func TestShellCancel(t *testing.T) {
	b := newBashBox(t, guest.Options{})
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	p, err := b.client.Start(ctx, guest.Command{Script: "cd " + dir + "; trap 'touch asked' TERM; touch here; sleep 1000 & wait; wait"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.client.WaitFile(t.Context(), dir+"/here", false); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := p.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := b.client.WaitFile(t.Context(), dir+"/asked", false); err != nil {
		t.Fatal(err)
	}
	job, err := b.client.Start(t.Context(), guest.Command{Script: "trap 'echo asked; exit 7' USR1; echo here; sleep 1000 & wait", Job: "job"})
	if err != nil {
		t.Fatal(err)
	}
	for job.Received().Stdout < 5 {
		if err := pause(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	job.Signal(syscall.SIGUSR1)
	if r, err := job.Wait(); err != nil || r.ExitCode != 7 || string(r.Stdout) != "here\nasked\n" {
		t.Errorf("got %+v, %v", r, err)
	}
}

// What cannot be started is an error that says why, and what cannot be had is refused.
func TestShellErrors(t *testing.T) {
	b := newBashBox(t, guest.Options{})
	for _, tt := range []struct {
		cmd        guest.Command
		kind, want string
	}{
		{guest.Command{Script: "true", User: "nobody-at-all"}, wire.KindNotFound, `no user "nobody-at-all" in the guest's /etc/passwd`},
		{guest.Command{Script: "true", Dir: "/no/such"}, wire.KindNotFound, "stat /no/such: no such file or directory"},
		{guest.Command{Script: "true", Dir: "/etc/passwd"}, wire.KindInvalid, "/etc/passwd is not a directory"},
		{guest.Command{Argv: []string{"no-such-program"}}, wire.KindNotFound, "no-such-program: not found in PATH"},
		{guest.Command{Script: "true", Env: map[string]string{"a=b": ""}}, wire.KindInvalid, `environment variable "a=b" cannot be set`},
		{guest.Command{Script: "true", Env: map[string]string{"a-b": ""}}, wire.KindInvalid, `environment variable "a-b" cannot be set`},
		{guest.Command{Script: "a\x00b"}, wire.KindInvalid, "a command cannot contain a NUL byte"},
	} {
		_, err := b.client.Run(t.Context(), tt.cmd)
		var op *guest.OpError
		if !errors.As(err, &op) || op.Kind != tt.kind || !strings.Contains(op.Message, tt.want) {
			t.Errorf("%+v: got %v, want %s %s", tt.cmd, err, tt.kind, tt.want)
		}
	}
	typed, keyboard := io.Pipe()
	defer keyboard.Close()
	_, err := b.client.Terminal(t.Context(), guest.Terminal{Input: typed, Output: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "a terminal needs attest's agent in the guest") {
		t.Errorf("got %v", err)
	}
	if got := b.run(guest.Command{Script: "echo it goes on"}); string(got.Stdout) != "it goes on\n" {
		t.Errorf("got %q", got.Stdout)
	}
}

// Waits see what they wait for, and say what they saw.
func TestShellWaits(t *testing.T) {
	b := newBashBox(t, guest.Options{})
	ctx := t.Context()
	dir := t.TempDir()
	if seen, err := b.client.WaitFile(ctx, dir+"/a b/c", true); !errors.Is(err, guest.ErrNotYet) || seen.Seen != "stat "+dir+"/a b/c: no such file or directory; of the directories above, "+dir+" is there" {
		t.Errorf("got %+v, %v", seen, err)
	}
	waited := make(chan error, 3)
	go func() { _, err := b.client.WaitFile(ctx, dir+"/file", false); waited <- err }()
	socket := filepath.Join(dir, "socket")
	go func() { _, err := b.client.WaitUnixSocket(ctx, socket, false, false); waited <- err }()
	if seen, err := b.client.WaitUnixSocket(ctx, socket, false, true); !errors.Is(err, guest.ErrNotYet) || !strings.Contains(seen.Seen, socket+": there is no socket") {
		t.Errorf("got %+v, %v", seen, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if seen, err := b.client.WaitPort(ctx, "127.0.0.1", port, "", true, false); err != nil || !strings.HasPrefix(seen.Seen, "connected to 127.0.0.1:") {
		t.Errorf("got %+v, %v", seen, err)
	}
	if _, err := b.client.WaitPort(ctx, "localhost", port, "", false, true); !errors.Is(err, guest.ErrNotYet) {
		t.Errorf("got %v", err)
	}
	go func() { _, err := b.client.WaitPort(ctx, "127.0.0.1", port, "", false, false); waited <- err }()
	l.Close()
	if err := os.WriteFile(dir+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	u, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	for range 3 {
		if err := <-waited; err != nil {
			t.Error(err)
		}
	}
	if seen, err := b.client.WaitPort(ctx, "127.0.0.1", port, "", true, true); !errors.Is(err, guest.ErrNotYet) || !strings.Contains(seen.Seen, "Connection refused") {
		t.Errorf("got %+v, %v", seen, err)
	}
	r, err := b.client.RunUntil(ctx, guest.Command{Script: "echo x >> " + dir + "/tries; [ $(wc -l < " + dir + "/tries) = 3 ]"}, guest.UntilOptions{Timeout: time.Minute})
	if err != nil || r.Tries != 3 || !r.Met {
		t.Errorf("got %+v, %v", r, err)
	}
	if err := b.client.SetClock(ctx); err != nil { // it is right
		t.Error(err)
	}
}

// Trees come as they are, files with holes too.
func TestShellCopies(t *testing.T) {
	b := newBashBox(t, guest.Options{})
	ctx, dir := t.Context(), t.TempDir()
	src := filepath.Join(dir, "src")
	holes := make([]byte, 1<<20)
	copy(holes[700_000:], "not a hole")
	err := errors.Join(os.MkdirAll(src+"/sub", 0o750), os.WriteFile(src+"/sub/new\nline", []byte("text"), 0o640),
		os.WriteFile(src+"/empty", nil, 0o600), os.Symlink("sub/nowhere", src+"/link"))
	f, openErr := os.Create(src + "/holes")
	if err := errors.Join(err, openErr); err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("not a hole"), 700_000)
	if err := errors.Join(err, f.Truncate(1<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	r, err := b.client.CopyIn(ctx, src, dir+"/made/for/it")
	if err != nil || r.Files != 4 || r.Bytes != 1<<20+4 {
		t.Fatalf("got %+v, %v", r, err)
	}
	if out, err := exec.Command("diff", "-r", "--no-dereference", src, dir+"/made/for/it").CombinedOutput(); err != nil {
		t.Errorf("%s", out)
	}
	if st, err := os.Stat(dir + "/made/for/it/sub"); err != nil || st.Mode().Perm() != 0o750 {
		t.Errorf("got %v, %v", st.Mode(), err)
	}
	if _, err := b.client.CopyIn(ctx, src+"/holes", dir+"/made/for"); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(dir + "/made/for/holes"); err != nil || !bytes.Equal(got, holes) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	back := filepath.Join(dir, "back")
	if err := os.Mkdir(back, 0o700); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(back)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if r, err := b.client.CopyOut(ctx, dir+"/made/for/it", root); err != nil || r.Files != 4 {
		t.Errorf("got %+v, %v", r, err)
	}
	if out, err := exec.Command("diff", "-r", "--no-dereference", src, back+"/it").CombinedOutput(); err != nil {
		t.Errorf("%s", out)
	}
	if _, err := b.client.CopyOut(ctx, "/no/such/file", root); err == nil || !strings.Contains(err.Error(), "/no/such/file: no such file") {
		t.Errorf("got %v", err)
	}
	if _, err := b.client.CopyIn(ctx, src, "relative"); err == nil || !strings.Contains(err.Error(), `"relative" is not an absolute path`) {
		t.Errorf("got %v", err)
	}
	if _, err := b.client.CopyIn(ctx, src, "/proc/x/y"); err == nil || !strings.Contains(err.Error(), "/proc/x") {
		t.Errorf("got %v", err)
	}
}

// A shell that hangs is an error of everything under way, which says so. When it goes on, so
// does the client, and a shell that announces itself takes over from one that has ended.
func TestShellThatHangs(t *testing.T) {
	b := newBashBox(t, guest.Options{PingAfter: 300 * time.Millisecond, PingTimeout: 3 * time.Second, Echo: 100 * time.Millisecond})
	before, err := b.client.Ready(t.Context())
	if err != nil || before.BootID == "" || !isShell(before.Instance) || before.Uptime <= 0 || before.Kernel == "" {
		t.Errorf("got %+v, %v", before, err)
	}
	shell := atoi(t, string(b.run(guest.Command{Script: "ps -o ppid= -p $PPID"}).Stdout))
	syscall.Kill(shell, syscall.SIGSTOP)
	// That others give up a question is no sign of the guest.
	asking, enough := context.WithTimeout(t.Context(), time.Minute)
	var asked sync.WaitGroup
	asked.Go(func() {
		for asking.Err() == nil {
			once, cancel := context.WithTimeout(asking, 100*time.Millisecond)
			b.client.Echo(once)
			cancel()
		}
	})
	var hangs *guest.UnresponsiveError
	if _, err := b.client.Run(asking, guest.Command{Script: "true"}); !errors.As(err, &hangs) || !strings.Contains(err.Error(), "its root shell sent nothing for") {
		t.Errorf("got %v", err)
	}
	enough()
	asked.Wait()
	if heard, ok := b.door.StandIn(); !ok || heard.IsZero() || time.Since(heard) < 3*time.Second {
		t.Errorf("got %v, %v", heard, ok)
	}
	var late *guest.OverdueError
	if _, err := b.client.Run(t.Context(), guest.Command{Script: "true", Timeout: 100 * time.Millisecond}); !errors.As(err, &late) || !late.Silent || !strings.Contains(err.Error(), "the root shell in the guest has not answered within") {
		t.Errorf("got %v", err)
	}
	syscall.Kill(shell, syscall.SIGCONT)
	if got := b.run(guest.Command{Script: "echo again"}); string(got.Stdout) != "again\n" {
		t.Errorf("got %q", got.Stdout)
	}
	p, err := b.client.Start(t.Context(), guest.Command{Script: "echo here >&2; " + endless, Stderr: writerFunc(func() { syscall.Kill(shell, syscall.SIGKILL); b.start() })})
	if err != nil {
		t.Fatal(err)
	}
	var killed *guest.AgentError
	if _, err := p.Wait(); !errors.As(err, &killed) {
		t.Errorf("got %v", err)
	}
	after, err := b.client.Ready(t.Context())
	if err != nil || after.Instance == before.Instance || after.BootID != before.BootID {
		t.Errorf("got %+v, %v", after, err)
	}
	if got := b.run(guest.Command{Script: "echo new; ps -o ppid= -p $PPID"}); !strings.HasPrefix(string(got.Stdout), "new\n") {
		t.Errorf("got %q", got.Stdout)
	}
	b.run(guest.Command{Script: "pkill -f '" + endless + "$' || :"})
}

// endless is a command that has a name of its own on this host, where other tests run, too.
var endless = fmt.Sprintf("sleep 1000.%d", os.Getpid())

type writerFunc func()

func (f writerFunc) Write(p []byte) (int, error) { f(); return len(p), nil }

// A host that takes over a guest that was saved, with whatever was on its way then, has its
// jobs too.
func TestShellThatWasSaved(t *testing.T) {
	b := newBashBox(t, guest.Options{})
	dir := t.TempDir()
	job, err := b.client.Start(t.Context(), guest.Command{Script: "cd " + dir + "; printf before; until [ -e go ]; do sleep 0.05; done; printf after; exit 5", Job: "thejob"})
	if err != nil {
		t.Fatal(err)
	}
	for job.Received().Stdout < 6 {
		if err := pause(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	before, err := b.client.Ready(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// The host is gone in the middle of a request that has data.
	b.door.out.add(request("in", "x", "1000")[:20])
	b.leave()
	b.take(guest.Options{}, before.Instance)
	after, err := b.client.Ready(t.Context())
	if err != nil || after.Instance != before.Instance {
		t.Fatalf("got %+v, %v; want %+v", after, err, before)
	}
	adopted, err := b.client.Adopt(t.Context(), "thejob", guest.Adoption{Received: guest.Received{Stdout: 6}})
	if err != nil {
		t.Fatal(err)
	}
	b.run(guest.Command{Script: "touch " + dir + "/go"})
	if r, err := adopted.Wait(); err != nil || r.ExitCode != 5 || string(r.Stdout) != "after" {
		t.Errorf("got %+v, %v", r, err)
	}
}
