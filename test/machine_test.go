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
	"testing"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/access"
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
		{"copies", testCopies},
		{"copies that fail", testCopyErrors},
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

func (m tried) succeed(script string, opts ...attest.CommandOption) string {
	m.t.Helper()
	out, err := m.Succeed(m.t.Context(), script, opts...)
	if err != nil {
		m.t.Fatalf("%v\n%s", err, access.Failure(err).Stderr)
	}
	return out
}

func (m tried) execute(script string, opts ...attest.CommandOption) attest.Result {
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
			return m.Machine.Detach(ctx, "systemctl poweroff --force")
		}, "^powered off"},
		{"crash", func() error { return m.Machine.Crash(ctx) }, "."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			waits := []func() error{
				func() error { return m.Machine.WaitForFile(ctx, "/never") },
				func() error { return m.Machine.WaitForOpenPort(ctx, 9) },
				func() error { return m.Machine.WaitForConsoleText(ctx, "never said") },
				func() error { _, err := m.Machine.Succeed(ctx, "sleep 99999"); return err },
				func() error { _, err := m.Machine.Fail(ctx, "trap 'exit 3' TERM; sleep 99999 & wait"); return err },
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
