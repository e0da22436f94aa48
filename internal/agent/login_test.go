package agent

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/attest-vm/attest/internal/wire"
)

// Gettys are started anew, and nobody is told that they were restarted, unless they are
// more often than that.
func TestRenewLogins(t *testing.T) {
	proc := t.TempDir()
	process := func(name, groups string) *exec.Cmd {
		t.Helper()
		c := exec.Command("sleep", "4321")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			c.Process.Kill()
			c.Wait()
		})
		dir := filepath.Join(proc, strconv.Itoa(c.Process.Pid))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for file, text := range map[string]string{"comm": name, "cgroup": groups} {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return c
	}
	other := process("sh\n", "0::/system.slice/app.service\n")
	for _, getty := range []*exec.Cmd{
		process("agetty\n", "0::/system.slice/system-getty.slice/getty@tty1.service\n"),
		process("agetty\n", "2:pids:/\n1:name=systemd:/system.slice/serial-getty@ttyS0.service\n"),
		process("getty\n", ""),
	} {
		defer func() {
			if err := getty.Wait(); err == nil || err.Error() != "signal: hangup" {
				t.Errorf("a getty ended with %v", err)
			}
		}()
	}
	var l logins
	l.renew(proc)
	other.Process.Kill()
	if err := other.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("another process ended with %v", err)
	}
	unit := func(name, active, sub string, restarts uint32) wire.Trouble {
		return wire.Trouble{Unit: name, ActiveState: active, SubState: sub, Restarts: restarts}
	}
	got := l.without([]wire.Trouble{
		unit("app.service", "active", "running", 1),
		unit("getty@tty1.service", "active", "running", 1),
		unit("serial-getty@ttyS0.service", "activating", "auto-restart", 0),
		unit("getty@tty1.service", "active", "running", 3),
		unit("getty@tty1.service", "activating", "auto-restart", 1),
		unit("getty@tty1.service", "failed", "failed", 1),
	})
	if diff := cmp.Diff([]wire.Trouble{
		unit("app.service", "active", "running", 1),
		unit("getty@tty1.service", "active", "running", 2),
		unit("getty@tty1.service", "activating", "auto-restart", 0),
		unit("getty@tty1.service", "failed", "failed", 0),
	}, got); diff != "" {
		t.Error(diff)
	}
}
