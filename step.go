package attest

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/attest-vm/attest/internal/event"
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
	err := fn(event.WithScope(ctx, scope))
	done := event.StepFinished{ID: id, Machine: machine, Status: StatusOf(err), Duration: time.Since(start)}
	if err != nil {
		done.Message = err.Error()
		done.Failure = failureOf(err, machine, operation)
		done.ExitCode, done.Tries = done.Failure.ExitCode, done.Failure.Tries
	}
	event.Publish(outer, done)
	return err
}

// FailureOf lays out an error for a report: its kind, the machine, the
// operation and the command, what they said, and the end of the console.
func FailureOf(err error) *event.Failure { return failureOf(err, "", "") }
