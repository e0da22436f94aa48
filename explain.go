package attest

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/console"
	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/wire"
)

// explain turns the guest channel's error into what really happened: when the
// machine went down under the operation, that is the news.
func (r *run) explain(ctx context.Context, operation string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return r.explainWithin(ctx, operation, r.machine.lab.host.scale(downPatience), err)
}

// explainWithin is explain for an operation that has no more time than that to see what
// becomes of a guest that goes down.
func (r *run) explainWithin(ctx context.Context, operation string, left time.Duration, err error) error {
	var op *guest.OpError
	if errors.As(err, &op) && op.Kind == wire.KindDown {
		err = r.awaitDown(ctx, left, err)
	}
	var down *DownError
	if errors.As(err, &down) {
		return r.machine.downError(operation, down)
	}
	if r.lacksOfHost(op) {
		return &InfraError{r.machine.Name(), op.Operation, errors.New(op.Message)}
	}
	var silent *guest.UnresponsiveError
	var late *guest.OverdueError
	lost := op != nil && op.Kind == wire.KindLost
	if (lost || errors.As(err, &silent) || errors.As(err, &late)) && ctx.Err() == nil {
		m := r.machine
		if silent != nil || late != nil && late.Silent {
			r.noteSilence()
		}
		seen := r.inspect(ctx, "")
		state := seen.state
		if lost {
			state = seen.ofKilled()
		}
		err = &UnresponsiveError{Machine: m.Name(), Operation: operation, State: state, Console: m.console.Tail(consoleTail), Err: err}
	}
	return err
}

// lacksOfHost reports whether an operation failed because this host has run out of something:
// it is the system of a machine that is processes of the host.
func (r *run) lacksOfHost(op *guest.OpError) bool {
	_, ofHost := r.machine.kind.(*mocked)
	return ofHost && op != nil && op.Kind == wire.KindExhausted
}

// awaitDown is what becomes of a guest that ends its processes: the machine goes
// down in a moment, or the guest is back.
func (r *run) awaitDown(ctx context.Context, left time.Duration, err error) error {
	limited, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	before, end := r.guest.Ready(limited)
	if end == nil {
		_, end = r.guest.ReadyAgain(limited, before)
	}
	var down *DownError
	switch {
	case errors.As(end, &down):
		return down
	case end == nil:
		return &guest.RestartedError{Machine: r.machine.Name()}
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return err
}

// downPatience is how long a guest may take from ending its processes to the
// end of the machine.
const downPatience = time.Minute

// downError is cause with the operation that found the machine down.
func (m *Machine) downError(operation string, cause error) error {
	var down *DownError
	if !errors.As(cause, &down) {
		return cause
	}
	d := *down
	d.Operation = operation
	return &d
}

// whenGone makes an error that came from the end of the VMM the reason for that.
func (r *run) whenGone(err error) error {
	if err == nil {
		return nil
	}
	select {
	case <-r.vm.Done():
		<-r.over
		return r.down
	default:
		return err
	}
}

// explainRefusal is explain for operations about something in the guest: it names
// what was asked for, as the guest's own words may be about a part of it.
func (r *run) explainRefusal(ctx context.Context, operation, args string, err error) error {
	var op *guest.OpError
	if errors.As(err, &op) && op.Kind != wire.KindDown && !r.lacksOfHost(op) && ctx.Err() == nil {
		return &RefusedError{r.machine.Name(), operation, args, op.Message, err}
	}
	return r.explain(ctx, operation, err)
}

// explain fills in what the wait knows, and tells its own deadline from the
// caller's.
func (w *wait) explain(outer, ctx context.Context, r *run, err error) error {
	if err == nil {
		return nil
	}
	if outer.Err() != nil {
		if boot := (*BootError)(nil); errors.As(err, &boot) {
			return boot // it knows what the console said
		}
		e := &UnderWayError{w.machine.Name(), w.operation, w.args, time.Since(w.start), w.seen, context.Cause(outer)}
		var seen *guest.WaitError
		if errors.As(err, &seen) && seen.LastSeen != "" {
			e.LastSeen = strings.TrimSuffix(seen.LastSeen+"; "+e.LastSeen, "; ")
		}
		return e
	}
	var we *WaitError
	if !errors.As(err, &we) && context.Cause(ctx) == errWaitOver {
		we = &WaitError{}
		var seen *guest.WaitError
		switch {
		case r == nil:
			we.LastSeen = "the guest had not answered yet"
		case errors.As(err, &seen):
			we.LastSeen = seen.LastSeen
		}
	}
	if we != nil {
		we.Machine, we.Operation, we.Args = w.machine.Name(), w.operation, w.args
		we.Elapsed, we.Limit = time.Since(w.start), w.limit
		if attach := we.attach; attach != nil {
			we.attach = nil
			attach(we)
		}
		w.attach(outer, r, we)
		return we
	}
	if r != nil {
		if errors.Is(err, console.ErrGone) {
			<-r.over
			err = r.down
		}
		return r.explain(ctx, w.operation, err)
	}
	return err
}

// attach adds what helps to understand a failed wait: the end of the console, the
// state of the machine, and if the guest still answers units that failed or are restarted.
func (w *wait) attach(ctx context.Context, r *run, we *WaitError) {
	if tail := w.machine.console.Tail(consoleTail); len(tail) > 0 {
		we.Details = append(we.Details, Detail{Title: "last console lines of " + w.machine.Name(), Text: strings.Join(tail, "\n")})
	}
	if r == nil {
		return
	}
	l := r.inspect(ctx, "")
	we.State = l.state
	we.Details = append(l.details(), we.Details...)
}

// consoleTail is how many lines of the console are shown with an error.
const consoleTail = 30

// attachTimeout limits the look at the guest after a failed wait.
const attachTimeout = 3 * time.Second

// looked makes what the guest said about a wait into the operation's error.
func looked(ctx context.Context, seen wire.Observation, err error) error {
	if errors.Is(err, guest.ErrNotYet) || err != nil && context.Cause(ctx) == errWaitOver {
		return &WaitError{LastSeen: seen.Seen, Tries: seen.Tries}
	}
	return err
}

// lastLine is the last line of the first text that has one, as an addition to
// a sentence.
func lastLine(texts ...string) string {
	for _, t := range texts {
		t = strings.TrimSpace(t)
		if last := t[strings.LastIndex(t, "\n")+1:]; last != "" {
			return ": " + strings.ToValidUTF8(last, "\uFFFD")
		}
	}
	return ""
}
