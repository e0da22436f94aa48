package test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attest-vm/attest"
)

// Images that the examples use, too.
var (
	nginx = attest.Debian{Packages: []string{"nginx"}}
	curl  = attest.Debian{Packages: []string{"curl"}}
)

// TestOperations tries the operations of machines on two that stay up. Those
// that change a machine's power are in TestPower.
func TestOperations(t *testing.T) {
	t.Parallel()
	lab := attest.New(t,
		attest.MachineConfig{Name: "server", Image: nginx, Memory: 256, Networks: []int{1, 2}},
		attest.MachineConfig{Name: "client", Image: curl, Memory: 256, Networks: []int{1, 2}},
	)
	lab.StartAll()
	server, client := lab.Machine("server"), lab.Machine("client")
	server.WaitForUnit("multi-user.target")
	client.WaitForUnit("multi-user.target")
	for _, test := range []struct {
		name string
		run  func(*testing.T, tried)
	}{
		{"commands", testCommands},
		{"errors of commands", testCommandErrors},
		{"background", testBackground},
		{"timeout", testTimeout},
		{"output", testOutput},
		{"concurrent commands", testConcurrentCommands},
		{"units", testUnits},
		{"ports", testPorts},
		{"files that appear", testWaitForFile},
		{"wait until", testWaitUntil},
		{"console", testConsole},
		{"copies", testCopies},
		{"copies that fail", testCopyErrors},
		{"sleep", testSleep},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, tried{client.Machine, t}) })
	}
	t.Run("names", func(t *testing.T) { testNames(t, tried{server.Machine, t}, tried{client.Machine, t}) })
}

// tried is a machine whose operations are tried in a subtest.
type tried struct {
	*attest.Machine
	t *testing.T
}

func (m tried) succeed(script string, opts ...attest.Option) string {
	m.t.Helper()
	out, err := m.Succeed(m.t.Context(), script, opts...)
	if err != nil {
		m.t.Fatalf("%v\n%s", err, attest.FailureOf(err).Stderr)
	}
	return out
}

func (m tried) execute(script string, opts ...attest.Option) attest.Result {
	m.t.Helper()
	r, err := m.Execute(m.t.Context(), script, opts...)
	if err != nil {
		m.t.Fatal(err)
	}
	return r
}

