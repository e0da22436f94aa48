package attest

import (
	"context"
	"errors"
	"fmt"
	"time"

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
		return false
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
		err := m.stop(ctx, ask)
		if err != nil {
			m.resume(r)
		}
		if err != nil && context.Cause(ctx) == errWaitOver {
			err = &WaitError{LastSeen: "the machine still runs"}
		}
		if err == nil && r != nil {
			var down *DownError
			if exit := r.vm.Exit(); exit.Reason != vmm.PoweredOff && exit.Reason != vmm.Reset && errors.As(r.down, &down) {
				return m.downError(operation, down)
			}
		}
		return w.explain(outer, ctx, r, err)
	})
}

// resume takes back that the end of a run was asked for: it did not come.
func (m *Machine) resume(r *run) {
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

// ConsoleLog is what the serial console has said since the machine was started.
func (m *Machine) ConsoleLog() string { return m.console.sinceBoot() }
