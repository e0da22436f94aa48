package attest

import (
	"context"
	"errors"
	"time"

	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/vmm"
)

// sleepTimeout is how long a guest may take to suspend its machine, and to answer when
// that was woken.
const sleepTimeout = time.Minute

// lookAgain is the pause between two looks at whether a machine sleeps. No VMM has to
// tell that.
const lookAgain = 50 * time.Millisecond

// Suspend has the guest suspend its machine, and waits until it sleeps. A systemd does that
// as by systemctl suspend, with its hooks; in other guests it is the kernel alone. On attest's
// own machines the guest suspends to idle. Operations that need the guest are a
// *SuspendedError until something wakes it, such as Wake.
func (m *Machine) Suspend(ctx context.Context, opts ...WaitOption) error {
	return m.sleeping(ctx, "suspend", opts, m.use, func(ctx context.Context, r *run, v vmm.Waker) error {
		answer := make(chan error, 1)
		m.mu.Lock()
		if m.current == r {
			r.aside.Go(func() { answer <- r.guest.Suspend(ctx) }) // the answer may come when it is awake again, and nobody waits for it then
		}
		m.mu.Unlock()
		if err := r.awaitSleep(ctx, v, answer); err != nil {
			return err
		}
		r.setSuspended(true)
		return nil
	})
}

// awaitSleep waits until the guest sleeps. It ends early when the guest has refused.
func (r *run) awaitSleep(ctx context.Context, v vmm.Waker, answer <-chan error) error {
	var refused *guest.OpError
	for {
		state, err := v.State(ctx)
		if err != nil || state == vmm.Suspended {
			return r.whenGone(err)
		}
		select {
		case err := <-answer:
			if errors.As(err, &refused) {
				return &WaitError{Reason: "the guest refused: " + refused.Message}
			}
			if err != nil {
				return err
			}
			answer = nil // systemd has begun
		case <-time.After(lookAgain):
		case <-r.over:
			return r.down
		case <-ctx.Done():
			return &WaitError{LastSeen: "the guest is awake"}
		}
	}
}

// Wake wakes a machine that sleeps, and waits until its guest answers. A guest that is awake
// is waited for until it sleeps, as after its own systemctl suspend, unless something else has
// woken it since Suspend. The guest's clock has the host's time afterwards.
func (m *Machine) Wake(ctx context.Context, opts ...WaitOption) error {
	return m.sleeping(ctx, "wake", opts, m.powered, func(ctx context.Context, r *run, v vmm.Waker) error {
		state, err := v.State(ctx) // its ports may still look closed when it is awake
		if err != nil {
			return r.whenGone(err)
		}
		m.mu.Lock()
		woken := r.unwoken && state != vmm.Suspended // by something else, such as a key
		m.mu.Unlock()
		if !woken {
			if err := r.awaitSleep(ctx, v, nil); err != nil {
				return err
			}
		}
		for {
			if err := v.Wake(ctx); err != nil {
				return r.whenGone(err)
			}
			answered, cancel := context.WithTimeout(ctx, m.lab.host.scale(time.Second))
			err := r.guest.Echo(answered)
			again := answered.Err() != nil && ctx.Err() == nil // it was just falling asleep
			cancel()
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return &WaitError{LastSeen: "the machine was told to wake, and its guest has not answered"}
			}
			if !again {
				return err
			}
		}
		r.setSuspended(false)
		m.mu.Lock()
		r.unwoken = false
		m.mu.Unlock()
		return r.guest.SetClock(ctx)
	})
}

// sleeping is a wait of a machine that can sleep. Its limit counts from where start has the
// machine.
func (m *Machine) sleeping(ctx context.Context, operation string, opts []WaitOption, start func(context.Context, string) (*run, error), fn func(context.Context, *run, vmm.Waker) error) error {
	w := m.newWait(operation, "", collect(opts), sleepTimeout)
	return step(ctx, m.Name(), operation, "", func(outer context.Context) error {
		if err := m.config.supports(outer, operation, vmm.CanWake); err != nil {
			return err
		}
		r, err := start(outer, operation)
		if err != nil {
			return w.explain(outer, outer, r, err)
		}
		v, ok := vmm.As[vmm.Waker](r.vm)
		if !ok {
			return &UnsupportedError{Machine: m.Name(), Operation: operation, Backend: m.config.Backend}
		}
		w.start = time.Now()
		return w.limited(outer, w.limit, func(ctx context.Context) (*run, error) { return r, fn(ctx, r, v) })
	})
}
