package test

import (
	"bytes"
	"context"
	"errors"
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

// TestPower ends machines in the middle of waits, and starts one again on the disk that it
// left. TestPanic has guests panic.
func TestPower(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	lab := attest.New(t, small("m"))
	lab.Machine("m").Succeed("echo kept > /root/kept; sync")
	state := lab.Snapshot()
	lab.Machine("m").Crash()

	for _, tt := range []struct {
		name   string
		end    func(*attest.Machine) error
		reason string // regexp
	}{
		{"poweroff", func(m *attest.Machine) error { return m.Detach(ctx, "systemctl poweroff --force") }, "^powered off"},
		{"crash", func(m *attest.Machine) error { return m.Crash(ctx) }, "."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := state.Fork(t).Machine("m").Machine
			waits := []func() error{
				func() error { return m.WaitForFile(ctx, "/never") },
				func() error { return m.WaitForOpenPort(ctx, 9) },
				func() error { return m.WaitForConsoleText(ctx, "never said") },
				func() error { _, err := m.Succeed(ctx, "sleep 99999"); return err },
				func() error { _, err := m.Fail(ctx, "trap 'exit 3' TERM; sleep 99999 & wait"); return err },
			}
			ended := make(chan error, len(waits))
			for _, wait := range waits {
				go func() { ended <- wait() }()
			}
			if _, err := m.Succeed(ctx, "true"); err != nil {
				t.Fatal(err)
			}
			if err := tt.end(m); err != nil {
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
			if tt.name == "crash" {
				return
			}
			// It went down without being asked to, so it is not started behind the test's back.
			_, err := m.Succeed(ctx, "true")
			errorAs[*attest.DownError](t, err)
			if err := m.Start(ctx); err != nil {
				t.Fatal(err)
			}
			if out, err := m.Succeed(ctx, "cat /root/kept"); err != nil || out != "kept\n" {
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
