package attest

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/vmm"
)

var stepCounter atomic.Uint64

// step runs one operation between its two events, and makes what fn returns
// into a report. Steps that fn starts in turn are its children.
func step(ctx context.Context, machine, operation, args string, fn func(context.Context) error) error {
	scope := event.ScopeOf(ctx)
	id := stepCounter.Add(1)
	event.Publish(ctx, event.StepStarted{
		ID: id, Parent: scope.Step, Machine: machine, Operation: operation, Args: args,
		Position: event.PositionOf(ctx),
	})
	outer := ctx
	scope.Step = id
	start := time.Now()
	err := outward(fn(event.WithScope(ctx, scope)))
	done := event.StepFinished{ID: id, Machine: machine, Status: event.Status(StatusOf(err)), Duration: time.Since(start)}
	if err != nil {
		done.Message = err.Error()
		done.Failure = failureOf(err, machine, operation)
		done.ExitCode, done.Tries = done.Failure.ExitCode, done.Failure.Tries
	}
	event.Publish(outer, done)
	return err
}

// A wait is one operation that waits: its name and arguments for the report,
// and its one deadline in wall-clock time.
type wait struct {
	machine   *Machine
	operation string
	args      string
	limit     time.Duration
	start     time.Time
	seen      string // what kept it from its end while it was under way
}

var errWaitOver = errors.New("timed out")

// newWait is a wait whose limit is that of the options, or otherwise scaled to
// the host.
func (m *Machine) newWait(operation, args string, o options, otherwise time.Duration) *wait {
	return &wait{machine: m, operation: operation, args: args, limit: o.limit(m.lab.host, otherwise), start: time.Now()}
}

// do runs fn as a step under the wait's deadline. fn returns a *WaitError
// without the fields that wait knows, or another error, and the run that it was
// about if it got that far.
func (w *wait) do(ctx context.Context, fn func(context.Context) (*run, error)) error {
	return step(ctx, w.machine.Name(), w.operation, w.args, func(outer context.Context) error {
		w.start = time.Now()
		return w.limited(outer, w.limit, fn)
	})
}

// limited is do inside of the step.
func (w *wait) limited(outer context.Context, limit time.Duration, fn func(context.Context) (*run, error)) error {
	ctx, cancel := context.WithTimeoutCause(outer, limit, errWaitOver)
	defer cancel()
	var watch *watch
	if r := w.machine.running(); r != nil {
		watch = r.watchStep(outer, "")
	}
	r, err := fn(ctx)
	if watch != nil {
		w.seen = watch.stop()
	}
	return w.explain(outer, ctx, r, err)
}

// wait is do for what happens in the guest. The limit counts from the moment
// at which the guest can be asked: how long it may take to boot is limited by
// itself, and one that does not is another kind of failure.
func (m *Machine) wait(ctx context.Context, operation, args string, o options, fn func(context.Context, *run) error) error {
	w := m.newWait(operation, args, o, defaultTimeout)
	return step(ctx, m.Name(), operation, args, func(outer context.Context) error { return w.inGuest(outer, fn) })
}

// inGuest is Machine.wait inside of the step.
func (w *wait) inGuest(outer context.Context, fn func(context.Context, *run) error) error {
	m := w.machine
	r, err := m.use(outer, w.operation)
	if err != nil {
		return w.explain(outer, outer, r, err)
	}
	w.start = time.Now()
	limit := w.limit
	if limit <= 0 { // one look at the guest takes the time that it takes
		limit = m.lab.host.scale(defaultTimeout)
	}
	return w.limited(outer, limit, func(ctx context.Context) (*run, error) {
		return r, r.overReboots(ctx, func(ctx context.Context) error { return fn(ctx, r) })
	})
}

// once reports whether a wait is for one look.
func (o options) once() bool { return o.hasTimeout && o.timeout <= 0 }

// withVMM gives fn the VMM of a machine as one that has a capability. A machine
// that lacks it is refused before it is started; one that is off is started, but
// its guest need not have answered. The screen of one whose kernel has panicked can be looked
// at when it is off.
func withVMM[V any](ctx context.Context, m *Machine, operation string, what vmm.Capability, fn func(*run, V) error) error {
	if err := m.config.supports(ctx, operation, what); err != nil {
		return err
	}
	r, err := m.powered(ctx, operation)
	if err != nil {
		if ended, still := m.fallen(); ended != nil {
			if v, ok := any(still).(V); ok {
				return ended.explain(ctx, operation, fn(ended, v))
			}
		}
		return err
	}
	v, ok := vmm.As[V](r.vm)
	if !ok {
		return &UnsupportedError{Machine: m.Name(), Operation: operation, Backend: m.config.Backend}
	}
	return r.explain(ctx, operation, fn(r, v))
}

// as is the VMM of a machine that is known to have a capability.
func as[V any](r *run) V {
	v, _ := vmm.As[V](r.vm)
	return v
}

// defaultTimeout is the NixOS driver's limit for waits and execute.
const defaultTimeout = 15 * time.Minute
