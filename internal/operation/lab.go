package operation

import (
	"context"
	"fmt"

	"github.com/attest-vm/attest"
)

// A Runner runs operations on a lab. Front ends know a lab only by this, so
// that they can be tried without virtual machines.
type Runner interface {
	// Invoke runs one operation; machine is empty for operations of the lab.
	// What is returned has the Go type of the operation's result: nil, string,
	// bool or Result.
	Invoke(ctx context.Context, machine string, o *Operation, args Args) (any, error)
	// Close ends the lab.
	Close() error
}

// Of returns the Runner of a lab.
func Of(lab *attest.Lab) Runner { return runner{lab} }

type runner struct{ *attest.Lab }

func (r runner) Invoke(ctx context.Context, machine string, o *Operation, args Args) (any, error) {
	t := target{lab: r.Lab}
	if o.On == Machine {
		if t.machine = r.Machine(machine); t.machine == nil {
			return nil, fmt.Errorf("the lab has no machine %q", machine)
		}
	}
	return o.call(ctx, t, args)
}

// Error adds to an operation's error where it comes from; its text stays the same.
type Error struct {
	Machine   string // empty for operations of the lab
	Operation string
	Err       error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }
