package attest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/vmm"
)

// Limits of the power operations, scaled like all defaults.
const (
	shutdownTimeout = 5 * time.Minute
	rebootTimeout   = 5 * time.Minute
)

// IsUp says whether the machine runs and has answered.
func (m *Machine) IsUp() bool {
	r := m.running()
	if r == nil {
		return false
	}
	select {
	case <-r.ready:
		return r.readyErr == nil
	default:
		return r.origin != nil // it had answered when it was saved
	}
}

// Shutdown powers the guest off in an orderly way and waits until it is off.
// A machine that is off stays off.
func (m *Machine) Shutdown(ctx context.Context, opts ...Option) error {
	return m.powerOff(ctx, "shutdown", collect(opts), func(ctx context.Context, r *run) error {
		if err := r.awaitReady(ctx); err != nil {
			return err
		}
		err := r.guest.Poweroff(ctx)
		if down := (*DownError)(nil); errors.As(err, &down) {
			return nil // it was quicker than its answer
		}
		return err
	})
}

// WaitForShutdown waits until the guest has powered itself off.
func (m *Machine) WaitForShutdown(ctx context.Context, opts ...Option) error {
	return m.powerOff(ctx, "wait_for_shutdown", collect(opts), nil)
}

func (m *Machine) powerOff(ctx context.Context, operation string, o options, ask func(context.Context, *run) error) error {
	w := wait{m, operation, "", o.limit(m.lab.host, shutdownTimeout), time.Now()}
	return step(ctx, m.Name(), operation, "", func(outer context.Context) error {
		ctx, cancel := context.WithTimeoutCause(outer, w.limit, errWaitOver)
		defer cancel()
		r := m.running()
		if r != nil {
			if err := r.awake(operation); err != nil {
				return err
			}
		}
		err := m.stop(ctx, ask)
		if err != nil {
			m.unask(r)
		}
		if err != nil && context.Cause(ctx) == errWaitOver {
			err = &WaitError{LastSeen: "the machine still runs"}
		}
		if err == nil && r != nil && !r.orderly() {
			m.mu.Lock()
			if m.current == nil {
				m.ended = r // that was not what was waited for
			}
			m.mu.Unlock()
			return m.downError(operation, r.down)
		}
		return w.explain(outer, ctx, r, err)
	})
}

// orderly says whether a run that is over ended as a guest ends it.
func (r *run) orderly() bool {
	if r.machine.console.panicLine() != "" {
		return false // a kernel that panics resets, too
	}
	reason := r.vm.Exit().Reason
	return reason == vmm.PoweredOff || reason == vmm.Reset
}

// unask takes back that the end of a run was asked for: it did not come.
func (m *Machine) unask(r *run) {
	if r == nil {
		return
	}
	m.mu.Lock()
	r.asked = false
	m.mu.Unlock()
}

// Crash ends the machine as by pulling the plug: what the guest had synced is
// on its disk, the rest is lost. The next start boots from that disk.
func (m *Machine) Crash(ctx context.Context) error {
	return step(ctx, m.Name(), "crash", "", func(ctx context.Context) error {
		return m.stop(ctx, func(ctx context.Context, r *run) error {
			if c, ok := r.vm.(vmm.Crasher); ok && c.Crash(ctx) == nil {
				return nil
			}
			return r.vm.Kill()
		})
	})
}

// Reboot restarts the guest in an orderly way and waits until it answers again.
func (m *Machine) Reboot(ctx context.Context, opts ...Option) error {
	o := collect(opts)
	w := wait{m, "reboot", "", o.limit(m.lab.host, rebootTimeout), time.Now()}
	return step(ctx, m.Name(), "reboot", "", func(outer context.Context) error {
		ctx, cancel := context.WithTimeoutCause(outer, w.limit, errWaitOver)
		defer cancel()
		r, err := m.use(ctx, "reboot")
		if err == nil {
			err = r.reboot(ctx)
		}
		return w.explain(outer, ctx, r, err)
	})
}

