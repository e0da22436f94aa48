package attest

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/vmm"
)

// Limits of the power operations, scaled like all defaults.
const (
	shutdownTimeout = 5 * time.Minute
	rebootTimeout   = 5 * time.Minute
)

// IsUp reports whether the machine runs and has answered.
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
// The agent asks the guest's init. When it does not answer within a quarter of the
// limit, the machine's power button is pressed, or Ctrl-Alt-Del on a Firecracker, which has
// no button. A machine that is off stays off.
func (m *Machine) Shutdown(ctx context.Context, opts ...WaitOption) error {
	return m.powerOff(ctx, "shutdown", collect(opts), func(ctx context.Context, r *run, limit time.Duration) error {
		if err := r.awaitReady(ctx); err != nil {
			return err
		}
		what, press, release := r.button()
		asking := ctx
		if press != nil {
			soon, cancel := context.WithTimeout(ctx, limit/4)
			defer cancel()
			asking = soon
		}
		err := r.guest.Poweroff(asking)
		if down := (*DownError)(nil); err == nil || errors.As(err, &down) { // quicker than its answer
			return nil
		}
		if press == nil || ctx.Err() != nil || asking.Err() == nil && !silent(err) {
			return err
		}
		if err := press(ctx); err != nil {
			return r.whenGone(err)
		}
		select {
		case <-r.over:
			return nil
		case <-ctx.Done():
			release()
			return &WaitError{LastSeen: "its agent did not answer, " + what + ", and the machine still runs"}
		}
	})
}

// silent reports whether an error is an agent that did not answer.
func silent(err error) bool {
	var unresponsive *guest.UnresponsiveError
	var late *guest.OverdueError
	var disconnected *guest.DisconnectedError // nobody welcomes a new connection
	return errors.As(err, &unresponsive) || errors.As(err, &late) || errors.As(err, &disconnected)
}

// button is what asks a guest to end without its agent, and what was done then, for people; nil:
// the machine has nothing of that. release is for a guest that has not ended.
func (r *run) button() (what string, press func(context.Context) error, release func()) {
	if b, ok := vmm.As[vmm.PowerButton](r.vm); ok {
		return "the power button was pressed", b.PressPower, func() {}
	}
	k, ok := vmm.As[vmm.CtrlAltDel](r.vm)
	rebooter, resets := vmm.As[vmm.Rebooter](r.vm)
	if !ok || !resets {
		return "", nil, nil
	}
	press = func(ctx context.Context) error {
		if err := rebooter.AllowReboot(ctx, false); err != nil { // the guest answers by a reset
			return err
		}
		return k.PressCtrlAltDel(ctx)
	}
	return "Ctrl-Alt-Del was pressed", press, func() { rebooter.AllowReboot(r.machine.lab.ctx, r.allowReboot) }
}

// PressPowerButton presses the power button of a machine that is on, and does not wait for
// what the guest makes of it: nothing, if nobody there listens. It does not need the agent.
func (m *Machine) PressPowerButton(ctx context.Context) error {
	const operation = "press_power_button"
	return step(ctx, m.Name(), operation, "", func(ctx context.Context) error {
		if err := m.config.supports(ctx, operation, vmm.CanPress); err != nil {
			return err
		}
		r, err := m.on(operation)
		if err != nil {
			return err
		}
		if err := r.awake(operation); err != nil {
			return err
		}
		b, ok := vmm.As[vmm.PowerButton](r.vm)
		if !ok {
			return &UnsupportedError{Machine: m.Name(), Operation: operation, Backend: m.config.Backend}
		}
		return r.explain(ctx, operation, r.whenGone(b.PressPower(ctx)))
	})
}

// on is the run of a machine that is on.
func (m *Machine) on(operation string) (*run, error) {
	m.mu.Lock()
	r, ended := m.current, m.ended
	m.mu.Unlock()
	switch {
	case r == nil && ended != nil:
		return nil, m.downError(operation, ended)
	case r == nil:
		return nil, &DownError{Machine: m.Name(), Operation: operation, Reason: "it is off"}
	}
	return r, nil
}

// WaitForShutdown waits until the guest has powered itself off.
func (m *Machine) WaitForShutdown(ctx context.Context, opts ...WaitOption) error {
	return m.powerOff(ctx, "wait_for_shutdown", collect(opts), nil)
}

func (m *Machine) powerOff(ctx context.Context, operation string, o options, ask func(context.Context, *run, time.Duration) error) error {
	w := m.newWait(operation, "", o, shutdownTimeout)
	var do func(context.Context, *run) error
	if ask != nil {
		do = func(ctx context.Context, r *run) error { return ask(ctx, r, w.limit) }
	}
	return w.do(ctx, func(ctx context.Context) (*run, error) {
		m.mu.Lock()
		r, gone := m.current, m.endedRun
		m.mu.Unlock()
		switch {
		case r != nil:
			if err := r.awake(operation); err != nil {
				return r, err
			}
		case gone != nil && !gone.orderly():
			return gone, m.downError(operation, gone.down) // as if it had ended during the wait
		}
		err := m.stop(ctx, do)
		if err != nil {
			m.unask(r)
		}
		if seen := (*WaitError)(nil); err != nil && context.Cause(ctx) == errWaitOver && !errors.As(err, &seen) {
			err = &WaitError{LastSeen: "the machine still runs"}
		}
		if err == nil && r != nil && !r.orderly() {
			m.mu.Lock()
			if m.current == nil {
				m.ended, m.endedRun = r.down, r // that was not what was waited for
			}
			m.mu.Unlock()
			return r, m.downError(operation, r.down)
		}
		return r, err
	})
}

