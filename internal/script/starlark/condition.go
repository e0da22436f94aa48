package starlark

import (
	"context"
	"fmt"
	"strings"
	"time"

	sl "go.starlark.net/starlark"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/operation"
)

// A condition is what polling_condition returns.
type condition struct {
	fn          sl.Callable
	description string
	interval    time.Duration
}

var _ sl.HasAttrs = (*condition)(nil)

func (c *condition) String() string        { return fmt.Sprintf("<polling_condition %s>", c.description) }
func (c *condition) Type() string          { return "polling_condition" }
func (c *condition) Freeze()               { c.fn.Freeze() }
func (c *condition) Truth() sl.Bool        { return true }
func (c *condition) Hash() (uint32, error) { return sl.String(c.description).Hash() }
func (c *condition) AttrNames() []string   { return []string{"during", "wait"} }

func (c *condition) Attr(name string) (sl.Value, error) {
	switch name {
	case "during":
		return sl.NewBuiltin("polling_condition.during", c.during), nil
	case "wait":
		return sl.NewBuiltin("polling_condition.wait", c.wait), nil
	}
	return nil, usagef("polling_condition has no operation %s%s", name, operation.DidYouMean(name, c.AttrNames()))
}

// pollingCondition is polling_condition(fn, interval=, description=).
func pollingCondition(_ *sl.Thread, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
	c := &condition{}
	var interval durationArg
	if err := unpack(b, args, kwargs, "fn", &c.fn, "interval?", &interval, "description?", &c.description); err != nil {
		return nil, err
	}
	c.interval = time.Duration(interval)
	if c.description == "" {
		c.description = c.fn.Name()
		if fn, ok := c.fn.(*sl.Function); ok && fn.Doc() != "" {
			c.description, _, _ = strings.Cut(strings.TrimSpace(fn.Doc()), "\n")
		}
	}
	return c, nil
}

// of is the condition as t checks it: it does not hold when the function fails
// or returns False.
func (c *condition) of(th *thread, t *sl.Thread) attest.Condition {
	at := th.child(t, th.ctx)
	return attest.Condition{Description: c.description, Interval: c.interval, Check: func(ctx context.Context) error {
		child := *at
		child.ctx = ctx
		v, err := child.call(c.fn)
		switch {
		case err != nil:
			return &checkError{err}
		case v == sl.False:
			return errReturnedFalse
		}
		return nil
	}}
}

// A checkError is the error of a check as part of a longer sentence: its place
// is shown elsewhere.
type checkError struct{ err error }

func (e *checkError) Error() string { return message(e.err) }
func (e *checkError) Unwrap() error { return e.err }

func (c *condition) during(t *sl.Thread, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
	var fn sl.Callable
	if err := unpack(b, args, kwargs, "fn", &fn); err != nil {
		return nil, err
	}
	th := threadOf(t)
	var v sl.Value
	var err error
	th.unlocked(func() {
		err = c.of(th, t).During(th.ctx, func(ctx context.Context) (err error) {
			v, err = th.child(t, ctx).call(fn)
			return err
		})
	})
	return v, err
}

func (c *condition) wait(t *sl.Thread, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
	th := threadOf(t)
	timeout := th.limit(retryTimeout)
	if err := unpack(b, args, kwargs, "timeout?", &timeout); err != nil {
		return nil, err
	}
	var err error
	th.unlocked(func() { err = c.of(th, t).Wait(th.ctx, attest.Timeout(time.Duration(timeout))) })
	return sl.None, err
}
