package starlark

import (
	"context"
	"fmt"
	"time"

	"github.com/attest-vm/attest"
)

// An interpreter is the lock that all threads of one evaluation share, so that
// Starlark code sees no concurrency except where it waits. It is held while
// Starlark code runs, and not while an operation does.
type interpreter struct {
	held    chan struct{} // of one: full while somebody holds the lock
	loading bool          // the top level of a file is evaluated
	cancel  context.CancelCauseFunc
}

func newInterpreter() *interpreter { return &interpreter{held: make(chan struct{}, 1)} }

func (i *interpreter) Lock()   { i.held <- struct{}{} }
func (i *interpreter) Unlock() { <-i.held }

// runs reports whether Starlark code runs now.
func (i *interpreter) runs() bool { return len(i.held) > 0 }

// stuckGrace is how long Starlark code may go on when it has been told to end. It
// looks at that between two instructions, and one can be a built-in function that
// has much to do.
var stuckGrace = 3 * time.Second

// A StuckError is code that has not ended when it was told to.
type StuckError struct {
	Err error // why it was to end
}

func (e *StuckError) Error() string {
	return fmt.Sprintf("%v; a built-in function did not end within %v of that: a value that is nested too deeply, or a number or a list too large?", e.Err, stuckGrace)
}

func (e *StuckError) Unwrap() error { return e.Err }

// Status is that of a claim that was not made.
func (e *StuckError) Status() attest.Status { return attest.StatusOf(e.Err) }

// evaluate runs code of a test file until it ends. Its context ends with ctx, or
// when scripts have too much memory. Code that does not end then is left alone: it
// ends as soon as it looks, and touches nothing until then but its own values.
func evaluate[T any](ctx context.Context, i *interpreter, code func(context.Context) (T, error)) (T, error) {
	ctx, i.cancel = context.WithCancelCause(ctx)
	defer i.cancel(nil)
	defer watchMemory(i)()
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		v, err := code(ctx)
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
	}
	for {
		select {
		case r := <-done:
			return r.value, r.err
		case i.held <- struct{}{}: // an operation is under way, which ends by itself
			<-i.held
			select {
			case r := <-done:
				return r.value, r.err
			case <-time.After(100 * time.Millisecond):
			}
		case <-time.After(stuckGrace):
			var none T
			return none, &StuckError{cause(ctx)}
		}
	}
}
