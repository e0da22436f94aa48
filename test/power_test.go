package test

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
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
	state := lab.Snapshot()
	m.KernelPanic()
	if m.IsUp() || !strings.Contains(m.ConsoleLog(), "sysrq triggered crash") {
		t.Errorf("up: %v, console:\n%s", m.IsUp(), m.ConsoleLog())
	}
	if got := m.Succeed("cat /root/kept"); got != "kept\n" {
		t.Errorf("after the panic: %q", got)
	}

	// An agent that does not answer any more: the kernel panics by an interrupt.
	m = state.Fork(t).Machine("m")
	m.Detach("sleep 0.5; kill -STOP $(pgrep -o -f '^@')")
	if err := m.Machine.WaitForFile(ctx, "/never", attest.Timeout(5*time.Second)); err == nil {
		t.Error("a file that is not there")
	}
	// The kernel's driver of pvpanic tells it, before a kernel that panics in an interrupt says
	// so on its console.
	m.KernelPanic(attest.Timeout(time.Minute))
	if m.IsUp() {
		t.Error("the machine is up after an interrupt that panics")
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
	m.Start(attest.AllowReboot())
	before := m.Succeed(bootID)
	m.WaitForUnit("multi-user.target")
	m.Detach("systemctl reboot")
	// The wait goes on over the reboot, of which it sees the end of the first boot.
	m.WaitUntilSucceeds("! grep -q " + strings.TrimSpace(before) + " /proc/sys/kernel/random/boot_id")
	m.WaitForReboot() // which has come

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
	m.Detach("systemctl poweroff")
	lab.JoinAll()
}

// When the VMM is killed under an operation of its own, the host is broken; the
// test is not to blame.
func TestKillVMM(t *testing.T) {
	t.Parallel()
	started := make(chan string, 100)
	bus := &event.Bus{}
	bus.Subscribe(func(r event.Record) {
		if e, ok := r.Event.(event.StepStarted); ok {
			started <- e.Operation
		}
	})
	ctx := event.WithBus(t.Context(), bus)
	for name, operation := range map[string]func(*attest.Machine) error{
		"block":    func(m *attest.Machine) error { return m.Block(ctx) },
		"send_key": func(m *attest.Machine) error { return m.SendKey(ctx, "a") },
		"pause":    func(m *attest.Machine) error { return m.Pause(ctx) },
	} {
		// Each in a lab of its own, which starts from a snapshot.
		lab := openLab(ctx, t, attest.HostConfig{}, attest.LabConfig{Machines: []attest.MachineConfig{small("m")}})
		m := lab.Machine("m")
		must(t, m.Start(ctx))
		qemu := qemuOf(t, lab, "m")
		must(t, syscall.Kill(qemu.pid, syscall.SIGSTOP)) // so that it does not answer before its end
		ended := make(chan error, 1)
		go func() { ended <- operation(m) }()
		for <-started != name {
		}
		select {
		case err := <-ended:
			t.Fatalf("%s: %v, from a VMM that stands still", name, err)
		case <-time.After(50 * time.Millisecond):
		}
		kill(t, qemu)
		err := <-ended
		if down := errorAs[*attest.DownError](t, err); attest.StatusOf(err) != attest.Infra || down.Operation != name {
			t.Errorf("%s: %v: %v", name, attest.StatusOf(err), err)
		}
		must(t, m.Unblock(ctx))
	}
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
