package attest

import (
	"context"
	"errors"
	"time"

	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/wire"
)

// reboots are those of the guest in one run of its machine.
type reboots struct {
	boot   string    // of the kernel that answered last
	since  time.Time // when it answered
	count  int       // of boots after the first
	waited int       // for how many of them somebody has waited, or asked
}

// answered notes that a guest has answered, which may be the same as before.
func (b *reboots) answered(boot string) {
	if b.boot != "" && boot != b.boot {
		b.count++
	}
	b.boot, b.since = boot, time.Now()
}

// retryLost is the pause before a command is tried again whose shell was killed, as
// in a guest that goes down.
const retryLost = 100 * time.Millisecond

// overReboots runs what waits for something in the guest, and again in each boot that
// follows where the guest may reboot by itself.
func (r *run) overReboots(ctx context.Context, fn func(context.Context) error) error {
	for {
		before := r.agentInstance()
		err := fn(ctx)
		if err == nil || !r.allowReboot || ctx.Err() != nil {
			return err
		}
		var restarted *guest.RestartedError
		var silent *guest.UnresponsiveError
		var op *guest.OpError
		switch {
		case errors.As(err, &restarted):
		case errors.As(err, &op) && op.Kind == wire.KindDown, errors.As(err, &silent) && r.hasReset():
			if err := r.nextBoot(ctx, before); err != nil {
				return rebooting(ctx, err)
			}
		case errors.As(err, &op) && op.Kind == wire.KindLost:
			select {
			case <-time.After(retryLost):
			case <-ctx.Done():
				return rebooting(ctx, err)
			}
		default:
			return err
		}
	}
}

// nextBoot waits until another agent answers than before. It is silent while the guest
// boots.
func (r *run) nextBoot(ctx context.Context, before string) error {
	for {
		_, err := r.guest.ReadyAgain(ctx, wire.Info{Instance: before})
		var silent *guest.UnresponsiveError
		if !errors.As(err, &silent) || !r.hasReset() {
			return err
		}
	}
}

// hasReset reports whether the VMM has said that the guest reset the machine since it
// last answered: then its silence is that of a boot.
func (r *run) hasReset() bool {
	source, ok := vmm.As[vmm.EventSource](r.vm)
	if !ok {
		return false
	}
	r.machine.mu.Lock()
	since := r.reboots.since
	r.machine.mu.Unlock()
	past, cancel := context.WithCancel(context.Background())
	cancel() // only those that are there
	for n := int64(0); ; {
		e, next, err := source.Events().Next(past, n)
		if err != nil {
			return false
		}
		if n = next; e.Name == "RESET" && e.Time.After(since) { // QEMU qapi/run-state.json
			return true
		}
	}
}

// rebooting is the error of a wait that ended while the guest rebooted.
func rebooting(ctx context.Context, err error) error {
	if context.Cause(ctx) == errWaitOver {
		return &WaitError{LastSeen: "the guest was rebooting"}
	}
	return err
}

// awaitReboot waits for a reboot of the guest that nobody has waited for yet.
func (r *run) awaitReboot(ctx context.Context) error {
	m := r.machine
	for {
		m.mu.Lock()
		before, come := r.agent, r.reboots.count > r.reboots.waited
		if come {
			r.reboots.waited = r.reboots.count
		}
		m.mu.Unlock()
		if come {
			return nil
		}
		if err := r.nextBoot(ctx, before); err != nil {
			if context.Cause(ctx) == errWaitOver {
				return &WaitError{LastSeen: "the guest has not rebooted"}
			}
			return err
		}
	}
}

// rebootsAwaited notes that the reboots so far are no news.
func (r *run) rebootsAwaited() {
	r.machine.mu.Lock()
	r.reboots.waited = r.reboots.count
	r.machine.mu.Unlock()
}