// Crash ends the machine as by pulling the plug: what the guest had synced is
// on its disk, the rest is lost. The next start boots from that disk.
func (m *Machine) Crash(ctx context.Context) error {
	return step(ctx, m.Name(), "crash", "", func(ctx context.Context) error {
		return m.stop(ctx, func(ctx context.Context, r *run) error {
			if c, ok := vmm.As[vmm.Crasher](r.vm); ok && c.Crash(ctx) == nil {
				return nil
			}
			return r.vm.Kill()
		})
	})
}

// Reboot restarts the guest in an orderly way and waits until it answers again.
func (m *Machine) Reboot(ctx context.Context, opts ...WaitOption) error {
	return m.newWait("reboot", "", collect(opts), rebootTimeout).do(ctx, func(ctx context.Context) (*run, error) {
		r, err := m.use(ctx, "reboot")
		if err == nil {
			err = r.reboot(ctx)
		}
		if err == nil {
			r.rebootsAwaited()
		}
		return r, err
	})
}

// WaitForReboot waits until the guest has rebooted by itself and answers again. A
// reboot that has come already, and that nobody has waited for, counts. The machine
// has to allow it (AllowReboot); otherwise its guest's reset ends it.
func (m *Machine) WaitForReboot(ctx context.Context, opts ...WaitOption) error {
	w := m.newWait("wait_for_reboot", "", collect(opts), rebootTimeout)
	return w.do(ctx, func(ctx context.Context) (*run, error) {
		r, err := m.powered(ctx, w.operation)
		if err != nil {
			return r, err
		}
		if !r.allowReboot {
			return r, &ConfigError{"machine " + m.Name() + ": wait_for_reboot", "a reset of its guest ends the machine; declare it with " + written(ctx, argument{"allow_reboot", true})}
		}
		if err = r.awake(w.operation); err == nil {
			err = r.awaitReady(ctx)
		}
		if err == nil {
			err = r.awaitReboot(ctx)
		}
		return r, err
	})
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
		if err := m.config.supports(ctx, operation, vmm.CanPause); err != nil {
			return err
		}
		r, err := m.on(operation)
		if err != nil {
			return err
		}
		return r.explain(ctx, operation, r.setPaused(ctx, operation, pause))
	})
}

// panicTimeout is how long a kernel may take to panic when it was asked to, by
// its agent and then by an interrupt.
const panicTimeout = time.Minute

// KernelPanic makes the guest's kernel panic, and waits until the machine is off
// for it. The agent asks for it by SysRq; when it does not answer the machine
// gets an NMI, on which attest's guests panic. The next start boots from the disk
// as the panic left it.
func (m *Machine) KernelPanic(ctx context.Context, opts ...WaitOption) error {
	w := m.newWait("kernel_panic", "", collect(opts), panicTimeout)
	return w.do(ctx, func(ctx context.Context) (*run, error) {
		r, err := m.use(ctx, w.operation)
		if err == nil {
			if err = m.stop(ctx, func(ctx context.Context, r *run) error { return r.panic(ctx, w.limit) }); err != nil {
				m.unask(r)
			}
		}
		if err == nil && m.console.PanicLine() == "" && r.vm.Exit().Reason != vmm.Panicked {
			return r, m.downError(w.operation, r.down) // it ended for another reason
		}
		if err != nil && context.Cause(ctx) == errWaitOver {
			err = &WaitError{LastSeen: "the kernel has not panicked"}
		}
		return r, err
	})
}

// initrdMark is there as long as systemd runs from an initrd (systemd's Initrd
// Interface).
const initrdMark = "/etc/initrd-release"

// SwitchRoot leaves the initrd: it waits for initrd.target, has systemd switch to
// the root file system, and waits until it has. It is for guests whose init is a
// systemd that stays in an initrd until somebody asks; attest's own images boot
// straight into their root.
func (m *Machine) SwitchRoot(ctx context.Context, opts ...WaitOption) error {
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
		if r.door != nil { // the root has a backdoor of its own, by which it gets another agent
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
func (m *Machine) ConsoleLog() string { return m.console.SinceBoot() }

// JoinAll waits until all machines that run have powered themselves off. There is
// no limit but Timeout.
func (l *Lab) JoinAll(ctx context.Context, opts ...WaitOption) error {
	return step(ctx, "", "join_all", "", func(ctx context.Context) error {
		o := collect(opts)
		if !o.hasTimeout {
			o.timeout = forever
		}
		machines := l.Machines()
		errs := make([]error, len(machines))
		var wg sync.WaitGroup
		for i, m := range machines {
			wg.Go(func() { errs[i] = m.WaitForShutdown(ctx, Timeout(o.timeout)) })
		}
		wg.Wait()
		return errors.Join(errs...)
	})
}

// forever is longer than any test.
const forever = 365 * 24 * time.Hour

// StartAll starts every machine that is not running, all at once, and returns
// when their VMMs run; it does not wait for the guests.
func (l *Lab) StartAll(ctx context.Context) error {
	return step(ctx, "", "start_all", "", func(ctx context.Context) error {
		if err := l.Prepare(ctx); err != nil {
			return err
		}
		machines := l.Machines()
		errs := make([]error, len(machines))
		var wg sync.WaitGroup
		for i, m := range machines {
			wg.Go(func() { errs[i] = m.Start(ctx) })
		}
		wg.Wait()
		return errors.Join(errs...)
	})
}
