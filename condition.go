package attest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// A Condition is a claim that is to hold while something else goes on, such as
// that a server answers while its cluster is changed.
type Condition struct {
	Description string                      // for errors
	Interval    time.Duration               // between two checks; 0: 2 s
	Check       func(context.Context) error // nil: it holds
	Lab         *Lab                        // to whose host's speed the default limit of Wait is scaled; nil: it is not
}

const conditionInterval = 2 * time.Second

// A ConditionError is a condition that does not hold.
type ConditionError struct {
	Description string
	Checks      int // that were made, the bad one included
	Err         error
}

func (e *ConditionError) Error() string {
	return fmt.Sprintf("polling condition failed: %s (check %d): %v", e.Description, e.Checks, e.Err)
}

func (e *ConditionError) Unwrap() error { return e.Err }

// Status is that of the check: a machine that is broken is no failed claim.
func (e *ConditionError) Status() Status { return StatusOf(e.Err) }

// During runs fn and checks the condition meanwhile: first of all, and then
// again and again. When it does not hold the context of fn ends, so that an
// operation under way fails at once, and the result is a *ConditionError.
func (c Condition) During(ctx context.Context, fn func(context.Context) error) error {
	bad := &ConditionError{Description: c.Description}
	check := func(ctx context.Context) error {
		bad.Checks++
		if bad.Err = c.Check(ctx); bad.Err != nil {
			return bad
		}
		return nil
	}
	if err := check(ctx); err != nil {
		return ended(ctx, err)
	}
	inner, cancel := context.WithCancelCause(ctx)
	var checker sync.WaitGroup
	var failed error
	checker.Go(func() {
		for pause(inner, c.interval()) == nil {
			if err := check(inner); err != nil && inner.Err() == nil {
				failed = err
				cancel(err)
			}
		}
	})
	err := fn(inner)
	cancel(nil)
	checker.Wait()
	if failed != nil {
		return ended(ctx, failed)
	}
	return err
}

func (c Condition) interval() time.Duration {
	if c.Interval > 0 {
		return c.Interval
	}
	return conditionInterval
}

// ended is err, or why ctx ended if that was first.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// Wait waits until the condition holds, at most 15 minutes, more on the slow host of
// a Lab, unless Timeout is given. A check that fails because a machine is down, or because of anything
// else than its own claim, ends the wait.
func (c Condition) Wait(ctx context.Context, opts ...WaitOption) error {
	limit := defaultTimeout
	if c.Lab != nil {
		limit = c.Lab.Scale(limit)
	}
	if o := collect(opts); o.hasTimeout {
		limit = o.timeout
	}
	return step(ctx, "", "polling_condition.wait", c.Description, func(outer context.Context) error {
		start := time.Now()
		ctx, cancel := context.WithTimeoutCause(outer, limit, errWaitOver)
		defer cancel()
		over := &WaitError{Operation: "polling_condition.wait", Args: c.Description, Limit: limit}
		for interval := 10 * time.Millisecond; ; interval = min(2*interval, 250*time.Millisecond) {
			// The first check takes its time, also with a limit of 0.
			checking := ctx
			if over.Tries == 0 && limit <= 0 {
				checking = outer
			}
			err := c.Check(checking)
			over.Tries++
			var down *DownError
			switch {
			case err == nil:
				return nil
			case outer.Err() != nil:
				return context.Cause(outer)
			case StatusOf(err) != Failed || errors.As(err, &down):
				return err
			case checking.Err() == nil:
				over.LastSeen = err.Error()
			case over.LastSeen == "":
				over.LastSeen = "the first check had not ended"
			}
			if pause(ctx, interval) != nil {
				over.Elapsed = time.Since(start)
				return ended(outer, over)
			}
		}
	})
}

// WaitAll runs a wait for several machines at once, all of the lab unless some are
// named, and returns when all have ended. The first that fails ends the others, and is
// the error.
func (l *Lab) WaitAll(ctx context.Context, wait func(context.Context, *Machine) error, on ...Machines) error {
	machines := l.Machines()
	if len(on) > 0 {
		machines = nil
		for _, name := range Group(on).machineNames() {
			m := l.Machine(name)
			if m == nil {
				return &ConfigError{"wait_all", fmt.Sprintf("the lab has no machine %q", name)}
			}
			machines = append(machines, m)
		}
	}
	return step(ctx, "", "wait_all", "", func(outer context.Context) error {
		ctx, cancel := context.WithCancelCause(outer)
		defer cancel(nil)
		var once sync.Once
		var first error
		each(machines, func(_ int, m *Machine) error {
			err := wait(ctx, m)
			if err != nil {
				once.Do(func() { first = err })
				cancel(err)
			}
			return err
		})
		return first
	})
}