func (r *run) reboot(ctx context.Context) error {
	rebooter, ok := r.vm.(vmm.Rebooter)
	if !ok {
		return &UnsupportedError{Machine: r.machine.Name(), Operation: "reboot", Backend: r.machine.config.Backend, Can: []string{"qemu"}}
	}
	before, err := r.guest.Ready(ctx)
	if err != nil {
		return err
	}
	if err := rebooter.AllowReboot(ctx, true); err != nil {
		return fmt.Errorf("allow the guest to reset: %w", err)
	}
	if err := r.guest.Reboot(ctx); err != nil {
		return err
	}
	if _, err := r.guest.ReadyAgain(ctx, before); err != nil {
		return err
	}
	if !r.machine.config.AllowReboot {
		return rebooter.AllowReboot(ctx, false)
	}
	return nil
}

// A PausedError is an operation that needs the guest of a machine that Pause has
// stopped.
type PausedError struct{ Machine, Operation string }

func (e *PausedError) Error() string {
	return fmt.Sprintf("%s: %s: the machine is paused; resume it first", e.Machine, e.Operation)
}

// awake refuses an operation on a paused machine: its guest would not answer.
func (r *run) awake(operation string) error {
	m := r.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.paused {
		return &PausedError{m.Name(), operation}
	}
	return nil
}

// Pause stops all vCPUs of a machine that is on: its guest does nothing, and its
// clocks stand still, until Resume. What waits for the guest goes on to wait,
// until its own limit; operations that are called meanwhile and need the guest
// are a *PausedError. Pausing a paused machine does nothing.
func (m *Machine) Pause(ctx context.Context) error { return m.setPaused(ctx, "pause", true) }

// Resume lets a paused machine go on. Its clocks are behind by the pause then.
func (m *Machine) Resume(ctx context.Context) error { return m.setPaused(ctx, "resume", false) }

func (m *Machine) setPaused(ctx context.Context, operation string, pause bool) error {
	return step(ctx, m.Name(), operation, "", func(ctx context.Context) error {
		if err := m.config.Supports(operation, vmm.CanPause); err != nil {
			return err
		}
		m.mu.Lock()
		r, ended := m.current, m.ended
		m.mu.Unlock()
		switch {
		case r == nil && ended != nil:
			return m.downError(operation, ended.down)
		case r == nil:
			return &DownError{Machine: m.Name(), Operation: operation, Reason: "it is off"}
		}
		return r.explain(ctx, operation, r.setPaused(ctx, operation, pause))
	})
}

func (r *run) setPaused(ctx context.Context, operation string, pause bool) error {
	m := r.machine
	p, ok := r.vm.(vmm.Pauser)
	if !ok {
		return &UnsupportedError{Machine: m.Name(), Operation: operation, Backend: m.config.Backend}
	}
	r.pauseMu.Lock()
	defer r.pauseMu.Unlock()
	m.mu.Lock()
	same := r.paused == pause
	m.mu.Unlock()
	if same {
		return nil
	}
	do, state := p.Resume, "running"
	if pause {
		do, state = p.Pause, "paused"
		r.guest.Hold(true) // its silence says nothing now
	}
	err := do(ctx)
	if err != nil {
		pause = !pause
	}
	m.mu.Lock()
	r.paused = pause
	m.mu.Unlock()
	r.guest.Hold(pause)
	if err == nil {
		m.announce(state, "", time.Since(r.started))
	}
	return r.whenGone(err)
}

// panicTimeout is how long a kernel may take to panic when it was asked to, by
// its agent and then by an interrupt.
const panicTimeout = time.Minute

// KernelPanic makes the guest's kernel panic, and waits until the machine is off
// for it. The agent asks for it by SysRq; when it does not answer the machine
// gets an NMI, on which attest's guests panic. The next start boots from the disk
// as the panic left it.
func (m *Machine) KernelPanic(ctx context.Context, opts ...Option) error {
	w := wait{m, "kernel_panic", "", collect(opts).limit(m.lab.host, panicTimeout), time.Now()}
	return step(ctx, m.Name(), w.operation, "", func(outer context.Context) error {
		ctx, cancel := context.WithTimeoutCause(outer, w.limit, errWaitOver)
		defer cancel()
		r, err := m.use(ctx, w.operation)
		if err == nil {
			if err = m.stop(ctx, func(ctx context.Context, r *run) error { return r.panic(ctx, w.limit) }); err != nil {
				m.unask(r)
			}
		}
		if err == nil && m.console.panicLine() == "" && r.vm.Exit().Reason != vmm.Panicked {
			return m.downError(w.operation, r.down) // it ended for another reason
		}
		if err != nil && context.Cause(ctx) == errWaitOver {
			err = &WaitError{LastSeen: "the kernel has not panicked"}
		}
		return w.explain(outer, ctx, r, err)
	})
}

