package test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest"
)

// TestKernelPanic has kernels panic, with and without the help of the agent.
func TestKernelPanic(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	lab := attest.New(t, attest.MachineConfig{Name: "m", Image: attest.Debian{}, Memory: 256, Networks: []int{}})
	m := lab.Machine("m")
	for name, err := range map[string]error{"pause": m.Machine.Pause(ctx), "resume": m.Machine.Resume(ctx)} {
		if down := errorAs[*attest.DownError](t, err); down.Operation != name || down.Reason != "it is off" {
			t.Errorf("%s of a machine that was never started: %+v", name, down)
		}
	}
	m.Succeed("echo kept > /root/kept; sync")
	m.KernelPanic()
	if m.IsUp() || !strings.Contains(m.ConsoleLog(), "sysrq triggered crash") {
		t.Errorf("up: %v, console:\n%s", m.IsUp(), m.ConsoleLog())
	}

	// An agent that does not answer any more: the kernel panics by an interrupt.
	if got := m.Succeed("cat /root/kept"); got != "kept\n" {
		t.Errorf("after the panic: %q", got)
	}
	m.Execute("sleep 0.5; kill -STOP $(pgrep -o -f '^@')", attest.Detach())
	if err := m.Machine.WaitForFile(ctx, "/never", attest.Timeout(5*time.Second)); err == nil {
		t.Error("a file that is not there")
	}
	m.KernelPanic(attest.Timeout(time.Minute))
	if got := m.Succeed("cat /root/kept"); got != "kept\n" {
		t.Errorf("after the second panic: %q", got)
	}
}

// TestReboots lets a guest reboot by itself, or ends it when it does.
func TestReboots(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	lab := attest.New(t, attest.MachineConfig{Name: "m", Image: attest.Debian{}, Memory: 256, Networks: []int{}})
	m := lab.Machine("m")
	const bootID = "cat /proc/sys/kernel/random/boot_id"
	m.Start(attest.StartOptions{AllowReboot: true})
	before := m.Succeed(bootID)
	m.WaitForUnit("multi-user.target")
	m.Execute("systemctl reboot", attest.Detach())
	for after := before; after == before; { // commands fail while it goes down
		if r, err := m.Machine.Execute(ctx, bootID); err == nil && r.ExitCode == 0 {
			after = r.Stdout
		} else if ctx.Err() != nil {
			t.Fatal(err)
		}
	}

	// A wait that is too short says so, and one that is given up; the machine goes on.
	err := m.Machine.WaitForShutdown(ctx, attest.Timeout(200*time.Millisecond))
	if e := errorAs[*attest.WaitError](t, err); !e.Timeout() || e.Operation != "wait_for_shutdown" {
		t.Errorf("got %+v", e)
	}
	short, stop := context.WithTimeout(ctx, 200*time.Millisecond)
	defer stop()
	if err := lab.Lab.JoinAll(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("join_all: %v", err)
	}
	err = m.Machine.SwitchRoot(ctx)
	if e := errorAs[*attest.UnsupportedError](t, err); e.Operation != "switch_root" || !strings.Contains(e.Reason, "initrd") || attest.StatusOf(err) != attest.Unsupported {
		t.Errorf("got %+v", e)
	}
	m.Succeed("true")
	m.WaitForUnit("multi-user.target")
	m.Execute("systemctl poweroff", attest.Detach())
	lab.JoinAll()
}

// TestSwitchRoot leaves the initrd of a guest whose systemd believes to be in one.
func TestSwitchRoot(t *testing.T) {
	t.Parallel()
	image := attest.Debian{
		Files: map[string]attest.File{
			"/etc/initrd-release": {Content: "ID=test\n"},
			// This one would leave the initrd unasked.
			"/etc/systemd/system/initrd-cleanup.service.d/stay.conf": {Content: "[Service]\nExecStart=\nExecStart=true\n"},
			"/etc/systemd/system/sysroot.service": {Content: `[Unit]
DefaultDependencies=no
Before=initrd-root-fs.target
[Service]
Type=oneshot
ExecStart=sh -c 'mkdir -p /run/o/upper /run/o/work && mount -t overlay overlay -o lowerdir=/,upperdir=/run/o/upper,workdir=/run/o/work /sysroot && rm /sysroot/etc/initrd-release && echo switched > /sysroot/etc/switched'
`},
		},
		Run: []string{"mkdir -p /sysroot /etc/systemd/system/initrd-root-fs.target.requires && ln -s ../sysroot.service /etc/systemd/system/initrd-root-fs.target.requires/"},
	}
	lab := attest.New(t, attest.MachineConfig{Name: "m", Image: image, Memory: 256, Networks: []int{}})
	m := lab.Machine("m")
	m.Succeed("test -e /etc/initrd-release")
	m.SwitchRoot(attest.Timeout(patience))
	if got := m.Succeed("cat /etc/switched"); got != "switched\n" {
		t.Errorf("got %q", got)
	}
	m.WaitForUnit("multi-user.target")
}