// errorAs fails the test unless err is of type E.
func errorAs[E error](t *testing.T, err error) E {
	t.Helper()
	var e E
	if !errors.As(err, &e) {
		t.Fatalf("got %v (%T), want a %T", err, err, e)
	}
	return e
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
	if got := m.succeed("cat; pwd; echo $COLOR; whoami",
		attest.Stdin(strings.NewReader("from the host\n")), attest.Dir("/usr"), attest.Env("COLOR", "blue"), attest.User("nobody")); got != "from the host\n/usr\nblue\nnobody\n" {
		t.Errorf("with options: %q", got)
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
	r := m.execute("touch /tmp/detached; sleep 99999", attest.Detach())
	if r.ExitCode != -2 || r.Stdout != "" {
		t.Errorf("detached: %+v", r)
	}
	m.succeed("until test -e /tmp/detached; do sleep 0.05; done; pkill -f '^sleep 99999'")
}

// A command whose time is over ends with all that it started.
func testTimeout(t *testing.T, m tried) {
	r := m.execute("echo begun; sleep 88888 | sleep 88888", attest.Timeout(2*time.Second))
	if r.ExitCode != 124 || !r.TimedOut || r.Stdout != "begun\n" {
		t.Errorf("got %+v", r)
	}
	if left := m.execute("pgrep -a -f '^sleep 88888'"); left.ExitCode != 1 {
		t.Errorf("still there: %s", left.Stdout)
	}
	r = m.execute("trap '' TERM; sleep 88888; sleep 88888", attest.Timeout(2*time.Second)) // deaf to SIGTERM
	if r.ExitCode != 124 || !r.TimedOut {
		t.Errorf("got %+v", r)
	}
	_, err := m.Succeed(t.Context(), "sleep 88888", attest.Timeout(time.Second))
	if e := errorAs[*attest.CommandError](t, err); !e.Result.TimedOut || !strings.Contains(err.Error(), "timed out after") {
		t.Errorf("got %v", err)
	}
	// A caller who goes away takes the command along.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	result := make(chan error)
	go func() {
		_, err := m.Execute(ctx, "touch /tmp/canceled; exec sleep 77777")
		result <- err
	}()
	m.succeed("until test -e /tmp/canceled; do sleep 0.05; done")
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	m.succeed("while pgrep -f '^sleep 77777'; do sleep 0.05; done", attest.Timeout(patience))
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
	// As text, what is not UTF-8 is replaced.
	if got := m.succeed(`printf 'a\0b\377c'`); got != "a\x00b\uFFFDc" {
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

func testUnits(t *testing.T, m tried) {
	ctx := t.Context()
	if err := m.WaitForUnit(ctx, "dbus.service"); err != nil {
		t.Error(err)
	}
	// One that starts later.
	m.succeed("systemd-run --no-block --unit=later --property=Type=notify --property=NotifyAccess=all bash -c 'until test -e /tmp/start-it; do sleep 0.05; done; systemd-notify --ready; sleep 99999'")
	waited := make(chan error, 1)
	go func() { waited <- m.WaitForUnit(ctx, "later.service") }()
	m.succeed(`until test "$(systemctl is-active later.service)" = activating; do sleep 0.05; done; touch /tmp/start-it`)
	if err := <-waited; err != nil {
		t.Error(err)
	}

	// These can never become active, which is known at once and not after 15 minutes.
	m.succeed("systemd-run --wait --unit=broken bash -c 'echo why it is broken; exit 3' || true")
	for unit, reason := range map[string]string{
		"broken.service":  `"failed"`,
		"no-such.service": "no-such.service",
		"rescue.service":  "inactive",
	} {
		err := m.WaitForUnit(ctx, unit)
		e := errorAs[*attest.WaitError](t, err)
		if e.Reason == "" || e.Timeout() || !strings.Contains(err.Error(), reason) || attest.StatusOf(err) != attest.Failed {
			t.Errorf("%s: %+v, want %s", unit, e, reason)
		}
		if unit == "broken.service" && !hasDetail(e, "journal of broken.service", "why it is broken") {
			t.Errorf("no journal in %+v", e.Details)
		}
	}

	if r, err := m.Systemctl(ctx, "is-active broken.service"); err != nil || r.ExitCode != 3 || r.Stdout != "failed\n" {
		t.Errorf("systemctl: %+v, %v", r, err)
	}
	if r, err := m.Systemctl(ctx, "show --property=User user@0.service"); err != nil || r.ExitCode != 0 || r.Stdout != "User=0\n" {
		t.Errorf("systemctl: %+v, %v", r, err)
	}
}

func hasDetail(e *attest.WaitError, title, text string) bool {
	for _, d := range e.Details {
		if d.Title == title && strings.Contains(d.Text, text) {
			return true
		}
	}
	return false
}

func testPorts(t *testing.T, m tried) {
	ctx := t.Context()
	m.succeed("systemd-run --unit=listener systemd-socket-activate --accept --inetd -l '[::]:4444' cat")
	for _, opts := range [][]attest.Option{nil, {attest.Address("127.0.0.1")}, {attest.Address("::1")}, {attest.Address("client")}} {
		if err := m.WaitForOpenPort(ctx, 4444, opts...); err != nil {
			t.Error(err)
		}
	}
	m.succeed("systemctl stop listener.service")
	if err := m.WaitForClosedPort(ctx, 4444); err != nil {
		t.Error(err)
	}
	err := m.WaitForOpenPort(ctx, 4444, attest.Timeout(500*time.Millisecond))
	if e := errorAs[*attest.WaitError](t, err); !e.Timeout() || e.Operation != "wait_for_open_port" || e.Args != "4444" {
		t.Errorf("got %+v", e)
	}
	if err := m.WaitForOpenPort(ctx, 70000); attest.StatusOf(err) != attest.Invalid {
		t.Errorf("got %v", err)
	}
}

func testWaitForFile(t *testing.T, m tried) {
	ctx := t.Context()
	waited := make(chan error, 1)
	go func() { waited <- m.WaitForFile(ctx, "/tmp/not/yet/there") }()
	m.succeed("mkdir /tmp/not; mkdir /tmp/not/yet; touch /tmp/not/yet/there")
	if err := <-waited; err != nil {
		t.Error(err)
	}
	err := m.WaitForFile(ctx, "/tmp/never", attest.Timeout(300*time.Millisecond))
	if e := errorAs[*attest.WaitError](t, err); !e.Timeout() || e.Limit != 300*time.Millisecond || e.Elapsed < e.Limit {
		t.Errorf("got %+v", e)
	}
}

func testWaitUntil(t *testing.T, m tried) {
	ctx := t.Context()
	const third = "echo x >> /tmp/tries; test $(wc -l < /tmp/tries) -ge 3; echo now"
	if out, err := m.WaitUntilSucceeds(ctx, third); err != nil || out != "now\n" {
		t.Errorf("got %q, %v", out, err)
	}
	if out, err := m.WaitUntilFails(ctx, "echo again; rm /tmp/tries"); err != nil || out != "again\n" {
		t.Errorf("got %q, %v", out, err)
	}
	_, err := m.WaitUntilSucceeds(ctx, "echo out; echo not yet >&2; exit 4", attest.Timeout(2*time.Second))
	e := errorAs[*attest.WaitError](t, err)
	if !e.Timeout() || e.Tries < 1 || e.Result == nil || e.Result.ExitCode != 4 || e.Result.Stdout != "out\n" || e.LastSeen != "exit code 4: not yet" {
		t.Errorf("got %+v, result %+v", e, e.Result)
	}
	// An attempt that hangs is ended by the wait's own limit.
	_, err = m.WaitUntilSucceeds(ctx, "sleep 66666", attest.Timeout(time.Second))
	if e := errorAs[*attest.WaitError](t, err); !e.Timeout() {
		t.Errorf("got %+v", e)
	}
	m.succeed("while pgrep -f '^sleep 66666'; do sleep 0.05; done", attest.Timeout(patience))
}

func testConsole(t *testing.T, m tried) {
	ctx := t.Context()
	m.succeed("echo the console says 42 > /dev/console")
	if err := m.WaitForConsoleText(ctx, `^the console says \d+$`); err != nil {
		t.Error(err)
	}
	if log := m.ConsoleLog(); !strings.Contains(log, "the console says 42") || !strings.Contains(log, "Multi-User System") {
		t.Errorf("console:\n%s", log)
	}
	err := m.WaitForConsoleText(ctx, "never said", attest.Timeout(300*time.Millisecond))
	if e := errorAs[*attest.WaitError](t, err); !e.Timeout() || e.LastSeen == "" {
		t.Errorf("got %+v", e)
	}
	if err := m.WaitForConsoleText(ctx, "("); attest.StatusOf(err) != attest.Invalid {
		t.Errorf("got %v", err)
	}
}

// A tree comes back as it was sent: modes, symbolic links, empty files, and
// names that are hard to write.
func testCopies(t *testing.T, m tried) {
	ctx := t.Context()
	tree := filepath.Join(t.TempDir(), "tree")
	makeTree(t, tree)
	if err := m.CopyFromHost(ctx, tree, "/srv/made/for/it"); err != nil {
		t.Fatal(err)
	}
	if got, want := m.succeed("cd /srv/made/for/it; stat -c '%a %F' program sub link empty; readlink link; cat sub/$'new\\nline'; sha256sum < big"),
		"750 regular file\n711 directory\n777 symbolic link\n644 regular empty file\nsub/nowhere\ntext\n"; !strings.HasPrefix(got, want) {
		t.Errorf("in the guest:\n%s", got)
	}
	back := t.TempDir()
	if err := m.CopyFromMachine(ctx, "/srv/made/for/it", back); err != nil {
		t.Fatal(err)
	}
	if got, want := listTree(t, filepath.Join(back, "it")), listTree(t, tree); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	// One file, into a directory and to a name.
	if err := errors.Join(m.CopyFromHost(ctx, filepath.Join(tree, "program"), "/srv"), m.CopyFromHost(ctx, filepath.Join(tree, "program"), "/srv/renamed")); err != nil {
		t.Fatal(err)
	}
	if got := m.succeed("cmp /srv/program /srv/renamed; /srv/renamed"); got != "a program\n" {
		t.Errorf("got %q", got)
	}
}

func makeTree(t *testing.T, dir string) {
	t.Helper()
	big := make([]byte, 3<<20)
	for i := range big {
		big[i] = byte(i * i >> 7)
	}
	err := errors.Join(
		os.MkdirAll(filepath.Join(dir, "sub"), 0o711),
		os.WriteFile(filepath.Join(dir, "program"), []byte("#!/bin/sh\necho a program\n"), 0o750),
		os.WriteFile(filepath.Join(dir, "empty"), nil, 0o644),
		os.WriteFile(filepath.Join(dir, "big"), big, 0o600),
		os.WriteFile(filepath.Join(dir, "sub", "new\nline"), []byte("text\n"), 0o444),
		os.WriteFile(filepath.Join(dir, "sub", "ünï cödé $(false) 'q'"), []byte{0}, 0o644),
		os.Symlink("sub/nowhere", filepath.Join(dir, "link")),
		os.Chmod(filepath.Join(dir, "sub"), 0o711), // whatever the umask
		os.Chmod(filepath.Join(dir, "program"), 0o750),
	)
	if err != nil {
		t.Fatal(err)
	}
}

// listTree is a tree as text: names, modes, contents.
func listTree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%q %v", name, info.Mode())
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			fmt.Fprintf(&b, " %d %x %v", len(data), sha256.Sum256(data), err)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			fmt.Fprintf(&b, " %s %v", target, err)
		}
		b.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func testCopyErrors(t *testing.T, m tried) {
	ctx := t.Context()
	if err := m.CopyFromHost(ctx, "/no/such/file", "/tmp/x"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "/no/such/file") {
		t.Errorf("got %v", err)
	}
	if err := m.CopyFromHost(ctx, "main_test.go", "relative/path"); err == nil || !strings.Contains(err.Error(), "relative/path") {
		t.Errorf("got %v", err)
	}
	dir := t.TempDir()
	if err := m.CopyFromMachine(ctx, "/no/such/file", dir); err == nil || !strings.Contains(err.Error(), "/no/such/file") || attest.StatusOf(err) != attest.Failed {
		t.Errorf("got %v", err)
	}
	// Where there is no space: an error, and the machine goes on.
	m.succeed("mkdir /tmp/tiny; mount -t tmpfs -o size=64k tmpfs /tmp/tiny")
	big := writeFile(t, filepath.Join(dir, "big"), strings.Repeat("x", 1<<20))
	if err := m.CopyFromHost(ctx, big, "/tmp/tiny/big"); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("got %v", err)
	}
	m.succeed("umount /tmp/tiny")
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

// Machines reach each other by name, and by each of their addresses on both
// networks, over IPv4 and IPv6, in both directions.
func testNames(t *testing.T, server, client tried) {
	if err := server.WaitForOpenPort(t.Context(), 80); err != nil {
		t.Fatal(err)
	}
	client.succeed("systemd-run --unit=echo systemd-socket-activate --accept --inetd -l '[::]:7777' echo hello from the client")
	if err := client.WaitForOpenPort(t.Context(), 7777); err != nil {
		t.Fatal(err)
	}
	for _, family := range []string{"-4", "-6"} {
		if got := client.succeed("curl -sSf --max-time 60 " + family + " http://server/"); !strings.Contains(got, "Welcome to nginx") {
			t.Errorf("curl %s: %q", family, got)
		}
	}
	if len(server.Addresses()) != 4 {
		t.Errorf("addresses of the server: %v", server.Addresses())
	}
	for _, a := range server.Addresses() {
		host := a.String()
		if a.Is6() {
			host = "[" + host + "]"
		}
		client.succeed("curl -sSf --max-time 60 -o /dev/null http://" + host + "/")
	}
	for _, host := range append([]any{"client"}, client.Addresses()[0], client.Addresses()[3]) {
		if got := server.succeed(fmt.Sprintf("timeout 60 cat < /dev/tcp/%v/7777", host)); got != "hello from the client\n" {
			t.Errorf("from %v: %q", host, got)
		}
	}
	if got := server.succeed("hostname; cat /etc/hostname"); got != "server\nserver\n" {
		t.Errorf("the server is called %q", got)
	}
}

// TestPower ends a machine in every way, in the middle of a wait, and starts it
// again on the disk that it left.
func TestPower(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	lab := attest.New(t, attest.MachineConfig{Name: "m", Image: attest.Debian{}, Memory: 256})
	m := lab.Machine("m")
	m.Succeed("echo kept > /root/kept; sync")

	for _, tt := range []struct {
		name   string
		end    func() error
		reason string // regexp
	}{
		{"panic", func() error {
			m.Machine.Execute(ctx, "echo c > /proc/sysrq-trigger") // never answered
			return nil
		}, "^Kernel panic - not syncing: sysrq triggered crash"},
		{"poweroff", func() error {
			_, err := m.Machine.Execute(ctx, "systemctl poweroff --force", attest.Detach())
			return err
		}, "^powered off"},
		{"crash", func() error { return m.Machine.Crash(ctx) }, "."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			waits := []func() error{
				func() error { return m.Machine.WaitForFile(ctx, "/never") },
				func() error { return m.Machine.WaitForOpenPort(ctx, 9) },
				func() error { return m.Machine.WaitForConsoleText(ctx, "never said") },
			}
			if tt.name != "poweroff" { // there systemd ends commands first, and they say so
				waits = append(waits, func() error { _, err := m.Machine.Succeed(ctx, "sleep 99999"); return err })
			}
			ended := make(chan error, len(waits))
			for _, wait := range waits {
				go func() { ended <- wait() }()
			}
			if _, err := m.Machine.Succeed(ctx, "true"); err != nil {
				t.Fatal(err)
			}
			if err := tt.end(); err != nil {
				t.Fatal(err)
			}
			for range waits {
				err := <-ended
				var down *attest.DownError
				if !errors.As(err, &down) {
					t.Errorf("got %v (%T), want a *DownError", err, err)
				} else if !regexp.MustCompile(tt.reason).MatchString(down.Reason) || down.Machine != "m" || down.Operation == "" || attest.StatusOf(err) != attest.Failed {
					t.Errorf("got %+v", down)
				}
			}
			if m.IsUp() {
				t.Error("the machine is still up")
			}
			if tt.name != "crash" { // it went down without being asked to, so it is not started behind the test's back
				_, err := m.Machine.Succeed(ctx, "true")
				errorAs[*attest.DownError](t, err)
			}
			if err := m.Machine.Start(ctx); err != nil {
				t.Fatal(err)
			}
			if out, err := m.Machine.Succeed(ctx, "cat /root/kept"); err != nil || out != "kept\n" {
				t.Errorf("after the next start: %q, %v", out, err)
			}
		})
	}
}

// TestGuestWithoutSystemd boots a root that is one static program.
func TestGuestWithoutSystemd(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "sbin"), 0o755); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(root, "sbin/init"), "./testdata/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := errors.Join(os.Symlink("sbin", filepath.Join(root, "bin")), os.Symlink("init", filepath.Join(root, "sbin/sh"))); err != nil {
		t.Fatal(err)
	}
	lab := attest.New(t, attest.MachineConfig{Name: "small", Image: attest.Rootfs{Path: root}, Memory: 256})
	m := lab.Machine("small")
	m.WaitForConsoleText("the init of this guest runs")
	if got := m.Succeed("a script for a shell"); !strings.Contains(got, "a script for a shell") {
		t.Errorf("got %q", got)
	}
	m.CopyFromHost("main_test.go", "/copies/x")
	m.WaitForFile("/copies/x")
	back := t.TempDir()
	m.CopyFromMachine("/copies/x", back)
	want, _ := os.ReadFile("main_test.go")
	if got, err := os.ReadFile(filepath.Join(back, "x")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the copy has %d bytes, %v; want %d", len(got), err, len(want))
	}
	err := m.Machine.WaitForUnit(t.Context(), "x.service")
	if e := errorAs[*attest.WaitError](t, err); !strings.Contains(e.Reason, "init is not systemd") {
		t.Errorf("wait_for_unit: %v", err)
	}
	m.Reboot()
	m.WaitForFile("/copies/x")
	m.Shutdown()
	if m.IsUp() {
		t.Error("it is still up after shutdown")
	}
}