// panic asks for a panic, in every way that there is.
func (r *run) panic(ctx context.Context, limit time.Duration) error {
	soon, cancel := context.WithTimeout(ctx, limit/4)
	defer cancel()
	err := r.guest.Panic(soon)
	if err == nil && r.awaitPanic(soon) || ctx.Err() != nil {
		return context.Cause(ctx)
	}
	i, ok := r.vm.(vmm.Interrupter)
	if !ok {
		return err
	}
	if err := i.InjectNMI(ctx); err != nil {
		return err
	}
	r.awaitPanic(ctx)
	return context.Cause(ctx)
}

// awaitPanic waits until the kernel has said that it panics, or is gone.
func (r *run) awaitPanic(ctx context.Context) bool {
	for {
		changed := r.machine.console.next()
		if r.machine.console.panicLine() != "" {
			return true
		}
		select {
		case <-changed:
		case <-r.over:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// initrdMark is there as long as systemd runs from an initrd (systemd's Initrd
// Interface).
const initrdMark = "/etc/initrd-release"

// SwitchRoot leaves the initrd: it waits for initrd.target, has systemd switch to
// the root file system, and waits until it has. It is for guests whose init is a
// systemd that stays in an initrd until somebody asks; attest's own images boot
// straight into their root.
func (m *Machine) SwitchRoot(ctx context.Context, opts ...Option) error {
	return m.wait(ctx, "switch_root", "", collect(opts), func(ctx context.Context, r *run) error {
		test, err := r.guest.Run(ctx, guest.Command{Argv: []string{"test", "-e", initrdMark}})
		if err != nil {
			return err
		}
		if test.ExitCode != 0 {
			return &UnsupportedError{
				Machine: m.Name(), Operation: "switch_root", Backend: m.config.Backend,
				Reason: "the guest does not run from a systemd initrd (it has no " + initrdMark + "); attest's own images boot straight into their root",
			}
		}
		before, err := r.guest.Ready(ctx)
		if err != nil {
			return err
		}
		state, err := r.guest.WaitUnit(ctx, "initrd.target", "", false)
		if err != nil {
			var hopeless *guest.UnitError
			if errors.As(err, &hopeless) {
				return &WaitError{Reason: "initrd.target " + hopeless.Reason, LastSeen: describeUnit(state)}
			}
			return err
		}
		res, err := r.guest.Run(ctx, guest.Command{Argv: []string{"systemctl", "isolate", "--no-block", "initrd-switch-root.target"}})
		if err == nil && res.ExitCode != 0 {
			err = &WaitError{Reason: "systemctl isolate initrd-switch-root.target: " + strings.TrimSpace(string(res.Stderr))}
		}
		if err != nil {
			return err
		}
		if r.backdoor != nil { // the root has a backdoor of its own, by which it gets another agent
			_, err = r.guest.ReadyAgain(ctx, before)
			return err
		}
		seen := "the guest is still in its initrd"
		for {
			left, err := r.guest.RunUntil(ctx, guest.Command{Argv: []string{"test", "!", "-e", initrdMark}}, guest.UntilOptions{})
			var between *guest.OpError
			if errors.As(err, &between) { // for a moment there is no /dev in which a command could be started
				seen = between.Message
				select {
				case <-time.After(20 * time.Millisecond):
					continue
				case <-ctx.Done():
				}
			}
			if err != nil && context.Cause(ctx) == errWaitOver {
				err = &WaitError{Tries: left.Tries, LastSeen: seen}
			}
			return err
		}
	})
}

// ConsoleLog is what the serial console has said since the machine was started.
func (m *Machine) ConsoleLog() string { return m.console.sinceBoot() }
